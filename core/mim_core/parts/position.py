"""Positions: where a unit lies, as a vector added to its token."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from timm.layers import trunc_normal_
from torch import Tensor, nn
from torch.nn import functional as F

from mim_core.parts.layout import Layout

PositionKind = Literal[
    "sincos", "sincos-first", "sincos-quarter", "flat", "learned", "separable", "coordinates", "none"
]
PositionAt = Literal["input", "blocks"]
SMOOTH = {1: "linear", 2: "bilinear", 3: "trilinear"}  # interpolation over that many axes


def sincos_table(grid: tuple[int, ...], width: int, last: bool = True) -> Float[Tensor, "N width"]:
    """Fixed sine-cosine positions on a grid of any number of axes.

    MAE's layout: the channels are split evenly over the axes, the *last* axis first (with ``last`` false the first, as
    MultiMAE's code has it); each share is [sines | cosines], not interleaved, with frequencies 10000^(-k / n), n the
    number of sines. Channels that do not divide stay zero at the end. Computed in float64.

    Raises:
        ValueError: The width is too small for that many axes.
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


class Units(NamedTuple):
    """The units of a layout, as far as tables of positions depend on them.

    Attributes:
        names: Of the segments; one empty name where there are none.
        grids: The grid of each segment; None where its units lie freely.
        total: All units.
    """

    names: tuple[str, ...]
    grids: tuple[tuple[int, ...] | None, ...]
    total: int

    @staticmethod
    def of(layout: Layout) -> Units:
        """Those of a layout."""
        parts = layout.segments or (("", layout),)
        return Units(tuple(name for name, _ in parts), tuple(part.grid for _, part in parts), layout.count)

    def counts(self) -> list[int]:
        """Units of each segment; where one lies freely, there is no other."""
        return [self.total if grid is None else math.prod(grid) for grid in self.grids]


class TablePosition(nn.Module):
    """Base of positions that are tables over units of one set of grids, and that follow to other grids by a rule.

    Attributes:
        kind: What recipes call it.
        computed: Whether the tables follow from the units, and are not trained.
        units: What the tables are for.
    """

    kind: str
    computed: bool = False
    units: Units

    def tables_at(self, units: Units) -> dict[str, Tensor]:
        """The tables for other units, by their names in this module; for its own, as they are.

        Raises:
            ValueError: There is no rule for these units.
        """
        raise NotImplementedError

    def moved(self, units: Units) -> str:
        """How the tables get to these units, in words: "are interpolated to that grid"."""
        return "are interpolated to that grid"


