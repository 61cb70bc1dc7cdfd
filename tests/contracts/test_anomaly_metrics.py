"""Anomaly metrics against their golden case, against plain counting, and what they refuse."""

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from mim_core import MimError
from mim_core.evaluation.anomaly import Judged, signs
from mim_core.evaluation.anomaly_metrics import (
    ScoreCounts,
    area_up_to,
    aupro,
    frame_auroc,
    pro_curve,
)
from mim_core.ranking_scores import auroc, average_precision
from mim_core.testing.golden import try_case

CASE = Path(__file__).resolve().parents[2].parent / "shared/golden/downstream/anomaly_metrics.safetensors"


@pytest.mark.skipif(not CASE.exists(), reason=f"no {CASE}")
def test_the_golden_case():
    lines = try_case(CASE)
    assert [line.name for line in lines if not line.fits] == []
    compared = {line.name for line in lines if line.apart is not None}
    assert {"image_auroc", "pixel_ap", "aupro_0.3", "aupro_0.05", "pro_fpr", "pro_overlap", "regions"} <= compared
    assert all(line.name.startswith(("anomalib_", "mvtec_")) for line in lines if line.apart is None)


@pytest.mark.parametrize("levels", [3, 1000])
def test_auroc_counts_pairs(levels):
    scores, flags = torch.randint(levels, (60,)), torch.rand(60) < 0.3
    flags[:2] = torch.tensor([True, False])
    pairs = list(itertools.product(scores[flags].tolist(), scores[~flags].tolist()))
    wanted = sum((a > b) + 0.5 * (a == b) for a, b in pairs) / len(pairs)
    assert auroc(scores, flags) == pytest.approx(wanted, abs=1e-12)


def test_average_precision_by_hand():
    scores, flags = torch.tensor([0.9, 0.8, 0.8, 0.1]), torch.tensor([1, 0, 1, 1])
    # at 0.9: recall 1/3, precision 1; at 0.8: recall 2/3, precision 2/3; at 0.1: recall 1, precision 3/4
    assert average_precision(scores, flags) == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)


def test_regions_weigh_alike():
    """A large region that is found and a small one that is not: half of the overlap, whatever their sizes."""
    masks, maps = torch.zeros(2, 10, 10), torch.zeros(2, 10, 10)
    masks[0, :8, :8] = 1
    masks[1, 9, 9] = 255
    maps[0, :8, :8] = 1.0
    false, overlap = pro_curve(maps, masks)
    assert false.tolist() == [0, 0, 1]
    assert overlap.tolist() == pytest.approx([0, 0.5, 1])
    assert aupro(maps, masks, 0.3) == pytest.approx(0.5 + 0.5 * 0.3 / 2)


def test_corners_connect():
    masks = torch.eye(3)[None]
    maps = torch.zeros(1, 3, 3)
    maps[0, 0, 0] = 1.0
    assert pro_curve(maps, masks)[1][1] == pytest.approx(1 / 3)
    assert pro_curve(maps, torch.tensor([[[1, 0, 0], [0, 1, 1], [0, 1, 1]]]), 4)[1][1] == pytest.approx(1 / 2)


def test_perfect_and_reversed():
    masks = torch.zeros(1, 6, 6)
    masks[0, 2:4, 2:4] = 1
    assert aupro(masks, masks, 0.3) == pytest.approx(1)
    assert aupro(-masks, masks, 0.3) == pytest.approx(0)


def test_the_cut_is_interpolated():
    false, overlap = torch.tensor([0.0, 0.2, 0.6, 1.0]).double(), torch.tensor([0.0, 0.5, 0.9, 1.0]).double()
    assert area_up_to(false, overlap, 0.4) == pytest.approx((0.05 + 0.2 * (0.5 + 0.7) / 2) / 0.4)
    assert area_up_to(false, overlap, 1.0) == pytest.approx(0.05 + 0.28 + 0.38)


