"""Official SdAE weights, and how its golden cases are tried."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from mim_core import FeatureTarget, Method, MimError, Part, Progress, State, fill, fill_weights, importers, warn
from mim_core.testing.golden import GoldenAdapter, GoldenCase, answers_everywhere
from torch import Tensor

from mim_image.interop import RELEASED_HEADS, _image_size, _mae_name
from mim_image.recipes_sdae import TARGET, TEACHES

TEACHER = "teachers.main."


@dataclass(frozen=True)
class SdaeSizes:
    """What may be said of SdAE weights, under SdAE's own names. Most is read off the weights."""

    num_heads: int | None = None
    decoder_num_heads: int | None = None
    mask_ratio: float = 0.75
    img_size: Any = None
    patch_size: Any = None
    embed_dim: int | None = None
    depth: int | None = None
    decoder_embed_dim: int | None = None
    decoder_depth: int | None = None
    shrink_num: int | None = None
    """Hidden patches that the teacher sees; none: all."""
    ncrop_loss: int = 3
    """Folds."""
    momentum_teacher: float = 0.96
    """At the start; 0.99 at the end."""


@importers.grouped(teacher="teacher.")
def import_sdae(state: State, **sizes: Any) -> Method:
    """Official SdAE weights (arXiv 2208.00449): the student's under MAE's names, the teacher's as the file's
    ``teacher``, or with ``teacher.`` in front; a teacher that is not there starts as a copy. ``sizes`` are the fields
    of `SdaeSizes`.

    Raises:
        MimError: Weights of another code base, or a size that contradicts them.
    """
    given = fill(SdaeSizes, sizes, "import format sdae")
    width, channels, *patch = importers.need(state, "patch_embed.proj.weight", "SdAE").shape
    inner = importers.need(state, "decoder_embed.weight", "SdAE with its decoder").shape[0]
    if importers.need(state, "decoder_pred.weight", "SdAE with its decoder").shape[0] != width:
        raise MimError("The decoder's answers are not as wide as the encoder, so these weights are MAE's, not SdAE's.")
    read = {
        "embed_dim": width,
        "depth": importers.depth_of(state, "blocks."),
        "decoder_embed_dim": inner,
        "decoder_depth": importers.depth_of(state, "decoder_blocks."),
        "patch_size": (patch[0], patch[1]),
    }
    importers.agree(given, read)
    size = _image_size(given.img_size, (patch[0], patch[1]), state["pos_embed"].shape[1] - 1)
    taught = any(name.startswith("teacher.") for name in state)
    method = importers.build(
        tokenizer=Part.of("image:patch", size=size, patch=tuple(patch), channels=channels),
        masker=Part.of("core:random", ratio=given.mask_ratio),
        encoder=Part.of("core:vit", width=width, depth=read["depth"],
                        heads=importers.heads_of("num_heads", given, width, RELEASED_HEADS)),
        decoder=Part.of("core:transformer", width=inner, depth=read["decoder_depth"],
                        heads=importers.heads_of("decoder_num_heads", given, inner, RELEASED_HEADS)),
        teacher=Part.of("core:ema", **TEACHES, folds=given.ncrop_loss, hidden=given.shrink_num,
                        start=given.momentum_teacher, begins="own" if taught else "copy"),
        target=Part.of("core:features", **TARGET),
    )  # fmt: skip
    moved = importers.without_slot(state, "cls_token", "pos_embed")
    moved["decoder_pos_embed"] = state["decoder_pos_embed"][:, 1:]
    names = {name: _sdae_name(name) for name in method.state_dict()}
    if taught:
        moved = importers.without_slot(moved, "teacher.cls_token", "teacher.pos_embed")
    else:
        warn("there is no teacher in these weights: it starts as a copy of the student.")
        names = {ours: theirs.removeprefix("teacher.") for ours, theirs in names.items()}
    fill_weights(method, moved, names)
    return method


def _sdae_name(ours: str) -> str:
    """Our name of a weight -> SdAE's."""
    if ours.startswith(TEACHER):
        return f"teacher.{_mae_name(ours.removeprefix(TEACHER))}"
    return _mae_name(ours)


def _outputs(case: GoldenCase, method: Any, prepared: Any, outcome: Any) -> dict[str, Tensor]:
    """Predictions and targets by fold, and what another cosine loses; tokens of the student in raster order."""
    patches, head = method.tokenizer.split(_sample(case)), method.heads["main"]
    lesson = method.teachers["main"](patches, _sample(case), prepared.mask)
    with torch.no_grad():
        encoded = method._encoded(prepared.inputs, patches.layout, prepared.mask)
        everywhere = answers_everywhere(head, encoded, patches, prepared.mask)
    other = FeatureTarget(replace(head.target.config, along="channels"), method.tokenizer)
    channels = other.loss(outcome.prediction, prepared.targets["main"]) * prepared.weights["main"]
    folds = lesson.folds
    values, width = prepared.targets["main"], outcome.prediction.shape[-1]
    order = values.order.flatten(1)[:, :, None].expand(-1, -1, width)
    shape = (folds.shape[0] * folds.shape[1], folds.shape[2], width)
    seen = lesson.tokens.gather(1, folds.flatten(1)[:, :, None].expand(-1, -1, width))
    return {
        "alt_loss_channel": channels.sum(),
        "pred": everywhere,
        "pred_folds": outcome.prediction.gather(1, order).reshape(shape),
        "target": values.features.gather(1, order).reshape(shape),
        "teacher_features": seen.reshape(shape),
        "latent": outcome.latent,
    }


def _after(case: GoldenCase, method: Any) -> dict[str, Tensor]:
    """The teacher after an epoch."""
    slot = case.config["momentum_teacher"] * case.weights["teacher"]["pos_embed"][:, :1]  # the student's slot is zero
    method.teachers["main"].follow(method, Progress(0.0, new_epoch=True))
    state = {_sdae_name(name): value for name, value in method.state_dict().items()}
    weights = {f"teacher_after/{name.removeprefix('teacher.')}": value for name, value in state.items()}
    weights["teacher_after/pos_embed"] = importers.with_slot(slot, weights["teacher_after/pos_embed"])
    return weights


def _sample(case: GoldenCase) -> dict[str, Tensor]:
    return {name: case.inputs[name] for name in ("image", "ids_unkeep")}


GOLDEN = {
    "sdae": GoldenAdapter(
        sample=_sample,
        mask=lambda case: case.inputs["mask"],
        outputs=_outputs,
        names=lambda method: {name: _sdae_name(name) for name in method.state_dict()},
        after=_after,
    )
}
