"""Weights of MAE after fine-tuning or linear probing as a classifier of this project. The converter carries names and
sizes, no code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mim_core import Method, MimError, Part, State, fill, fill_weights, importers

from mim_image.interop import RELEASED_HEADS, _image_size


@dataclass(frozen=True)
class FinetunedSizes:
    """What may be said of such weights, under MAE's own names. What can be read off the weights is checked."""

    num_heads: int | None = None
    """Attention heads; the weights do not tell. Known for the released widths 768, 1024 and 1280."""
    img_size: Any = None
    """Needed for inputs that are not square."""
    norm_eps: float = 1e-6
    """Small number in the normalisation layers."""
    drop_path: float = 0.0
    """Stochastic depth, for training that goes on."""
    patch_size: Any = None
    embed_dim: int | None = None
    depth: int | None = None
    in_chans: int | None = None
    mlp_ratio: float | None = None
    num_classes: int | None = None


def import_mae_finetune(state: State, **sizes: Any) -> Method:
    """Official weights of MAE after fine-tuning: ``fc_norm`` behind mean pooling, or ``norm`` and the class token.

    Raises:
        MimError: Weights of another code base, a size that contradicts them, heads that must be given.
    """
    pooled = "fc_norm.weight" in state
    method = {"pool": "mean", "norm": "pooled"} if pooled else {"pool": "prefix"}
    weight = importers.need(state, "head.weight", "MAE after fine-tuning")
    return _imported(state, sizes, "mae-finetune", weight.shape[0], method)


def import_mae_linprobe(state: State, **sizes: Any) -> Method:
    """Official weights of MAE after linear probing: batch normalisation without weights, and a linear layer."""
    weight = importers.need(state, "head.1.weight", "MAE after linear probing")
    pooled = "fc_norm.weight" in state
    method = {"pool": "mean", "norm": "pooled"} if pooled else {"pool": "prefix"}
    return _imported(state, sizes, "mae-linprobe", weight.shape[0], {**method, "head": "probe", "freeze": -1})


def _imported(state: State, sizes: dict[str, Any], form: str, classes: int, method: dict[str, Any]) -> Method:
    given = fill(FinetunedSizes, sizes, f"import format {form}")
    width, channels, *patch = importers.need(state, "patch_embed.proj.weight", "MAE").shape
    table = importers.need(state, "pos_embed", "MAE")
    read = {
        "embed_dim": width,
        "depth": importers.depth_of(state, "blocks."),
        "in_chans": channels,
        "mlp_ratio": importers.mlp_ratio_of(state, "blocks.", width),
        "patch_size": (patch[0], patch[1]),
        "num_classes": classes,
    }
    importers.agree(given, read)
    if table.shape[-1] != width:
        raise MimError(f"These weights do not fit each other: pos_embed is {tuple(table.shape)}, the width {width}.")
    size = _image_size(given.img_size, (patch[0], patch[1]), table.shape[1] - 1)
    model = importers.build(
        tokenizer=Part.of("image:patch", size=size, patch=tuple(patch), channels=channels),
        encoder=Part.of(
            "core:vit",
            width=width,
            depth=read["depth"],
            mlp_ratio=read["mlp_ratio"],
            heads=importers.heads_of("num_heads", given, width, RELEASED_HEADS),
            norm_eps=given.norm_eps,
            drop_path=given.drop_path,
            position="learned",
            class_position=True,
        ),
        method=Part.of("core:classifier", classes=classes, **method),
    )
    moved = {**state, "prefix_position": table[:, :1], "pos_embed": table[:, 1:]}
    fill_weights(model, moved, {name: _theirs(name, form) for name in model.state_dict()})
    return model


def _theirs(ours: str, form: str) -> str:
    """Our name of a weight -> MAE's."""
    if ours.startswith("tokenizer."):
        return ours.replace("tokenizer.", "patch_embed.")
    if ours.startswith("head.") and form == "mae-finetune":
        return ours.replace("head.0.", "head.")
    return {"encoder.position.table": "pos_embed"}.get(ours, ours.removeprefix("encoder."))
