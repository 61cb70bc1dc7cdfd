"""Positions: where a unit lies, as a vector added to its token."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mim_core.layout import Layout

PositionKind = Literal["sincos", "learned", "coordinates", "none"]


def sincos_table(grid: tuple[int, ...], width: int) -> Float[Tensor, "N width"]:
    """Fixed sine-cosine positions on a grid of any number of axes.

    MAE's layout: the channels are split evenly over the axes, the *last* axis first; each share is [sines | cosines],
    not interleaved, with frequencies 10000^(-k / n), n the number of sines. Channels that do not divide stay zero at
    the end. Computed in float64.
    """
    sines = width // (2 * len(grid))
    if sines == 0:
        raise ValueError(f"a width of {width} is too small for sine-cosine positions on {len(grid)} axes")
    frequencies = 10000.0 ** -(torch.arange(sines, dtype=torch.float64) / sines)
    axes = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in grid), indexing="ij")
    shares = []
    for places in reversed(axes):
        angles = places.reshape(-1, 1) * frequencies
        shares += [angles.sin(), angles.cos()]
    table = torch.cat(shares, dim=1)
    return torch.nn.functional.pad(table, (0, width - table.shape[1])).float()


class SinCosPosition(nn.Module):
    """Fixed positions on a grid, see `sincos_table`. Another grid than the one built for is computed when it comes."""

    table: Tensor

    def __init__(self, layout: Layout, width: int) -> None:
        super().__init__()
        self.width = width
        self.grids = _grids(layout)
        self.register_buffer("table", self._make(self.grids)[None])

    def _make(self, grids: tuple[tuple[int, ...], ...]) -> Tensor:
        return torch.cat([sincos_table(grid, self.width) for grid in grids])

    def forward(self, layout: Layout) -> Float[Tensor, "1 N width"]:
        """The positions of every unit, shared by all rows."""
        grids = _grids(layout)
        if grids == self.grids:
            return self.table
        return self._make(grids)[None].to(self.table)


class LearnedPosition(nn.Module):
    """One trained vector per unit; another number of units is an error."""

    def __init__(self, layout: Layout, width: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(1, layout.count, width))
        nn.init.trunc_normal_(self.table, std=0.02)

    def forward(self, layout: Layout) -> Float[Tensor, "1 N width"]:
        """The positions of every unit, shared by all rows."""
        if layout.count != self.table.shape[1]:
            raise ValueError(
                f"learned positions are for {self.table.shape[1]} units; this input has {layout.count} (grid "
                f"{layout.grid}). "
                "Use the size of pre-training, or sincos positions"
            )
        return self.table


class CoordinatePosition(nn.Module):
    """A small network over the units' coordinates (Point-MAE, arXiv 2203.06604): linear to 128, GELU, linear to the
    width."""

    def __init__(self, layout: Layout, width: int, hidden: int = 128, axes: int = 3) -> None:
        super().__init__()
        axes = len(layout.grid) if layout.grid else axes
        self.layers = nn.Sequential(nn.Linear(axes, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, layout: Layout) -> Float[Tensor, "B N width"]:
        """The positions of every unit, per sample where coordinates are."""
        weight: Tensor = self.layers[0].weight  # type: ignore[assignment]
        places = layout.coordinates(weight.device)
        return self.layers(places if places.ndim == 3 else places[None])


def make_position(kind: PositionKind, layout: Layout, width: int) -> nn.Module | None:
    """The position module of that kind, or None for "none"."""
    if kind == "none":
        return None
    if kind == "sincos":
        return SinCosPosition(layout, width)
    return LearnedPosition(layout, width) if kind == "learned" else CoordinatePosition(layout, width)


def _grids(layout: Layout) -> tuple[tuple[int, ...], ...]:
    """The grid of each segment, or of the one layout."""
    layouts = [part for _, part in layout.segments] or [layout]
    if any(part.grid is None for part in layouts):
        raise ValueError("sine-cosine positions need units on a grid; these lie freely: use coordinates")
    return tuple(part.grid for part in layouts if part.grid is not None)
