"""One rectangle of units is hidden, of a size that is given, where scores allow it."""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mim_core import randomness
from mim_core.parts.layout import Layout
from mim_core.parts.mask import Draw
from mim_core.parts.masker import Masker


@functools.cache
def rectangles(grid: tuple[int, ...], size: tuple[int, ...], device: torch.device) -> Bool[Tensor, "P N"]:
    """Every rectangle of a size on a grid, True at its units: a table that is made once for a device."""
    where = Layout.on_grid(*grid).coordinates().to(torch.int64)
    starts = torch.tensor(list(itertools.product(*(range(n - s + 1) for n, s in zip(grid, size, strict=True)))))
    ahead = where[None] - starts[:, None]
    return ((ahead >= 0) & (ahead < torch.tensor(size))).all(dim=-1).to(device)


class RegionMasker(Masker):
    """Hides one rectangle (MaskCo, arXiv 2108.07954, section 3.2), drawn uniformly from all places on a grid of any
    number of axes; with a scorer, from those places where the units' scores add up to most.

    With `core:overlap` these are the places that another view of the sample shows too, where there are any.
    """

    @dataclass(frozen=True)
    class Config:
        """Options of the region masker."""

        size: tuple[int, ...] = (3, 3)
        """Units of the rectangle along each axis."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        if min(config.size) < 1:
            raise ValueError(f"size must be 1 or more along each axis, got {config.size}")

    @property
    def reads_scores(self) -> bool:
        """Where there are any."""
        return True

    def count(self, layout: Layout) -> int:
        """The product of the sizes.

        Raises:
            ValueError: The region and the grid differ in axes, or the region does not fit.
        """
        size, grid = self.config.size, layout.grid
        if grid is None or len(grid) != len(size):
            raise ValueError(f"a region of {size} needs units on a grid of {len(size)} axes; this grid is {grid}")
        if any(s > n for s, n in zip(size, grid, strict=True)):
            raise ValueError(f"a region of {size} does not fit into the grid {grid}")
        return math.prod(size)

    def hide(self, layout: Layout, draw: Draw, scores: Float[Tensor, "B N"] | None) -> Bool[Tensor, "R N"]:
        """One place for each row."""
        places = rectangles(layout.grid or (), tuple(self.config.size), draw.key.device)
        rank = randomness.bits(draw.key, "mask", len(places))
        if scores is not None:
            total = scores.double() @ places.double().T
            best = total >= total.max(dim=1, keepdim=True).values - 1e-9
            rank = rank.masked_fill(~best, torch.iinfo(torch.int64).max)
        return places[rank.argmin(dim=1)]
