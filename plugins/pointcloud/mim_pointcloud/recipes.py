"""Recipes of point-cloud MIM, with the paper's numbers, and their twins: the same made small for tests.

Source: Point-MAE, arXiv 2203.06604, and its official settings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from mim_core import EvaluateConfig, Part, RunConfig, TrainConfig, Twins, with_options

BLOCKS = {"norm_eps": 1e-5, "qkv_bias": False, "position": "coordinates", "position_at": "blocks", "init": "truncated"}
"""Point-MAE's transformer blocks, in the encoder and in the decoder."""


TWINS = Twins(
    items=730,
    batch=8,
    changes={
        "data": {"root": "sample"},
        "tokenizer": {"points": 128, "groups": 16, "size": 8, "hidden": (16, 16, 32)},
        "encoder": {"width": 32, "depth": 2, "heads": 2},
        "decoder": {"width": 32, "depth": 1, "heads": 2},
    },
)


@TWINS()
def point_mae_vit_small() -> RunConfig:
    """12 blocks of 384 with 6 heads on 64 groups of 32 points; ShapeNet55, 300 epochs."""
    return RunConfig(
        parts={
            "data": Part.of("pointcloud:clouds"),
            "tokenizer": Part.of("pointcloud:groups", points=1024, groups=64, size=32),
            "masker": Part.of("core:random", ratio=0.6, rounding="down"),
            "encoder": Part.of("core:vit", width=384, depth=12, heads=6, class_token=False, drop_path=0.1, **BLOCKS),
            "decoder": Part.of("core:transformer", width=384, depth=4, heads=6, embed=False, drop_path=0.1, **BLOCKS),
            "target": Part.of("pointcloud:chamfer", norm="l2"),
        },
        train=TrainConfig(
            epochs=300,
            batch_size=128,
            base_lr=1e-3,
            lr_batch=128,
            warmup_epochs=10,
            warmup_lr=1e-6,
            min_lr=1e-6,
            weight_decay=0.05,
            decay_tokens=False,
            betas=(0.9, 0.999),
        ),
        evaluate=EvaluateConfig(on=("knn", "pointcloud:svm", "pointcloud:few-shot"), pool="mean-max", standardize=True),
    )


@TWINS()
def point_mae_vit_tiny() -> RunConfig:
    """4 blocks of 96 on 32 groups of 16 points: the bundled furniture, minutes on two CPU cores."""
    config = point_mae_vit_small()
    changes: dict[str, Mapping[str, object]] = {
        "data": {"root": "sample"},
        "tokenizer": {"points": 512, "groups": 32, "size": 16, "hidden": (32, 64, 128)},
        "encoder": {"width": 96, "depth": 4, "heads": 4, "drop_path": 0.0},
        "decoder": {"width": 96, "depth": 2, "heads": 4, "drop_path": 0.0},
    }
    train = replace(
        config.train,
        epochs=100,
        batch_size=32,
        lr_batch=32,
        base_lr=1e-3,
        warmup_epochs=5,
        log_every=10,
        checkpoint_every=500,
    )
    evaluate = EvaluateConfig(
        on=("knn", "linear", "pointcloud:folds"), pool="mean-max", few_labels=(160,), standardize=True
    )
    return RunConfig(with_options(config.parts, changes), train, evaluate)
