"""CMAE: MAE, and a contrast between a masked image and another view of it that a teacher sees.

Source: arXiv 2207.13532, sections 3 and 4, and the configuration of its official code.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mim_core import Part, RunConfig

from mim_image.recipes import DECODER, TWINS, mae_vit_base, mae_vit_tiny

TEACHER: dict[str, Any] = {"view": "target", "heads": ("contrast",), "statistics": "training", "buffers": "own"}
"""Another view in, the projector beside the encoder, which has the statistics of its own batches."""
HEAD: dict[str, Any] = {"norm_eps": 1e-6, "teacher_norm": False}
SMALL: dict[str, dict[str, object]] = {
    "decoder": {**DECODER},
    "contrast.decoder": {"depth": 1, "width": 16, "heads": 2, "hidden": 32},
    "contrast.target": {"size": 16},
    "masker": {"ratio": 0.5},
    "data": {"root": "sample", "mean": (0.286,), "std": (0.353,), "view_shift": 3},
}


def _cmae(mae: RunConfig, momentum: float, **head: Any) -> RunConfig:
    """The parts of an MAE recipe, with a second head and its teacher."""
    parts = {role: part for role, part in mae.parts.items() if role not in ("target", "masker")}
    parts |= {
        "masker": Part.of("core:grid", ratio=0.65, block=(2, 2), rounding="up"),
        "target": mae.parts["target"],
        "contrast.target": Part.of("core:contrast"),
        "contrast.decoder": Part.of("core:sample", **HEAD, **head),
        "teacher": Part.of("core:ema", **TEACHER, start=momentum, end=momentum),
    }
    return replace(mae, parts=parts)


@TWINS(SMALL, base_lr=3e-3)
def cmae_vit_base() -> RunConfig:
    """ViT-B/16, 1600 epochs; the batch cannot be accumulated."""
    config = _cmae(mae_vit_base(), 0.996)
    return replace(config, train=replace(config.train, micro_batch=None))


@TWINS(SMALL, base_lr=3e-3)
def cmae_vit_tiny() -> RunConfig:
    """For the bundled 28-pixel grey sample, beside image:mae-vit-tiny: the same encoder, and as many samples seen."""
    config = _cmae(mae_vit_tiny(), 0.99, depth=1, width=64, heads=4, hidden=256)
    data = config.parts["data"]
    return replace(config, parts={**config.parts, "data": Part(data.name, {**data.options, "view_shift": 3})})
