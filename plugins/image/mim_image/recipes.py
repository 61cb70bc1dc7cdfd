"""Recipes of image MIM, with the papers' numbers, and their twins: the same made small for tests.

Sources: MAE, arXiv 2111.06377, table 8 and its official PRETRAIN.md; SimMIM, arXiv 2111.09886, section 4.1 and the
official 800-epoch ViT-B configuration; MVP, arXiv 2203.05175, and the settings of BEiT
(arXiv 2106.08254 and its official code), which it keeps.
"""

from __future__ import annotations

from mim_core import Part, RunConfig, TrainConfig, Twins

DECODER = {"width": 16, "depth": 1, "heads": 2}
TWINS = Twins(
    items=10_000,
    batch=16,
    changes={
        "data": {"root": "sample", "mean": (0.286,), "std": (0.353,)},
        "tokenizer": {"size": (28, 28), "patch": (7, 7), "channels": 1},
        "encoder": {"width": 32, "depth": 2, "heads": 2},
    },
)


def _mae(width: int, depth: int, heads: int, patch: int = 16, micro_batch: int = 128) -> RunConfig:
    """MAE at 224 pixels with a decoder of 8 blocks, 512 wide. The micro-batch fits a GPU of 16 GB; it does not change
    results."""
    return RunConfig(
        parts={
            "data": Part.of("image:images", crop=(0.2, 1.0)),
            "tokenizer": Part.of("image:patch", size=(224, 224), patch=(patch, patch), channels=3),
            "masker": Part.of("core:random", ratio=0.75),
            "encoder": Part.of("core:vit", width=width, depth=depth, heads=heads),
            "decoder": Part.of("core:transformer", width=512, depth=8, heads=16),
            "target": Part.of("core:values", normalize=True, loss="l2"),
        },
        train=TrainConfig(
            epochs=1600,
            batch_size=4096,
            micro_batch=micro_batch,
            base_lr=1.5e-4,
            lr_batch=256,
            warmup_epochs=40,
            weight_decay=0.05,
            betas=(0.9, 0.95),
        ),
    )


@TWINS({"decoder": DECODER})
def mae_vit_small() -> RunConfig:
    """ViT-S/16: 384 wide, 12 blocks, 6 heads. Not in the paper; its other settings."""
    return _mae(384, 12, 6)


@TWINS({"decoder": DECODER, "encoder": {"width": 48, "depth": 2, "heads": 3}})
def mae_vit_base() -> RunConfig:
    """ViT-B/16: 768 wide, 12 blocks, 12 heads."""
    return _mae(768, 12, 12)


@TWINS({"decoder": DECODER, "encoder": {"width": 64, "depth": 3, "heads": 4}})
def mae_vit_large() -> RunConfig:
    """ViT-L/16: 1024 wide, 24 blocks, 16 heads."""
    return _mae(1024, 24, 16, micro_batch=64)


@TWINS({"decoder": DECODER, "tokenizer": {"size": (28, 28), "patch": (14, 14), "channels": 1}})
def mae_vit_huge() -> RunConfig:
    """ViT-H/14: 1280 wide, 32 blocks, 16 heads."""
    return _mae(1280, 32, 16, patch=14, micro_batch=32)


@TWINS({"decoder": DECODER})
def mae_vit_tiny() -> RunConfig:
    """For the bundled 28-pixel grey sample: minutes on a CPU. The numbers that it reaches are in the README.

    Patches of 7 and batches of 64 learn most in a few minutes on two cores, see docs/results/fashion-mnist.md.
    """
    return RunConfig(
        parts={
            # mean and deviation of Fashion-MNIST's 60,000 training images
            "data": Part.of("image:images", root="sample", crop=(0.6, 1.0), mean=(0.286,), std=(0.353,)),
            "tokenizer": Part.of("image:patch", size=(28, 28), patch=(7, 7), channels=1),
            "masker": Part.of("core:random", ratio=0.75),
            "encoder": Part.of("core:vit", width=128, depth=4, heads=4),
            "decoder": Part.of("core:transformer", width=64, depth=1, heads=4),
            "target": Part.of("core:values", normalize=False, loss="l2"),
        },
        train=TrainConfig(epochs=20, batch_size=64, base_lr=4e-3, warmup_epochs=1, log_every=20, checkpoint_every=1000),
    )


@TWINS({"masker": {"block": (1, 1)}})
def simmim_vit_base() -> RunConfig:
    """ViT-B/16 under 32-pixel blocks at 0.6, L1 on pixels, a linear decoder."""
    return RunConfig(
        parts={
            "data": Part.of("image:images", crop=(0.67, 1.0)),
            "tokenizer": Part.of("image:patch", size=(224, 224), patch=(16, 16), channels=3),
            "masker": Part.of("core:grid", ratio=0.6, block=(2, 2), rounding="up"),
            "encoder": Part.of("core:beit", width=768, depth=12, heads=12, drop_path=0.1, layer_scale=0.1),
            "decoder": Part.of("core:linear"),
            "target": Part.of("core:values", normalize=False, loss="l1", channels_first=True),
        },
        train=TrainConfig(
            epochs=800,
            batch_size=2048,
            micro_batch=64,
            base_lr=1e-4,
            lr_batch=512,
            warmup_epochs=10,
            warmup_lr=5e-7,
            schedule="steps",
            milestones=(700,),
            weight_decay=0.05,
            decay_tokens=False,
            betas=(0.9, 0.999),
            clip_grad=5.0,
        ),
    )


# the first block of a CLIP with random weights, on grey images of another grid
CLIP = {"model": "ViT-S-32", "weights": "random", "layer": 0, "mean": (0.286,), "std": (0.353,)}


@TWINS({"masker": {"smallest": 2}, "target": CLIP}, min_lr=1e-5)
def mvp_vit_base() -> RunConfig:
    """ViT-B/16 that predicts CLIP ViT-B/16's features at 75 of 196 patches; 300 epochs with BEiT's settings, save its
    colour jitter. OpenAI's weights, the paper's, go with the model ViT-B-16-quickgelu."""
    return RunConfig(
        parts={
            "data": Part.of("image:images", crop=(0.08, 1.0)),
            "tokenizer": Part.of("image:patch", size=(224, 224), patch=(16, 16), channels=3),
            "masker": Part.of("core:block", ratio=0.384, smallest=16, aspect=0.3),
            "encoder": Part.of("core:beit", width=768, depth=12, heads=12, drop_path=0.1, layer_scale=0.1),
            "decoder": Part.of("core:linear"),
            "target": Part.of("image:clip", model="ViT-B-16", loss="cosine", projected=True),
        },
        train=TrainConfig(
            epochs=300,
            batch_size=2048,
            micro_batch=64,
            base_lr=1.5e-3,
            lr_batch=2048,
            warmup_epochs=10,
            warmup_lr=1e-6,
            min_lr=1e-5,
            weight_decay=0.05,
            decay_tokens=False,
            betas=(0.9, 0.999),
            clip_grad=3.0,
        ),
    )
