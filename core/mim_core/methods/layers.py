"""Which layer of an encoder a parameter belongs to: what layer-wise learning rates and freezing go by."""

from __future__ import annotations

import re

FIRST = ("patch_embed", "pos_embed", "position", "prefix_position", "cls_token", "reg_token", "mask_token", "norm_pre")
"""Modules and tokens in front of an encoder's blocks, under our names and under timm's."""


def layer_of(name: str, depth: int) -> int:
    """The layer that a parameter belongs to, by its name: 0 in front of the blocks, i + 1 in block i, and depth + 1 in
    all that follows, such as heads (BEiT, arXiv 2106.08254, code; so MAE, VideoMAE and ViTDet).

    Convolutions that were added beside a block's layers (``.residual.``, ViTDet) count as what follows.

    Args:
        name: Of ours, such as "encoder.blocks.3.norm1.weight" or "tokenizer.proj.weight"; or of timm's, with or
            without a prefix of a backbone.
        depth: Blocks of the encoder.
    """
    inner = re.sub(r"^(encoder|backbone(\.net)?)\.", "", name)
    if name.startswith("tokenizer.") or inner.partition(".")[0] in FIRST:
        return 0
    block = re.match(r"(?:blocks\.)+(\d+)\.", inner)
    outer = name.partition(".")[0] not in ("encoder", "backbone", "blocks") or ".residual." in name
    return depth + 1 if block is None or outer else int(block[1]) + 1


def layer_scale(name: str, depth: int, decay: float) -> float:
    """What a parameter's learning rate is multiplied by: decay^(depth + 1 - layer), so that heads have 1."""
    return float(decay ** (depth + 1 - layer_of(name, depth)))
