"""Decoders: from what the encoder saw to an answer at every queried unit."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from timm.models import vision_transformer
from torch import Tensor, nn

from mim_core.parts.encoder import Encoded, Encoder, Init, check_sizes, init_transformer, rising, through, token
from mim_core.parts.layout import Layout, take
from mim_core.parts.mask import Mask
from mim_core.parts.position import PositionAt, PositionKind, make_position


class Decoder(nn.Module):
    """Base class. Built from its options, the encoder, the layout and the size of an answer."""

    Config: ClassVar[type[Any]]

    def forward(self, encoded: Encoded, layout: Layout, mask: Mask) -> Float[Tensor, "R Q size"]:
        """An answer for each of ``mask.query_ids``, in that order."""
        raise NotImplementedError


class TransformerDecoder(Decoder):
    """A light transformer over what was seen and a mask token per query (MAE, arXiv 2111.06377, section 3 "MAE
    decoder").

    The sequence is [prefix, kept units, queries], each with its own position. Attention does not depend on the order,
    so this equals MAE's un-shuffled sequence when queries are the hidden units, and VideoMAE V2's dual masking when
    they are a subset with some visible.
    """

    @dataclass(frozen=True)
    class Config:
        """Options of the transformer decoder."""

        width: int = 512
        """Token width."""
        depth: int = 8
        """Transformer blocks."""
        heads: int = 16
        """Attention heads; they must divide the width."""
        mlp_ratio: float = 4.0
        """Hidden width of the MLP over the token width."""
        position: PositionKind = "sincos"
        """sincos, sincos-first (first axis first), flat (sine-cosine over the sequence of units), learned, separable
        (learned per axis), coordinates (an MLP of where units lie) or none."""
        position_at: PositionAt = "input"
        """Add positions once, or at the input of every block (Point-MAE)."""
        norm_eps: float = 1e-6
        """Small number in the normalisation layers."""
        final_norm_eps: float | None = None
        """The same in the last one, where it differs."""
        embed: bool = True
        """A linear layer from the encoder's width to this one; Point-MAE has none, the widths are equal there."""
        embed_bias: bool = True
        """A bias in that layer; VideoMAE has none."""
        qkv_bias: bool = True
        """Biases of queries, keys and values."""
        drop_path: float = 0.0
        """Stochastic depth, rising linearly to this rate in the last block."""
        init: Init = "xavier"
        """How linear layers start: xavier (MAE), or truncated, a normal of deviation 0.02 (Point-MAE)."""
        prefix: Literal["encoder", "own"] = "encoder"
        """What stands in front: the encoder's class and register tokens, or a token of the decoder's own (MAE-ST)."""

    def __init__(self, config: Config, encoder: Encoder, layout: Layout, size: int) -> None:
        super().__init__()
        check_sizes(config.width, config.depth, config.heads)
        self.config = config
        if not config.embed and encoder.width != config.width:
            raise ValueError(
                f"without a layer in between, the width must be the encoder's, {encoder.width}; it is {config.width}"
            )
        embed = nn.Linear(encoder.width, config.width, bias=config.embed_bias)
        self.embed = embed if config.embed else nn.Identity()
        self.blocks = self._own_blocks(config)
        final_eps = config.norm_eps if config.final_norm_eps is None else config.final_norm_eps
        self.norm = nn.LayerNorm(config.width, eps=final_eps)
        self.pred = nn.Linear(config.width, size)
        init_transformer(self, config.init)
        self.mask_token = token(1, config.width)
        self.cls_token = token(1, config.width) if config.prefix == "own" else None
        self.position = make_position(config.position, layout, config.width)
        if self.position is not None and config.init == "truncated":
            init_transformer(self.position, config.init)

    @staticmethod
    def _own_blocks(config: Config) -> nn.Sequential:
        return nn.Sequential(
            *(
                vision_transformer.Block(
                    config.width,
                    config.heads,
                    mlp_ratio=config.mlp_ratio,
                    qkv_bias=config.qkv_bias,
                    drop_path=rate,
                    norm_layer=partial(nn.LayerNorm, eps=config.norm_eps),
                )
                for rate in rising(config.drop_path, config.depth)
            )
        )

    def forward(self, encoded: Encoded, layout: Layout, mask: Mask) -> Float[Tensor, "R Q size"]:
        """Embed, append a mask token per query, add positions, transform, predict."""
        seen = self.embed(encoded.tokens)
        asked = self.mask_token.expand(*mask.query_ids.shape, -1).to(seen.dtype)
        if self.cls_token is None:
            front = self.embed(encoded.prefix)
        else:
            front = self.cls_token.expand(seen.shape[0], -1, -1).to(seen.dtype)
        x = torch.cat([front, seen, asked], dim=1)
        places = None
        if self.position is not None:
            found = take(self.position(layout), torch.cat([mask.kept_ids, mask.query_ids], dim=1))
            places = nn.functional.pad(found, (0, 0, front.shape[1], 0))  # what stands in front has no place
        if places is not None and self.config.position_at == "input":
            x, places = x + places, None
        x = through(self.blocks, x, places)
        return self.pred(self.norm(x[:, -mask.query_ids.shape[1] :]))


class LinearDecoder(Decoder):
    """One linear layer per unit (SimMIM, arXiv 2111.09886, section 3.3), for encoders that see all positions."""

    @dataclass(frozen=True)
    class Config:
        """The linear decoder has no options."""

    def __init__(self, config: Config, encoder: Encoder, layout: Layout, size: int) -> None:
        super().__init__()
        if encoder.sees != "all":
            raise ValueError(
                f"the linear decoder answers at places that the encoder has seen, and {type(encoder).__name__} sees "
                f"visible units "
                "only; use --encoder.sees all, or the transformer decoder"
            )
        self.config = config
        self.pred = nn.Linear(encoder.width, size)
        init_transformer(self)

    def forward(self, encoded: Encoded, layout: Layout, mask: Mask) -> Float[Tensor, "R Q size"]:
        """Reads the encoder's tokens at the queried units; all units are kept, so ids are places."""
        return self.pred(take(encoded.tokens, mask.query_ids))
