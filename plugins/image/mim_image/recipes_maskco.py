"""Recipes of MaskCo (arXiv 2108.07954): a region is hidden in one view, and told apart by its place in another, which
a momentum encoder sees whole.

No code was published. From the paper: one region hidden, the mask prediction head in front of the cut, the projector
behind it, the momentum branch, negatives of other images and of the same image. Choices of this project: the region is
3 x 3 units of ResNet's last map, at a place that both views show; the mask prediction head is two bottleneck blocks;
views, momentum, queue and temperature are MoCo v2's (arXiv 2003.04297); the teacher uses running statistics, which
follow the student's, in place of shuffled batches; AdamW in place of SGD, with its usual rate and weight decay.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mim_core import Part, RunConfig, TrainConfig

from mim_image.recipes import TWINS, mae_vit_tiny

SMALL: dict[str, dict[str, object]] = {
    "encoder": {"name": None, "widths": (16, 32), "depths": (1, 1), "channels": 1},
    "tokenizer": {"size": (28, 28), "patch": (2, 2), "channels": 1},
    "regions.decoder": {"depth": 1, "bottleneck": 8, "hidden": 32},
    "regions.target": {"size": 16, "queue": 16, "temperature": 0.07},
    "teacher": {"start": 0.5, "end": 0.5},
    "data": {"root": "sample", "mean": (0.286,), "std": (0.353,), "view_place": "shift", "view_shift": 3},
}


def _maskco(data: Part, tokenizer: Part, encoder: Part, momentum: float, head: dict[str, Any], queue: int) -> dict:
    """The parts of MaskCo."""
    changes = {"view_place": "own", "view_changes": "all", "crop": (0.2, 1.0)}
    return {
        "data": Part(data.name, {**data.options, **changes}),
        "tokenizer": tokenizer,
        "encoder": encoder,
        "masker": Part.of("core:region", size=(3, 3)),
        "scorer": Part.of("core:overlap"),
        "teacher": Part.of(
            "core:ema", start=momentum, end=momentum, view="target", heads=("regions",), buffers="follow"
        ),
        "regions.target": Part.of("image:region-contrast", queue=queue),
        "regions.decoder": Part.of("image:regions", **head),
    }


@TWINS(SMALL, base_lr=3e-3)
def maskco_resnet50() -> RunConfig:
    """ResNet-50 at 224 pixels, 200 epochs; the batch cannot be accumulated."""
    tokenizer = Part.of("image:patch", size=(224, 224), patch=(32, 32), channels=3)
    parts = _maskco(Part.of("image:images"), tokenizer, Part.of("image:resnet", name="resnet50"), 0.999, {}, 65536)
    train = TrainConfig(
        epochs=200, batch_size=256, base_lr=5e-4, lr_batch=256, warmup_epochs=5, weight_decay=0.05, betas=(0.9, 0.999)
    )
    return RunConfig(parts=parts, train=train)


@TWINS(SMALL, base_lr=3e-3)
def maskco_resnet_tiny() -> RunConfig:
    """For the bundled 28-pixel grey sample: minutes on a CPU, as many samples as image:mae-vit-tiny, with a ResNet in
    place of its transformer."""
    run = mae_vit_tiny()
    tokenizer = Part.of("image:patch", size=(28, 28), patch=(4, 4), channels=1)
    encoder = Part.of("image:resnet", name=None, widths=(32, 64, 128), depths=(1, 1, 1), channels=1)
    head = {"depth": 1, "bottleneck": 32, "hidden": 128}
    parts = _maskco(run.parts["data"], tokenizer, encoder, 0.99, head, 4096)
    return replace(run, parts=parts, train=replace(run.train, base_lr=2e-3, micro_batch=None))
