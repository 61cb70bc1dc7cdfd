"""Weights of the published PyTorch code of SSMCTB, with two axes or three (arXiv 2209.12148)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mim_core.errors import MimError
from mim_core.parts.masked_block import SSMCTB

CORNERS: dict[int, dict[str, tuple[int, ...]]] = {
    2: {"conv1": (-1, -1), "conv2": (1, -1), "conv3": (-1, 1), "conv4": (1, 1)},
    3: {
        "conv1": (-1, -1, 1),
        "conv1_1": (-1, -1, -1),
        "conv2": (1, -1, 1),
        "conv2_2": (1, -1, -1),
        "conv3": (-1, 1, 1),
        "conv3_3": (-1, 1, -1),
        "conv4": (1, 1, 1),
        "conv4_4": (1, 1, -1),
    },
}
"""By the number of axes: where each convolution looks, outermost axis first."""

GATE = {2: "transformer", 3: "transformer_sspcab"}
PARTS = {
    "projection.weight": "project.weight",
    "projection.bias": "project.bias",
    "pos_embedding": "position",
    "mha.to_qkv.weight": "qkv.weight",
    "mha.to_out.0.weight": "out.weight",
    "mha.to_out.0.bias": "out.bias",
}


def official_names(block: SSMCTB) -> dict[str, str]:
    """Our names of a block's weights -> official names.

    Raises:
        MimError: A block of one axis, which was not published.
    """
    axes = block.convolution.axes
    if axes not in CORNERS:
        raise MimError(f"The published SSMCTB has 2 or 3 axes, not {axes}.")
    number = {side: i for i, side in enumerate(block.convolution.sides)}
    names = {
        f"convolution.corners.{number[side]}.{kind}": f"{theirs}.{kind}"
        for theirs, side in CORNERS[axes].items()
        for kind in ("weight", "bias")
    }
    return names | {f"gate.{ours}": f"{GATE[axes]}.{theirs}" for theirs, ours in PARTS.items()}


def ssmctb_from(state: Mapping[str, Tensor], **options: Any) -> SSMCTB:
    """The block of official weights; sizes are read off them.

    Args:
        state: Official names -> weights, of one block alone, without a prefix.
        options: What weights do not tell: dilation, loss; ``heads`` and ``head_width`` where they are not 5 and 64.

    Raises:
        MimError: A weight is missing, left over, or has another shape than it should.
    """
    if "conv1.weight" not in state:
        first = ", ".join(list(state)[:3]) or "nothing"
        raise MimError(f"These are no weights of an SSMCTB: conv1.weight is missing; there are {first}.")
    weight = state["conv1.weight"]
    axes = weight.ndim - 2
    if axes not in CORNERS:
        raise MimError(f"The published SSMCTB has 2 or 3 axes, and conv1.weight is {list(weight.shape)}.")
    table = state.get(f"{GATE[axes]}.pos_embedding")
    if table is None:
        raise MimError(f"These are no weights of an SSMCTB: {GATE[axes]}.pos_embedding is missing.")
    with torch.random.fork_rng(devices=[]):
        block = SSMCTB(weight.shape[0], axes, weight.shape[2], width=table.shape[-1], **options)
    names = official_names(block)
    missing, strange = set(names.values()) - set(state), set(state) - set(names.values())
    if missing or strange:
        what = [f"{', '.join(sorted(keys))} {verb}" for keys, verb in ((missing, "missing"), (strange, "left over"))
                if keys]  # fmt: skip
        raise MimError(f"These weights do not fill an SSMCTB: {'; '.join(what)}.")
    try:
        block.load_state_dict({ours: state[theirs] for ours, theirs in names.items()})
    except RuntimeError as error:
        raise MimError(f"These weights do not fit an SSMCTB: {' '.join(str(error).split())}") from error
    return block
