"""Masks of units that lie freely."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from mim_core import Draw, Layout, Masker, Rounding, check_ratio, randomness, rounded
from torch import Tensor


class CentreBlockMasker(Masker):
    """Hides the units nearest to a random one, itself among them (Point-MAE, arXiv 2203.06604, section 4.3 "block
    masking"; Point-BERT, arXiv 2111.14819).

    Distances are between the layout's positions, or places on its grid. Units as far as each other go by their order.
    """

    @dataclass(frozen=True)
    class Config:
        """Options of the block masker on centres."""

        ratio: float = 0.6
        """Share of units that is hidden."""
        masks: int = 1
        """Masks drawn of each sample; the encoder sees every one."""
        rounding: Rounding = "down"
        """How the number of hidden units is rounded."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        check_ratio(config.ratio)
        if config.masks < 1:
            raise ValueError(f"masks must be at least 1, got {config.masks}")
        self.per_sample = config.masks

    def count(self, layout: Layout) -> int:
        """int(N * ratio), rounded as asked."""
        return rounded(layout.count * self.config.ratio, self.config.rounding)

    def hide(self, layout: Layout, draw: Draw, scores: Float[Tensor, "B N"] | None) -> Bool[Tensor, "R N"]:
        """The nearest units by squared distance, in float64; units that are not valid are always hidden, and are
        drawn as the middle only where all are invalid."""
        places = layout.coordinates(draw.key.device).to(torch.float64)
        places = places.expand(len(draw.key), *places.shape[-2:]).repeat_interleave(self.per_sample, dim=0)
        valid = torch.ones(places.shape[:2], dtype=torch.bool, device=places.device)
        if layout.valid is not None:
            valid = layout.valid.repeat_interleave(self.per_sample, dim=0)
        rank = (randomness.bits(draw.key, "mask", self.per_sample * layout.count) >> 1).reshape(valid.shape)
        middle = rank.masked_fill(~valid, torch.iinfo(torch.int64).max).argmin(dim=1)
        centre = places.take_along_dim(middle[:, None, None], dim=1)
        away = (places - centre).square().sum(dim=2).masked_fill(~valid, -1.0)
        chosen = away.argsort(dim=1, stable=True)[:, : self.count(layout)]
        return torch.zeros_like(valid).scatter_(1, chosen, True)
