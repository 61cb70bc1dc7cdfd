"""Heads that ask about a sample as a whole: pooled features through small networks, compared between samples."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from mim_core.parts.decoder import Decoder, TransformerDecoder
from mim_core.parts.encoder import Encoded, Encoder
from mim_core.parts.layout import Layout
from mim_core.parts.mask import Mask
from mim_core.parts.norm import BatchNorm


class Mlp(nn.Module):
    """Linear, batch norm, ReLU, linear without bias: [n, width] to [n, size]."""

    def __init__(self, width: int, hidden: int, size: int, eps: float) -> None:
        super().__init__()
        self.fc0, self.bn0 = nn.Linear(width, hidden), BatchNorm(hidden, eps=eps)
        self.fc1 = nn.Linear(hidden, size, bias=False)

    def forward(self, x: Float[Tensor, "n width"]) -> Float[Tensor, "n size"]:
        """The projection."""
        return self.fc1(F.relu(self.bn0(self.fc0(x))))


class Projector(nn.Module):
    """The part of a sample head that a teacher has a copy of: the mean of all units, then an `Mlp`.

    Args:
        mlp: The network.
        normed: Whether a teacher's units are taken behind its encoder's final norm, or as its last block gives them.
    """

    def __init__(self, mlp: Mlp, normed: bool) -> None:
        super().__init__()
        self.mlp = mlp
        self.needs_levels = 0 if normed else 1

    def forward(self, x: Float[Tensor, "R N width"]) -> Float[Tensor, "R size"]:
        """One projection for each row."""
        return self.mlp(x.mean(dim=1))

    def teach(self, encoded: Encoded, layout: Layout) -> Float[Tensor, "S 1 size"]:
        """What a teacher's copy says of a sample."""
        return self(encoded.levels[-1] if self.needs_levels else encoded.tokens)[:, None]


class SampleDecoder(Decoder):
    """One answer for a sample: a light transformer fills in the hidden units, all are averaged, and a projector and a
    predictor follow (CMAE, arXiv 2207.13532, section 3.2: feature decoder, projection and prediction head). With depth
    0 the encoder's own units are averaged.
    """

    asks = "sample"

    @dataclass(frozen=True)
    class Config:
        """Options of the sample decoder."""

        depth: int = 2
        """Transformer blocks in front; 0 leaves them out."""
        width: int = 512
        """Their token width."""
        heads: int = 16
        """Their attention heads."""
        mlp_ratio: float = 4.0
        """Hidden width of their MLP over the width."""
        position: str = "sincos"
        """Their positions, as the transformer decoder has them."""
        hidden: int = 1536
        """Hidden width of projector and predictor."""
        predictor_hidden: int | None = None
        """That of the predictor, where it is another."""
        predictor: bool = True
        """A predictor behind the projector, which a teacher has not (BYOL)."""
        norm_eps: float = 1e-5
        """Small number in batch normalisation."""
        teacher_norm: bool = True
        """The teacher's units behind its encoder's final norm; otherwise as its last block gives them (CMAE)."""

    def __init__(self, config: Config, encoder: Encoder, layout: Layout, size: int) -> None:
        super().__init__()
        if config.hidden < 1:
            raise ValueError(f"hidden must be at least 1, got {config.hidden}")
        self.config = config
        inner = {name: getattr(config, name) for name in ("depth", "width", "heads", "mlp_ratio", "position")}
        options = TransformerDecoder.Config(**inner)
        self.units = TransformerDecoder(options, encoder, layout, encoder.width) if config.depth else None
        self.projector = Projector(Mlp(encoder.width, config.hidden, size, config.norm_eps), config.teacher_norm)
        hidden = config.predictor_hidden or config.hidden
        self.predictor = Mlp(size, hidden, size, config.norm_eps) if config.predictor else None

    def features(self, encoded: Encoded, layout: Layout, mask: Mask) -> Float[Tensor, "R N width"]:
        """What is averaged: kept units first, then hidden ones."""
        if self.units is None:
            return encoded.tokens
        x = self.units.decode(encoded, layout, mask)[:, encoded.prefix.shape[1] :]
        return self.units.pred(self.units.norm(x))

    def forward(self, encoded: Encoded, layout: Layout, mask: Mask) -> Float[Tensor, "R 1 size"]:
        """One answer for each row."""
        x = self.projector(self.features(encoded, layout, mask))
        return (x if self.predictor is None else self.predictor(x))[:, None]

    def for_teacher(self) -> nn.Module:
        """The projector."""
        return self.projector
