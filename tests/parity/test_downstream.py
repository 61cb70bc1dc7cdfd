"""Golden cases of fine-tuning, heads, necks and metrics: what the official codes give. Skipped where they are not at
hand; what they prove is tried by itself in tests/contracts/test_training_on_labels.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mim_core.errors import MimError
from mim_core.testing.golden import try_case

FEWEST = {
    "beit_neck.safetensors": 39,
    "coco_ap.json": 18,
    "dense_metrics.safetensors": 20,
    "mae_finetune.safetensors": 111,
    "mae_linprobe.safetensors": 33,
    "mae_schedule.json": 12,
    "multimae_depth.safetensors": 70,
    "multimae_semseg.safetensors": 44,
    "point_mae_cls.safetensors": 34,
    "point_mae_partseg.safetensors": 37,
    "position_interpolation.safetensors": 15,
    "representation.safetensors": 9,
    "upernet.safetensors": 52,
    "videomae_finetune.safetensors": 51,
    "videomae_schedule.json": 10,
    "videomae_views.safetensors": 5,
    "vitdet_lr_decay.json": 1,
    "vitdet_pyramid.safetensors": 39,
}
"""Entries of each case that are compared."""


def where(name):
    for root in Path(__file__).resolve().parents:
        path = root / "shared" / "golden" / "downstream" / name
        if path.exists():
            return path
    pytest.skip(f"{name} is not at hand")


@pytest.mark.parametrize("name", sorted(FEWEST))
def test_case(name):
    lines = try_case(where(name))
    off = [line for line in lines if not line.fits]
    assert not off, off
    assert sum(line.apart is not None for line in lines) >= FEWEST[name]


def test_a_wrong_number_is_found(tmp_path):
    """The comparison can fail: another layer decay, and another precision."""
    groups = {"depth=3 pool=mean layer_decay=0.5 weight_decay=0.05": {"blocks.0.mlp.fc1.weight": [1, 0.125, 0.05]}}
    path = tmp_path / "schedule.json"
    path.write_text(json.dumps({"groups": groups, "lr": []}))
    assert all(line.fits for line in try_case(path))
    groups = {"depth=3 pool=mean layer_decay=0.6 weight_decay=0.05": {"blocks.0.mlp.fc1.weight": [1, 0.125, 0.05]}}
    path.write_text(json.dumps({"groups": groups, "lr": []}))
    assert not all(line.fits for line in try_case(path))


def test_a_file_of_other_numbers(tmp_path):
    path = tmp_path / "odd.json"
    path.write_text('{"a": 1}')
    with pytest.raises(MimError, match="no golden case"):
        try_case(path)
