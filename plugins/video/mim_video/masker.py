"""Maskers that know the first axis of the grid as time: tubes, whole frames, running cells, and VideoMAE V2's two.

Units hidden at random in space and time alike (MAE-ST) are the core's random masker.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from mim_core import Draw, Layout, Mask, Masker, check_ratio, hide_first, randomness, rounded, take
from torch import Tensor

CELL = 4  # units of a running cell: 2 x 2


def _times_and_places(layout: Layout, what: str) -> tuple[int, int]:
    """Units along time, and units at each time.

    Raises:
        ValueError: The units lie on no grid with time and one more axis.
    """
    if layout.grid is None or len(layout.grid) < 2:
        raise ValueError(f"the {what} masker needs units on a grid with time first, got grid {layout.grid}")
    return layout.grid[0], math.prod(layout.grid[1:])


class TubeMasker(Masker):
    """One random mask over the places of a frame, the same at all times (VideoMAE, arXiv 2203.12602, section 3.2 "tube
    masking").

    The hidden count is rounded down per frame: 176 of 196 at 0.9, so 160 of 1,568 units are visible.
    """

    @dataclass(frozen=True)
    class Config:
        """Options of the tube masker."""

        ratio: float = 0.9
        """Share of places that is hidden."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        check_ratio(config.ratio)

    def _places(self, layout: Layout) -> tuple[int, int]:
        """Times, and how many places are hidden."""
        times, places = _times_and_places(layout, "tube")
        return times, rounded(places * self.config.ratio, "down")

    def count(self, layout: Layout) -> int:
        """Times x int(ratio x places)."""
        return math.prod(self._places(layout))

    def hide(self, layout: Layout, draw: Draw, scores: Float[Tensor, "B N"] | None) -> Bool[Tensor, "R N"]:
        """The places with the lowest random ranks, at all times."""
        times, hidden = self._places(layout)
        places = hide_first(randomness.bits(draw.key, "mask", layout.count // times), hidden)
        return places.repeat(1, times)


class FrameMasker(Masker):
    """Hides all units at some times, drawn at random (VideoMAE, arXiv 2203.12602, figure 3 "frame masking")."""

    @dataclass(frozen=True)
    class Config:
        """Options of the frame masker."""

        ratio: float = 0.875
        """Share of times that is hidden, rounded down to whole ones."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        check_ratio(config.ratio)

    def count(self, layout: Layout) -> int:
        """int(ratio x times) x places."""
        times, places = _times_and_places(layout, "frame")
        return rounded(times * self.config.ratio, "down") * places

    def hide(self, layout: Layout, draw: Draw, scores: Float[Tensor, "B N"] | None) -> Bool[Tensor, "R N"]:
        """The times with the lowest random ranks, at all places."""
        times, places = _times_and_places(layout, "frame")
        hidden = hide_first(randomness.bits(draw.key, "mask", times), self.count(layout) // places)
        return hidden.repeat_interleave(places, dim=1)


def _cell_places(ratio: float) -> int:
    """Hidden places of a cell.

    Raises:
        ValueError: The ratio hides none or all of them.
    """
    check_ratio(ratio)
    hidden = rounded(CELL * ratio, "down")
    if hidden < 1:
        raise ValueError(f"a cell has {CELL} places, and a ratio of {ratio} hides none of them; give 0.25, 0.5 or 0.75")
    return hidden


def _running_cells(layout: Layout, places: int, device: torch.device) -> Bool[Tensor, "4 N"]:
    """The units that are hidden in each of the four phases.

    Place j of a cell (row by row) is hidden at time k in phase f where (j + k + f) mod 4 is below ``places``.

    Raises:
        ValueError: The grid has not three axes, or the phases would hide different numbers of units.
    """
    if layout.grid is None or len(layout.grid) != 3:
        raise ValueError(f"the running-cell masker needs units on a grid of three axes, got grid {layout.grid}")
    times, height, width = layout.grid
    if times % CELL and (height % 2 or width % 2):
        raise ValueError(
            f"the running-cell masker needs an even height and width, or times in fours, so that all its phases hide "
            f"as many units; the grid is {layout.grid}"
        )
    time, row, column, phase = (torch.arange(n, device=device) for n in (times, height, width, CELL))
    place = 2 * (row % 2)[:, None] + column % 2
    turn = phase[:, None, None, None] + time[:, None, None] + place
    return (turn % CELL < places).reshape(CELL, layout.count)


def _drawn_cells(layout: Layout, draw: Draw, places: int, stream: str) -> Bool[Tensor, "B N"]:
    """Each sample's cells, in one of the four phases."""
    phase = randomness.bits(draw.key, stream, 1)[:, 0] & (CELL - 1)
    return _running_cells(layout, places, draw.key.device)[phase]


class RunningCellMasker(Masker):
    """Cells of 2 x 2 places whose hidden ones move on by one with each time (VideoMAE V2, arXiv 2303.16727, section 3.2
    "dual masking"). Each sample starts in one of four phases."""

    @dataclass(frozen=True)
    class Config:
        """Options of the running-cell masker."""

        ratio: float = 0.5
        """Share of a cell's four places that is hidden, rounded down."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.places = _cell_places(config.ratio)

    def count(self, layout: Layout) -> int:
        """That share of all units: every phase hides as many."""
        _running_cells(layout, self.places, torch.device("meta"))
        return layout.count * self.places // CELL

    def hide(self, layout: Layout, draw: Draw, scores: Float[Tensor, "B N"] | None) -> Bool[Tensor, "R N"]:
        """The cells of the sample's phase."""
        return _drawn_cells(layout, draw, self.places, "mask")


class DualMasker(TubeMasker):
    """VideoMAE V2's two masks (arXiv 2303.16727, section 3.2): tubes for the encoder, a running cell for the decoder.

    The decoder is asked for the units that the running cell leaves, visible ones among them. An answer at a unit that
    the encoder saw does not count in the loss.
    """

    @dataclass(frozen=True)
    class Config:
        """Options of the dual masker."""

        ratio: float = 0.9
        """Share of places that is hidden from the encoder, at all times."""
        decoder_ratio: float = 0.5
        """Share of units that the decoder is not asked for: 0.25, 0.5 or 0.75."""

    def __init__(self, config: Config) -> None:
        super().__init__(TubeMasker.Config(config.ratio))
        self.config = config
        self.places = _cell_places(config.decoder_ratio)

    def count(self, layout: Layout) -> int:
        """As many as tubes hide; a grid on which no cell can run is refused here, before a run begins."""
        _running_cells(layout, self.places, torch.device("meta"))
        return super().count(layout)

    def forward(self, layout: Layout, draw: Draw, scores: Float[Tensor, "B N"] | None = None) -> Mask:
        """Visible units by tubes, queries by the running cell, in ascending order both."""
        mask = super().forward(layout, draw, scores)
        left = _drawn_cells(layout, draw, self.places, "mask.queries")
        asked = layout.count - layout.count * self.places // CELL
        query_ids = left.to(torch.uint8).argsort(dim=1, stable=True)[:, :asked]
        weight = mask.hidden.gather(1, query_ids).float()
        if layout.valid is not None:
            weight = weight * take(layout.valid.float(), query_ids)
        return Mask(mask.hidden, mask.kept_ids, query_ids, weight)
