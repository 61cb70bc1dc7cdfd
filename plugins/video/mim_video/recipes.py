"""Recipes of video MIM, with the papers' numbers, and their twins: the same made small for tests.

Sources: VideoMAE, arXiv 2203.12602, and its official scripts; VideoMAE V2, arXiv 2303.16727, and its scripts; MAE-ST,
arXiv 2205.09113, and its code. Where data are repeated a batch counts files, as in those scripts: each file gives
``repeat`` clips.
"""

from __future__ import annotations

from dataclasses import replace

from mim_core import Part, RunConfig, TrainConfig, Twins

SIZES = {"small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16), "huge": (1280, 32, 16)}
"""Width, blocks and heads of the encoder."""
DECODERS = {"small": (192, 3), "base": (384, 6), "large": (512, 8), "huge": (640, 8)}
"""Width and heads of VideoMAE's decoder."""
MICRO = {"small": 64, "base": 32, "large": 16, "huge": 8}
"""Clips at once that fit a GPU of 32 GB; no effect on results."""


TWINS = Twins(
    items=360,
    batch=8,
    changes={
        "data": {"root": "sample"},
        "tokenizer": {"size": (8, 32, 32), "patch": (2, 8, 8)},
        "encoder": {"width": 32, "depth": 2, "heads": 2},
        "decoder": {"width": 16, "depth": 1, "heads": 2},
    },
)
REPEATED = {"root": "sample", "repeat": 2}


def _videomae(size: str, stride: int = 4, ratio: float = 0.9) -> RunConfig:
    """VideoMAE on 16 frames at 224 pixels: multi-scale crops without flips, a decoder of four blocks. Kinetics' 1600
    epochs."""
    width, depth, heads = SIZES[size]
    decoder_width, decoder_heads = DECODERS[size]
    return RunConfig(
        parts={
            "data": Part.of("video:clips", stride=stride),
            "tokenizer": Part.of("video:tubelet", size=(16, 224, 224), patch=(2, 16, 16)),
            "masker": Part.of("video:tube", ratio=ratio),
            "encoder": Part.of("core:vit", width=width, depth=depth, heads=heads, class_token=False, position="flat"),
            "decoder": Part.of(
                "core:transformer",
                width=decoder_width,
                depth=4,
                heads=decoder_heads,
                position="flat",
                embed_bias=False,
            ),
            "target": Part.of("video:cubes", normalize=True),
        },
        train=TrainConfig(
            epochs=1600,
            batch_size=2048,
            micro_batch=MICRO[size],
            base_lr=1.5e-4,
            lr_batch=256,
            warmup_epochs=40,
            warmup_lr=1e-6,
            min_lr=1e-5,
            weight_decay=0.05,
            decay_tokens=False,
            betas=(0.9, 0.95),
        ),
    )


@TWINS()
def videomae_vit_small() -> RunConfig:
    """ViT-S/16: 384 wide, 12 blocks, 6 heads; Kinetics-400."""
    return _videomae("small")


@TWINS({"encoder": {"width": 48, "depth": 2, "heads": 3}})
def videomae_vit_base() -> RunConfig:
    """ViT-B/16: 768 wide, 12 blocks, 12 heads; Kinetics-400."""
    return _videomae("base")


@TWINS({"encoder": {"width": 64, "depth": 3, "heads": 4}})
def videomae_vit_large() -> RunConfig:
    """ViT-L/16: 1024 wide, 24 blocks, 16 heads; Kinetics-400."""
    return _videomae("large")


@TWINS({"tokenizer": {"size": (8, 32, 48), "patch": (2, 8, 8)}})
def videomae_vit_huge() -> RunConfig:
    """ViT-H/16: 1280 wide, 32 blocks, 16 heads; Kinetics-400."""
    return _videomae("huge")


@TWINS({"tokenizer": {"size": (6, 32, 32), "patch": (3, 8, 8)}})
def videomae_vit_base_ssv2() -> RunConfig:
    """ViT-B/16 on Something-Something v2: every second frame, 2400 epochs."""
    config = _videomae("base", stride=2)
    return replace(config, train=replace(config.train, epochs=2400))


@TWINS({"tokenizer": {"size": (4, 32, 32), "patch": (2, 8, 8)}})
def videomae_vit_base_ucf101() -> RunConfig:
    """ViT-B/16 on UCF101 alone: three quarters hidden, batches of 192, 3200 epochs."""
    config = _videomae("base", ratio=0.75)
    return replace(config, train=replace(config.train, epochs=3200, batch_size=192, base_lr=3e-4, micro_batch=24))


@TWINS({"data": REPEATED})
def videomae_vit_tiny() -> RunConfig:
    """For the bundled clips of simulated robot tasks: minutes on two CPU cores. Raw pixels, four clips of each decoded
    file and small batches; so short a run learns nothing that the probes see with normalised targets and 64 pixels, or
    in a quarter of the steps."""
    return RunConfig(
        parts={
            "data": Part.of("video:clips", root="sample", stride=4, repeat=4),
            "tokenizer": Part.of("video:tubelet", size=(8, 48, 48), patch=(2, 8, 8)),
            "masker": Part.of("video:tube", ratio=0.75),
            "encoder": Part.of("core:vit", width=128, depth=4, heads=4, class_token=False, position="sincos"),
            "decoder": Part.of("core:transformer", width=64, depth=1, heads=4, position="sincos", embed_bias=False),
            "target": Part.of("video:cubes", normalize=False),
        },
        train=TrainConfig(
            epochs=50,
            batch_size=8,
            base_lr=3.2e-2,
            warmup_epochs=3,
            decay_tokens=False,
            log_every=50,
            checkpoint_every=1000,
        ),
    )


def _dual(config: RunConfig, **train: object) -> RunConfig:
    """A VideoMAE recipe with VideoMAE V2's two masks, four clips of the same frames per file, as its code has them, and
    other training options."""
    data = config.parts["data"]
    parts = {
        **config.parts,
        "data": Part(data.name, {**data.options, "repeat": 4, "repeat_start": "same"}),
        "masker": Part.of("video:dual", ratio=0.9, decoder_ratio=0.5),
    }
    return replace(config, parts=parts, train=replace(config.train, **train))  # type: ignore[arg-type]


@TWINS({"data": REPEATED})
def videomae_v2_vit_base() -> RunConfig:
    """ViT-B/16, 200 epochs of four clips per file. The learning rate is that of the scripts for ViT-L and ViT-H."""
    return _dual(_videomae("base"), epochs=200, base_lr=1e-3, warmup_epochs=30, micro_batch=8)


@TWINS({"data": REPEATED, "tokenizer": {"size": (8, 24, 24), "patch": (2, 6, 6)}})
def videomae_v2_vit_giant() -> RunConfig:
    """ViT-g/14: 1408 wide, 40 blocks, 16 heads, 6144 wide in the MLP; 300 epochs of four clips per file."""
    config = _dual(_videomae("large"), epochs=300, base_lr=6e-4, warmup_epochs=30, clip_grad=0.02, micro_batch=1)
    encoder = config.parts["encoder"]
    giant = {**encoder.options, "width": 1408, "depth": 40, "heads": 16, "mlp_ratio": 6144 / 1408}
    parts = {
        **config.parts,
        "tokenizer": Part.of("video:tubelet", size=(16, 224, 224), patch=(2, 14, 14)),
        "encoder": Part(encoder.name, giant),
    }
    return replace(config, parts=parts)


def _mae_st(size: str, micro_batch: int) -> RunConfig:
    """MAE-ST on 16 frames at 224 pixels: any unit is hidden, one frame of each tubelet is predicted; 100 epochs of four
    clips per file."""
    width, depth, heads = SIZES[size]
    return RunConfig(
        parts={
            "data": Part.of(
                "video:clips",
                stride=4,
                crop="resized",
                area=(0.5, 1.0),
                flip=0.5,
                repeat=4,
                mean=(0.45, 0.45, 0.45),
                std=(0.225, 0.225, 0.225),
            ),
            "tokenizer": Part.of("video:tubelet", size=(16, 224, 224), patch=(2, 16, 16)),
            "masker": Part.of("core:random", ratio=0.9),
            "encoder": Part.of("core:vit", width=width, depth=depth, heads=heads, position="separable"),
            "decoder": Part.of("core:transformer", width=512, depth=4, heads=16, position="separable", prefix="own"),
            "target": Part.of("video:frame-of-tubelet", normalize=True),
        },
        train=TrainConfig(
            epochs=100,
            batch_size=128,
            micro_batch=micro_batch,
            base_lr=1.6e-3,
            lr_batch=256,
            warmup_epochs=5,
            weight_decay=0.05,
            betas=(0.9, 0.95),
            clip_grad=0.02,
        ),
    )


@TWINS({"data": REPEATED})
def mae_st_vit_base() -> RunConfig:
    """ViT-B/16: 768 wide, 12 blocks, 12 heads."""
    return _mae_st("base", micro_batch=8)


@TWINS({"data": REPEATED, "encoder": {"width": 64, "depth": 3, "heads": 4}})
def mae_st_vit_large() -> RunConfig:
    """ViT-L/16: 1024 wide, 24 blocks, 16 heads."""
    return _mae_st("large", micro_batch=4)


# ---- twins -----------------------------------------------------------------------------------------------------------
