"""Recipes of multimodal MIM, with the paper's numbers, and their twins: the same made small for tests.

Source: MultiMAE, arXiv 2204.01678, and its official settings. The tiny ones are this project's own.
"""

from __future__ import annotations

from dataclasses import replace

from mim_core import EvaluateConfig, Part, RunConfig, TrainConfig, Twins

SEGMENTS = {"norm_rgb": "rgb"}
"""The head that predicts normalised colours asks for the colours' units."""


TWINS = Twins(
    items=960,
    batch=8,
    changes={
        "data": {"root": "sample"},
        "encoder": {"width": 32, "depth": 2, "heads": 2},
        "decoder": {"width": 16, "depth": 1, "heads": 2},
        "rgb.tokenizer": {"size": (32, 32), "patch": (8, 8)},
        "depth.tokenizer": {"size": (32, 32), "patch": (8, 8)},
        "semseg.tokenizer": {"size": (8, 8), "patch": (2, 2), "classes": 14},
        "masker": {"visible": 8},
    },
)
POINTS = {"points": 128, "groups": 8, "size": 8, "hidden": (16, 16, 32)}
CUBES = {"size": (4, 16, 16), "patch": (2, 8, 8)}


def _pictures(size: int, patch: int, classes: int, stride: int = 4) -> dict[str, Part]:
    """Tokenizers and targets of RGB, depth and class maps at a square size; a class for ``stride`` squared pixels."""
    whole, part = (size, size), (patch, patch)
    small, own = (size // stride, size // stride), (patch // stride, patch // stride)
    values = {"loss": "l2", "channels_first": True}
    return {
        "rgb.tokenizer": Part.of("image:patch", modality="rgb", size=whole, patch=part, channels=3),
        "depth.tokenizer": Part.of("image:patch", modality="depth", size=whole, patch=part, channels=1),
        "semseg.tokenizer": Part.of("multimodal:class-map", size=small, patch=own, classes=classes),
        "rgb.target": Part.of("core:values", normalize=False, **values),
        "norm_rgb.target": Part.of("core:values", normalize=True, **values),
        "depth.target": Part.of("core:values", normalize=False, loss="l1", channels_first=True),
        "semseg.target": Part.of("multimodal:class-map"),
    }


def _multimae(width: int, depth: int, heads: int) -> dict[str, Part]:
    """MultiMAE's encoder, decoders and method."""
    return {
        "method": Part.of("core:masked-autoencoder", average="sample", segments=SEGMENTS),
        "encoder": Part.of(
            "core:vit", width=width, depth=depth, heads=heads, position="sincos-first", final_norm=False
        ),
        "decoder": Part.of("multimodal:cross-attention", width=256, depth=2, heads=8),
    }


@TWINS()
def multimae_vit_base() -> RunConfig:
    """ViT-B/16 on RGB, depth and COCO's 133 classes at 224 pixels: 98 of 588 units are seen; 1600 epochs."""
    return RunConfig(
        parts={
            "data": Part.of("multimodal:aligned"),
            **_pictures(224, 16, classes=133),
            "masker": Part.of("multimodal:dirichlet", visible=98, alpha=1.0),
            **_multimae(768, 12, 12),
        },
        train=TrainConfig(
            epochs=1600,
            batch_size=2048,
            micro_batch=128,
            base_lr=1e-4,
            lr_batch=256,
            warmup_epochs=40,
            warmup_lr=1e-6 * 256 / 2048,  # 1e-6, whatever the batch
            weight_decay=0.05,
            decay_tokens=False,
            betas=(0.9, 0.95),
        ),
    )


TINY = {"width": 128, "depth": 4, "heads": 4}
DECODER = {"width": 64, "depth": 1, "heads": 4}
CLASSES = 14
"""Classes of the bundled frames."""


def _minutes(epochs: float, **options: object) -> TrainConfig:
    """Training on a bundled sample in minutes on two CPU cores."""
    config = TrainConfig(
        epochs=epochs,
        batch_size=64,
        lr_batch=64,
        base_lr=1e-3,
        warmup_epochs=epochs / 20,
        decay_tokens=False,
        betas=(0.9, 0.95),
        log_every=10,
        checkpoint_every=500,
    )
    return replace(config, **options)  # type: ignore[arg-type]


@TWINS()
def multimae_vit_tiny() -> RunConfig:
    """4 blocks of 128 on the bundled game frames: RGB, depth and 14 classes at 64 pixels, 32 of 192 units seen."""
    parts = {
        "data": Part.of("multimodal:aligned", root="sample", depth_limit=3.0),
        **_pictures(64, 8, classes=CLASSES),
        "masker": Part.of("multimodal:dirichlet", visible=32, alpha=1.0),
        **_multimae(**TINY),
        "decoder": Part.of("multimodal:cross-attention", **DECODER),
    }
    evaluate = EvaluateConfig(on=("multimodal:segmentation", "multimodal:depth"))
    return RunConfig(parts, _minutes(50), evaluate)


@TWINS()
def rgb_vit_tiny() -> RunConfig:
    """multimae-vit-tiny on RGB alone: the same encoder, epochs and number of units seen, and no other modality."""
    config = multimae_vit_tiny()
    others = ("depth.tokenizer", "depth.target", "semseg.tokenizer", "semseg.target")
    return replace(config, parts={role: part for role, part in config.parts.items() if role not in others})


@TWINS()
def multimae_captions_vit_tiny() -> RunConfig:
    """RGB and captions: each is seen in part, and what is hidden of either is predicted from both. Crops are large and
    not mirrored, because captions say left and right."""
    config = multimae_vit_tiny()
    parts = {
        **{role: part for role, part in rgb_vit_tiny().parts.items() if not role.startswith("norm_rgb.")},
        "method": Part.of("core:masked-autoencoder", average="sample"),
        "data": Part.of("multimodal:aligned", root="sample", area=(0.8, 1.0), flip=0.0),
        "caption.tokenizer": Part.of("multimodal:text", length=24),
        "caption.target": Part.of("multimodal:text"),
        "masker": Part.of("multimodal:dirichlet", visible=20, alpha=1.0),
    }
    return replace(config, parts=parts, train=_minutes(10, batch_size=32, lr_batch=32))


@TWINS(
    {
        "depth.tokenizer": {"size": (16, 16), "patch": (8, 8)},
        "points.tokenizer": POINTS,
        "masker": {"visible": 5},
    },
    items=720,
)
def points_depth_vit_tiny() -> RunConfig:
    """Shapes as point clouds and as the depth of a view, with mim-pointcloud's groups and its bundled furniture."""
    parts = {
        "data": Part.of("multimodal:rendered", root="sample"),
        "points.tokenizer": Part.of("pointcloud:groups", points=512, groups=32, size=16, hidden=(32, 64, 128)),
        "depth.tokenizer": Part.of("image:patch", modality="depth", size=(48, 48), patch=(8, 8), channels=1),
        "points.target": Part.of("pointcloud:chamfer"),
        "depth.target": Part.of("core:values", normalize=False, loss="l1"),
        "masker": Part.of("multimodal:dirichlet", visible=24, alpha=1.0),
        **_multimae(**TINY),
        "method": Part.of("core:masked-autoencoder", average="sample", weights={"points": 10.0}),
        "decoder": Part.of("multimodal:cross-attention", **DECODER),
    }
    return RunConfig(parts, _minutes(60), EvaluateConfig(on=("knn", "linear"), few_labels=()))


@TWINS({"video.tokenizer": CUBES, "depth.tokenizer": CUBES, "masker": {"visible": 6}}, items=60)
def video_depth_vit_tiny() -> RunConfig:
    """Clips and their depth, in tubelets of mim-video: bundled clips of the same game, which have no classes."""
    tubelets = {"size": (8, 48, 48), "patch": (2, 8, 8)}
    parts = {
        "data": Part.of("multimodal:paired", root="sample"),
        "video.tokenizer": Part.of("video:tubelet", modality="video", channels=3, **tubelets),
        "depth.tokenizer": Part.of("video:tubelet", modality="depth", channels=1, **tubelets),
        "video.target": Part.of("core:values", normalize=False, loss="l2"),
        "depth.target": Part.of("core:values", normalize=False, loss="l1"),
        "masker": Part.of("multimodal:dirichlet", visible=48, alpha=1.0),
        **_multimae(**TINY),
        "method": Part.of("core:masked-autoencoder", average="sample"),
        "decoder": Part.of("multimodal:cross-attention", **DECODER),
    }
    return RunConfig(parts, _minutes(200, batch_size=16, lr_batch=16), EvaluateConfig(few_labels=()))
