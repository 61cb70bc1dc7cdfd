"""Maskers: which units are hidden. They see geometry and keys, never token values.

A masker says how many units it hides (`Masker.count`, known when the run is built) and which (`Masker.hide`). The base
class turns that into a `Mask`. Guided maskers read ``scores`` [B, N], so that any scorer goes with any masker.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mim_core import randomness
from mim_core.errors import MimError
from mim_core.parts.layout import Layout
from mim_core.parts.mask import Draw, Mask
from mim_core.text import counted

if TYPE_CHECKING:
    from mim_core.data.source import DataSource
    from mim_core.parts.tokenizer import Tokenizer


Rounding = Literal["down", "nearest", "up"]


def rounded(value: float, rounding: Rounding) -> int:
    """Rounds a count in floating point, as the papers' codes do."""
    if rounding == "down":
        return math.floor(value)
    return math.ceil(value) if rounding == "up" else math.floor(value + 0.5)


def check_ratio(ratio: float) -> None:
    """Raises ValueError unless 0 < ratio < 1."""
    if not 0 < ratio < 1:
        raise ValueError(f"ratio must lie between 0 and 1 (the share of units that is hidden), got {ratio}")


class Masker(nn.Module):
    """Base class. Built from its options. A subclass gives `count` and `hide`.

    Attributes:
        per_sample: Masks that it draws of each sample.
        needs_scores: It cannot do without scores, so a method that has no scorer is refused.
        exact: False where rows hide at least what `count` says: it then gives ``Mask.kept_valid``.
        sequences: It can hide units of a sequence, most of whose places are none: these are hidden first.
    """

    Config: ClassVar[type[Any]]
    per_sample: int = 1
    needs_scores: bool = False
    exact: bool = True
    sequences: bool = False
    _counted_away: bool = False
    """One batch on an accelerator was counted."""

    def __init__(self, config: Any = None) -> None:
        super().__init__()
        self.config = config

    @property
    def reads_scores(self) -> bool:
        """Whether it goes by scores, if there are any."""
        return self.needs_scores

    def count(self, layout: Layout) -> int:
        """How many units each row hides."""
        raise NotImplementedError

    def usable(self, layout: Layout) -> Bool[Tensor, "B N"] | None:
        """Units that may be seen, where some may not; None where all may."""
        return layout.valid

    def inputs_of(self, layout: Layout) -> list[tuple[str, Layout]]:
        """The segments of a joined layout that may be seen, by name."""
        return list(layout.segments)

    def check(self, source: DataSource, tokenizer: Tokenizer) -> None:
        """Refuses data with items that lack so many modalities that too few of their units may be seen.

        Raises:
            ValueError: Says how many items, which modalities they have, and one of them.
        """
        layout = tokenizer.layout
        visible = layout.count - self.count(layout)
        parts = getattr(tokenizer, "parts", {})
        for present, (items, example) in source.presence().items() if parts else ():
            seen = [(name, part.count) for name, part in self.inputs_of(layout) if set(parts[name].shapes) <= present]
            if sum(count for _, count in seen) < visible:
                units = ", ".join(f"{name} {count}" for name, count in seen) or "none"
                raise ValueError(
                    f"of {counted(items, 'item')}, such as {example}, too few units may be seen: {units}, and "
                    f"the masker shows {visible}. Show fewer, let it show more modalities, or leave items that lack a "
                    "modality out of the data (--data.missing skip, where the data have that option)"
                )

    def hide(self, layout: Layout, draw: Draw, scores: Float[Tensor, "B N"] | None) -> Bool[Tensor, "R N"]:
        """Which units are hidden: True in exactly `count` places of each row; rows of one sample are adjacent. Units
        that are not ``layout.valid`` (padding, a modality that a sample lacks) come first."""
        raise NotImplementedError

    def forward(self, layout: Layout, draw: Draw, scores: Float[Tensor, "B N"] | None = None) -> Mask:
        """The masks of a batch. Pure: the same layout, draw and scores give the same mask.

        Raises:
            ValueError: The layout cannot be served, as `count` says, which is asked first; or there are no scores, and
                the masker needs them.
            MimError: Scores are not one per unit; or `hide` does not hide what `count` says, or shows units that are
                not valid and hides others. Every batch on the CPU is counted, and the first on an accelerator, where
                each count would make the host wait.
        """
        count = self.count(layout)
        if scores is None and self.needs_scores:
            raise ValueError("this masker needs scores of the units, and was given none")
        wanted = (len(draw.key), layout.count)
        if scores is not None and tuple(scores.shape) != wanted:
            raise MimError(f"The scorer gives {tuple(scores.shape)}; the masker needs {wanted}: a score for each unit.")
        hidden = self.hide(layout, draw, scores)
        self._check_hidden(hidden, layout, len(draw.key) * self.per_sample, count)
        return Mask.with_count(hidden, count, self.per_sample, layout.valid)

    def _check_hidden(self, hidden: Tensor, layout: Layout, rows: int, count: int) -> None:
        """Whether `hide` kept its promise."""
        who = f"masker {type(self).__module__}.{type(self).__qualname__}"
        if not isinstance(hidden, Tensor) or hidden.dtype != torch.bool:
            kind = hidden.dtype if isinstance(hidden, Tensor) else type(hidden).__name__
            raise MimError(f"{who}: hide gives {kind}; it must give a bool tensor, True = hidden.")
        if hidden.shape != (rows, layout.count):
            raise MimError(
                f"{who}: hide gives {tuple(hidden.shape)}; of {rows} masks on {layout.count} units it must give "
                f"{(rows, layout.count)}."
            )
        away = not hidden.is_cpu
        if (
            torch.compiler.is_compiling()
            or hidden.is_meta
            or type(hidden) is not Tensor
            or (away and self._counted_away)
        ):
            return
        counts = hidden.sum(dim=1)
        if not bool((counts == count).all()):
            raise MimError(
                f"{who}: rows hide {sorted(set(counts.tolist()))} of {layout.count} units; count says {count} (True = "
                "hidden). Its count and hide must agree in every row, at every step."
            )
        if layout.valid is not None:
            valid = layout.valid.repeat_interleave(self.per_sample, dim=0)
            seen, spared = (~hidden & ~valid).any(dim=1), (hidden & valid).any(dim=1)
            if bool((seen & spared).any()):
                raise MimError(
                    f"{who}: shows units that are none (padding, a modality that a sample lacks) and hides others. "
                    "Those that are not layout.valid are hidden first."
                )
        self._counted_away = self._counted_away or away


