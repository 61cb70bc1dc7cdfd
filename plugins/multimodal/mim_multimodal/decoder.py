"""MultiMAE's decoder: one modality's units ask all that was seen (arXiv 2204.01678, section 3.3 and its code)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from mim_core import (
    Decoder,
    Encoded,
    Encoder,
    Layout,
    Mask,
    PositionKind,
    check_sizes,
    init_transformer,
    make_position,
    take,
    token,
)
from timm.layers import Mlp
from timm.models import vision_transformer
from torch import Tensor, nn
from torch.nn import functional as F


class CrossAttention(nn.Module):
    """Attention of queries [R, Q, W] over a context [R, K, W]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.kv, self.proj = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)

    def forward(self, queries: Tensor, context: Tensor) -> Tensor:
        """[R, Q, W]."""
        q = self.q(queries).unflatten(2, (self.heads, -1)).transpose(1, 2)
        k, v = self.kv(context).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class CrossAttentionDecoder(Decoder):
    """Queries attend once to everything that was seen, then to each other in ordinary blocks.

    All units, of all modalities, get a vector: what the encoder made of them, or the mask token; a fixed position; and
    a learned vector of their modality. Those of the queried units are the queries (so a visible unit asks with its own
    encoding); those of the visible units, and the encoder's prefix tokens, are the context. There is no residual
    connection around the cross-attention, as in the code.
    """

    @dataclass(frozen=True)
    class Config:
        """Options of the cross-attention decoder."""

        width: int = 256
        """Token width."""
        depth: int = 2
        """Blocks after the cross-attention."""
        heads: int = 8
        """Attention heads; they must divide the width."""
        mlp_ratio: float = 4.0
        """Hidden width of the MLPs over the token width."""
        position: PositionKind = "sincos-first"
        """sincos-first (MultiMAE's code), sincos, flat, learned, separable, coordinates or none; modalities that lie
        freely have coordinates."""
        norm_eps: float = 1e-6
        """Small number in the normalisation layers."""

    def __init__(self, config: Config, encoder: Encoder, layout: Layout, size: int) -> None:
        super().__init__()
        check_sizes(config.width, config.depth, config.heads)
        self.config = config
        width, norm = config.width, partial(nn.LayerNorm, eps=config.norm_eps)
        self.embed = nn.Linear(encoder.width, width)
        self.query_norm, self.context_norm, self.out_norm = norm(width), norm(width), norm(width)
        self.attend = CrossAttention(width, config.heads)
        self.mlp = Mlp(width, int(width * config.mlp_ratio))
        self.blocks = nn.Sequential(
            *(
                vision_transformer.Block(
                    width, config.heads, mlp_ratio=config.mlp_ratio, qkv_bias=True, norm_layer=norm
                )
                for _ in range(config.depth)
            )
        )
        self.pred = nn.Linear(width, size)
        init_transformer(self)
        self.mask_token = token(1, width)
        self.modality = nn.ParameterDict({name: token(1, width) for name, _ in layout.segments})
        self.position = make_position(config.position, layout, width)

    def forward(self, encoded: Encoded, layout: Layout, mask: Mask) -> Float[Tensor, "R Q size"]:
        """Every unit's vector, cross-attention of the queries, blocks, an answer per query."""
        seen = self.embed(encoded.tokens)
        all_units = self.mask_token.to(seen.dtype).expand(len(seen), layout.count, -1)
        all_units = all_units.scatter(1, mask.kept_ids[:, :, None].expand_as(seen), seen)
        all_units = all_units + self._places(layout, mask)
        context = torch.cat([take(all_units, mask.kept_ids), self.embed(encoded.prefix)], dim=1)
        x = self.attend(self.query_norm(take(all_units, mask.query_ids)), self.context_norm(context))
        x = x + self.mlp(self.out_norm(x))
        return self.pred(self.blocks(x))

    def _places(self, layout: Layout, mask: Mask) -> Tensor:
        """Position and modality of every unit: [1, N, W], or [R, N, W] where positions differ between samples."""
        named: list[Any] = [self.modality[name].expand(1, part.count, -1) for name, part in layout.segments]
        places = torch.cat(named, dim=1) if named else self.mask_token.new_zeros(1, layout.count, self.config.width)
        if self.position is None:
            return places
        positions = self.position(layout)
        if positions.shape[0] not in (1, len(mask.hidden)):
            positions = positions.repeat_interleave(mask.per_sample, dim=0)
        return places + positions
