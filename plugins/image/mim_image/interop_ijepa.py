"""Official I-JEPA weights, and how its golden cases are tried."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from mim_core import Mask, Method, MimError, Part, Progress, State, fill, fill_weights, importers, warn
from mim_core.testing.golden import GoldenAdapter, GoldenCase
from torch import Tensor

from mim_image.interop import _image_size

HEADS = {"num_heads": {768: 12, 1024: 16, 1280: 16}, "pred_num_heads": {384: 12}}
TEACHER = "teachers.main."


@dataclass(frozen=True)
class IjepaSizes:
    """What may be said of I-JEPA weights, under I-JEPA's own names. Most is read off the weights."""

    num_heads: int | None = None
    pred_num_heads: int | None = None
    """Attention heads of the predictor."""
    crop_size: Any = None
    """Needed for inputs that are not square."""
    patch_size: Any = None
    embed_dim: int | None = None
    depth: int | None = None
    mlp_ratio: float | None = None
    pred_emb_dim: int | None = None
    pred_depth: int | None = None
    num_enc_masks: int = 1
    """Context blocks; only 1."""
    num_pred_masks: int = 4
    """Target blocks."""
    ema: float = 0.996
    """The teacher's momentum at the start."""
    block_grid: Any = None
    """Describes a golden case, ignored."""
    pred_mask_scale: tuple[float, float] = (0.15, 0.2)
    enc_mask_scale: tuple[float, float] = (0.85, 1.0)
    aspect_ratio: tuple[float, float] = (0.75, 1.5)


@importers.grouped(encoder="encoder.", predictor="predictor.", target_encoder="teacher.")
def import_ijepa(state: State, **sizes: Any) -> Method:
    """Official I-JEPA weights (arXiv 2301.08243): its file's ``encoder``, ``predictor`` and ``target_encoder``, or
    ``encoder.``, ``predictor.`` and ``teacher.`` in front of each name; a teacher that is not there starts as a copy.
    ``sizes`` are the fields of `IjepaSizes`.

    Raises:
        MimError: Weights of another code base, or a size that contradicts them.
    """
    given = fill(IjepaSizes, sizes, "import format i-jepa")
    width, channels, *patch = importers.need(state, "encoder.patch_embed.proj.weight", "I-JEPA").shape
    inner = importers.need(state, "predictor.predictor_embed.weight", "I-JEPA with its predictor").shape[0]
    read = {
        "embed_dim": width,
        "depth": importers.depth_of(state, "encoder.blocks."),
        "mlp_ratio": importers.mlp_ratio_of(state, "encoder.blocks.", width),
        "pred_emb_dim": inner,
        "pred_depth": importers.depth_of(state, "predictor.predictor_blocks."),
        "num_enc_masks": 1,
        "patch_size": (patch[0], patch[1]),
    }
    importers.agree(given, read)
    size = _image_size(given.crop_size, (patch[0], patch[1]), state["encoder.pos_embed"].shape[1])
    grid = (size[0] // patch[0], size[1] // patch[1])
    method = importers.build(
        method=Part.of("core:masked-autoencoder", carries="teacher"),
        tokenizer=Part.of("image:patch", size=size, patch=tuple(patch), channels=channels),
        masker=Part.of("core:multi-block", targets=given.num_pred_masks, target_scale=given.pred_mask_scale,
                       context_scale=given.enc_mask_scale, target_aspect=given.aspect_ratio, smallest=4),
        encoder=Part.of("core:vit", width=width, depth=read["depth"], mlp_ratio=read["mlp_ratio"], class_token=False,
                        heads=importers.heads_of("num_heads", given, width, HEADS),
                        position=importers.position_of(state["encoder.pos_embed"], grid)),
        decoder=Part.of("core:transformer", width=inner, depth=read["pred_depth"],
                        mlp_ratio=importers.mlp_ratio_of(state, "predictor.predictor_blocks.", inner),
                        heads=importers.heads_of("pred_num_heads", given, inner, HEADS),
                        position=importers.position_of(state["predictor.predictor_pos_embed"], grid)),
        teacher=Part.of("core:ema", start=given.ema, schedule="linear"),
        target=Part.of("core:features"),
    )  # fmt: skip
    names = {name: _name(name) for name in method.state_dict()}
    if not any(name.startswith("teacher.") for name in state):
        warn("there is no teacher in these weights: it starts as a copy of the student.")
        names = {ours: theirs.replace("teacher.", "encoder.", 1) for ours, theirs in names.items()}
    fill_weights(method, state, names)
    return method


def _name(ours: str) -> str:
    """Our name of a weight -> I-JEPA's."""
    if ours.startswith(importers.HEAD):
        rest = ours.removeprefix(importers.HEAD)
        renamed = {"position.table": "predictor_pos_embed", "mask_token": "mask_token"}
        own = renamed.get(rest, f"predictor_{rest}")
        return f"predictor.{own}".replace("predictor_pred.", "predictor_proj.")
    group = "teacher" if ours.startswith(TEACHER) else "encoder"
    rest = ours.removeprefix(TEACHER).removeprefix("encoder.").replace("tokenizer.", "patch_embed.")
    return f"{group}.{'pos_embed' if rest == 'position.table' else rest}"


def _mask(case: GoldenCase) -> Mask:
    """The context is kept, and the targets are asked in groups."""
    hidden, context, targets = (case.inputs[name] for name in ("mask", "context", "targets"))
    if len(context) != 1 or not torch.equal(hidden, torch.ones_like(hidden).scatter(1, context[0], False)):
        raise MimError("in/mask does not hide what in/context leaves.")
    asked = targets.transpose(0, 1).flatten(1)
    return Mask(hidden, context[0], asked, torch.ones(asked.shape), 1, len(targets))


def _outputs(case: GoldenCase, method: Any, prepared: Any, outcome: Any) -> dict[str, Tensor]:
    """Targets one after another, each for all images; block sizes from the case's draws."""
    groups = prepared.mask.groups

    def by_target(values: Tensor) -> Tensor:
        return values.unflatten(1, (groups, -1)).transpose(0, 1).flatten(0, 1)

    draws, grid = case.inputs["u"].tolist(), tuple(case.config["block_grid"])
    blocks = [method.masker.sizes((u, u), grid) for u in draws]
    return {
        "pred": by_target(outcome.prediction),
        "target": by_target(prepared.targets["main"].features),
        "latent": outcome.latent,
        "teacher_features": method.teachers["main"](method.tokenizer.split(_sample(case))).tokens,
        "target_block_size": torch.tensor([target for target, _ in blocks]),
        "context_block_size": torch.tensor([context for _, context in blocks]),
    }


def _after(case: GoldenCase, method: Any) -> dict[str, Tensor]:
    """The teacher after a step."""
    method.teachers["main"].follow(method, Progress(0.0))
    state = {_name(name): value for name, value in method.state_dict().items()}
    return {f"teacher_after/{name.removeprefix('teacher.')}": value for name, value in state.items()}


def _sample(case: GoldenCase) -> dict[str, Tensor]:
    return {"image": case.inputs["image"]}


GOLDEN = {
    "i-jepa": GoldenAdapter(
        sample=_sample,
        mask=_mask,
        outputs=_outputs,
        names=lambda method: {name: _name(name) for name in method.state_dict()},
        after=_after,
    )
}
