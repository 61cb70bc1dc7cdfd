"""Spans of a sequence: what is hidden of it as T5 writes it (arXiv 1910.10683, section 3.1.4), for sequences that are
told one after another (4M, arXiv 2312.06647).

Of a, b, c, d, e with b, c and e hidden, ``a <1> d <2>`` is seen, and ``<1> b c <2> e <3>`` is asked: a sentinel stands
for each run of hidden units, and one more ends what is asked. Each entry is asked from those before it, so the first is
only told.

A sequence of at most L units has 2 (L + 1) places: what is seen comes first, and what is asked behind it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from mim_core.parts.layout import Layout, tensor_tree


def places_for(length: int) -> int:
    """Places of a sequence of at most this many units."""
    return 2 * (length + 1)


def sequence_length(layout: Layout) -> int:
    """Most units of a sequence with this layout."""
    return layout.count // 2 - 1


def sentinels_for(length: int) -> int:
    """Sentinels that a sequence of at most this many units can need: one a run, and the last."""
    return (length + 1) // 2 + 1


@tensor_tree
@dataclass(frozen=True)
class Spans:
    """Which units of sequences are seen and which are hidden, bool [..., L] each; units that are in neither are none.

    Attributes:
        kept: Units that are seen.
        hidden: Units that are hidden.
    """

    kept: Bool[Tensor, "*R L"]
    hidden: Bool[Tensor, "*R L"]

    @property
    def starts(self) -> Bool[Tensor, "*R L"]:
        """Hidden units that begin a run."""
        before = torch.nn.functional.pad(self.hidden[..., :-1], (1, 0))
        return self.hidden & ~before

    @property
    def seen(self) -> Int[Tensor, "*R"]:
        """Entries of what is seen: kept units and a sentinel for each run."""
        return self.kept.sum(dim=-1) + self.starts.sum(dim=-1)

    @property
    def told(self) -> Int[Tensor, "*R"]:
        """Entries of what is asked: hidden units, a sentinel before each run, and the last; 0 where there are no
        units."""
        some = (self.kept | self.hidden).any(dim=-1)
        return (self.hidden.sum(dim=-1) + self.starts.sum(dim=-1) + 1) * some

    def sentinel_places(self) -> Int[Tensor, "*R L"]:
        """Of every unit that begins a run: the number of its sentinel's entry in what is asked."""
        hidden, starts = self.hidden.to(torch.int64), self.starts.to(torch.int64)
        return (hidden.cumsum(-1) - hidden) + (starts.cumsum(-1) - starts)

    def write(self, ids: Int[Tensor, "R L"], sentinel: int) -> Int[Tensor, "R places"]:
        """Both, one behind the other, in 2 (L + 1) places; zeros behind them.

        Args:
            ids: Of the units.
            sentinel: The id of the first sentinel; the others follow.
        """
        rows, length = ids.shape
        end = places_for(length)
        out = ids.new_zeros(rows, end + 1)  # the last takes what is written nowhere
        starts = self.starts
        numbers = sentinel + starts.cumsum(-1) - 1
        seen = self.kept | starts
        places = (seen.cumsum(-1) - 1).where(seen, end)
        out = out.scatter(1, places, numbers.where(starts, ids))
        first = self.seen[:, None]
        entries = first + self.sentinel_places()
        out = out.scatter(1, entries.where(starts, end), numbers)
        behind = first + self.hidden.cumsum(-1) - 1 + starts.cumsum(-1)
        out = out.scatter(1, behind.where(self.hidden, end), ids)
        counts = self.told[:, None]
        last = (first + counts - 1).where(counts > 0, end)
        return out.scatter(1, last, sentinel + starts.sum(-1, keepdim=True))[:, :end]
