"""How `finetune` trains where the command line says nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mim_core.host.registry import Entry, Registry

METHOD = "core:classifier"
"""The method that is trained where none is named."""
TRAINING: Mapping[str, Any] = {
    "epochs": 100.0,
    "batch_size": 32,
    "base_lr": 5e-4,
    "lr_batch": 32,
    "warmup_epochs": 10.0,
    "min_lr": 1e-6,
    "weight_decay": 0.05,
    "betas": (0.9, 0.999),
    "clip_grad": 10.0,
}
"""Options of `mim_core.recipes.config.TrainConfig`: the numbers of Point-MAE's fine-tuning (arXiv 2203.06604 and its
code), for 100 epochs instead of 300."""


def recipe_entry(name: str, plugin: str | None, registry: Registry) -> Entry | None:
    """The fine-tuning recipe of that name; None where it is the path of a run, or names none."""
    if Path(name).exists():
        return None
    known = registry.of_kind("finetunings", plugin)
    return next((entry for entry in known if name in (entry.full_name, entry.name)), None)
