"""Positions: where a unit lies, as a vector added to its token."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float
from timm.layers import trunc_normal_
from torch import Tensor, nn
from torch.nn import functional as F

from mim_core.parts.layout import Layout

PositionKind = Literal["sincos", "sincos-first", "flat", "learned", "separable", "coordinates", "none"]


PositionAt = Literal["input", "blocks"]


SMOOTH = {1: "linear", 2: "bilinear", 3: "trilinear"}  # interpolation over that many axes


def sincos_table(grid: tuple[int, ...], width: int, last: bool = True) -> Float[Tensor, "N width"]:
    """Fixed sine-cosine positions on a grid of any number of axes.

    MAE's layout: the channels are split evenly over the axes, the *last* axis first (with ``last`` false the first, as
    MultiMAE's code has it); each share is [sines | cosines], not interleaved, with frequencies 10000^(-k / n), n the
    number of sines. Channels that do not divide stay zero at the end. Computed in float64.
    """
    sines = width // (2 * len(grid))
    if sines == 0:
        raise ValueError(f"a width of {width} is too small for sine-cosine positions on {len(grid)} axes")
    frequencies = 10000.0 ** -(torch.arange(sines, dtype=torch.float64) / sines)
    axes = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in grid), indexing="ij")
    shares = []
    for places in reversed(axes) if last else axes:
        angles = places.reshape(-1, 1) * frequencies
        shares += [angles.sin(), angles.cos()]
    table = torch.cat(shares, dim=1)
    return F.pad(table, (0, width - table.shape[1])).float()


class SinCosPosition(nn.Module):
    """Fixed positions on a grid, see `sincos_table`. For another grid than the one built for, the table is interpolated
    as trained positions are, see `resampled`."""

    table: Tensor

    def __init__(self, layout: Layout, width: int, last: bool = True) -> None:
        super().__init__()
        self.width, self.last = width, last
        self.grids = _grids(layout)
        self.names = tuple(name for name, _ in layout.segments)
        self.register_buffer("table", torch.cat([sincos_table(grid, width, last) for grid in self.grids])[None])

    def forward(self, layout: Layout) -> Float[Tensor, "1 N width"]:
        """The positions of every unit, shared by all rows."""
        grids, names = _grids(layout), tuple(name for name, _ in layout.segments)
        if grids == self.grids and names == self.names:
            return self.table
        shares = self.table.split([math.prod(grid) for grid in self.grids], dim=1)
        known = dict(zip(self.names or ("",), zip(self.grids, shares, strict=True), strict=True))
        found = []
        for name, grid in zip(names or ("",), grids, strict=True):
            own, table = known.get(name, (None, self.table))
            if own is None or len(own) != len(grid):
                found.append(sincos_table(grid, self.width, self.last)[None].to(self.table))
            else:
                found.append(resampled(table, own, grid))
        return torch.cat(found, dim=1)


def resampled(table: Float[Tensor, "B N width"], own: tuple[int, ...], new: tuple[int, ...]) -> Tensor:
    """Positions on the grid ``own``, interpolated to the grid ``new``: [B, N', width]. On two axes bicubic with
    antialiasing, as timm does for another input size; on one or three linear."""
    if own == new or len(own) != 2:
        return _resized(table, own, new)
    spread = table.float().transpose(1, 2).unflatten(2, own)
    found = F.interpolate(spread, size=new, mode="bicubic", antialias=True)
    return found.flatten(2).transpose(1, 2).to(table.dtype)


def flat_table(count: int, width: int) -> Float[Tensor, "count width"]:
    """Fixed sine-cosine positions of a sequence, as VideoMAE gives them to the units of a whole grid in row-major order
    (arXiv 2203.12602, code).

    Sines and cosines alternate, with frequencies 10000^(-2k / width) for the k-th pair. Computed in float64.
    """
    pairs = torch.arange(width, dtype=torch.float64).div(2, rounding_mode="floor")
    angles = torch.arange(count, dtype=torch.float64)[:, None] * 10000.0 ** (-2 * pairs / width)
    even = torch.arange(width) % 2 == 0
    return torch.where(even, angles.sin(), angles.cos()).float()


class FlatPosition(nn.Module):
    """Fixed positions by place in the sequence of all units, see `flat_table`.

    A grid that is longer or shorter along its first axis only counts on. With other axes the place in the sequence
    would mean another row and column than in training, so the table is interpolated over them.
    """

    table: Tensor

    def __init__(self, layout: Layout, width: int) -> None:
        super().__init__()
        self.width, self.grid = width, layout.grid
        self.register_buffer("table", flat_table(layout.count, width)[None])

    def forward(self, layout: Layout) -> Float[Tensor, "1 N width"]:
        """The positions of every unit, shared by all rows."""
        if layout.grid == self.grid and layout.count == self.table.shape[1]:
            return self.table
        own, new = self.grid, layout.grid
        if own is None or new is None or own[1:] == new[1:] or len(own) != len(new):
            return flat_table(layout.count, self.width)[None].to(self.table)
        count = new[0] * math.prod(own[1:])
        table = flat_table(count, self.width).to(self.table).reshape(new[0], -1, self.width)
        return _resized(table, own[1:], new[1:]).reshape(1, layout.count, self.width)


class SeparablePosition(nn.Module):
    """Trained vectors for each step along the first axis and for each place on the others, added up (MAE-ST, arXiv
    2205.09113, section 3). For another grid both tables are interpolated linearly."""

    def __init__(self, layout: Layout, width: int) -> None:
        super().__init__()
        if layout.grid is None or len(layout.grid) < 2:
            raise ValueError(f"separable positions need units on a grid of two axes or more, got grid {layout.grid}")
        self.grid = layout.grid
        self.first = nn.Parameter(torch.empty(1, layout.grid[0], width))
        self.rest = nn.Parameter(torch.empty(1, math.prod(layout.grid[1:]), width))
        for table in (self.first, self.rest):
            trunc_normal_(table, std=0.02)

    def forward(self, layout: Layout) -> Float[Tensor, "1 N width"]:
        """The positions of every unit, shared by all rows."""
        if layout.grid is None or len(layout.grid) != len(self.grid):
            raise ValueError(f"these positions are for a grid of {len(self.grid)} axes; this input has {layout.grid}")
        first = _resized(self.first, self.grid[:1], layout.grid[:1])
        rest = _resized(self.rest, self.grid[1:], layout.grid[1:])
        return (first[:, :, None] + rest[:, None]).flatten(1, 2)


def _resized(table: Float[Tensor, "B N width"], own: tuple[int, ...], new: tuple[int, ...]) -> Tensor:
    """Vectors on the grid ``own``, interpolated linearly to the grid ``new``: [B, N', width]."""
    if own == new:
        return table
    if len(own) not in SMOOTH:
        raise ValueError(f"positions on {len(own)} axes cannot be interpolated from grid {own} to {new}")
    spread = table.transpose(1, 2).unflatten(2, own)
    return F.interpolate(spread, size=new, mode=SMOOTH[len(own)]).flatten(2).transpose(1, 2)


class LearnedPosition(nn.Module):
    """One trained vector per unit. For another grid the table is interpolated, see `resampled`; another number of units
    that lie on no grid is an error."""

    def __init__(self, layout: Layout, width: int) -> None:
        super().__init__()
        self.grid = layout.grid
        self.table = nn.Parameter(torch.empty(1, layout.count, width))
        trunc_normal_(self.table, std=0.02)

    def forward(self, layout: Layout) -> Float[Tensor, "1 N width"]:
        """The positions of every unit, shared by all rows."""
        own, new = self.grid, layout.grid
        if own is not None and new is not None and len(own) == len(new) and math.prod(own) == self.table.shape[1]:
            return resampled(self.table, own, new)
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


class SegmentPositions(nn.Module):
    """Positions of joined modalities, each of its own kind: a module per segment, by name. Segments that lie freely
    have coordinates, whatever kind the others have."""

    def __init__(self, kind: PositionKind, layout: Layout, width: int) -> None:
        super().__init__()
        kinds: dict[str, PositionKind] = {
            name: "coordinates" if part.grid is None else kind for name, part in layout.segments
        }
        self.parts = nn.ModuleDict({name: POSITIONS[kinds[name]](part, width) for name, part in layout.segments})

    def forward(self, layout: Layout) -> Float[Tensor, "B N width"]:
        """The positions of every unit of the segments that are there, per sample where one's are."""
        found = [self.parts[name](part) for name, part in layout.segments]
        rows = max(part.shape[0] for part in found)
        return torch.cat([part.expand(rows, -1, -1) for part in found], dim=1)


POSITIONS: dict[str, Callable[[Layout, int], nn.Module]] = {
    "sincos": SinCosPosition,
    "sincos-first": partial(SinCosPosition, last=False),
    "flat": FlatPosition,
    "learned": LearnedPosition,
    "separable": SeparablePosition,
    "coordinates": CoordinatePosition,
}


def make_position(kind: PositionKind, layout: Layout, width: int) -> nn.Module | None:
    """The position module of that kind, or None for "none"; of joined modalities, one per segment."""
    if kind == "none":
        return None
    on_grids = all(part.grid is not None for _, part in layout.segments)
    if layout.segments and not (kind in ("sincos", "sincos-first") and on_grids):  # one table serves all grids
        return SegmentPositions(kind, layout, width)
    return POSITIONS[kind](layout, width)


def _grids(layout: Layout) -> tuple[tuple[int, ...], ...]:
    """The grid of each segment, or of the one layout."""
    layouts = [part for _, part in layout.segments] or [layout]
    if any(part.grid is None for part in layouts):
        raise ValueError("sine-cosine positions need units on a grid; these lie freely: use coordinates")
    return tuple(part.grid for part in layouts if part.grid is not None)
