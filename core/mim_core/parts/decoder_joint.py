"""One decoder for all heads: their queries are answered in one pass, and those of different segments do not see each
other (4M, arXiv 2312.06647, section 2.2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from mim_core.parts.blocks import CrossBlock, MlpKind, keys_of, norm_layer, open_rows
from mim_core.parts.decoder import Decoder
from mim_core.parts.encoder import Encoded, Encoder, Init, check_sizes, init_transformer, token
from mim_core.parts.layout import Layout, Patches, take
from mim_core.parts.mask import Mask
from mim_core.parts.position import PositionKind, make_position


class JointAnswer(Decoder):
    """What a `JointDecoder` has for one head: a vector for each of its ids, which scores them, and embeds those that it
    is told of a sequence, unless these have ``own`` vectors; and a vector of its segment, which is the encoder's where
    that has one."""

    def __init__(
        self, width: int, size: int, segment: str, own: bool = False, kind: nn.Parameter | None = None
    ) -> None:
        super().__init__()
        self.segment = segment
        self.pred = nn.Linear(width, size, bias=False)
        nn.init.normal_(self.pred.weight, std=0.02)
        self.kind = token(1, width) if kind is None else kind
        self.token_embed = nn.Parameter(self.pred.weight.detach().clone()) if own else None

    def embed(self, inputs: Int[Tensor, "R Q"]) -> Float[Tensor, "R Q W"]:
        """Vectors of the ids that it is told."""
        vectors = self.pred.weight if self.token_embed is None else self.token_embed
        return F.embedding(inputs.clamp(0, len(vectors) - 1), vectors)

    def forward(self, encoded: Encoded, layout: Layout, mask: Mask) -> Float[Tensor, "R Q size"]:
        """Refused: the decoder of all heads is asked, not one of its heads.

        Raises:
            ValueError: Always.
        """
        raise ValueError("this head is answered by the decoder that it shares with the others")

    def answer(self, decoded: Float[Tensor, "R Q W"], layout: Layout, mask: Mask) -> Float[Tensor, "R q size"]:
        """Scores at this head's own queries, see `Mask.own_queries`."""
        at, _ = mask.own_queries(layout, self.segment)
        scores: Tensor = self.pred(take(decoded, at))
        return scores


