"""Weights of Point-MAE as a method of this project. The converter carries names and sizes, no code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mim_core import Method, MimError, Part, State, fill, fill_weights, importers

RELEASED_HEADS = {"heads": {384: 6}, "decoder_heads": {384: 6}}
"""Attention heads of the released Point-MAE model, by width."""
CONVOLUTIONS = ("first_conv.0", "first_conv.3", "second_conv.0")
"""The layers that give the widths of the small PointNet."""
LOSSES = {"cdl2": "l2", "cdl1": "l1"}
"""Point-MAE's names of the Chamfer distance."""
SAME_AS = {"trans_dim": "dim", "num_heads": "heads", "decoder_num_heads": "decoder_heads"}
"""The names in Point-MAE's own settings, where they differ from those here."""


@dataclass(frozen=True)
class PointMaeSizes:
    """What may be said of Point-MAE weights. What can be read off the weights is checked."""

    num_points: int = 1024
    """Points of a cloud; the weights do not tell, and take other numbers too."""
    num_group: int = 64
    """Groups of a cloud; the weights do not tell, and take other numbers too."""
    group_size: int | None = None
    """Points of a group."""
    mask_ratio: float = 0.6
    """For the masker."""
    heads: int | None = None
    """Attention heads of the encoder; known for the released width."""
    decoder_heads: int | None = None
    """Attention heads of the decoder; those of the encoder by default."""
    loss: str = "cdl2"
    """cdl2 or cdl1."""
    fps_start: int = 0
    """Where farthest-point sampling starts: at the first point."""
    batchnorm: str = ""
    """Of no effect: the mode of the method decides."""
    dim: int | None = None
    depth: int | None = None
    decoder_depth: int | None = None
    mlp_ratio: float | None = None


@importers.licensed("MIT")
def import_point_mae(state: State, **sizes: Any) -> Method:
    """Official Point-MAE weights, with the decoder. ``sizes`` are the fields of `PointMaeSizes`, or Point-MAE's own
    names of them.

    Raises:
        MimError: Weights of another code base, a size that contradicts them, heads that must be given.
    """
    given = fill(PointMaeSizes, {SAME_AS.get(name, name): value for name, value in sizes.items()}, "format point-mae")
    if given.loss not in LOSSES:
        raise MimError(f"loss is {given.loss!r}; Point-MAE has {' and '.join(LOSSES)}.")
    if given.fps_start != 0:
        raise MimError(f"fps_start is {given.fps_start}; sampling starts at the first point, 0.")
    width = importers.need(state, "MAE_encoder.norm.weight", "Point-MAE").shape[0]
    lacking = [name for name in ("MAE_decoder.", "increase_dim.") if not any(key.startswith(name) for key in state)]
    if lacking:
        raise MimError(
            "These Point-MAE weights have no decoder (no weights that start with "
            f"{' or '.join(lacking)}), as those of a fine-tuned classifier do not. Take the pre-training weights."
        )
    answer = importers.need(state, "increase_dim.0.weight", "Point-MAE with its decoder").shape[0]
    read = {
        "dim": width,
        "group_size": answer // 3,
        "depth": importers.depth_of(state, "MAE_encoder.blocks.blocks."),
        "decoder_depth": importers.depth_of(state, "MAE_decoder.blocks."),
        "mlp_ratio": importers.mlp_ratio_of(state, "MAE_encoder.blocks.blocks.", width),
    }
    importers.agree(given, read)
    method = importers.build(**_parts(state, given, width, read))
    fill_weights(method, state, {name: _theirs(name) for name in method.state_dict()})
    return method


def _parts(state: State, given: PointMaeSizes, width: int, read: Mapping[str, Any]) -> dict[str, Part]:
    """Tokenizer, masker, encoder, decoder and target of these sizes."""
    channels = importers.need(state, "MAE_encoder.encoder.first_conv.0.weight", "Point-MAE").shape[1]
    heads = importers.heads_of("heads", given, width, RELEASED_HEADS)
    blocks = {
        "width": width,
        "position": "coordinates",
        "position_at": "blocks",
        "norm_eps": 1e-5,
        "qkv_bias": "MAE_encoder.blocks.blocks.0.attn.qkv.bias" in state,
    }
    return {
        "tokenizer": Part.of(
            "pointcloud:groups",
            points=given.num_points,
            groups=given.num_group,
            size=read["group_size"],
            channels=channels,
            hidden=tuple(state[f"MAE_encoder.encoder.{name}.bias"].shape[0] for name in CONVOLUTIONS),
        ),
        "masker": Part.of("core:random", ratio=given.mask_ratio, rounding="down"),
        "encoder": Part.of(
            "core:vit", **blocks, depth=read["depth"], heads=heads, class_token=False, mlp_ratio=read["mlp_ratio"]
        ),
        "decoder": Part.of(
            "core:transformer",
            **blocks,
            depth=read["decoder_depth"],
            heads=given.decoder_heads or heads,
            mlp_ratio=importers.mlp_ratio_of(state, "MAE_decoder.blocks.", width),
            embed=False,
        ),
        "target": Part.of("pointcloud:chamfer", norm=LOSSES[given.loss]),
    }


def _theirs(ours: str) -> str:
    """Our name of a weight -> Point-MAE's."""
    for start, other in (("tokenizer.local.", "first_conv."), ("tokenizer.whole.", "second_conv.")):
        if ours.startswith(start):
            return "MAE_encoder.encoder." + other + ours.removeprefix(start)
    ours = ours.replace("position.layers.", "pos_embed.")
    if ours.startswith("encoder.blocks."):
        return "MAE_encoder.blocks." + ours.removeprefix("encoder.")
    if ours.startswith("encoder."):
        return "MAE_" + ours
    rest = ours.removeprefix(importers.HEAD)
    outer = {
        "mask_token": "mask_token",
        "pred.weight": "increase_dim.0.weight",
        "pred.bias": "increase_dim.0.bias",
    }
    if rest.startswith("pos_embed."):
        return "decoder_" + rest
    return outer.get(rest, "MAE_decoder." + rest)
