"""Weights of MAE-ST as a method of this project. The converter carries names and sizes, no code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from mim_core import Method, MimError, Part, State, fill, fill_weights, importers
from torch import Tensor

from mim_video.weights import tubelets

MAE_ST_HEADS = {"num_heads": {768: 12, 1024: 16, 1280: 16}, "decoder_num_heads": {512: 16}}
"""Attention heads of the released MAE-ST models, by width."""


@dataclass(frozen=True)
class MaeStSizes:
    """What may be said of MAE-ST weights, under MAE-ST's own names. What can be read off the weights is checked."""

    num_heads: int | None = None
    """Attention heads of the encoder; known for the released widths."""
    decoder_num_heads: int | None = None
    """Attention heads of the decoder; known for the released width."""
    mask_ratio: float = 0.9
    """For the masker."""
    norm_pix_loss: bool = True
    """Whether the target is normalised per frame of a tubelet."""
    img_size: Any = None
    """Needed for inputs that are not square."""
    num_frames: int = 16
    """Frames of a clip; read off the weights where positions are separable."""
    norm_eps: float = 1e-6
    """Small number in the normalisation layers."""
    position: str | None = None
    """A description, ignored."""
    patch_size: Any = None
    t_patch_size: int | None = None
    pred_t_dim: int | None = None
    in_chans: int | None = None
    embed_dim: int | None = None
    depth: int | None = None
    decoder_embed_dim: int | None = None
    decoder_depth: int | None = None
    mlp_ratio: float | None = None
    sep_pos_embed: bool | None = None
    cls_embed: bool | None = None
    no_qkv_bias: bool | None = None


@importers.licensed("CC BY-NC 4.0")
def import_mae_st(state: State, **sizes: Any) -> Method:
    """Official MAE-ST weights, with the decoder. ``sizes`` are the fields of `MaeStSizes`.

    Raises:
        MimError: Weights of another code base, a size that contradicts them, heads that must be given.
    """
    given = fill(MaeStSizes, sizes, "import format mae-st")
    width, channels, tubelet, *patch = importers.need(state, "patch_embed.proj.weight", "MAE-ST").shape
    decoder_width = importers.need(state, "decoder_embed.weight", "MAE-ST with its decoder").shape[0]
    size, frames, read = _read_sizes(state, given)
    separable, with_class = read["sep_pos_embed"], read["cls_embed"]
    shared = {"position": "separable" if separable else "learned", "norm_eps": given.norm_eps}
    method = importers.build(
        tokenizer=tubelets(size, (tubelet, *patch), channels),
        masker=Part.of("core:random", ratio=given.mask_ratio),
        encoder=Part.of(
            "core:vit",
            width=width,
            depth=read["depth"],
            heads=importers.heads_of("num_heads", given, width, MAE_ST_HEADS),
            mlp_ratio=read["mlp_ratio"],
            class_token=with_class,
            **shared,
        ),
        decoder=Part.of(
            "core:transformer",
            width=decoder_width,
            depth=read["decoder_depth"],
            heads=importers.heads_of("decoder_num_heads", given, decoder_width, MAE_ST_HEADS),
            mlp_ratio=importers.mlp_ratio_of(state, "decoder_blocks.", decoder_width),
            prefix="own" if with_class else "encoder",
            **shared,
        ),
        target=Part.of("video:frame-of-tubelet", frames=frames, normalize=given.norm_pix_loss),
    )
    moved = _fold_class_positions(_joined_attention(state))
    fill_weights(method, moved, {name: _mae_st_name(name) for name in method.state_dict()})
    return method


