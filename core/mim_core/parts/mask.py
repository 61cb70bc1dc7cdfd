"""What is hidden, what the encoder receives, what the decoder answers: `Mask`, and the `Draw` that a masker works
from."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mim_core.parts.layout import Layout, take, tensor_tree


@dataclass(frozen=True)
class Draw:
    """What a masker's random draws depend on.

    Attributes:
        key: int64 [B], one per sample; the only source of randomness of a sample's own mask.
        step: Optimizer step, for draws that a whole batch shares (I-JEPA, AttMask).
        progress: Share of the run that is done, in [0, 1], for curricula (HPM).
    """

    key: Int[Tensor, " B"]
    step: int = 0
    progress: float = 0.0


@tensor_tree
@dataclass(frozen=True)
class Mask:
    """One or several masks per sample; the rows of one sample are adjacent. **True = hidden**, everywhere.

    K and Q are known when the run is built, so shapes are static and nothing synchronises.

    Attributes:
        hidden: bool [R, N], R = B x masks per sample.
        kept_ids: int64 [R, K], the units that the encoder receives. MAE: the visible ones; SimMIM: all. A kept unit
            that is hidden becomes a mask token.
        query_ids: int64 [R, Q], the units that the decoder answers. They may repeat (I-JEPA) or be visible (VideoMAE
            V2).
        weight: float32 [R, Q], how much each answer counts in the loss.
        per_sample: Masks per sample.
        groups: The queries fall into so many groups of equal size, one after another; a decoder answers each without a
            look at the others (I-JEPA's target blocks).
        kept_valid: bool [R, K], False where ``kept_ids`` only fills the row: nobody attends to it. None: all count.
        query_valid: bool [R, Q], the same of queries; their weight is 0.
        spans: What is hidden of sequences is to be written as spans before it is encoded, see `Tokenizer.arrange`.
    """

    hidden: Bool[Tensor, "R N"]
    kept_ids: Int[Tensor, "R K"]
    query_ids: Int[Tensor, "R Q"]
    weight: Float[Tensor, "R Q"]
    per_sample: int = field(default=1, metadata={"static": True})
    groups: int = field(default=1, metadata={"static": True})
    kept_valid: Bool[Tensor, "R K"] | None = None
    query_valid: Bool[Tensor, "R Q"] | None = None
    spans: bool = field(default=False, metadata={"static": True})

    @staticmethod
    def with_count(
        hidden: Bool[Tensor, "R N"], count: int, per_sample: int = 1, valid: Bool[Tensor, "B N"] | None = None
    ) -> Mask:
        """From rows that each hide exactly ``count`` units. No check and no synchronisation: what maskers call.

        Kept units and queries come in ascending order. Hidden units that are not ``valid`` weigh nothing.
        """
        visible = hidden.shape[1] - count
        order = hidden.to(torch.uint8).argsort(dim=1, stable=True)  # visible first, each half ascending
        query_ids = order[:, visible:]
        weight = torch.ones(hidden.shape[0], count, device=hidden.device)
        if valid is not None:
            weight = take(valid.float(), query_ids)
        return Mask(hidden, order[:, :visible], query_ids, weight, per_sample)

    @staticmethod
    def from_bool(hidden: Bool[Tensor, "R N"], queries: Bool[Tensor, "R N"] | None = None, per_sample: int = 1) -> Mask:
        """From an injected mask, which is checked; this reads the tensor, so it is not for a training step.

        Args:
            hidden: bool [R, N], True = hidden.
            queries: bool [R, N], True where the decoder is asked, by default at every hidden unit. A visible query is
                answered but weighs nothing in the loss (VideoMAE V2).
            per_sample: Masks per sample; R must be a multiple of it.

        Raises:
            ValueError: Wrong shape or type, a row that hides nothing or is asked nothing.
        """
        _check_bool("hidden", hidden)
        counts = hidden.sum(dim=1)
        if int(counts.min()) == 0:
            raise ValueError("a row of the mask hides nothing (True = hidden)")
        rows, units = hidden.shape
        if rows % per_sample:
            raise ValueError(f"{rows} rows are not a multiple of {per_sample} masks per sample")
        if queries is None:
            equal = int(counts.min()) == int(counts.max())
            asked = hidden if equal else torch.ones_like(hidden)
        else:
            _check_bool("queries", queries)
            if queries.shape != hidden.shape:
                raise ValueError(f"queries {tuple(queries.shape)} and hidden {tuple(hidden.shape)} differ in shape")
            if not bool((queries & hidden).any(dim=1).all()):
                raise ValueError("a row asks for no hidden unit")
            asked = queries
        query_ids = _true_ids(asked, "queries")
        if int(counts.min()) == int(counts.max()) < units:
            kept_ids = _true_ids(~hidden, "visible units")
        else:
            kept_ids = _all_ids(hidden)
        return Mask(hidden, kept_ids, query_ids, hidden.gather(1, query_ids).float(), per_sample)

    @staticmethod
    def nothing_hidden(rows: int, layout: Layout, device: torch.device) -> Mask:
        """Every unit kept, none hidden, none asked: for `Method.encode`."""
        hidden = torch.zeros(rows, layout.count, dtype=torch.bool, device=device)
        none = torch.zeros(rows, 0, dtype=torch.int64, device=device)
        return Mask(hidden, _all_ids(hidden), none, none.float())

    def keep_all(self) -> Mask:
        """The same mask for an encoder that sees every position: all units are kept, hidden ones become mask tokens."""
        return replace(self, kept_ids=_all_ids(self.hidden), kept_valid=None)

    def ask_sample(self) -> Mask:
        """The same mask with one query per row, for a head that asks about the sample as a whole."""
        one = self.hidden[:, :1]
        return replace(
            self, query_ids=torch.zeros_like(one, dtype=torch.int64), weight=torch.ones_like(one, dtype=torch.float32),
            groups=1, query_valid=None,
        )  # fmt: skip

    def ask_all(self, layout: Layout) -> Mask:
        """The same mask, asked for every unit, all of which count where they are valid."""
        weight = torch.ones_like(self.hidden, dtype=torch.float32)
        if layout.valid is not None:
            weight = weight * layout.valid.repeat_interleave(self.per_sample, dim=0)
        return replace(self, query_ids=_all_ids(self.hidden), weight=weight, groups=1, query_valid=None)

    def kept_hidden(self) -> Bool[Tensor, "R K"]:
        """Which kept units are hidden, and so become mask tokens."""
        return self.hidden.gather(1, self.kept_ids)

    def ask_segment(self, layout: Layout, segment: str, local: bool = False) -> Mask:
        """The same mask, asked for every unit of one segment, weighted by hidden and valid: hidden counts differ
        between samples there.

        With ``local`` units are counted from the segment's own start, which is how a target sees its own patches.
        """
        start, part = layout.span(segment)
        hidden = self.hidden[:, start : start + part.count]
        ids, weight = _all_ids(hidden), hidden.float()
        if part.valid is not None:  # what is not there cannot be answered
            weight = weight * part.valid.repeat_interleave(self.per_sample, dim=0)
        if local:
            return Mask(hidden, ids, ids, weight, self.per_sample)
        return replace(self, query_ids=ids + start, weight=weight, groups=1, query_valid=None)

    def own_queries(self, layout: Layout, segment: str) -> tuple[Int[Tensor, "R q"], Bool[Tensor, "R q"]]:
        """Which of the queries are of one segment: their numbers, first those, and which of them are. As many as a row
        can hold, so that shapes are static."""
        start, part = layout.span(segment)
        mine = (self.query_ids >= start) & (self.query_ids < start + part.count)
        mine = mine if self.query_valid is None else mine & self.query_valid
        most = min(mine.shape[1], part.count)
        at = mine.to(torch.uint8).argsort(dim=1, stable=True, descending=True)[:, :most]
        return at, mine.gather(1, at)

    def ask_own(self, layout: Layout, segment: str, local: bool = False) -> Mask:
        """The same mask with the queries of one segment alone, see `own_queries`; with ``local`` units are counted from
        its start."""
        start, part = layout.span(segment)
        at, valid = self.own_queries(layout, segment)
        ids = (self.query_ids.gather(1, at) - start).clamp(0, part.count - 1)
        weight = self.weight.gather(1, at) * valid
        if not local:
            return replace(self, query_ids=ids + start, weight=weight, groups=1, query_valid=valid)
        hidden = self.hidden[:, start : start + part.count]
        return Mask(hidden, _all_ids(hidden), ids, weight, self.per_sample, query_valid=valid)

    def take(self, values: Tensor, ids: Int[Tensor, "R K"]) -> Tensor:
        """Values [B, N, ...] of the samples at ids [R, K] of the masks: [R, K, ...]."""
        return take(values, ids)


def _check_bool(name: str, value: Tensor) -> None:
    if value.dtype != torch.bool or value.ndim != 2:
        raise ValueError(f"{name} must be bool [rows, units], got {value.dtype} {tuple(value.shape)}")


def _all_ids(like: Bool[Tensor, "R N"]) -> Int[Tensor, "R N"]:
    return torch.arange(like.shape[1], device=like.device).expand(like.shape[0], -1)


def _true_ids(flags: Bool[Tensor, "R N"], what: str) -> Int[Tensor, "R K"]:
    """The ids of True in each row, ascending; every row must hold as many."""
    counts = flags.sum(dim=1)
    low, high = int(counts.min()), int(counts.max())
    if low != high:
        raise ValueError(f"rows hold {low} to {high} {what}; every row must hold as many")
    return flags.to(torch.uint8).argsort(dim=1, stable=True, descending=True)[:, :high]
