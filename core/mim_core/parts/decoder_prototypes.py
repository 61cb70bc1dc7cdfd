"""A head that sorts samples among prototypes: DINO's projection head."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float
from timm.layers import trunc_normal_
from torch import Tensor, nn
from torch.nn import functional as F

from mim_core.parts.decoder import Decoder
from mim_core.parts.encoder import Encoded, Encoder
from mim_core.parts.layout import Layout
from mim_core.parts.mask import Mask


class PrototypeDecoder(Decoder):
    """Scores of a sample for each of ``size`` prototypes (DINO, arXiv 2104.14294, section 3.1 "network architecture"
    and appendix C): an MLP with GELU, its answer at length 1, and its cosine with every prototype.

    A teacher has a copy of all of it. With ``input_of`` both heads have one and the same network.
    """

    asks = "sample"

    @dataclass(frozen=True)
    class Config:
        """Options of the prototype decoder."""

        pool: Literal["class", "mean"] = "class"
        """What it reads: the class token, or the mean of the units."""
        hidden: int = 2048
        """Hidden width of the MLP."""
        layers: int = 3
        """Linear layers of the MLP."""
        bottleneck: int = 256
        """Width of its answer."""
        input_of: str | None = None
        """Another head, whose whole network this one shares."""

    def __init__(self, config: Config, encoder: Encoder, layout: Layout, size: int) -> None:
        super().__init__()
        if min(config.hidden, config.layers, config.bottleneck) < 1:
            raise ValueError("hidden, layers and bottleneck must be 1 or more")
        if config.pool == "class" and encoder.prefix == 0:
            raise ValueError("the class token is asked for, and the encoder has none: set pool to mean")
        self.config = config
        widths = [encoder.width, *[config.hidden] * (config.layers - 1), config.bottleneck]
        self.mlp = nn.ModuleList(nn.Linear(*sides) for sides in pairwise(widths))
        self.prototypes = nn.Parameter(torch.empty(size, config.bottleneck))
        for layer in self.mlp:
            assert isinstance(layer, nn.Linear)
            trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        nn.init.kaiming_uniform_(self.prototypes, a=5**0.5)

    def forward(self, encoded: Encoded, layout: Layout, mask: Mask) -> Float[Tensor, "R 1 size"]:
        """Cosines in [-1, 1], one row for each of the batch's."""
        x = encoded.prefix[:, 0] if self.config.pool == "class" else encoded.tokens.mean(dim=1)
        for number, layer in enumerate(self.mlp):
            x = layer(x if number == 0 else F.gelu(x))
        x = F.normalize(x.float(), dim=-1)
        return (x @ F.normalize(self.prototypes.float(), dim=-1).T)[:, None]

    def teach(self, encoded: Encoded, layout: Layout) -> Float[Tensor, "S 1 size"]:
        """The same of what a teacher saw."""
        return self(encoded, layout, Mask.nothing_hidden(len(encoded.tokens), layout, encoded.tokens.device))

    def share(self, other: Decoder) -> None:
        """One network for two heads.

        Raises:
            ValueError: The other is of another kind, or has other prototypes, pool, hidden width or layers.
        """
        if not isinstance(other, PrototypeDecoder) or other.prototypes.shape != self.prototypes.shape:
            raise ValueError("heads that share a network must both sort among as many prototypes")
        if (other.config.pool, other.config.hidden, other.config.layers) != (
            self.config.pool, self.config.hidden, self.config.layers
        ):  # fmt: skip
            raise ValueError("heads that share a network need the same pool, hidden width and layers")
        self.mlp, self.prototypes = other.mlp, other.prototypes
