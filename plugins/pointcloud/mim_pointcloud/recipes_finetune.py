"""Fine-tuning recipes of point clouds, with the paper's numbers: Point-MAE (arXiv 2203.06604, section 4.2, and its
settings)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from mim_core import Part, RunConfig, TrainConfig, Twins, with_options

from mim_pointcloud.recipes import BLOCKS

TWINS = Twins(
    items=730,
    batch=8,
    changes={
        "data": {"root": "sample"},
        "tokenizer": {"points": 128, "groups": 16, "size": 8, "hidden": (16, 16, 32)},
        "encoder": {"width": 32, "depth": 2, "heads": 2},
        "method": {"classes": 2, "hidden": (16, 16)},
    },
)


@TWINS()
def point_mae_finetune_vit_small() -> RunConfig:
    """12 blocks of 384 on 64 groups of 32 points; ModelNet40, 300 epochs."""
    return RunConfig(
        parts={
            "data": Part.of("pointcloud:clouds"),
            "tokenizer": Part.of("pointcloud:groups", points=1024, groups=64, size=32),
            "encoder": Part.of("core:vit", width=384, depth=12, heads=6, class_token=True, drop_path=0.1, **BLOCKS),
            "method": Part.of("core:classifier", classes=40, pool="prefix-max", head="mlp"),
        },
        train=TrainConfig(
            epochs=300,
            batch_size=32,
            base_lr=5e-4,
            lr_batch=32,
            warmup_epochs=10,
            warmup_lr=1e-6,
            min_lr=1e-6,
            weight_decay=0.05,
            decay_tokens=False,
            betas=(0.9, 0.999),
            clip_grad=10.0,
        ),
    )


SCANS: dict[str, Mapping[str, object]] = {"tokenizer": {"points": 2048, "groups": 128}, "method": {"classes": 15}}


@TWINS()
def point_mae_finetune_vit_small_scanobjectnn() -> RunConfig:
    """The same on 128 groups of 2048 points; ScanObjectNN's hardest variant, 300 epochs."""
    config = point_mae_finetune_vit_small()
    return replace(config, parts=with_options(config.parts, SCANS))


PARTS = {"method": {"propagation": (32, 16), "hidden": (16, 16), "category": 8}}


@TWINS(PARTS)
def point_mae_partseg_vit_small() -> RunConfig:
    """12 blocks of 384 on 128 groups of 2048 points; ShapeNetPart's 50 parts, 300 epochs. Gradients are clipped at
    every step; the code takes two steps on each batch and clips before the second."""
    return RunConfig(
        parts={
            "data": Part.of("pointcloud:clouds"),
            "tokenizer": Part.of("pointcloud:groups", points=2048, groups=128, size=32),
            "encoder": Part.of("core:vit", width=384, depth=12, heads=6, class_token=False, drop_path=0.1, **BLOCKS),
            "method": Part.of("pointcloud:part-segmenter"),
        },
        train=replace(point_mae_finetune_vit_small().train, batch_size=16, lr_batch=16, base_lr=2e-4),
    )
