"""The plain ViT in a run or an export of ours, as weights of another code base are read: for recipes of another
modality."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from mim_core.data.normalise import usual_statistics
from mim_core.errors import MimError
from mim_core.interop.encoders import Found
from mim_core.parts.encoder import ViTEncoder
from mim_core.parts.position import TablePosition
from mim_core.parts.tokenizer import PatchTokenizer
from mim_core.recipes.config import ResolvedRun


def modalities_of(run: ResolvedRun) -> set[str]:
    """What the tokenizers of a recipe read, as far as their options say."""
    parts = (part for role, part in run.parts.items() if role.rpartition(".")[2] == "tokenizer")
    return {part.options.modality for part in parts if hasattr(part.options, "modality")}


def read_alike(one: ResolvedRun, other: ResolvedRun) -> bool:
    """Whether two recipes read a modality in common, or neither says which it reads."""
    own, theirs = modalities_of(one), modalities_of(other)
    return bool(own & theirs) or not own | theirs


def have_other_patches(one: ResolvedRun, other: ResolvedRun) -> bool:
    """Whether two recipes of one input cut it into patches of other sizes or channels."""
    parts = [run.parts.get("tokenizer") for run in (one, other)]
    cuts = [
        (tuple(part.options.patch), part.options.channels)
        for part in parts
        if part is not None and issubclass(part.cls, PatchTokenizer)
    ]
    return len(set(cuts)) > 1


def encoder_within(module: nn.Module, recipe: ResolvedRun, path: Path) -> Found:
    """The plain ViT of a method of ours, under timm's names.

    Args:
        module: Has its ``tokenizer`` and its ``encoder``.
        recipe: Its recipe.
        path: Where it is from, for what is said.

    Raises:
        MimError: It is no plain ViT behind patches of one input.
    """
    tokenizer, encoder, read = module.tokenizer, module.encoder, ", ".join(sorted(modalities_of(recipe)))
    if not isinstance(tokenizer, PatchTokenizer) or not isinstance(encoder, ViTEncoder) or not _is_plain(encoder):
        raise MimError(
            f"--init {path} reads {read or 'other units'}, and this recipe another input, or in other patches or "
            "channels. Over to such go plain ViTs behind patches of one input alone, and this is none. Start from a "
            "run that reads what this recipe reads, in the same patches."
        )
    weights = {f"patch_embed.{name}": value for name, value in tokenizer.state_dict().items()}
    state = encoder.state_dict()
    outside = ("position.", "prefix_position", "mask_token")
    weights |= {name: value for name, value in state.items() if not name.startswith(outside)}
    if isinstance(encoder.position, TablePosition):
        table = encoder.position.tables_at(encoder.position.units)["table"]
        slots = state.get("prefix_position", table.new_zeros(1, encoder.prefix, table.shape[2]))
        weights["pos_embed"] = torch.cat([slots, table], dim=1)
    sizes = {"num_attention_heads": encoder.blocks[0].attn.num_heads, "layer_norm_eps": encoder.blocks[0].norm1.eps}
    what = f"a plain ViT of ours that reads {read}: width {encoder.width}, {len(encoder.blocks)} blocks"
    config: Any = tokenizer.config
    data: Any = recipe.parts["data"].options if "data" in recipe.parts else None
    stated = (getattr(data, "mean", None), getattr(data, "std", None))
    statistics = usual_statistics(*stated, config.channels) if hasattr(data, "mean") else ()
    return Found(path, what, weights, sizes, (), "", statistics)


def _is_plain(encoder: ViTEncoder) -> bool:
    config = encoder.config
    tables = encoder.position is None or hasattr(encoder.position, "table")
    return config.mlp == "gelu" and config.bias and config.position_at == "input" and not config.segments and tables
