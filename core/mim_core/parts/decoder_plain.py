"""A decoder of units that were all seen: it has no queries of its own."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from mim_core.parts.decoder import TransformerDecoder
from mim_core.parts.encoder import Encoded, Encoder
from mim_core.parts.layout import Layout, take
from mim_core.parts.mask import Mask


class PlainDecoder(TransformerDecoder):
    """A transformer over the tokens of all units, which answers each where it stands: the decoder of an autoencoder
    that hides nothing (VQ-VAE, arXiv 1711.00937)."""

    def __init__(self, config: TransformerDecoder.Config, encoder: Encoder, layout: Layout, size: int) -> None:
        super().__init__(config, encoder, layout, size)
        if config.position_at == "blocks" or config.prefix == "own":
            raise ValueError("this decoder adds positions once, and has nothing in front of its units")
        del self.mask_token

    def forward(self, encoded: Encoded, layout: Layout, mask: Mask) -> Float[Tensor, "R Q size"]:
        """The answers at the queries; every unit was kept, in its place."""
        return take(self.whole(encoded, layout), mask.query_ids)

    def whole(self, encoded: Encoded, layout: Layout) -> Float[Tensor, "R N size"]:
        """An answer for every unit."""
        x = self.embed(encoded.tokens)
        x = x if self.position is None else x + self.position(layout)
        out: Tensor = self.pred(self.norm(self.blocks(x)))
        return out