def test_frames():
    scores = [torch.tensor([0.1, 0.9, 0.2]), torch.tensor([0.5, 0.4]), torch.tensor([5.0, 6.0])]
    flags = [torch.tensor([0, 1, 0]), torch.tensor([0, 1]), torch.tensor([0, 0])]
    micro, macro = frame_auroc(scores, flags)
    assert macro == pytest.approx(0.5)  # 1 and 0; the third has no abnormal frame
    assert micro == pytest.approx(auroc(torch.cat(scores), torch.cat(flags)))
    assert frame_auroc([torch.tensor([1.0]), torch.tensor([0.0])], [torch.tensor([1]), torch.tensor([0])]) == (1, None)


def test_what_cannot_be_judged():
    with pytest.raises(MimError, match="all are normal"):
        auroc(torch.rand(4), torch.zeros(4))
    with pytest.raises(MimError, match="all are abnormal"):
        average_precision(torch.rand(4), torch.ones(4))
    with pytest.raises(MimError, match="not finite"):
        auroc(torch.tensor([0.0, float("nan")]), torch.tensor([0, 1]))
    with pytest.raises(MimError, match="do not fit"):
        auroc(torch.rand(4), torch.zeros(3))
    with pytest.raises(MimError, match="0 abnormal regions"):
        pro_curve(torch.rand(1, 3, 3), torch.zeros(1, 3, 3))
    with pytest.raises(MimError, match="and 0 normal places"):
        pro_curve(torch.rand(1, 3, 3), torch.ones(1, 3, 3))
    with pytest.raises(MimError, match="limit"):
        aupro(torch.rand(1, 3, 3), torch.eye(3)[None], 0.0)
    with pytest.raises(MimError, match="differ in shape"):
        pro_curve(torch.rand(1, 3, 3), torch.eye(4)[None])
    with pytest.raises(MimError, match="4 or 8"):
        pro_curve(torch.rand(1, 3, 3), torch.eye(3)[None], 6)


@pytest.mark.parametrize("spread", [1e-6, 1.0, 1e4])
def test_counted_scores_have_the_same_area(spread):
    """In parts, with negative ones, and within what bins lose."""
    scores, flags = torch.randn(4000) * spread, torch.rand(4000) < 0.2
    scores[flags] += spread
    counts = ScoreCounts()
    for part in range(4):
        counts.add(scores[part::4].reshape(10, -1), flags[part::4].reshape(10, -1))
    assert counts.auroc() == pytest.approx(auroc(scores, flags), abs=1e-4)
    assert counts.average_precision() == pytest.approx(average_precision(scores, flags), abs=2e-3)
    assert counts.share == pytest.approx(float(flags.float().mean()))


def test_counted_ties_count_as_ties():
    scores, flags = torch.tensor([0.0, -0.0, -2.0, -2.0, 3.0]), torch.tensor([1, 0, 1, 0, 1])
    counts = ScoreCounts()
    counts.add(scores, flags)
    assert counts.auroc() == pytest.approx(auroc(scores, flags), abs=1e-12)
    assert counts.average_precision() == pytest.approx(average_precision(scores, flags), abs=1e-12)


def test_what_cannot_be_counted():
    counts = ScoreCounts()
    with pytest.raises(MimError, match="not finite"):
        counts.add(torch.tensor([float("nan")]), torch.tensor([1]))
    with pytest.raises(MimError, match="differ in shape"):
        counts.add(torch.zeros(2), torch.zeros(3))
    counts.add(torch.zeros(2), torch.zeros(2))
    assert not counts.both
    with pytest.raises(MimError, match="need both kinds"):
        counts.auroc()


def test_places_that_nobody_knows_are_left_out():
    """Samples with -1 anywhere; and none is judged where nothing abnormal is left."""
    truth = signs(torch.tensor([[[0, 3]], [[-1, 1]], [[0, 0]]], dtype=torch.int8))
    judged = Judged(torch.arange(6.0).reshape(3, 1, 2), torch.tensor([True, True, False]), truth, 0)
    maps, places = judged.placed()
    assert maps.flatten().tolist() == [0, 1, 4, 5]
    assert places.flatten().tolist() == [False, True, False, False]
    assert replace(judged, truth=torch.minimum(truth, torch.zeros_like(truth))).placed() is None
    assert replace(judged, truth=None).placed() is None
    assert signs(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [0, 1]
