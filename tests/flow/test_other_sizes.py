"""Weights at another input size, trained tables of positions, and uneven classes."""

import pytest
import torch
from mim_core.evaluation.probes import knn
from mim_core.evaluation.study import Features, Study
from mim_core.parts.layout import Layout
from mim_core.parts.position import LearnedPosition, SinCosPosition
from mim_core.recipes.config import EvaluateConfig
from timm.layers import resample_abs_pos_embed


@pytest.mark.parametrize("kind", [SinCosPosition, LearnedPosition])
def test_another_grid_is_interpolated_as_timm_does(kind):
    module = kind(Layout(16, (4, 4)), 32)
    found = module(Layout(48, (8, 6)))
    wanted = resample_abs_pos_embed(module.table, new_size=[8, 6], old_size=[4, 4], num_prefix_tokens=0)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize(("share", "columns"), [(50, 1), (95, 2)])
def test_uneven_classes_have_their_own_column(share, columns):
    labels = (torch.arange(100) >= share).long()
    rows = {"raw input": Features(torch.randn(100, 4), torch.randn(100, 4))}
    study = Study(EvaluateConfig(), (labels, labels), ("a", "b"), rows)
    scores = knn(study)
    assert len({score.column for score in scores}) == columns
    assert len(study.notes) == columns - 1
    if columns == 2:
        assert next(s.value for s in scores if s.row == "majority class" and "mean" in s.column) == 0.5
