"""Names of transformers' VideoMAE -> names of the official VideoMAE. Older releases, with ``q_bias`` and ``v_bias``,
too."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

NEEDED = ("num_attention_heads", "decoder_num_attention_heads")
"""Entries of ``config.json`` that the weights do not tell."""
# within a block: transformers' name -> VideoMAE's
_BLOCK = [
    (r"attention\.attention\.", "attn."),
    (r"attention\.output\.dense\.", "attn.proj."),
    (r"layernorm_before\.", "norm1."),
    (r"layernorm_after\.", "norm2."),
    (r"intermediate\.dense\.", "mlp.fc1."),
    (r"^output\.dense\.", "mlp.fc2."),
    (r"attn\.query\.bias", "attn.q_bias"),
    (r"attn\.value\.bias", "attn.v_bias"),
]
_OUTER = {
    "videomae.embeddings.patch_embeddings.projection.weight": "encoder.patch_embed.proj.weight",
    "videomae.embeddings.patch_embeddings.projection.bias": "encoder.patch_embed.proj.bias",
    "videomae.layernorm.weight": "encoder.norm.weight",
    "videomae.layernorm.bias": "encoder.norm.bias",
}
_LAYER = re.compile(r"(?:videomae\.encoder\.layer|decoder\.decoder_layers)\.(\d+)\.(.+)")


def _rename(name: str) -> str:
    layer = _LAYER.fullmatch(name)
    if layer is None:
        return _OUTER.get(name, name)  # encoder_to_decoder.weight, mask_token, decoder.norm.weight, ...
    rest = layer.group(2)
    for pattern, replacement in _BLOCK:
        rest = re.sub(pattern, replacement, rest)
    return f"{'decoder' if name.startswith('decoder.') else 'encoder'}.blocks.{layer.group(1)}.{rest}"


def to_videomae(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict under VideoMAE's names, with query, key and value joined into one layer. Position tables, which
    are computed, are left out."""
    renamed = {_rename(name): value for name, value in state.items() if not name.endswith("position_embeddings")}
    moved: dict[str, Tensor] = {}
    for name, value in renamed.items():
        prefix, separator, _ = name.partition(".attn.query.weight")
        if separator:
            parts = [renamed[f"{prefix}.attn.{part}.weight"] for part in ("query", "key", "value")]
            moved[f"{prefix}.attn.qkv.weight"] = torch.cat(parts)
        elif not re.search(r"\.attn\.(key|value)\.weight$", name):
            moved[name] = value
    return moved
