"""Two budgets from one draw: so many units are seen, so many others are asked, over all modalities (4M, arXiv
2312.06647, section 2.2 and its code)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from mim_core import DataSource, Draw, Layout, Mask, Masker, Spans, Tokenizer, did_you_mean, randomness, sequence_length
from torch import Tensor

from mim_multimodal.masker import log_gamma_draws

SMALLEST = 1e-9
"""Concentration of a modality that should get nothing, as in 4M's code: it takes what the others cannot."""
DECAY, LEVELS = 0.9, 44
"""The share of a sequence that is kept is lowered by this factor until it fits; after 43 times to nothing."""


class _Part(NamedTuple):
    """One modality of a batch: its name, its layout, and which of its units there are, bool [B, N]."""

    name: str
    layout: Layout
    there: Tensor


class BudgetMasker(Masker):
    """Shows ``seen`` units of each sample and asks for ``asked`` others. Shares of both budgets are drawn from
    Dirichlet distributions over the modalities, which of a mixture of them for each sample; units of a grid are drawn
    uniformly, and what is asked is never what is seen.

    Of a sequence, spans are hidden as T5 does it: a share of its units that is drawn uniformly is kept, less where that
    does not fit, and sentinels count. Where what is hidden of it is more than its budget, a part is asked that begins
    at a drawn span.

    Both budgets are exact wherever there are units left that fill them: what a modality lacks, or a sequence leaves
    over, goes to the others, with a concentration of 0 last. Rows that lack units are filled up with what nobody sees.

    Differs from the code: there a budget that a modality cannot take is lost, a minimum is reached by drawing again,
    and single units left over go by a draw from the same distribution; here by one from its mean.
    """

    exact, sequences = False, True

    @dataclass(frozen=True)
    class Config:
        """Options of the budget masker."""

        seen: int = 128
        """Units that the encoder sees, over all modalities."""
        asked: int = 128
        """Units that are asked, over all modalities."""
        mixture: tuple[float, ...] = (1.0,)
        """How often each of several distributions is drawn."""
        seen_alpha: tuple[float, ...] = (0.5,)
        """Concentration of what is seen, one for each of the mixture: small values give most of the budget to one
        modality, 0 gives none."""
        asked_alpha: tuple[float, ...] = (0.5,)
        """The same of what is asked."""
        seen_alphas: dict[str, tuple[float, ...]] = field(default_factory=dict)
        """Concentrations of what is seen by modality, where another than that of all: rgb 1000 0.5."""
        asked_alphas: dict[str, tuple[float, ...]] = field(default_factory=dict)
        """The same of what is asked."""
        only_seen: tuple[str, ...] = ()
        """Modalities that are never asked, with spaces between, such as pixels that stand beside their ids."""
        only_asked: tuple[str, ...] = ()
        """Modalities that are never seen."""
        least: dict[str, int] = field(default_factory=dict)
        """Smallest share of either budget, in units, by modality; less where there are fewer."""
        most: dict[str, int] = field(default_factory=dict)
        """Largest share of either budget, in units, by modality."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        if config.seen < 1 or config.asked < 1:
            raise ValueError(f"seen and asked must be at least 1, got {config.seen} and {config.asked}")
        if not config.mixture or any(not 0 < share < math.inf for share in config.mixture):
            raise ValueError(f"mixture must hold positive shares, got {config.mixture}")
        for what in ("seen", "asked"):
            named = {f"{what}_alphas of {name}": alphas for name, alphas in getattr(config, f"{what}_alphas").items()}
            for option, alphas in {f"{what}_alpha": getattr(config, f"{what}_alpha"), **named}.items():
                if len(alphas) != len(config.mixture) or any(not 0 <= alpha < math.inf for alpha in alphas):
                    raise ValueError(
                        f"{option} must be numbers of 0 or more, one for each of the mixture of "
                        f"{len(config.mixture)}; got {alphas}"
                    )
        for name in {*config.least, *config.most}:
            low, high = config.least.get(name, 0), config.most.get(name, max(config.seen, config.asked))
            if not 0 <= low <= high:
                raise ValueError(f"least of {name} must be 0 or more, and most no less; got {low} and {high}")

    def _check(self, layout: Layout) -> None:
        """Raises ValueError where options name what there is not, or the budgets do not fit."""
        config, names = self.config, [name for name, _ in layout.parts()]
        options = ("seen_alphas", "asked_alphas", "only_seen", "only_asked", "least", "most")
        for option in options:
            strange = [name for name in getattr(config, option) if name not in names]
            if strange and layout.segments:
                guess = did_you_mean(strange[0], names, "; did you mean ")
                raise ValueError(f"{option} names {', '.join(strange)}; the modalities are {', '.join(names)}{guess}")
        for what, none in (("seen", config.only_asked), ("asked", config.only_seen)):
            if set(names) <= set(none):
                raise ValueError(f"no modality may be {what}")
            least = sum(number for name, number in config.least.items() if name not in none)
            if least > getattr(config, what):
                raise ValueError(f"least adds up to {least}, and {what} is {getattr(config, what)}")
        if config.seen >= layout.count:
            raise ValueError(f"seen is {config.seen}, and there are {layout.count} units: some must be hidden")

    def count(self, layout: Layout) -> int:
        """The smallest number of units that the encoder does not see."""
        self._check(layout)
        return layout.count - self.config.seen

    def inputs_of(self, layout: Layout) -> list[tuple[str, Layout]]:
        """All but those that are only asked."""
        return [(name, part) for name, part in layout.segments if name not in self.config.only_asked]

    def check(self, source: DataSource, tokenizer: Tokenizer) -> None:
        """Refuses data with items of which nothing may be seen, or nothing asked.

        Raises:
            ValueError: There are such items; says how many, and names one.
        """
        parts = getattr(tokenizer, "parts", {})
        for present, (items, example) in source.presence().items() if parts else ():
            names = [name for name, part in parts.items() if set(part.shapes) <= present]
            for what, none in (("seen", self.config.only_asked), ("asked", self.config.only_seen)):
                if set(names) <= set(none):
                    raise ValueError(f"of {items} items, such as {example}, no modality may be {what}")

    def forward(self, layout: Layout, draw: Draw, scores: Float[Tensor, "B N"] | None = None) -> Mask:
        """The masks of a batch."""
        self._check(layout)
        config, parts = self.config, _parts(layout, draw.key)
        counts = torch.stack([part.there.sum(dim=1) for part in parts], dim=1)
        component = self._component(draw.key)
        seen = self._shares("seen", draw, component, parts, counts, config.seen)
        spans = [self._spans(part, quota, draw) for part, quota in zip(parts, seen.unbind(1), strict=True)]
        used = [
            quota if span is None else span.seen * (quota > 0)
            for span, quota in zip(spans, seen.unbind(1), strict=True)
        ]
        seen = self._refilled("seen", draw, component, parts, counts, torch.stack(used, dim=1), spans)
        left = [
            n - own if span is None else (span.told - 1).clamp(min=0)
            for n, own, span in zip(counts.unbind(1), seen.unbind(1), spans, strict=True)
        ]
        asked = self._shares("asked", draw, component, parts, torch.stack(left, dim=1), config.asked)
        masks = [
            _on_grid(part, own, wanted, draw) if span is None else _in_sequence(part, span, own, wanted, draw)
            for part, span, own, wanted in zip(parts, spans, seen.unbind(1), asked.unbind(1), strict=True)
        ]
        hidden, kept, queries = (torch.cat(each, dim=1) for each in zip(*masks, strict=True))
        kept_ids, kept_valid = _ids(kept, min(config.seen, layout.count))
        query_ids, query_valid = _ids(queries, min(config.asked, layout.count))
        spanned = any(span is not None for span in spans)
        return Mask(hidden, kept_ids, query_ids, query_valid.float(), 1, 1, kept_valid, query_valid, spanned)

    def _component(self, key: Int[Tensor, " B"]) -> Int[Tensor, " B"]:
        """Which of the mixture each sample draws."""
        shares = torch.tensor(self.config.mixture, dtype=torch.float64)
        bounds = (shares.cumsum(0) / shares.sum())[:-1].to(key.device)
        return (randomness.uniform(key, "mask.mixture", 1).to(torch.float64) >= bounds).sum(dim=1)

    def _alphas(self, what: str, component: Int[Tensor, " B"], parts: list[_Part]) -> Float[Tensor, "B S"]:
        """The concentrations of every sample."""
        own, default = getattr(self.config, f"{what}_alphas"), getattr(self.config, f"{what}_alpha")
        rows = torch.tensor([own.get(part.name, default) for part in parts], dtype=torch.float64)
        return rows.clamp(min=SMALLEST).to(component.device).T[component]

    def _bounds(self, what: str, parts: list[_Part], room: Int[Tensor, "B S"]) -> tuple[Tensor, Tensor]:
        """Fewest and most units of each modality, [B, S]."""
        none = self.config.only_asked if what == "seen" else self.config.only_seen
        budget = getattr(self.config, what)
        most = [0 if part.name in none else self.config.most.get(part.name, budget) for part in parts]
        high = torch.minimum(room, torch.tensor(most, device=room.device))
        least = torch.tensor([self.config.least.get(part.name, 0) for part in parts], device=room.device)
        return torch.minimum(least, high), high

    def _shares(
        self,
        what: str,
        draw: Draw,
        component: Int[Tensor, " B"],
        parts: list[_Part],
        room: Int[Tensor, "B S"],
        budget: int,
    ) -> Int[Tensor, "B S"]:
        """Units of each modality: the fewest, and the rest by a Dirichlet draw."""
        low, high = self._bounds(what, parts, room)
        alphas = self._alphas(what, component, parts)
        logs = log_gamma_draws(draw.key, alphas, f"mask.{what}")
        return fill(low, high, budget, logs, _ties(draw.key, alphas, f"mask.{what}.left"))

    def _refilled(
        self,
        what: str,
        draw: Draw,
        component: Int[Tensor, " B"],
        parts: list[_Part],
        counts: Int[Tensor, "B S"],
        used: Int[Tensor, "B S"],
        spans: list[Spans | None],
    ) -> Int[Tensor, "B S"]:
        """What sequences left over, given to the others."""
        _, high = self._bounds(what, parts, counts)
        grids = torch.tensor([span is None for span in spans], device=used.device)
        alphas = self._alphas(what, component, parts)
        logs = log_gamma_draws(draw.key, alphas, f"mask.{what}")
        ties = _ties(draw.key, alphas, f"mask.{what}.over")
        return fill(used, high.where(grids, used), getattr(self.config, what), logs, ties)

    def _spans(self, part: _Part, quota: Int[Tensor, " B"], draw: Draw) -> Spans | None:
        """What is kept of a sequence: as much as a uniform draw says, less where the budget does not allow it."""
        if not part.layout.sequence:
            return None
        length = sequence_length(part.layout)
        tokens = part.there[:, :length]
        share = randomness.uniform(draw.key, f"mask.keep {part.name}", 1)[:, :, None]
        levels = DECAY ** torch.arange(LEVELS, device=quota.device, dtype=torch.float32)
        levels = levels.where(torch.arange(LEVELS, device=quota.device) < LEVELS - 1, 0.0)
        each = randomness.uniform(draw.key, f"mask.span {part.name}", length)[:, None]
        kept = (each < share * levels[None, :, None]) & tokens[:, None] & (quota > 0)[:, None, None]
        fits = Spans(kept, tokens[:, None] & ~kept).seen <= quota.clamp(min=1)[:, None]
        first = fits.to(torch.uint8).argmax(dim=1)[:, None, None].expand(-1, 1, length)
        chosen = kept.gather(1, first)[:, 0]
        return Spans(chosen, tokens & ~chosen)


def _parts(layout: Layout, key: Int[Tensor, " B"]) -> list[_Part]:
    """The modalities of a batch."""
    modalities, parts = [], layout.parts()
    whole = torch.ones(len(key), layout.count, dtype=torch.bool, device=key.device)
    whole = whole if layout.valid is None else whole & layout.valid
    for (name, part), present in zip(parts, whole.split([part.count for _, part in parts], dim=1), strict=True):
        if part.sequence:  # the places behind its units hold none of them
            present = present & (torch.arange(part.count, device=key.device) < sequence_length(part))
        modalities.append(_Part(name, replace(part, valid=None), present))
    return modalities


def _ties(key: Int[Tensor, " B"], alphas: Float[Tensor, "B S"], stream: str) -> Float[Tensor, "B S S"]:
    """Scores whose largest is a modality drawn in proportion to its concentration, S times (Gumbel 1954)."""
    size = alphas.shape[1]
    u = randomness.uniform(key, stream, size * size).to(torch.float64).clamp(1e-12, 1 - 1e-12)
    return alphas.log()[:, None] - (-u.log()).log().unflatten(1, (size, size))


def fill(
    got: Int[Tensor, "B S"],
    high: Int[Tensor, "B S"],
    budget: int,
    logs: Float[Tensor, "B S"],
    ties: Float[Tensor, "B S S"],
) -> Int[Tensor, "B S"]:
    """Adds to what each has until the sum is the budget, or all have the most they may.

    Args:
        got: What each has.
        high: The most that each may have, no less.
        budget: What all should have together.
        logs: Logarithms of shares; what is left is spread in proportion to them, over those that have room.
        ties: Scores by which the single units that rounding leaves are given away.
    """
    for _ in range(got.shape[1]):  # each round fills one, or leaves less than one unit for each
        room = high - got
        rest = (budget - got.sum(dim=1, keepdim=True)).clamp(min=0)
        share = logs.masked_fill(room <= 0, -torch.inf).softmax(dim=1).nan_to_num(0.0)
        got = got + torch.minimum((share * rest).floor().to(torch.int64), room.clamp(min=0))
    for scores in ties.unbind(dim=1):
        room = high - got
        rest = budget - got.sum(dim=1, keepdim=True)
        chosen = scores.masked_fill(room <= 0, -torch.inf).argmax(dim=1, keepdim=True)
        give = (rest > 0) & (room > 0).any(dim=1, keepdim=True)
        got = got.scatter_add(1, chosen, give.to(torch.int64))
    return got


def _on_grid(part: _Part, seen: Tensor, asked: Tensor, draw: Draw) -> tuple[Tensor, Tensor, Tensor]:
    """Of units on a grid: (hidden, kept, asked), bool [B, N]: the first ones of a random order are seen, the next
    asked."""
    bits = (randomness.bits(draw.key, f"mask {part.name}", part.layout.count) >> 1) & ((1 << 62) - 1)
    order = bits.masked_fill(~part.there, (1 << 62) + 1).argsort(dim=1, stable=True)
    place = order.argsort(dim=1, stable=True)
    kept = place < seen[:, None]
    return ~kept, kept, ~kept & (place < (seen + asked)[:, None])


def _in_sequence(part: _Part, spans: Spans, seen: Tensor, asked: Tensor, draw: Draw) -> tuple[Tensor, Tensor, Tensor]:
    """Of places of a sequence the same: what is seen comes first; what is asked begins with a span."""
    length, count = sequence_length(part.layout), part.layout.count
    places, fits = spans.sentinel_places(), spans.told[:, None] - spans.sentinel_places() > asked[:, None]
    bits = randomness.bits(draw.key, f"mask.begin {part.name}", length) >> 2
    first = bits.masked_fill(~(spans.starts & fits), torch.iinfo(torch.int64).min).argmax(dim=1, keepdim=True)
    begin = spans.seen + places.gather(1, first)[:, 0].where(spans.starts.any(dim=1), 0)
    place = torch.arange(count, device=seen.device)
    kept = place < seen[:, None]
    queries = (place >= begin[:, None]) & (place < (begin + asked)[:, None])
    hidden = torch.nn.functional.pad(~spans.kept, (0, count - length), value=True)
    return hidden, kept, queries


def _ids(flags: Bool[Tensor, "B N"], most: int) -> tuple[Int[Tensor, "B K"], Bool[Tensor, "B K"]]:
    """The ids of True in each row, ascending, and which of them are; rows are filled up to the same length."""
    order = flags.to(torch.uint8).argsort(dim=1, stable=True, descending=True)[:, :most]
    return order, flags.gather(1, order)
