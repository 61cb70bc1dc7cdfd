"""Scores of classes and of depth at every pixel: by hand, and their standard errors against the plain jackknife."""

import pytest
import torch
from mim_core import standard_errors as se
from mim_multimodal.dense_scores import ClassCounts, GroupedCounts, berhu, depth_errors, depth_scores


def drawn(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_counts_of_classes_by_hand():
    counts = ClassCounts(4)
    counts.add(torch.tensor([0, 0, 1, 2, 9]), torch.tensor([0, 1, 1, 255, 0]))
    found = counts.scores()
    assert found["iou"][:2].tolist() == pytest.approx([1 / 3, 1 / 2])
    assert found["iou"][2:].isnan().all()  # in neither map
    assert float(found["mean_iou"]) == pytest.approx(5 / 12)
    assert float(found["pixel_accuracy"]) == pytest.approx(2 / 4)


def test_depth_by_hand():
    found, depth = torch.tensor([1.0, 3.0, 8.0]), torch.tensor([1.0, 2.0, 0.0])
    valid = torch.tensor([True, True, False])
    scores = depth_scores(found, depth, valid)
    assert scores["rmse"] == pytest.approx(0.5**0.5)
    assert scores["abs_rel"] == pytest.approx(0.25)
    assert scores["delta_1"] == pytest.approx(0.5)
    assert float(berhu(found, depth, valid)) == pytest.approx((1 + 0.04) / 0.4 / 2)
    with pytest.raises(ValueError, match="no pixel"):
        depth_scores(found, depth, torch.zeros(3, dtype=torch.bool))


def test_depth():
    found, depth = drawn(45, 4, 4) + 0.5, drawn(45, 4, 4, seed=1) + 0.5
    valid = drawn(45, 4, 4, seed=2) < 0.8
    errors = depth_errors(found, depth, valid)
    assert set(errors) == set(depth_scores(found, depth, valid))
    for name, error in errors.items():
        plain = se.jackknife_error(lambda kept: depth_scores(found[kept], depth[kept], valid[kept])[name], 45)  # noqa: B023
        assert error == pytest.approx(plain), name


def test_class_maps():
    labels, found = (drawn(30, 5, seed=3) * 4).long(), (drawn(30, 5, seed=4) * 4).long()
    grouped, whole = GroupedCounts(4), ClassCounts(4)
    for start in (0, 10, 20):  # as batches come
        rows = torch.arange(start, start + 10)
        grouped.add(found[rows], labels[rows], rows)
    whole.add(found, labels)
    assert torch.equal(grouped.whole().table, whole.table)

    def mean_iou(kept):
        counts = ClassCounts(4)
        counts.add(found[kept], labels[kept])
        return float(counts.scores()["mean_iou"])

    assert grouped.errors()["mean_iou"] == pytest.approx(se.jackknife_error(mean_iou, 30))
    assert set(grouped.errors()) == {"pixel_accuracy", "mean_accuracy", "mean_iou", "mean_dice"}
