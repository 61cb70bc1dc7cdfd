"""Fine-tuning recipes of clips, with the paper's numbers: VideoMAE (arXiv 2203.12602, appendix, and its scripts)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from mim_core import Part, RunConfig, TrainConfig, Twins, with_options

TWINS = Twins(
    items=360,
    batch=8,
    changes={
        "data": {"root": "sample", "views": (2, 1)},
        "tokenizer": {"size": (8, 32, 32), "patch": (2, 8, 8)},
        "encoder": {"width": 32, "depth": 2, "heads": 2},
        "method": {"classes": 12},
    },
)


@TWINS()
def videomae_finetune_vit_base() -> RunConfig:
    """ViT-B/16 on Kinetics-400: two clips of each file, 75 epochs; tested on 5 x 3 views."""
    return RunConfig(
        parts={
            "data": Part.of(
                "video:clips",
                stride=4,
                crop="resized",
                area=(0.08, 1.0),
                flip=0.5,
                rand_augment="rand-m7-n4-mstd0.5-inc1",
                erase=0.25,
                views=(5, 3),
            ),
            "tokenizer": Part.of("video:tubelet", size=(16, 224, 224), patch=(2, 16, 16)),
            "encoder": Part.of(
                "core:vit", width=768, depth=12, heads=12, class_token=False, position="flat", drop_path=0.1
            ),
            "method": Part.of(
                "core:classifier",
                classes=400,
                pool="mean",
                norm="pooled",
                label_smoothing=0.1,
                mixup=0.8,
                cutmix=1.0,
                repeats=2,
            ),
        },
        train=TrainConfig(
            epochs=75,
            batch_size=512,
            micro_batch=8,
            base_lr=5e-4,
            lr_batch=256,
            warmup_epochs=5,
            min_lr=1e-6,
            schedule="table",
            weight_decay=0.05,
            decay_tokens=False,
            layer_decay=0.75,
            betas=(0.9, 0.999),
        ),
    )


@TWINS()
def videomae_finetune_vit_base_ssv2() -> RunConfig:
    """ViT-B/16 on Something-Something v2: one frame of each sixteenth, no flips, 50 epochs; tested on 2 x 3 views."""
    config = videomae_finetune_vit_base()
    changes: dict[str, Mapping[str, object]] = {
        "data": {"segments": True, "flip": 0.0, "views": (2, 3)},
        "method": {"classes": 174},
    }
    train = replace(config.train, epochs=50, base_lr=5e-4)
    return RunConfig(with_options(config.parts, changes), train, config.evaluate)


@TWINS()
def videomae_finetune_vit_base_ucf101() -> RunConfig:
    """ViT-B/16 on UCF101: half of the features in front of the head left out, 100 epochs; tested on 5 x 3 views."""
    config = videomae_finetune_vit_base()
    changes: dict[str, Mapping[str, object]] = {
        "encoder": {"drop_path": 0.2},
        "method": {"classes": 101, "head_dropout": 0.5},
    }
    train = replace(config.train, epochs=100, batch_size=128, min_lr=1e-5, layer_decay=0.7)
    return RunConfig(with_options(config.parts, changes), train, config.evaluate)