def hide_first(rank: Int[Tensor, "R N"], count: int) -> Bool[Tensor, "R N"]:
    """Hides the ``count`` units with the lowest rank, ties by position."""
    chosen = rank.argsort(dim=1, stable=True)[:, :count]
    return torch.zeros_like(rank, dtype=torch.bool).scatter_(1, chosen, True)


class RandomMasker(Masker):
    """Hides units uniformly at random, each row for itself (MAE, arXiv 2111.06377, section 3).

    MAE rounds the visible count down, so the hidden one up: 49 of 196 are visible at 0.75. Point-MAE (arXiv 2203.06604)
    rounds the hidden count down: 26 of 64 are visible at 0.6.
    """

    sequences = True

    @dataclass(frozen=True)
    class Config:
        """Options of the random masker."""

        ratio: float = 0.75
        """Share of units that is hidden."""
        masks: int = 1
        """Masks drawn of each sample; the encoder sees every one."""
        rounding: Rounding = "up"
        """How the number of hidden units is rounded."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        check_ratio(config.ratio)
        if config.masks < 1:
            raise ValueError(f"masks must be at least 1, got {config.masks}")
        if config.masks > 10_000:
            raise ValueError(f"masks must be at most 10,000 of each sample, got {config.masks:,}")
        self.per_sample = config.masks

    def count(self, layout: Layout) -> int:
        """N * ratio, rounded; "up" is N - int(N * (1 - ratio)) in floating point, as in MAE's code."""
        if self.config.rounding == "up":
            visible = layout.count * (1 - self.config.ratio)
            whole_but_for_floats = 1 - 1e-9 < visible < 1  # 10 * (1 - 0.9) = 0.9999999999999998: int would keep nothing
            return layout.count - (1 if whole_but_for_floats else int(visible))
        return rounded(layout.count * self.config.ratio, self.config.rounding)

    def hide(self, layout: Layout, draw: Draw, scores: Float[Tensor, "B N"] | None) -> Bool[Tensor, "R N"]:
        """The units with the lowest random ranks; units that are not valid are always hidden."""
        rank = randomness.bits(draw.key, "mask", self.per_sample * layout.count)
        rank = rank.reshape(-1, layout.count)
        if layout.valid is not None:
            absent = ~layout.valid.repeat_interleave(self.per_sample, dim=0)
            rank = rank.masked_fill(absent, torch.iinfo(torch.int64).min)
        return hide_first(rank, self.count(layout))


