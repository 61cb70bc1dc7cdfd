"""Names of transformers' ViTMAE -> names of the official MAE. Older releases
(``vit.encoder.layer.0.attention.attention.query``) too."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

# within a block: transformers' name -> MAE's; the older spelling first
_BLOCK = [
    (r"attention\.attention\.(query|key|value)\.", r"attn.\1."),
    (r"attention\.output\.dense\.", "attn.proj."),
    (r"attention\.([qkv])_proj\.", r"attn.\1."),
    (r"attention\.o_proj\.", "attn.proj."),
    (r"layernorm_before\.", "norm1."),
    (r"layernorm_after\.", "norm2."),
    (r"intermediate\.dense\.", "mlp.fc1."),
    (r"(?<!attention\.)output\.dense\.", "mlp.fc2."),
]
_OUTER = {
    "vit.embeddings.cls_token": "cls_token",
    "vit.embeddings.position_embeddings": "pos_embed",
    "vit.embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
    "vit.embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
    "vit.layernorm.weight": "norm.weight",
    "vit.layernorm.bias": "norm.bias",
}
# releases on the hub have decoder_layers; what save_pretrained of transformers 5 writes has decoder_encoder.layer
_LAYER = re.compile(r"(?:vit\.(?:encoder\.)?layers?|decoder\.decoder_(?:layers|encoder\.layer))\.(\d+)\.(.+)")


def _rename(name: str) -> str:
    if name in _OUTER:
        return _OUTER[name]
    layer = _LAYER.fullmatch(name)
    if layer is None:
        return name.removeprefix("decoder.")  # decoder.mask_token, decoder.decoder_embed.weight, ...
    rest = layer.group(2)
    for pattern, replacement in _BLOCK:
        rest = re.sub(pattern, replacement, rest)
    return f"{'decoder_blocks' if name.startswith('decoder.') else 'blocks'}.{layer.group(1)}.{rest}"


def to_mae(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict under MAE's names, with query, key and value joined into one layer."""
    renamed = {_rename(name): value for name, value in state.items()}
    moved: dict[str, Tensor] = {}
    for name, value in renamed.items():
        part = re.fullmatch(r"(.+\.attn\.)(q|query)\.(weight|bias)", name)
        if part:
            short = part.group(2) == "q"
            names = [
                f"{part.group(1)}{n}.{part.group(3)}" for n in (("q", "k", "v") if short else ("query", "key", "value"))
            ]
            moved[f"{part.group(1)}qkv.{part.group(3)}"] = torch.cat([renamed[n] for n in names])
        elif not re.search(r"\.attn\.(k|v|key|value)\.", name):
            moved[name] = value
    return moved