def _read_sizes(state: State, given: MaeStSizes) -> tuple[tuple[int, int, int], int, dict[str, Any]]:
    """The size of a clip, the predicted frames of a tubelet, and what was read off the weights, by MAE-ST's names."""
    width, channels, tubelet, *patch = importers.need(state, "patch_embed.proj.weight", "MAE-ST").shape
    decoder_width = importers.need(state, "decoder_embed.weight", "MAE-ST with its decoder").shape[0]
    separable, with_class = "pos_embed_spatial" in state, "cls_token" in state
    size = _mae_st_size(state, given, tubelet, (patch[0], patch[1]), with_class)
    frames = importers.need(state, "decoder_pred.weight", "MAE-ST").shape[0] // (channels * patch[0] * patch[1])
    read = {
        "embed_dim": width,
        "in_chans": channels,
        "depth": importers.depth_of(state, "blocks."),
        "t_patch_size": tubelet,
        "patch_size": tuple(patch),
        "pred_t_dim": size[0] // tubelet * frames,
        "decoder_embed_dim": decoder_width,
        "decoder_depth": importers.depth_of(state, "decoder_blocks."),
        "mlp_ratio": importers.mlp_ratio_of(state, "blocks.", width),
        "sep_pos_embed": separable,
        "cls_embed": with_class,
    }
    importers.agree(given, read)
    return size, frames, read


def _mae_st_size(
    state: State, given: MaeStSizes, tubelet: int, patch: tuple[int, int], with_class: bool
) -> tuple[int, int, int]:
    """Frames, height and width: as the position tables say, or as given."""
    if "pos_embed_spatial" in state:
        frames = importers.need(state, "pos_embed_temporal", "MAE-ST").shape[1] * tubelet
        places = state["pos_embed_spatial"].shape[1]
    else:
        frames = given.num_frames
        units = importers.need(state, "pos_embed", "MAE-ST").shape[1] - int(with_class)
        places = units // max(1, frames // tubelet)
    side = round(places**0.5)
    if given.img_size is None and side * side != places:
        raise MimError(f"The weights are for {places} patches a frame, which is no square; give img_size.")
    size = (side * patch[0], side * patch[1]) if given.img_size is None else importers.pair(given.img_size)
    if size[0] // patch[0] * (size[1] // patch[1]) != places:
        raise MimError(
            f"img_size {size} with patch {patch} makes another number of patches than the weights' {places}."
        )
    return frames, *size


def _joined_attention(state: State) -> dict[str, Tensor]:
    """The state with queries, keys and values in one layer; a bias that MAE-ST leaves out is zero."""
    moved = {name: value for name, value in state.items() if not _is_separate(name)}
    for name, weight in state.items():
        prefix, separator, _ = name.partition(".attn.q.weight")
        if separator:
            moved[f"{prefix}.attn.qkv.weight"] = torch.cat([state[f"{prefix}.attn.{part}.weight"] for part in "qkv"])
            none = weight.new_zeros(weight.shape[0])
            moved[f"{prefix}.attn.qkv.bias"] = torch.cat([state.get(f"{prefix}.attn.{p}.bias", none) for p in "qkv"])
    return moved


def _is_separate(name: str) -> bool:
    return any(f".attn.{part}." in name for part in "qkv")


def _fold_class_positions(state: State) -> dict[str, Tensor]:
    """Adds the class tokens' own positions to them, and leaves the units' positions."""
    moved = dict(state)
    for prefix in ("", "decoder_"):
        token, table = moved.get(f"{prefix}cls_token"), moved.get(f"{prefix}pos_embed")
        if token is None:
            continue
        if table is not None:
            moved[f"{prefix}cls_token"], moved[f"{prefix}pos_embed"] = token + table[:, :1], table[:, 1:]
        elif f"{prefix}pos_embed_class" in moved:
            moved[f"{prefix}cls_token"] = token + moved.pop(f"{prefix}pos_embed_class")
    return moved


def _mae_st_name(ours: str) -> str:
    """Our name of a weight -> MAE-ST's."""
    tables = {"first": "pos_embed_temporal", "rest": "pos_embed_spatial", "table": "pos_embed"}
    rest = ours.removeprefix(importers.HEAD)
    prefix = "decoder_" if rest != ours else ""
    rest = rest.removeprefix("encoder.").replace("tokenizer.", "patch_embed.")
    if rest.startswith("position."):
        return prefix + tables[rest.removeprefix("position.")]
    return rest if rest == "mask_token" else prefix + rest
