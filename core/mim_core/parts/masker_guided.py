"""Guided masks: of what is hidden, a share that changes during the run goes by scores, the rest is random."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mim_core import randomness
from mim_core.parts.layout import Layout
from mim_core.parts.mask import Draw
from mim_core.parts.masker import Masker, RandomMasker, Rounding, hide_first
from mim_core.parts.schedule import Progress


class GuidedMasker(Masker):
    """Hides the units with the highest scores, as many as a share of the hidden ones that follows a straight line
    during the run; the rest of the hidden ones are drawn uniformly from what is left.

    As it is: HPM's easy-to-hard rule (arXiv 2304.05919, section 3.3, "easy-to-hard mask generation"), in whose code the
    share of an epoch, counted from 0, is 0.5 * (epoch + 1) / epochs, and the count rounded down. ``share_from`` and
    ``share_to`` at 1 leave nothing to chance (AttMask, arXiv 2203.12719; with low scores, MST, arXiv 2106.05656); at 0
    these are the masks of the random masker.
    """

    needs_scores = True

    @dataclass(frozen=True)
    class Config:
        """Options of the guided masker."""

        ratio: float = 0.75
        """Share of units that is hidden."""
        rounding: Rounding = "up"
        """How the number of hidden units is rounded."""
        direction: Literal["high", "low"] = "high"
        """Which scores are hidden first."""
        among: float = 0.0
        """Those that go by scores are drawn uniformly from this share of all units, the first of them (MST); where it
        is less than what is hidden, they are the first ones themselves."""
        share_from: float = 0.0
        """Share of the hidden units that goes by scores, at the start of the run."""
        share_to: float = 0.5
        """The same at its end; it may be less."""
        every: Literal["step", "epoch"] = "epoch"
        """When the share changes. An epoch has the share of its end, so the last one has all of it."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._random = RandomMasker(RandomMasker.Config(config.ratio, rounding=config.rounding))
        for name in ("share_from", "share_to", "among"):
            if not 0 <= getattr(config, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(config, name)}")

    def count(self, layout: Layout) -> int:
        """As the random masker has it."""
        return self._random.count(layout)

    def by_score(self, count: int, progress: float) -> int:
        """How many of ``count`` hidden units go by scores at this moment of the run, rounded down."""
        now = Progress.of(progress)
        done = float(now)
        if self.config.every == "epoch":
            done = min(1.0, (math.floor(now.epoch + 1e-9) + 1) / now.epochs)
        start, end = self.config.share_from, self.config.share_to
        return int(count * (end if done >= 1 else start + (end - start) * done))

    def hide(self, layout: Layout, draw: Draw, scores: Float[Tensor, "B N"] | None) -> Bool[Tensor, "R N"]:
        """By score, then at random; units that are not valid are always hidden, and are not chosen by score."""
        assert scores is not None
        count = self.count(layout)
        rank = randomness.bits(draw.key, "mask", layout.count)
        return hide_guided(
            scores if self.config.direction == "high" else -scores,
            rank,
            self.by_score(count, draw.progress),
            count,
            None if layout.valid is None else ~layout.valid,
            int(layout.count * self.config.among),
        )


def hide_guided(
    scores: Float[Tensor, "B N"],
    rank: Int[Tensor, "B N"] | Float[Tensor, "B N"],
    chosen: int,
    count: int,
    absent: Bool[Tensor, "B N"] | None = None,
    among: int = 0,
) -> Bool[Tensor, "B N"]:
    """Hides ``chosen`` units with the highest scores, or of the ``among`` highest those of the lowest rank; then others
    of the lowest rank until ``count`` are hidden. Units that are absent come before all others. Ties by position."""
    if absent is not None:
        scores = scores.masked_fill(absent, -math.inf)
    order = scores.argsort(dim=1, descending=True, stable=True)[:, : max(chosen, among)]
    if among > chosen:
        order = order.gather(1, rank.gather(1, order).argsort(dim=1, stable=True)[:, :chosen])
    first = torch.zeros_like(scores, dtype=torch.bool).scatter(1, order, True)
    place = rank.argsort(dim=1, stable=True).argsort(dim=1)  # whatever the ranks are, as whole numbers from 0
    place = place.masked_fill(first, -1)
    if absent is not None:
        place = place.masked_fill(absent, -2)
    return hide_first(place, count)
