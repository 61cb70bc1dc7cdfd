"""Recipes of tokenizers whose ids 4M predicts, and their twins.

Source: 4M, arXiv 2312.06647, section 2.1 and its table of modalities: ViT-B/16, 16,384 codes of RGB, 8,192 of depth
and of normals, 4,096 of class maps, 8,192 of features of CLIP's ViT-B/16 by smooth L1. Its diffusion decoder and
perceptual losses are left out: the decoder is a transformer, the loss that of the values. Schedules and the tiny ones
are this project's own.
"""

from __future__ import annotations

from typing import Any

from mim_core import EvaluateConfig, Part, RunConfig, TrainConfig, Twins

from mim_multimodal.recipes import CLASSES

TWINS = Twins(
    items=960,
    batch=8,
    changes={
        "data": {"root": "sample"},
        "encoder": {"width": 32, "depth": 2, "heads": 2, "codes": 16, "size": 8},
        "decoder": {"width": 32, "depth": 1, "heads": 2},
    },
)
PIXELS = {"tokenizer": {"size": (32, 32), "patch": (8, 8)}}
MAPS = {"tokenizer": {"size": (8, 8), "patch": (2, 2), "classes": CLASSES}}
DATA = {"root": "sample", "depth_limit": 3.0, "area": (0.5, 1.0)}


def _vq(
    tokenizer: Part, target: Part, codes: int, width: int, depth: int, heads: int, **data: object
) -> dict[str, Part]:
    """Encoder and decoder of the same size, and the modality's own units and target."""
    sizes = {"width": width, "depth": depth, "heads": heads, "position": "sincos-first"}
    return {
        "method": Part.of("core:vq"),
        "data": Part.of("multimodal:aligned", **data),
        "tokenizer": tokenizer,
        "encoder": Part.of("core:codebook", codes=codes, **sizes),
        "decoder": Part.of("core:plain", **sizes),
        "target": target,
    }


def _pixels(modality: str, channels: int, size: int, patch: int) -> Part:
    return Part.of("image:patch", modality=modality, size=(size, size), patch=(patch, patch), channels=channels)


def _large(parts: dict[str, Part]) -> RunConfig:
    train = TrainConfig(
        epochs=100, batch_size=1024, micro_batch=128, base_lr=1e-4, lr_batch=256, warmup_epochs=5, weight_decay=0.05,
        betas=(0.9, 0.95),
    )  # fmt: skip
    return RunConfig(parts, train, EvaluateConfig(on=()))


def _tiny(parts: dict[str, Part]) -> RunConfig:
    train = TrainConfig(
        epochs=30, batch_size=64, lr_batch=64, base_lr=1e-3, warmup_epochs=1.5, betas=(0.9, 0.95), log_every=10,
        checkpoint_every=500,
    )  # fmt: skip
    return RunConfig(parts, train, EvaluateConfig(on=()))


L2 = Part.of("core:values", normalize=False, loss="l2")
L1 = Part.of("core:values", normalize=False, loss="l1")
CLASS = Part.of("multimodal:class-map")
FEATURE = Part.of("core:values", normalize=False, loss="smooth_l1")


def _features(**options: object) -> Part:
    """Features of RGB by an encoder that is named when the run starts."""
    return Part.of("core:features", modality="rgb", **options)


def _drawn() -> dict[str, dict[str, Any]]:
    """Of the twins: an encoder as it is drawn."""
    from mim_core import parts_text  # imports torch, which the recipes themselves do without

    encoder = Part.of("core:vit", width=24, depth=1, heads=2)
    return {"tokenizer": {"random": True, "parts": parts_text(tokenizer=_pixels("rgb", 3, 32, 8), encoder=encoder)}}


@TWINS(PIXELS)
def vq_rgb_tiny() -> RunConfig:
    """RGB of the bundled frames at 64 pixels: 64 ids of 512 codes."""
    return _tiny(_vq(_pixels("rgb", 3, 64, 8), L2, 512, 128, 4, 4, **DATA))


@TWINS(PIXELS)
def vq_depth_tiny() -> RunConfig:
    """Depth of the bundled frames at 64 pixels: 64 ids of 256 codes."""
    return _tiny(_vq(_pixels("depth", 1, 64, 8), L1, 256, 128, 4, 4, **DATA))


@TWINS(MAPS)
def vq_semseg_tiny() -> RunConfig:
    """Class maps of the bundled frames, one class for 4 pixels: 64 ids of 128 codes."""
    own = Part.of("multimodal:class-map", size=(16, 16), patch=(2, 2), classes=CLASSES)
    return _tiny(_vq(own, CLASS, 128, 128, 4, 4, **DATA))


@TWINS(_drawn)
def vq_features_tiny() -> RunConfig:
    """Features of RGB of the bundled frames, by the encoder of a run of ours: its units, 256 codes."""
    return _tiny(_vq(_features(), FEATURE, 256, 128, 4, 4, **DATA))


@TWINS(PIXELS)
def vq_rgb_base() -> RunConfig:
    """RGB at 224 pixels: 196 ids of 16,384 codes, ViT-B/16 on both sides."""
    return _large(_vq(_pixels("rgb", 3, 224, 16), L2, 16_384, 768, 12, 12))


@TWINS(PIXELS)
def vq_depth_base() -> RunConfig:
    """Depth at 224 pixels: 196 ids of 8,192 codes, ViT-B/16 on both sides."""
    return _large(_vq(_pixels("depth", 1, 224, 16), L1, 8192, 768, 12, 12))


@TWINS({**PIXELS, "data": {"root": "sample", "folders": {"normal": "rgb"}}})
def vq_normal_base() -> RunConfig:
    """Surface normals at 224 pixels: 196 ids of 8,192 codes, ViT-B/16 on both sides. The bundled frames have none: its
    twin takes their colours for normals."""
    return _large(_vq(_pixels("normal", 3, 224, 16), L2, 8192, 768, 12, 12))


@TWINS(MAPS)
def vq_semseg_base() -> RunConfig:
    """Class maps at 224 pixels, COCO's 133 classes: 196 ids of 4,096 codes, ViT-B/16 on both sides."""
    own = Part.of("multimodal:class-map", size=(56, 56), patch=(4, 4), classes=133)
    return _large(_vq(own, CLASS, 4096, 768, 12, 12))


@TWINS(_drawn)
def vq_features_base() -> RunConfig:
    """Features of RGB at 224 pixels, of a ViT-B/16 that is named when the run starts: 196 ids of 8,192 codes, as large
    on both sides."""
    return _large(_vq(_features(), FEATURE, 8192, 768, 12, 12))
