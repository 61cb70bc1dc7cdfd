"""I-JEPA's masks: a large context block, and several smaller target blocks cut out of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mim_core import randomness
from mim_core.parts.layout import Layout
from mim_core.parts.mask import Draw, Mask
from mim_core.parts.masker import Masker

TRIES = 20
"""Places that are drawn for the context block before one target fewer is cut out of it."""


def block_size(
    u: float, grid: tuple[int, int], scale: tuple[float, float], aspect: tuple[float, float]
) -> tuple[int, int]:
    """Height and width of a block, in units (I-JEPA, arXiv 2301.08243, section 3, and its code): one draw u in [0, 1)
    sets its share of the grid and its aspect."""
    units = int(grid[0] * grid[1] * (scale[0] + u * (scale[1] - scale[0])))
    ratio = aspect[0] + u * (aspect[1] - aspect[0])
    height, width = round(math.sqrt(units * ratio)), round(math.sqrt(units / ratio))
    return max(1, min(height, grid[0] - 1)), max(1, min(width, grid[1] - 1))


class MultiBlockMasker(Masker):
    """Target blocks that are predicted, and a context block without their units, which is seen (I-JEPA, arXiv
    2301.08243, section 3).

    The sizes of a batch follow from its step, and places from the samples' keys. As in the official code no block
    touches the last row or column, and a context must hold more than ``smallest`` units: where no place of 20 does,
    targets are left uncut one after another.

    Differs from the code: rows of unequal length are filled up and what fills them is seen by nobody, so that shapes
    are static; the code cuts all rows to the shortest of the batch. Units that are in neither block count as hidden
    and are not asked.
    """

    exact = False

    @dataclass(frozen=True)
    class Config:
        """Options of the multi-block masker."""

        targets: int = 4
        """Target blocks."""
        target_scale: tuple[float, float] = (0.15, 0.2)
        """Smallest and largest share of the grid that a target block covers."""
        target_aspect: tuple[float, float] = (0.75, 1.5)
        """Its smallest and largest height over width."""
        context_scale: tuple[float, float] = (0.85, 1.0)
        """The same share of the context block, which is square in units."""
        smallest: int = 10
        """A context must hold more units than this."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        if config.targets < 1 or config.smallest < 0:
            raise ValueError(f"targets must be at least 1 and smallest 0, got {config.targets} and {config.smallest}")
        for name in ("target_scale", "context_scale"):
            low, high = getattr(config, name)
            if not 0 < low <= high <= 1:
                raise ValueError(f"{name} must be two rising shares in (0, 1], got {low} and {high}")
        self._areas: dict[tuple[int, int], tuple[int, int]] = {}
        low, high = config.target_aspect
        if not 0 < low <= high:
            raise ValueError(f"target_aspect must be two rising numbers, got {low} and {high}")

    @staticmethod
    def _grid(layout: Layout) -> tuple[int, int]:
        if layout.grid is None or len(layout.grid) != 2 or min(layout.grid) < 3:
            raise ValueError(f"multi-block masks need a grid of two axes, 3 x 3 or more; this one is {layout.grid}")
        return layout.grid[0], layout.grid[1]

    def sizes(self, u: tuple[float, float], grid: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
        """(target, context): height and width of the blocks for two draws in [0, 1)."""
        target = block_size(u[0], grid, self.config.target_scale, self.config.target_aspect)
        return target, block_size(u[1], grid, self.config.context_scale, (1.0, 1.0))

    def _most(self, grid: tuple[int, int]) -> tuple[int, int]:
        """The largest areas of target and context; looked for once per grid."""
        if grid in self._areas:
            return self._areas[grid]
        draws = [number / 1000 for number in range(1001)]
        areas = [tuple(h * w for h, w in self.sizes((u, u), grid)) for u in draws]
        self._areas[grid] = (max(area[0] for area in areas), max(area[1] for area in areas))
        return self._areas[grid]

    def count(self, layout: Layout) -> int:
        """Units that at least are not seen."""
        return layout.count - self._most(self._grid(layout))[1]

    def forward(self, layout: Layout, draw: Draw, scores: Float[Tensor, "B N"] | None = None) -> Mask:
        """The masks of a batch: contexts are kept, target blocks asked, one group each."""
        grid = self._grid(layout)
        step = randomness.make_key(0, draw.step, torch.zeros(1, dtype=torch.int64, device="cpu"))
        first, second = randomness.uniform(step, "mask.sizes", 2)[0].tolist()
        target, context = self.sizes((first, second), grid)
        places = randomness.uniform(draw.key, "mask.targets", 2 * self.config.targets)
        blocks = _blocks(places.unflatten(1, (-1, 2)), target, grid)  # [B, T, N]
        kept = self._context(draw.key, blocks, context, grid)
        if layout.valid is not None:
            kept, blocks = kept & layout.valid, blocks & layout.valid[:, None]
        area, most = self._most(grid)
        kept_ids, kept_valid = _ids(kept, most)
        query_ids, query_valid = _ids(blocks.flatten(0, 1), area)
        rows = len(draw.key)
        query_ids, query_valid = query_ids.reshape(rows, -1), query_valid.reshape(rows, -1)
        groups = self.config.targets
        return Mask(~kept, kept_ids, query_ids, query_valid.float(), 1, groups, kept_valid, query_valid)

    def _context(
        self, key: Int[Tensor, " B"], blocks: Bool[Tensor, "B T N"], size: tuple[int, int], grid: tuple[int, int]
    ) -> Bool[Tensor, "B N"]:
        """The context block without the targets: the first place at which enough is left."""
        number = self.config.targets
        draws = randomness.uniform(key, "mask.context", 2 * TRIES * (number + 1)).unflatten(1, (-1, 2))
        candidates = _blocks(draws, size, grid)  # [B, tries, N]
        for cut in range(number + 1):  # targets that are left uncut
            taken = blocks[:, : number - cut].any(dim=1, keepdim=True)
            some = slice(cut * TRIES, (cut + 1) * TRIES)
            candidates[:, some] &= ~taken
        enough = candidates.sum(dim=2) > self.config.smallest
        enough[:, -1] |= ~enough.any(dim=1)  # a grid too small for the rule takes what there is
        chosen = enough.to(torch.uint8).argmax(dim=1)
        context: Tensor = candidates[torch.arange(len(key), device=key.device), chosen]
        return context


def _blocks(u: Float[Tensor, "B T 2"], size: tuple[int, int], grid: tuple[int, int]) -> Bool[Tensor, "B T N"]:
    """Blocks of one size on a grid, at places drawn from u in [0, 1); the last row and column are never reached."""
    sides = []
    for axis in range(2):
        start = (u[:, :, axis] * max(1, grid[axis] - size[axis])).to(torch.int64)[:, :, None]
        line = torch.arange(grid[axis], device=u.device)
        sides.append((line >= start) & (line < start + size[axis]))
    return (sides[0][:, :, :, None] & sides[1][:, :, None, :]).flatten(2)


def _ids(flags: Bool[Tensor, "R N"], most: int) -> tuple[Int[Tensor, "R K"], Bool[Tensor, "R K"]]:
    """The ids of True in each row, ascending, and which of them are: rows are filled up to the same length."""
    order = flags.to(torch.uint8).argsort(dim=1, stable=True, descending=True)[:, :most]
    return order, flags.gather(1, order)