def quarter_table(grid: tuple[int, ...], width: int) -> Float[Tensor, "N width"]:
    """The same on a grid of three axes, with a quarter of the channels for the first axis and the rest for the others
    (MVD, arXiv 2212.04500, code).

    Raises:
        ValueError: The grid has not three axes, or 4 does not divide the width.
    """
    if len(grid) != 3 or width % 4:
        raise ValueError(f"sincos-quarter needs a grid of three axes and a width that 4 divides; got {grid}, {width}")
    first = sincos_table(grid[:1], width // 4)
    rest = sincos_table(grid[1:], width - width // 4)
    return torch.cat([first.repeat_interleave(len(rest), dim=0), rest.repeat(grid[0], 1)], dim=1)


class SinCosPosition(TablePosition):
    """Fixed positions on a grid, see `sincos_table`. For another grid than the one built for, the table is interpolated
    as trained positions are, see `resampled`; a segment that it was not built for has its positions computed."""

    table: Tensor
    computed = True

    def __init__(self, layout: Layout, width: int, kind: str = "sincos") -> None:
        super().__init__()
        self.width, self.kind, self.units = width, kind, Units.of(layout)
        tables = [self._computed(grid) for grid in _on_grids(self.units)]
        self.register_buffer("table", torch.cat(tables)[None])

    def forward(self, layout: Layout) -> Float[Tensor, "1 N width"]:
        """The positions of every unit, shared by all rows."""
        return self.tables_at(Units.of(layout))["table"]

    def tables_at(self, units: Units) -> dict[str, Tensor]:
        """The table, segment by segment."""
        if units == self.units:
            return {"table": self.table}
        shares = dict(zip(self.units.names, self.table.split(self.units.counts(), dim=1), strict=True))
        own = dict(zip(self.units.names, _on_grids(self.units), strict=True))
        tables = []
        for name, grid in zip(units.names, _on_grids(units), strict=True):
            if name in own and len(own[name]) == len(grid):
                tables.append(resampled(shares[name], own[name], grid))
            else:
                tables.append(self._computed(grid)[None].to(self.table))
        return {"table": torch.cat(tables, dim=1)}

    def _computed(self, grid: tuple[int, ...]) -> Tensor:
        if self.kind == "sincos-quarter":
            return quarter_table(grid, self.width)
        return sincos_table(grid, self.width, last=self.kind == "sincos")


def resampled(
    table: Float[Tensor, "B N width"], own: tuple[int, ...], new: tuple[int, ...], antialias: bool = True
) -> Tensor:
    """Positions on the grid ``own``, interpolated to the grid ``new``: [B, N', width]. On two axes bicubic with
    antialiasing, as timm does for another input size, or without, as MAE's code; on one or three linear."""
    if own == new or len(own) != 2:
        return _resized(table, own, new)
    spread = table.float().transpose(1, 2).unflatten(2, own)
    resized = F.interpolate(spread, size=new, mode="bicubic", antialias=antialias)
    return resized.flatten(2).transpose(1, 2).to(table.dtype)


def flat_table(count: int, width: int) -> Float[Tensor, "count width"]:
    """Fixed sine-cosine positions of a sequence, as VideoMAE gives them to the units of a whole grid in row-major order
    (arXiv 2203.12602, code).

    Sines and cosines alternate, with frequencies 10000^(-2k / width) for the k-th pair. Computed in float64.
    """
    pairs = torch.arange(width, dtype=torch.float64).div(2, rounding_mode="floor")
    angles = torch.arange(count, dtype=torch.float64)[:, None] * 10000.0 ** (-2 * pairs / width)
    even = torch.arange(width) % 2 == 0
    return torch.where(even, angles.sin(), angles.cos()).float()


class FlatPosition(TablePosition):
    """Fixed positions by place in the sequence of all units, see `flat_table`.

    A grid of one axis, or of three, that is longer or shorter along its first axis only counts on. With other axes the
    place in the sequence would mean another row and column than in training, so the table is interpolated over them. A
    grid of two axes is interpolated over both, as timm does with an exported encoder.
    """

    table: Tensor
    kind, computed = "flat", True

    def __init__(self, layout: Layout, width: int) -> None:
        super().__init__()
        self.width, self.units = width, Units.of(layout)
        self.register_buffer("table", flat_table(layout.count, width)[None])

    def forward(self, layout: Layout) -> Float[Tensor, "1 N width"]:
        """The positions of every unit, shared by all rows."""
        return self.tables_at(Units.of(layout))["table"]

    def tables_at(self, units: Units) -> dict[str, Tensor]:
        """The table, counted on, interpolated, or both."""
        own, new = self.units.grids[0], units.grids[0]
        if own == new and units.total == self.table.shape[1]:
            return {"table": self.table}
        if own is None or new is None or len(own) != len(new):
            return {"table": flat_table(units.total, self.width)[None].to(self.table)}
        if len(own) == 2 or not self.is_counted():
            return {"table": resampled(self.table, own, new)}
        count = new[0] * math.prod(own[1:])
        table = flat_table(count, self.width).to(self.table)
        if own[1:] == new[1:]:
            return {"table": table[None]}
        table = table.reshape(new[0], -1, self.width)
        return {"table": _resized(table, own[1:], new[1:]).reshape(1, units.total, self.width)}

    def moved(self, units: Units) -> str:
        """Counted on, interpolated, or both."""
        own, new = self.units.grids[0], units.grids[0]
        if own is None or new is None or len(own) != len(new):
            return "are counted anew"
        if len(own) == 2 or not self.is_counted():
            return super().moved(units)
        text = "are counted on along the first axis"
        return text if own[1:] == new[1:] else f"{text} and interpolated over the others"

    def is_counted(self) -> bool:
        """Whether the table is still the formula's, and was not interpolated to this grid when the run began."""
        return self.table.is_meta or torch.allclose(
            self.table[0].float().cpu(), flat_table(self.table.shape[1], self.width), atol=1e-4
        )


class SeparablePosition(TablePosition):
    """Trained vectors for each step along the first axis and for each place on the others, added up (MAE-ST, arXiv
    2205.09113, section 3). For another grid both tables are interpolated linearly.

    Raises:
        ValueError: The units do not lie on a grid of two axes or more.
    """

    kind = "separable"

    def __init__(self, layout: Layout, width: int) -> None:
        super().__init__()
        if layout.grid is None or len(layout.grid) < 2:
            raise ValueError(f"separable positions need units on a grid of two axes or more, got grid {layout.grid}")
        self.units, self.grid = Units.of(layout), layout.grid
        self.first = nn.Parameter(torch.empty(1, layout.grid[0], width))
        self.rest = nn.Parameter(torch.empty(1, math.prod(layout.grid[1:]), width))
        for table in (self.first, self.rest):
            trunc_normal_(table, std=0.02)

    def forward(self, layout: Layout) -> Float[Tensor, "1 N width"]:
        """The positions of every unit, shared by all rows."""
        tables = self.tables_at(Units.of(layout))
        return (tables["first"][:, :, None] + tables["rest"][:, None]).flatten(1, 2)

    def tables_at(self, units: Units) -> dict[str, Tensor]:
        """Both tables.

        Raises:
            ValueError: The units lie on no grid of as many axes.
        """
        own, new = self.grid, units.grids[0]
        if new is None or len(new) != len(own):
            raise ValueError(f"these positions are for a grid of {len(own)} axes; this input has {new}")
        return {"first": _resized(self.first, own[:1], new[:1]), "rest": _resized(self.rest, own[1:], new[1:])}


def _resized(table: Float[Tensor, "B N width"], own: tuple[int, ...], new: tuple[int, ...]) -> Tensor:
    """Vectors on the grid ``own``, interpolated linearly to the grid ``new``: [B, N', width]."""
    if own == new:
        return table
    if len(own) not in SMOOTH:
        raise ValueError(f"positions on {len(own)} axes cannot be interpolated from grid {own} to {new}")
    spread = table.transpose(1, 2).unflatten(2, own)
    return F.interpolate(spread, size=new, mode=SMOOTH[len(own)]).flatten(2).transpose(1, 2)


class LearnedPosition(TablePosition):
    """One trained vector per unit. For another grid the table is interpolated, see `resampled`; another number of units
    that lie on no grid, or a grid of other axes, is an error."""

    kind = "learned"

    def __init__(self, layout: Layout, width: int) -> None:
        super().__init__()
        self.units = Units.of(layout)
        self.table = nn.Parameter(torch.empty(1, layout.count, width))
        trunc_normal_(self.table, std=0.02)

    def forward(self, layout: Layout) -> Float[Tensor, "1 N width"]:
        """The positions of every unit, shared by all rows."""
        return self.tables_at(Units.of(layout))["table"]

    def tables_at(self, units: Units) -> dict[str, Tensor]:
        """The table.

        Raises:
            ValueError: There are more or fewer units, and no two grids to interpolate between.
        """
        own, new = self.units.grids[0], units.grids[0]
        if len(self.units.grids) == len(units.grids) == 1 and own and new and len(own) == len(new):
            return {"table": resampled(self.table, own, new)}
        if units.total != self.table.shape[1]:
            raise ValueError(
                f"learned positions are for {self.table.shape[1]} units (grid {own}); this input has {units.total} "
                f"(grid {new}), and between these they cannot be interpolated. Use the size of pre-training"
            )
        return {"table": self.table}


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
        positions = [self.parts[name](part) for name, part in layout.segments]
        rows = max(part.shape[0] for part in positions)
        return torch.cat([part.expand(rows, -1, -1) for part in positions], dim=1)


POSITIONS: dict[str, Callable[[Layout, int], nn.Module]] = {
    "sincos": SinCosPosition,
    "sincos-first": partial(SinCosPosition, kind="sincos-first"),
    "sincos-quarter": partial(SinCosPosition, kind="sincos-quarter"),
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


def _on_grids(units: Units) -> list[tuple[int, ...]]:
    """The grid of each segment, or the only one."""
    if any(grid is None for grid in units.grids):
        raise ValueError("sine-cosine positions need units on a grid; these lie freely: use coordinates")
    return [grid for grid in units.grids if grid is not None]


def moved_positions(module: nn.Module, layout: Layout) -> str:
    """What becomes of the positions in a module (an encoder) for another layout than it was built for, in words, such
    as "its positions are interpolated to that grid"; empty where it has none, or they do not say."""
    segments = dict(layout.segments)
    phrases: dict[str, None] = {}
    for name, part in module.named_modules():
        if isinstance(part, TablePosition):
            own = segments.get(name.rpartition(".")[2], layout)
            if Units.of(own) != part.units:
                phrases[part.moved(Units.of(own))] = None
        elif isinstance(part, CoordinatePosition):
            phrases["follow from the units' coordinates"] = None
    return f"its positions {' or '.join(phrases)}" if phrases else ""