class JointDecoder(Decoder):
    """A transformer over the queries of all heads, each of which attends to the queries of its own segment, and to
    everything that was seen (4M, arXiv 2312.06647, section 2.2 and its code).

    A query is a mask token, the position of its unit and a vector of its segment. Of a sequence it is the id that is
    told there, sees only itself and those before it, and counts its position among the queries. What was seen gets its
    positions and segments a second time, behind the linear layer.
    """

    joint = True

    @dataclass(frozen=True)
    class Config:
        """Options of the joint decoder."""

        width: int = 768
        """Token width; the encoder's, whose positions it takes over."""
        depth: int = 12
        """Transformer blocks."""
        heads: int = 12
        """Attention heads; they must divide the width."""
        mlp_ratio: float = 4.0
        """Hidden width of the MLP over the token width."""
        mlp: MlpKind = "gelu"
        """The blocks' MLP: gelu, or swiglu, two thirds as wide with a gate (4M)."""
        bias: bool = True
        """Biases in the blocks and norms; 4M has none. The layer in front has one in any case."""
        qkv_bias: bool = True
        """Biases of queries, keys and values among the queries."""
        position: PositionKind = "sincos-first"
        """sincos-first (first axis first, 4M's code), sincos, flat, learned, separable, coordinates or none."""
        norm_eps: float = 1e-6
        """Small number in the normalisation layers."""
        tied: bool = True
        """One vector of an id scores it and embeds it where a sequence tells it."""
        init: Init = "xavier"
        """How linear layers start: xavier, or truncated, a normal of deviation 0.02."""

    def __init__(self, config: Config, encoder: Encoder, layout: Layout, size: int = 0) -> None:
        super().__init__()
        check_sizes(config.width, config.depth, config.heads)
        if encoder.width != config.width:
            raise ValueError(
                f"what was seen keeps its positions, so the width must be the encoder's, {encoder.width}; it is "
                f"{config.width} (--decoder.width {encoder.width})"
            )
        self.config = config
        self.sequences = [name for name, part in layout.parts() if part.sequence]
        self.embed = nn.Linear(encoder.width, config.width)
        self.blocks = nn.ModuleList(
            CrossBlock(
                config.width, config.heads, config.mlp_ratio, config.mlp, config.bias, config.qkv_bias, config.norm_eps
            )
            for _ in range(config.depth)
        )
        self.norm = norm_layer(config.norm_eps, config.bias)(config.width)
        init_transformer(self, config.init)
        self.mask_token = token(1, config.width)
        self.position = make_position(config.position, layout, config.width)

    def head(self, size: int, segment: str | None, encoder: Encoder) -> JointAnswer:
        """What it has for a head that asks for a segment in answers of this size."""
        name, vectors = segment or "", getattr(encoder, "segment", None)
        own = not self.config.tied and name in self.sequences
        kind = None if vectors is None or name not in vectors else vectors[name]
        return JointAnswer(self.config.width, size, name, own, kind)

    def forward(  # type: ignore[override]
        self, encoded: Encoded, layout: Layout, mask: Mask, inputs: Int[Tensor, "R Q"], heads: Mapping[str, JointAnswer]
    ) -> dict[str, Float[Tensor, "R q size"]]:
        """The answers of every head at its own queries.

        Args:
            encoded: What was seen.
            layout: Where the units lie.
            mask: What is asked, of all segments.
            inputs: The id at each query of a sequence, see `told`; of others it does not count.
            heads: What it has for each head, by name.
        """
        decoded = self.decode(encoded, layout, mask, inputs, heads)
        return {name: head.answer(decoded, layout, mask) for name, head in heads.items()}

    def decode(
        self, encoded: Encoded, layout: Layout, mask: Mask, inputs: Int[Tensor, "R Q"], heads: Mapping[str, JointAnswer]
    ) -> Float[Tensor, "R Q W"]:
        """The queries after all blocks and the last norm."""
        among = self.among(layout, mask)
        x = self._queries(layout, mask, inputs, heads, among)
        context = self.embed(encoded.tokens)
        if encoded.places is not None:
            context = context + encoded.places
        context = torch.cat([self.embed(encoded.prefix), context], dim=1)
        seen = keys_of(mask.kept_valid, encoded.prefix.shape[1])
        opened = open_rows(among)[:, None]
        for block in self.blocks:
            x = block(x, context, opened, seen)
        out: Tensor = self.norm(x)
        return out

    @staticmethod
    def told(patches: Patches, mask: Mask) -> Int[Tensor, "R Q"]:
        """The id at each query of a sequence, 0 elsewhere: what it is told, not what it is asked."""
        inputs, start = torch.zeros_like(mask.query_ids), 0
        for name, part in patches.layout.parts():
            values = patches.values[name] if isinstance(patches.values, dict) else patches.values
            if part.sequence:
                ids = mask.query_ids - start
                mine = (ids >= 0) & (ids < part.count)
                own = mask.take(values, ids.clamp(0, part.count - 1))[..., 0]
                inputs = own.where(mine, inputs)
            start += part.count
        return inputs

    @staticmethod
    def among(layout: Layout, mask: Mask) -> Bool[Tensor, "R Q Q"]:
        """Which query sees which: those of its own segment that are there; of a sequence itself and those before it."""
        ids, start = mask.query_ids, 0
        allowed = torch.zeros(*ids.shape, ids.shape[1], dtype=torch.bool, device=ids.device)
        for _, part in layout.parts():
            mine = (ids >= start) & (ids < start + part.count)
            both = mine[:, :, None] & mine[:, None, :]
            allowed = allowed | (both & (ids[:, None, :] <= ids[:, :, None]) if part.sequence else both)
            start += part.count
        return allowed if mask.query_valid is None else allowed & mask.query_valid[:, None, :]

    def _queries(
        self,
        layout: Layout,
        mask: Mask,
        inputs: Int[Tensor, "R Q"],
        heads: Mapping[str, JointAnswer],
        among: Bool[Tensor, "R Q Q"],
    ) -> Float[Tensor, "R Q W"]:
        """Queries as they enter the first block; zeros where one only fills the row."""
        ids = mask.query_ids
        x = self.mask_token.expand(*ids.shape, -1)
        places, counted = torch.zeros_like(x), among.sum(dim=2) - 1
        for head in heads.values():
            start, part = layout.span(head.segment)
            mine = ((ids >= start) & (ids < start + part.count))[:, :, None]
            places = torch.where(mine, head.kind, places)
            if part.sequence:
                x = torch.where(mine, head.embed(inputs), x)
                ids = torch.where(mine[:, :, 0], start + counted.clamp(min=0), ids)
        if self.position is not None:
            places = places + take(self.position(layout), ids)
        x = x + places
        return x if mask.query_valid is None else x.masked_fill(~mask.query_valid[:, :, None], 0.0)
