"""Standard errors: against their formulas, against the plain jackknife, and against scores of fresh samples."""

import pytest
import torch
from mim_core import standard_errors as se
from mim_core.errors import MimError
from mim_core.evaluation.anomaly_metrics import aupro, place_errors
from mim_core.ranking_scores import auroc, average_precision


def drawn(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_share_and_a_mean():
    assert se.share_error(0.2, 100) == pytest.approx(0.04)
    assert se.share_error(1.0, 10) == 0
    values = drawn(30)
    assert se.mean_error(values) == pytest.approx(float(values.std()) / 30**0.5)
    assert se.mean_error(values[:1]) is None


def test_a_mean_over_classes_counts_each_class_alike():
    right, classes = torch.tensor([1.0, 0, 1, 1, 0, 0]), torch.tensor([0, 0, 0, 0, 3, 3])
    expected = (0.75 * 0.25 / 4 + 0.0) ** 0.5 / 2
    assert se.class_mean_error(right, classes) == pytest.approx(expected)
    assert se.class_mean_error(right[:2], torch.tensor([0, 1])) is None


def test_the_jackknife_of_a_mean_is_its_standard_error():
    values = drawn(40)
    found = se.jackknife_error(lambda kept: float(values[kept].mean()), 40, groups=40)
    assert found == pytest.approx(se.mean_error(values))


def test_the_jackknife_tells_how_far_fresh_samples_move_a_score():
    found, errors = [], []
    for seed in range(150):
        labels = drawn(120, seed=seed) < 0.4
        scores = drawn(120, seed=1000 + seed) + 0.5 * labels
        found.append(auroc(scores, labels))
        errors.append(se.jackknife_error(lambda kept: auroc(scores[kept], labels[kept]), 120))  # noqa: B023
    assert sum(errors) / 150 == pytest.approx(float(torch.tensor(found).std()), rel=0.2)


def test_where_there_is_none():
    def refuse(kept):
        raise MimError("one kind alone")

    assert se.jackknife_error(refuse, 10) is None
    assert se.jackknife_error(lambda kept: 1.0, 1) is None
    assert se.grouped_error([0.5, float("nan")]) is None


def test_places_of_maps_are_left_out_by_sample():
    maps, masks = drawn(7, 6, 5).mul(20).round(), torch.zeros(7, 6, 5)
    masks[:4, 1:3, 2:4] = 1
    maps[:4, 1:3, 2:4] += 8
    measures = [lambda m, t: auroc(m.flatten(), t.flatten()), lambda m, t: average_precision(m.flatten(), t.flatten())]
    measures.append(lambda m, t: aupro(m, t, 0.3))
    expected = [se.jackknife_error(lambda kept: one(maps[kept], masks[kept]), 7, 5) for one in measures]  # noqa: B023
    assert place_errors(maps, masks, 0.3, 5) == pytest.approx(expected)
