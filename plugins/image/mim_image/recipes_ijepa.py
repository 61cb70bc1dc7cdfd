"""I-JEPA: predict a teacher's features of several blocks from one context block.

Source: arXiv 2301.08243, sections 3 and 4 and appendix A, and the settings of its official code.
"""

from __future__ import annotations

from mim_core import Part, RunConfig, TrainConfig

from mim_image.recipes import DECODER, TWINS, mae_vit_tiny

FEATURES = Part.of("core:features", norm="layer", loss="smooth_l1")
TEACHER = Part.of("core:ema", start=0.996, end=1.0, schedule="linear")
SMALL = {"decoder": DECODER, "masker": {"smallest": 1}}


def _ijepa(width: int, depth: int, heads: int, patch: int, predictor: int, epochs: float) -> RunConfig:
    """I-JEPA at 224 pixels with a predictor 384 wide; no flips, no colours."""
    return RunConfig(
        parts={
            "method": Part.of("core:masked-autoencoder", carries="teacher"),
            "data": Part.of("image:images", crop=(0.3, 1.0), flip=0.0),
            "tokenizer": Part.of("image:patch", size=(224, 224), patch=(patch, patch), channels=3),
            "masker": Part.of("core:multi-block"),
            "encoder": Part.of("core:vit", width=width, depth=depth, heads=heads, class_token=False),
            "decoder": Part.of("core:transformer", width=384, depth=predictor, heads=12),
            "teacher": TEACHER,
            "target": FEATURES,
        },
        train=TrainConfig(
            epochs=epochs, batch_size=2048, micro_batch=64, base_lr=1e-3, lr_batch=2048, warmup_epochs=40,
            warmup_lr=2e-4, min_lr=1e-6, weight_decay=0.04, weight_decay_end=0.4, betas=(0.9, 0.999),
        ),
    )  # fmt: skip


@TWINS(SMALL)
def ijepa_vit_base() -> RunConfig:
    """ViT-B/16 with a predictor of 6 blocks, 600 epochs."""
    return _ijepa(768, 12, 12, 16, 6, 600)


@TWINS({**SMALL, "tokenizer": {"size": (28, 28), "patch": (4, 4), "channels": 1}})
def ijepa_vit_huge() -> RunConfig:
    """ViT-H/14 with a predictor of 12 blocks, 300 epochs."""
    return _ijepa(1280, 32, 16, 14, 12, 300)


@TWINS(SMALL)
def ijepa_vit_tiny() -> RunConfig:
    """For the bundled 28-pixel grey sample, beside image:mae-vit-tiny: the same encoder, and as many samples seen."""
    mae = mae_vit_tiny()
    parts = {
        **mae.parts,
        "method": Part.of("core:masked-autoencoder", carries="teacher"),
        "masker": Part.of("core:multi-block", smallest=3),
        "encoder": Part.of("core:vit", width=128, depth=4, heads=4, class_token=False),
        "teacher": Part.of("core:ema", start=0.99, end=1.0, schedule="linear"),
        "target": FEATURES,
    }
    return RunConfig(parts=parts, train=mae.train)
