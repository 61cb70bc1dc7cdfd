"""How `finetune` trains where the command line says nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
