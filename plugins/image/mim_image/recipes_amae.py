"""Recipes of AMAE (arXiv 2307.12721), one for each of its two steps.

No code was published, and the paper's numbers are not at hand: rates and epochs are choices of this project.
"""

from __future__ import annotations

from dataclasses import replace

from mim_core import Part, RunConfig, TrainConfig

from mim_image.recipes import DECODER, TWINS, mae_vit_small, mae_vit_tiny
from mim_image.recipes_anomaly import BAGS, JUDGED, SMALL

AMAE: dict[str, dict[str, object]] = {
    **SMALL,
    "method": {"untrained": True},
    "tokenizer": {"size": (28, 28), "patch": (7, 7), "channels": 1},
    "encoder": {"width": 32, "depth": 2, "heads": 2},
}

EASY = {"untrained": True, "change": 4.0}
"""What the features of an untrained encoder show within 20 steps."""


def _first(run: RunConfig) -> RunConfig:
    """A classifier on the encoder of a run of this recipe."""
    parts = {role: run.parts[role] for role in ("tokenizer", "encoder")}
    parts["data"] = Part("image:anomalies", {**run.parts["data"].options, "crop": (0.8, 1.0)})
    parts["method"] = Part.of("image:amae-classifier")
    train = TrainConfig(
        epochs=50, batch_size=64, base_lr=1e-3, lr_batch=64, warmup_epochs=1, weight_decay=0.01, betas=(0.9, 0.999)
    )
    return RunConfig(parts=parts, train=train, evaluate=JUDGED)


def _second(run: RunConfig) -> RunConfig:
    """Two modules that begin as a run of this recipe."""
    parts = {**run.parts, "method": Part.of("image:amae")}
    parts["data"] = Part("image:anomalies", {**run.parts["data"].options, "crop": (0.8, 1.0)})
    train = replace(run.train, epochs=50, batch_size=64, micro_batch=None, base_lr=1e-4, lr_batch=64, warmup_epochs=2)
    return RunConfig(parts=parts, train=train, evaluate=JUDGED)


@TWINS({**AMAE, "method": EASY}, items=BAGS, base_lr=5e-3)
def amae_1() -> RunConfig:
    """The first step on a run of image:mae-vit-small."""
    return _first(mae_vit_small())


@TWINS({**AMAE, "decoder": DECODER}, items=BAGS)
def amae_2() -> RunConfig:
    """The second step, on the same run and the one of the first step."""
    return _second(mae_vit_small())


@TWINS({**AMAE, "method": EASY}, items=BAGS, base_lr=5e-3)
def amae_1_tiny() -> RunConfig:
    """The first step on a run of image:mae-vit-tiny."""
    return _with_bags(_first(mae_vit_tiny()))


@TWINS({**AMAE, "decoder": DECODER}, items=BAGS)
def amae_2_tiny() -> RunConfig:
    """The second step on a run of image:mae-vit-tiny."""
    return _with_bags(_second(mae_vit_tiny()))


def _with_bags(run: RunConfig) -> RunConfig:
    """On the bundled sample, with bags as what is normal."""
    data = Part("image:anomalies", {**run.parts["data"].options, "normal": "bag"})
    train = replace(run.train, log_every=20, checkpoint_every=1000)
    return replace(run, parts={**run.parts, "data": data}, train=train)
