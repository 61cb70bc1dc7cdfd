"""Fine-tuning recipes of images, with the papers' numbers: MAE's fine-tuning and linear probing (arXiv 2111.06377,
appendix A.1, and its code)."""

from __future__ import annotations

from mim_core import Part, RunConfig, TrainConfig, Twins

TWINS = Twins(
    items=10_000,
    batch=16,
    changes={
        "data": {"root": "sample", "mean": (0.286,), "std": (0.353,)},
        "tokenizer": {"size": (28, 28), "patch": (7, 7), "channels": 1},
        "encoder": {"width": 32, "depth": 2, "heads": 2},
        "method": {"classes": 10},
    },
)
CLASSES = 1000
"""Of ImageNet-1K; the data's take their place."""
SIZES = {"base": (768, 12, 12), "large": (1024, 24, 16), "huge": (1280, 32, 16)}


def _mae(size: str, patch: int = 16, **train: float) -> RunConfig:
    """MAE's fine-tuning of a ViT at 224 pixels, mean pooling."""
    width, depth, heads = SIZES[size]
    settings = {
        "epochs": 50.0,
        "base_lr": 1e-3,
        "layer_decay": 0.75,
        "micro_batch": 32,
        **train,
    }
    drop_path = {"base": 0.1, "large": 0.2, "huge": 0.3}[size]
    return RunConfig(
        parts={
            "data": Part.of(
                "image:images", crop=(0.08, 1.0), evaluate_crop=0.875, rand_augment="rand-m9-mstd0.5-inc1", erase=0.25
            ),
            "tokenizer": Part.of("image:patch", size=(224, 224), patch=(patch, patch), channels=3),
            "encoder": Part.of(
                "core:vit",
                width=width,
                depth=depth,
                heads=heads,
                position="learned",
                class_position=True,
                drop_path=drop_path,
            ),
            "method": Part.of(
                "core:classifier",
                classes=CLASSES,
                pool="mean",
                norm="pooled",
                head_std=2e-5,
                label_smoothing=0.1,
                mixup=0.8,
                cutmix=1.0,
            ),
        },
        train=TrainConfig(
            batch_size=1024,
            lr_batch=256,
            warmup_epochs=5,
            min_lr=2.5e-7,  # 1e-6 at this batch: MAE's is not scaled
            weight_decay=0.05,
            decay_tokens=False,
            betas=(0.9, 0.999),
            **settings,  # type: ignore[arg-type]
        ),
    )


@TWINS()
def mae_finetune_vit_base() -> RunConfig:
    """ViT-B/16, 100 epochs; rates and layer decay as in the code's README (5e-4, 0.65)."""
    return _mae("base", epochs=100.0, base_lr=5e-4, layer_decay=0.65)


@TWINS()
def mae_finetune_vit_large() -> RunConfig:
    """ViT-L/16, 50 epochs."""
    return _mae("large")


@TWINS({"tokenizer": {"size": (28, 28), "patch": (14, 14), "channels": 1}})
def mae_finetune_vit_huge() -> RunConfig:
    """ViT-H/14, 50 epochs."""
    return _mae("huge", patch=14)


@TWINS()
def mae_linprobe_vit_base() -> RunConfig:
    """ViT-B/16, frozen: one layer behind batch normalisation on the class token, by LARS, 90 epochs."""
    width, depth, heads = SIZES["base"]
    return RunConfig(
        parts={
            "data": Part.of("image:images", crop=(0.08, 1.0), evaluate_crop=0.875),
            "tokenizer": Part.of("image:patch", size=(224, 224), patch=(16, 16), channels=3),
            "encoder": Part.of("core:vit", width=width, depth=depth, heads=heads),
            "method": Part.of(
                "core:classifier", classes=CLASSES, pool="prefix", head="probe", head_std=0.01, freeze=-1
            ),
        },
        train=TrainConfig(
            epochs=90,
            batch_size=16384,
            micro_batch=512,
            base_lr=0.1,
            lr_batch=256,
            warmup_epochs=10,
            weight_decay=0.0,
            betas=(0.9, 0.999),
            optimizer="lars",
        ),
    )
