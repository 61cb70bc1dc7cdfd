"""SdAE: predict what a slow teacher makes of the hidden patches, which it sees in folds.

Source: arXiv 2208.00449, sections 3 and 4, and the settings of its official code.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mim_core import Part, RunConfig

from mim_image.recipes import DECODER, TWINS, mae_vit_base, mae_vit_tiny

TEACHES: dict[str, Any] = {"sees": "hidden", "every": "epoch", "end": 0.99, "buffers": "follow"}
TARGET: dict[str, Any] = {"norm": "standardize", "norm_eps": 1e-6, "loss": "cosine", "along": "units"}
FEATURES = Part.of("core:features", **TARGET)


@TWINS({"decoder": DECODER, "teacher": {"every": "step"}})
def sdae_vit_base() -> RunConfig:
    """ViT-B/16, 300 epochs; the teacher moves after each."""
    mae = mae_vit_base()
    parts = {
        **mae.parts,
        "encoder": Part.of("core:vit", width=768, depth=12, heads=12, drop_path=0.25),
        "teacher": Part.of("core:ema", **TEACHES, begins="own", folds=3, start=0.96),
        "target": FEATURES,
    }
    train = replace(
        mae.train, epochs=300, batch_size=768, micro_batch=96, base_lr=2.666e-4, warmup_epochs=60, weight_decay=0.04
    )
    return RunConfig(parts=parts, train=train)


@TWINS({"decoder": DECODER})
def sdae_vit_tiny() -> RunConfig:
    """For the bundled 28-pixel grey sample, beside image:mae-vit-tiny: the same encoder, and as many samples seen."""
    mae = mae_vit_tiny()
    teacher = Part.of("core:ema", **TEACHES, begins="own", folds=3, start=0.96)
    return RunConfig(parts={**mae.parts, "teacher": teacher, "target": FEATURES}, train=mae.train)
