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
    """Base class. Built from its options, the encoder, the layout and the size of an answer.

    Attributes:
        asks: "units" where it answers each of ``mask.query_ids``; "sample" where it gives one answer for the sample as
            a whole, [R, 1, size]; "region" where that is of the place that is hidden.
        needs_mask: A teacher's copy is given the batch and the mask too, see `teach`.
        joint: One for all heads, see `mim_core.parts.decoder_joint`: it is made once, and gives each head its own part.
    """

    Config: ClassVar[type[Any]]
    asks: Literal["units", "sample", "region"] = "units"
    needs_mask: bool = False
    joint: bool = False

    def forward(self, encoded: Encoded, layout: Layout, mask: Mask) -> Float[Tensor, "R Q size"]:
        """An answer for each of ``mask.query_ids``, in that order."""
        raise NotImplementedError

    def for_teacher(self) -> nn.Module:
        """The part that a teacher has a copy of, where it follows this head: all of it, unless a part is the
        student's alone, as a predictor is. It must have `teach`."""
        return self

    def teach(self, encoded: Encoded, layout: Layout) -> Float[Tensor, "S n size"]:
        """What a teacher's copy says when nothing is hidden. With ``needs_mask`` it is called with the batch and the
        mask behind these two.

        Raises:
            ValueError: This decoder says nothing then.
        """
        raise ValueError(f"a {type(self).__name__} answers hidden units alone, so a teacher cannot follow it")

    def share(self, other: Decoder) -> None:
        """Takes over the input side of another head's decoder: both are trained as one.

        Raises:
            ValueError: They have no such side, or not the same sizes.
        """
        raise ValueError(f"a {type(self).__name__} has no input side that it could share")


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
        """sincos, sincos-first (first axis first), sincos-quarter (of three axes, a quarter of the channels for the
        first), flat (sine-cosine over the sequence of units), learned, separable (learned per axis), coordinates (an
        MLP of where units lie) or none."""
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
        input_of: str | None = None
        """Another head, whose embedding, mask token and positions this decoder shares (HPM's two decoders)."""

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
        rows, asked = mask.query_ids.shape
        x = self.decode(encoded, layout, mask)[:, -(asked // mask.groups) :]
        return self.pred(self.norm(x)).reshape(rows, asked, -1)

    def decode(self, encoded: Encoded, layout: Layout, mask: Mask) -> Float[Tensor, "G L width"]:
        """Prefix, kept units and queries after all blocks, before the last norm; each group of queries in a row of its
        own."""
        (rows, count), groups = mask.query_ids.shape, mask.groups
        seen = self.embed(encoded.tokens)
        kept_ids, front = mask.kept_ids, self._front(encoded).to(seen.dtype)
        if groups > 1:
            kept_ids, seen, front = (each.repeat_interleave(groups, 0) for each in (kept_ids, seen, front))
        query_ids = mask.query_ids.reshape(rows * groups, count // groups)
        asked = self.mask_token.expand(*query_ids.shape, -1).to(seen.dtype)
        x = torch.cat([front, seen, asked], dim=1)
        places = None
        if self.position is not None:
            positions = take(self.position(layout), torch.cat([kept_ids, query_ids], dim=1))
            places = nn.functional.pad(positions, (0, 0, front.shape[1], 0))  # what stands in front has no place
        if places is not None and self.config.position_at == "input":
            x, places = x + places, None
        return through(self.blocks, x, places, self._keys(mask, front.shape[1]))

    def _front(self, encoded: Encoded) -> Tensor:
        """What stands in front, [R, P, width]."""
        if self.cls_token is None:
            return self.embed(encoded.prefix)
        return self.cls_token.expand(len(encoded.tokens), -1, -1)

    @staticmethod
    def _keys(mask: Mask, front: int) -> Tensor | None:
        """What may be attended to, bool [R * groups, L]; None where all may."""
        if mask.kept_valid is None and mask.query_valid is None:
            return None
        kept = torch.ones_like(mask.kept_ids, dtype=torch.bool) if mask.kept_valid is None else mask.kept_valid
        asked = torch.ones_like(mask.query_ids, dtype=torch.bool) if mask.query_valid is None else mask.query_valid
        kept = nn.functional.pad(kept, (front, 0), value=True).repeat_interleave(mask.groups, 0)
        return torch.cat([kept, asked.reshape(len(kept), asked.shape[1] // mask.groups)], dim=1)

    def teach(self, encoded: Encoded, layout: Layout) -> Float[Tensor, "S N size"]:
        """An answer at every unit, all of which the encoder saw; no query stands beside them."""
        rows, device = len(encoded.tokens), encoded.tokens.device
        x = self.decode(encoded, layout, Mask.nothing_hidden(rows, layout, device))
        return self.pred(self.norm(x[:, -layout.count :]))

    def share(self, other: Decoder) -> None:
        """One embedding and one mask token for two heads.

        Raises:
            ValueError: The other is of another kind, or has another width, embedding, prefix or other positions.
        """
        mine = (self.config.width, self.config.embed, self.config.embed_bias, self.config.prefix, self.config.position)
        if not isinstance(other, TransformerDecoder) or mine != (
            other.config.width, other.config.embed, other.config.embed_bias, other.config.prefix, other.config.position
        ):  # fmt: skip
            raise ValueError("decoders that share their input need the same width, embedding, prefix and positions")
        self.embed, self.mask_token, self.cls_token = other.embed, other.mask_token, other.cls_token
        self.position = other.position


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
