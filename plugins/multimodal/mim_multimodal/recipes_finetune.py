"""Fine-tuning recipes of maps, with the paper's numbers: MultiMAE (arXiv 2204.01678, section 4 and its supplement, and
its settings). Crops are random resized ones here; MultiMAE jitters scales and colours, and fills up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from mim_core import Part, RunConfig, TrainConfig, Twins

SMALL: Mapping[str, object] = {"inner": 64, "blocks": 1, "widths": (8, 8, 8, 8), "channels": 8}
MAPS: Mapping[str, Mapping[str, object]] = {
    "data": {"root": "sample", "void": None},
    "method": {**SMALL, "classes": 14},
}
TWINS = Twins(
    items=960,
    batch=8,
    changes={
        "data": {"root": "sample"},
        "encoder": {"width": 32, "depth": 4, "heads": 2},
        "rgb.tokenizer": {"size": (32, 32), "patch": (8, 8)},
        "depth.tokenizer": {"size": (32, 32), "patch": (8, 8)},
        "method": SMALL,
    },
)


def _picture(modality: str, size: int) -> Part:
    channels = 3 if modality == "rgb" else 1
    return Part.of("image:patch", modality=modality, size=(size, size), patch=(16, 16), channels=channels)


def _encoder(drop_path: float) -> Part:
    return Part.of(
        "core:vit",
        width=768,
        depth=12,
        heads=12,
        position="sincos-first",
        final_norm=False,
        drop_path=drop_path,
    )


def _training(batch: int, epochs: float, warmup: float) -> TrainConfig:
    """MultiMAE's, whose rate is the same at every batch."""
    return TrainConfig(
        epochs=epochs,
        batch_size=batch,
        micro_batch=4,
        base_lr=1e-4,
        lr_batch=batch,
        warmup_epochs=warmup,
        schedule="table",
        weight_decay=0.05,
        decay_tokens=False,
        layer_decay=0.75,
        betas=(0.9, 0.999),
    )


@TWINS(MAPS)
def multimae_semseg_vit_base() -> RunConfig:
    """ViT-B/16 on ADE20K's 150 classes at 512 pixels, RGB; ConvNeXt head, 64 epochs."""
    return RunConfig(
        parts={
            "data": Part.of("multimodal:aligned", void=0),
            "rgb.tokenizer": _picture("rgb", 512),
            "encoder": _encoder(0.1),
            "method": Part.of("multimodal:segmenter", head="convnext", classes=150),
        },
        train=_training(16, 64, 1),
    )


@TWINS(MAPS)
def multimae_semseg_vit_base_nyu() -> RunConfig:
    """ViT-B/16 on NYUv2's 40 classes at 640 pixels, RGB and depth; the head sees the tokens of RGB; 200 epochs."""
    return RunConfig(
        parts={
            "data": Part.of("multimodal:aligned", void=0),
            "rgb.tokenizer": _picture("rgb", 640),
            "depth.tokenizer": _picture("depth", 640),
            "encoder": _encoder(0.1),
            "method": Part.of("multimodal:segmenter", head="convnext", classes=40, inputs=("rgb",)),
        },
        train=replace(_training(8, 200, 1), micro_batch=2),
    )


@TWINS()
def multimae_depth_vit_base() -> RunConfig:
    """ViT-B/16 on NYUv2's depth at 256 pixels, RGB; DPT head and BerHu's loss, 2000 epochs."""
    return RunConfig(
        parts={
            "data": Part.of("multimodal:aligned"),
            "rgb.tokenizer": _picture("rgb", 256),
            "encoder": _encoder(0.0),
            "method": Part.of("multimodal:depth-regressor", head="dpt", loss="berhu"),
        },
        train=replace(_training(128, 2000, 100), micro_batch=32, weight_decay=1e-4),
    )
