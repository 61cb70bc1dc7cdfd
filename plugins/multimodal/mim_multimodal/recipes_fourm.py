"""Recipes of 4M, with the paper's numbers, and their twins.

Source: 4M, arXiv 2312.06647, sections 2 and 3, and its official settings (4M-7). The tiny one is this project's own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mim_core import EvaluateConfig, Part, RunConfig, TrainConfig, Twins

from mim_multimodal import recipes_vq
from mim_multimodal.recipes import CLASSES

TWINS = Twins(
    items=960,
    batch=8,
    changes={
        "data": {"root": "sample"},
        "encoder": {"width": 32, "depth": 2, "heads": 2},
        "decoder": {"width": 32, "depth": 2, "heads": 2},
        "rgb.tokenizer": {"size": (32, 32), "patch": (8, 8)},
        "rgb_ids.tokenizer": {"size": (32, 32), "patch": (8, 8)},
        "depth.tokenizer": {"size": (32, 32), "patch": (8, 8)},
        "semseg.tokenizer": {"size": (4, 4), "names": CLASSES},
        "caption.tokenizer": {"length": 8},
        "masker": {"seen": 12, "asked": 12},
    },
)
MIXTURE = {"mixture": (0.5, 0.5), "seen_alpha": (0.0, 0.5), "asked_alpha": (0.5, 0.5)}
"""Half of the samples show RGB alone, half show all; both ask for all (4M's released models)."""


def _fourm(width: int, depth: int, heads: int) -> dict[str, Part]:
    """4M's encoder, decoder and method: as deep on both sides, SwiGLU, no biases."""
    sizes = {"width": width, "depth": depth, "heads": heads, "mlp": "swiglu", "bias": False}
    return {
        "method": Part.of("core:masked-autoencoder", total="mean"),
        "encoder": Part.of("core:vit", class_token=False, position="sincos-first", segments=True, **sizes),
        "decoder": Part.of("core:joint", **sizes),
    }


@TWINS()
def fourm_vit_tiny() -> RunConfig:
    """4 + 4 blocks of 128 on the bundled game frames: pixels of RGB, and ids of RGB, depth, 14 classes and captions;
    32 units are seen and 32 asked. Ids of RGB and depth are bins of means, which need no training."""
    whole, part = (64, 64), (8, 8)
    masker = Part.of(
        "multimodal:budgets", seen=32, asked=32, only_seen=("rgb",), seen_alphas={"rgb": (1000.0, 0.5)}, **MIXTURE
    )
    heads = {f"{name}.target": Part.of("core:ids") for name in ("rgb_ids", "depth", "semseg", "caption")}
    parts = {
        "data": Part.of(
            "multimodal:aligned", root="sample", depth_limit=3.0, area=(0.5, 1.0), flip=0.0, vocabulary="own"
        ),
        "rgb.tokenizer": Part.of("image:patch", modality="rgb", size=whole, patch=part, channels=3),
        "rgb_ids.tokenizer": Part.of(
            "core:bins", modality="rgb", size=whole, patch=part, channels=3, levels=6, low=-2.5, high=2.5
        ),
        "depth.tokenizer": Part.of(
            "core:bins", modality="depth", size=whole, patch=part, levels=48, low=-1.5, high=3.0
        ),
        "semseg.tokenizer": Part.of("core:ids", modality="semseg", size=(8, 8), names=CLASSES),
        "caption.tokenizer": Part.of("core:sequence", modality="caption", length=24, vocabulary=512),
        **heads,
        "masker": masker,
        **_fourm(128, 4, 4),
    }
    train = TrainConfig(
        epochs=50,
        batch_size=64,
        lr_batch=64,
        base_lr=1e-3,
        warmup_epochs=2.5,
        decay_tokens=False,
        betas=(0.9, 0.95),
        log_every=10,
        checkpoint_every=500,
    )
    evaluate = EvaluateConfig(on=("multimodal:segmentation", "multimodal:depth"))
    return RunConfig(parts, train, evaluate)


IDS = ("rgb_ids", "depth", "normal", "semseg", "features")
"""Heads of the large recipes whose ids a tokenizer gives that was trained before."""


def _untrained() -> dict[str, dict[str, Any]]:
    """Tokenizers of the twins, as they are drawn; the bundled frames have no normals, so colours stand for them."""
    from mim_core import codes_text  # imports torch, which the recipes themselves do without

    trained: dict[str, Callable[[], RunConfig]] = {
        "rgb_ids": recipes_vq.vq_rgb_tiny.twin,
        "depth": recipes_vq.vq_depth_tiny.twin,
        "normal": recipes_vq.vq_normal_base.twin,
        "semseg": recipes_vq.vq_semseg_tiny.twin,
        "features": recipes_vq.vq_features_tiny.twin,
    }
    texts: dict[str, dict[str, Any]] = {"data": {"root": "sample", "folders": {"normal": "rgb"}}}
    for name, recipe in trained.items():
        parts = {role: part for role, part in recipe().parts.items() if role != "data"}
        texts[f"{name}.tokenizer"] = {"random": True, "parts": codes_text(**parts)}
    return texts


def _large(width: int, depth: int, heads: int, micro_batch: int) -> RunConfig:
    """4M on RGB, depth, surface normals, COCO's classes and features of RGB at 224 pixels, and captions, all but the
    pixels as ids of tokenizers that were trained before: 128 units seen, 128 asked; what an item lacks is masked. 500
    billion of them, 10 billion to warm up; epochs are of 12 million samples."""
    pixels = {"size": (224, 224), "patch": (16, 16), "channels": 3, "bias": False}
    parts = {
        "data": Part.of("multimodal:aligned", missing="mask"),
        "rgb.tokenizer": Part.of("image:patch", modality="rgb", **pixels),
        **{f"{name}.tokenizer": Part.of("core:codes") for name in IDS},
        "caption.tokenizer": Part.of("core:sequence", modality="caption", length=256),
        **{f"{name}.target": Part.of("core:ids") for name in (*IDS, "caption")},
        "masker": Part.of(
            "multimodal:budgets", seen=128, asked=128, only_seen=("rgb",), seen_alphas={"rgb": (1000.0, 0.5)}, **MIXTURE
        ),
        **_fourm(width, depth, heads),
    }
    train = TrainConfig(
        epochs=163,
        batch_size=8192,
        micro_batch=micro_batch,
        base_lr=1e-4,
        lr_batch=256,
        warmup_epochs=3.26,
        weight_decay=0.05,
        betas=(0.9, 0.95),
    )
    return RunConfig(parts, train, EvaluateConfig(on=("multimodal:segmentation", "multimodal:depth")))


@TWINS(_untrained)
def fourm_vit_base() -> RunConfig:
    """12 + 12 blocks of 768 (4M-B)."""
    return _large(768, 12, 12, 128)


@TWINS(_untrained)
def fourm_vit_large() -> RunConfig:
    """24 + 24 blocks of 1024 (4M-L)."""
    return _large(1024, 24, 16, 64)
