"""Recipes of MST (arXiv 2106.05656): DINO's self-distillation between views, of which patches are hidden that the
teacher's class token attends to least, and the whole image restored.

No code was published. From the paper: the teacher's attention, averaged over heads, says what is hidden, the low
responses (section 3.3); mask tokens in the student's input alone; an L1 loss over the whole image (section 3.4) with
weight 0.6; DINO's head, temperatures, centre, crops and optimizer. Choices of this project: what is hidden is an eighth
of the half that is attended to least; the image is restored by one linear layer per patch; the momentum and the weight
decay are DINO's.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mim_core import Part, RunConfig, TrainConfig

from mim_image.recipes import TWINS, mae_vit_tiny

TARGET: dict[str, object] = {"size": 64, "teacher_start": 0.1, "teacher_end": 0.1, "center_momentum": 0.99}
SMALL: dict[str, dict[str, object]] = {
    "views.target": TARGET,
    "local.target": TARGET,
    "views.decoder": {"hidden": 32, "bottleneck": 16},
    "local.decoder": {"hidden": 32, "bottleneck": 16},
    "masker": {"ratio": 0.125, "among": 0.5},
    "method": {"local_size": (14, 14), "local_views": 2},
}


def _mst(run: RunConfig, local: tuple[int, int], size: int, head: dict[str, Any], momentum: float) -> RunConfig:
    """The parts of MST: so many local views of each of an item's two samples, of this size; and so many prototypes."""
    count, side = local
    pairs = 2 + 4 * count  # of a student's view and a teacher's: every one counts the same
    names = ("views", "local")
    parts = {role: part for role, part in run.parts.items() if role not in ("target", "decoder", "masker", "encoder")}
    encoder, data = run.parts["encoder"], run.parts["data"]
    changes = {"view_changes": "all", "view_solarize": 0.1, "crop": (0.4, 1.0), "local_crop": (0.05, 0.4)}
    parts |= {
        "data": Part(data.name, {**data.options, **changes}),
        "encoder": Part(encoder.name, {**encoder.options, "sees": "all"}),
        "masker": Part.of("core:guided", ratio=0.0625, direction="low", among=0.5, share_from=1.0, share_to=1.0),
        "scorer": Part.of("core:attention"),
        "teacher": Part.of("core:ema", start=momentum, end=1.0, heads=("views",)),
        "pixels.target": Part.of("core:values", normalize=False, loss="l1"),
        "pixels.decoder": Part.of("core:linear"),
        "views.target": Part.of("core:self-distillation", size=size),
        "views.decoder": Part.of("core:prototypes", **head),
        "local.target": Part.of("core:self-distillation", size=size, against="both"),
        "local.decoder": Part.of("core:prototypes", **head, input_of="views"),
        "method": Part.of(
            "core:masked-autoencoder",
            weights=dict(zip(("pixels", *names), (0.6, 2 / pairs, 4 * count / pairs), strict=True)),
            every_unit=("pixels",),
            views={"local": "local"},
            local_views=count,
            local_size=(side, side),
        ),
    }
    return replace(run, parts=parts)


@TWINS(SMALL, base_lr=3e-3)
def mst_vit_small() -> RunConfig:
    """ViT-S/16 (DeiT-S), 300 epochs, two views of 224 and eight of 96 pixels; the batch cannot be accumulated."""
    run = RunConfig(
        parts={
            "data": Part.of("image:images"),
            "tokenizer": Part.of("image:patch", size=(224, 224), patch=(16, 16), channels=3),
            "encoder": Part.of("core:vit", width=384, depth=12, heads=6, drop_path=0.1),
        },
        train=TrainConfig(
            epochs=300,
            batch_size=1024,
            base_lr=5e-4,
            lr_batch=256,
            warmup_epochs=10,
            weight_decay=0.04,
            weight_decay_end=0.4,
            betas=(0.9, 0.999),
            clip_grad=3.0,
        ),
    )
    return _mst(run, (4, 96), 65536, {}, 0.996)


@TWINS(SMALL, base_lr=3e-3)
def mst_vit_tiny() -> RunConfig:
    """For the bundled 28-pixel grey sample, beside image:mae-vit-tiny: the same encoder; half as many items a batch,
    for each gives two samples."""
    run = mae_vit_tiny()
    run = _mst(run, (2, 14), 1024, {"hidden": 256, "bottleneck": 64}, 0.99)
    train = replace(run.train, batch_size=run.train.batch_size // 2, micro_batch=None)
    return replace(run, train=train)