class GridMasker(Masker):
    """Hides whole blocks of a coarser grid, on a grid of any number of axes.

    SimMIM (arXiv 2111.09886, section 3.2): 32-pixel blocks, so (2, 2) units of 16 pixels, the hidden count rounded up:
    30 of 49 at 0.6. Tube masking (VideoMAE, arXiv 2203.12602): a block that spans the first axis, (-1, 1, 1), rounded
    down.
    """

    @dataclass(frozen=True)
    class Config:
        """Options of the grid masker."""

        ratio: float = 0.6
        """Share of blocks that is hidden."""
        block: tuple[int, ...] = (2, 2)
        """Units that one block spans along each axis; -1 spans the axis."""
        rounding: Rounding = "up"
        """How the number of hidden blocks is rounded."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        check_ratio(config.ratio)
        self.config = config

    def _coarse(self, layout: Layout) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The blocks along each axis and the units that a block spans along each."""
        if layout.grid is None:
            raise ValueError("the grid masker needs units on a grid; these lie freely")
        block, grid = self.config.block, layout.grid
        if len(block) != len(grid):
            raise ValueError(f"block {block} has {len(block)} axes and the grid {grid} has {len(grid)}")
        spans = tuple(n if b == -1 else b for b, n in zip(block, grid, strict=True))
        if any(b < 1 or n % b for b, n in zip(spans, grid, strict=True)):
            raise ValueError(f"block {block} does not divide the grid {grid}")
        return tuple(n // b for b, n in zip(spans, grid, strict=True)), spans

    def _blocks(self, layout: Layout) -> int:
        return rounded(math.prod(self._coarse(layout)[0]) * self.config.ratio, self.config.rounding)

    def count(self, layout: Layout) -> int:
        """Hidden blocks times the units in a block."""
        return self._blocks(layout) * math.prod(self._coarse(layout)[1])

    def hide(self, layout: Layout, draw: Draw, scores: Float[Tensor, "B N"] | None) -> Bool[Tensor, "R N"]:
        """The blocks with the lowest random ranks, spread over their units."""
        coarse, spans = self._coarse(layout)
        hidden = hide_first(randomness.bits(draw.key, "mask", math.prod(coarse)), self._blocks(layout))
        hidden = hidden.reshape(-1, *coarse)
        for axis, span in enumerate(spans):
            hidden = hidden.repeat_interleave(span, dim=axis + 1)
        return hidden.reshape(-1, layout.count)


@functools.cache
def _roots(count: int, axes: int, device: torch.device) -> Tensor:
    """The axes-th root of 0 .. count, float64: a table made on the CPU once, because powers differ between devices."""
    return (torch.arange(count + 1, dtype=torch.float64) ** (1 / axes)).to(device)


class BlockMasker(Masker):
    """Hides random rectangles until a fixed count is reached (BEiT, arXiv 2106.08254, algorithm 1), on a grid of any
    number of axes.

    Differs from the paper: all rows hide exactly the same count. A rectangle that would exceed it is ignored, and
    what is missing after ``proposals`` rectangles is filled with units next to hidden ones, so shapes stay static.
    Log-uniform aspects come from a table of 4,096 steps and areas are whole units, so that every device draws the same
    rectangles.
    """

    stretch: Tensor

    @dataclass(frozen=True)
    class Config:
        """Options of the block masker."""

        ratio: float = 0.4
        """Share of units that is hidden; the count is rounded down."""
        smallest: int = 16
        """Smallest rectangle, in units; less when less is left to hide."""
        aspect: float = 0.3
        """Narrowest ratio of sides; sides are drawn log-uniform between it and its inverse."""
        proposals: int = 24
        """Rectangles tried per row."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        check_ratio(config.ratio)
        if not 0 < config.aspect <= 1:
            raise ValueError(f"aspect must lie between 0 and 1, got {config.aspect}")
        if config.smallest < 1 or config.proposals < 1:
            raise ValueError("smallest and proposals must be at least 1")
        self.config = config
        exponents = torch.linspace(-1, 1, 4096, dtype=torch.float64)
        self.register_buffer("stretch", (-math.log(config.aspect) * exponents).exp(), persistent=False)

    def count(self, layout: Layout) -> int:
        """int(N * ratio).

        Raises:
            ValueError: The units lie on no grid.
        """
        if layout.grid is None:
            raise ValueError("the block masker needs units on a grid; these lie freely")
        return rounded(layout.count * self.config.ratio, "down")

    def hide(self, layout: Layout, draw: Draw, scores: Float[Tensor, "B N"] | None) -> Bool[Tensor, "R N"]:
        """Rectangles one after another, for all rows at once; then the fill."""
        count, grid = self.count(layout), layout.grid or ()
        places = layout.coordinates(draw.key.device).to(torch.int64)  # [N, axes]
        hidden = torch.zeros(len(draw.key), layout.count, dtype=torch.bool, device=draw.key.device)
        roots = _roots(layout.count, len(grid), draw.key.device)
        draws = randomness.uniform(draw.key, "mask.block", self.config.proposals * 2 * len(grid))
        for u in draws.reshape(len(draw.key), self.config.proposals, 2 * len(grid)).unbind(dim=1):
            left = count - hidden.sum(dim=1)
            box = self._box(u, left, grid, roots, places)
            new = (box & ~hidden).sum(dim=1)
            hidden = hidden | (box & ((new > 0) & (new <= left))[:, None])
        return self._fill(hidden, count, grid, draw)

    def _box(self, u: Tensor, left: Tensor, grid: tuple[int, ...], roots: Tensor, places: Tensor) -> Tensor:
        """One rectangle per row, bool [B, N], from draws u [B, 2 * axes] in [0, 1)."""
        axes, low = len(grid), left.clamp(max=self.config.smallest)
        area = low + (u[:, 0] * (left - low + 1)).to(torch.int64)
        steps = (u[:, 1:axes] * len(self.stretch)).to(torch.int64)
        # with two axes the sides are root(area) * aspect^(1/2) and root(area) * aspect^(-1/2), hence the square root
        sides = [self.stretch[step].sqrt() for step in steps.unbind(dim=1)]
        product = torch.ones_like(roots[area])
        for side in sides:
            product = product * side
        box = torch.ones(len(u), len(places), dtype=torch.bool, device=u.device)
        for axis, side in enumerate([*sides, 1 / product]):
            length = (roots[area] * side).round().to(torch.int64).clamp(1, grid[axis])
            start = (u[:, axes + axis] * (grid[axis] - length + 1)).to(torch.int64)
            place = places[:, axis]
            box &= (place >= start[:, None]) & (place < (start + length)[:, None])
        return box

    def _fill(self, hidden: Tensor, count: int, grid: tuple[int, ...], draw: Draw) -> Tensor:
        """Exactly ``count`` per row: first what is hidden, then its neighbours, then the rest, the latter two in
        random order."""
        block = hidden.reshape(-1, *grid)
        near = torch.zeros_like(block)
        for axis, size in enumerate(grid, start=1):
            near.narrow(axis, 1, size - 1).logical_or_(block.narrow(axis, 0, size - 1))
            near.narrow(axis, 0, size - 1).logical_or_(block.narrow(axis, 1, size - 1))
        rank = (randomness.bits(draw.key, "mask.fill", hidden.shape[1]) >> 2) & ((1 << 61) - 1)
        rank = rank + (~near.reshape_as(hidden)).to(torch.int64) * (1 << 61)
        return hide_first(rank.masked_fill(hidden, -1), count)
