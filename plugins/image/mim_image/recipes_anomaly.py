"""Recipes of anomaly detection: a convolutional autoencoder with a masked block (SSPCAB, arXiv 2111.09099; SSMCTB,
arXiv 2209.12148), trained on normal pictures alone.

Both papers put the block into detectors of other projects and keep their settings. The host and all its numbers are
choices of this project; those of the block are the paper's (kernel 1, dilation 1) and its published code's.
"""

from __future__ import annotations

from mim_core import EvaluateConfig, Part, RunConfig, TrainConfig

from mim_image.recipes import TWINS

JUDGED = EvaluateConfig(on=("image:anomaly",), online=())
BAGS = 990
"""Training pictures of bags in the bundled sample."""

SMALL: dict[str, dict[str, object]] = {
    "data": {"root": "sample", "normal": "bag", "mean": (0.286,), "std": (0.353,)},
    "tokenizer": {"size": (28, 28), "patch": (4, 4), "channels": 1},
    "method": {"widths": (8, 12)},
}


@TWINS(SMALL, items=BAGS)
def ssmctb_autoencoder() -> RunConfig:
    """256-pixel pictures in colour, such as MVTec AD's, to 32 x 32 places of 128 channels, with SSMCTB behind them."""
    return RunConfig(
        parts={
            "method": Part.of("image:autoencoder", widths=(32, 64, 128), block="ssmctb"),
            "data": Part.of("image:anomalies", crop=(0.8, 1.0), flip=0.0),
            "tokenizer": Part.of("image:patch", size=(256, 256), patch=(8, 8), channels=3),
        },
        train=TrainConfig(
            epochs=200, batch_size=16, base_lr=1e-3, lr_batch=16, warmup_epochs=5, weight_decay=1e-4, betas=(0.9, 0.999)
        ),
        evaluate=JUDGED,
    )


@TWINS(SMALL, items=BAGS)
def ssmctb_autoencoder_tiny() -> RunConfig:
    """For the bundled 28-pixel grey sample with one class as the normal one: minutes on a CPU."""
    return RunConfig(
        parts={
            "method": Part.of("image:autoencoder", widths=(16, 32), block="ssmctb"),
            "data": Part.of(
                "image:anomalies", root="sample", normal="bag", crop=(0.8, 1.0), mean=(0.286,), std=(0.353,)
            ),
            "tokenizer": Part.of("image:patch", size=(28, 28), patch=(4, 4), channels=1),
        },
        train=TrainConfig(
            epochs=40, batch_size=64, base_lr=2e-3, lr_batch=64, warmup_epochs=1, weight_decay=1e-4, betas=(0.9, 0.999),
            log_every=20, checkpoint_every=1000,
        ),
        evaluate=JUDGED,
    )  # fmt: skip
