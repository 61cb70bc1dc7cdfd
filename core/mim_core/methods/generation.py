"""Modalities that a sample lacks, generated one after another by a method whose decoder answers for all (4M, arXiv
2312.06647, section 2.3): ids on a grid in a few steps, the surest first (MaskGIT, arXiv 2202.04200, section 3.2);
sequences id by id. What is made is seen when the next is made."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mim_core import randomness
from mim_core.data.source import Sample
from mim_core.errors import MimError, unknown
from mim_core.parts.layout import Layout, take
from mim_core.parts.mask import Mask
from mim_core.parts.spans import sequence_length
from mim_core.parts.tokenizer import JoinedTokenizer, zeros
from mim_core.parts.tokenizer_ids import SequenceTokenizer


@dataclass(frozen=True)
class Generation:
    """How modalities are generated.

    Attributes:
        wanted: Which, and in which order; all that a sample lacks, in the order of the heads, where none is named.
        steps: In how many steps the ids of a grid are decided.
        temperature: 0 takes the likeliest id; 1 draws as the model says.
        schedule: How many are undecided after each step: "cosine" decides few at first (MaskGIT), "linear" as many in
            each.
        seed: Of the draws, which are the same for every sample.

    Raises:
        MimError: There is no step, the temperature is negative or not finite, or a modality is named twice.
    """

    wanted: tuple[str, ...] = ()
    steps: int = 8
    temperature: float = 1.0
    schedule: Literal["cosine", "linear"] = "cosine"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or not 0 <= self.temperature < math.inf:
            raise MimError(
                f"steps must be at least 1, and temperature 0 or more; got {self.steps} and {self.temperature}."
            )
        if len(set(self.wanted)) < len(self.wanted):
            raise MimError(f"--predict names a modality twice: {' '.join(self.wanted)}.")

    def undecided(self, step: int, count: int) -> int:
        """How many of ``count`` ids are undecided after a step, counted from 1; 0 after the last, and one fewer at
        least each time."""
        share = step / self.steps
        left = math.cos(share * math.pi / 2) if self.schedule == "cosine" else 1 - share
        return 0 if step >= self.steps else max(0, min(int(count * left + 1e-9), count - step))

    def noise(self, stream: str, count: int, device: torch.device) -> Float[Tensor, " count"]:
        """Gumbel's noise: the largest of scores with it is drawn by their softmax."""
        key = randomness.make_key(self.seed, 0, torch.zeros(1, dtype=torch.int64))
        u = randomness.uniform(key, stream, count)[0].to(torch.float64).clamp(1e-12, 1 - 1e-12)
        return (-(-u.log()).log()).float().to(device)


@dataclass
class _State:
    """What is known of a batch while it is made: the units' values by segment, and which are there, bool [B, N]."""

    layout: Layout
    values: dict[str, Tensor]
    known: Tensor


@torch.no_grad()
def generated(method: Any, sample: Sample, how: Generation) -> dict[str, Tensor]:
    """What is made of modalities that the sample lacks, each [B, ...] in its own shape, by head.

    Args:
        method: A `MaskedAutoencoder` with a joint decoder, in evaluation mode.
        sample: A batch with some of its modalities.
        how: The options.

    Raises:
        MimError: None or all modalities are given, or one is wanted that is given, follows from what is, or that no
            head asks for in ids.
    """
    tokenizer = method.tokenizer
    assert isinstance(tokenizer, JoinedTokenizer), "several modalities are joined"
    lacking = tokenizer.lacking(sample)
    named = {name: head for name, head in method.heads.items() if tokenizer.part(str(head.segment)).names}
    able = [name for name, head in named.items() if head.segment in lacking]
    if len(lacking) == len(tokenizer.parts) or not able:
        raise MimError(
            f"Which modalities are given? --given names some of {', '.join(tokenizer.shapes)}, and leaves out one that "
            f"can be predicted: {', '.join(named)}."
        )
    for name in how.wanted:
        if name not in able:
            raise _refused(name, able, method, sample)
    state = _begin(tokenizer, sample, lacking)
    outputs = {}
    for name in how.wanted or able:
        segment = str(method.heads[name].segment)
        part = tokenizer.part(segment)
        if isinstance(part, SequenceTokenizer):
            _tell(method, state, name, part, how)
        else:
            _decide(method, state, name, how)
        outputs[name] = part.join(state.values[segment], dict(state.layout.segments)[segment])
    return outputs


def _refused(name: str, able: list[str], method: Any, sample: Sample) -> MimError:
    """Why a modality that is wanted is not made, and which could be."""
    tokenizer, others = method.tokenizer, f"What can be predicted from what is given: {', '.join(able)}."
    segment = str(method.heads[name].segment) if name in method.heads else name
    if segment not in tokenizer.parts:
        return unknown("modality in --predict", name, able, "Those that are given are not predicted.")
    part = tokenizer.part(segment)
    made = [modality for modality in part.shapes if modality in sample]
    if made:
        why = "it is given" if made == [name] else f"it follows from {', '.join(made)}, which is given"
    elif name not in method.heads:
        why = "this run has no head that answers for it"
    else:
        why = "its answers are values, and ids alone are generated"
    return MimError(f"--predict {name}: {why}. {others}")


def _begin(tokenizer: JoinedTokenizer, sample: Sample, lacking: list[str]) -> _State:
    """What is given; zeros, of which nothing is known, for the rest."""
    first = next(value for name, value in sample.items() if name in tokenizer.shapes)
    shapes = {name: shape for part in lacking for name, shape in tokenizer.part(part).shapes.items()}
    patches = tokenizer.split({**zeros(shapes, tokenizer.ids, len(first), first.device), **sample})
    assert isinstance(patches.values, dict)
    known = torch.ones(len(first), patches.layout.count, dtype=torch.bool, device=first.device)
    known = known if patches.layout.valid is None else known & patches.layout.valid
    for name in lacking:
        start, part = patches.layout.span(name)
        known[:, start : start + part.count] = False
    bare = Layout.join({name: tokenizer.part(name).layout for name, _ in patches.layout.segments})
    return _State(bare, dict(patches.values), known)


def _scores(method: Any, state: _State, name: str, queries: Bool[Tensor, "B N"]) -> Float[Tensor, "B Q size"]:
    """A head's scores at the queries, as many in every row, from all that is known."""
    rows = len(queries)
    most, count = int(state.known.sum(dim=1).max()), int(queries[0].sum())
    kept_ids = state.known.to(torch.uint8).argsort(dim=1, stable=True, descending=True)[:, :most]
    query_ids = queries.to(torch.uint8).argsort(dim=1, stable=True, descending=True)[:, :count]
    weight = torch.ones(rows, count, device=queries.device)
    mask = Mask(~state.known, kept_ids, query_ids, weight, kept_valid=state.known.gather(1, kept_ids))
    encoded = method.encoder(take(method.tokenizer.embed(state.values), kept_ids), state.layout, mask)
    segment = method.heads[name].segment
    start, part = state.layout.span(segment)
    own = state.values[segment][..., 0]
    inputs = own.gather(1, (query_ids - start).clamp(0, part.count - 1))
    answer = method.heads[name].decoder
    scores: Tensor = answer.pred(method.decoder.decode(encoded, state.layout, mask, inputs, {name: answer}))
    return scores.float()


def _drawn(scores: Float[Tensor, "B Q size"], how: Generation, stream: str) -> tuple[Tensor, Tensor]:
    """(ids, how sure the model is of each)."""
    logs = scores.log_softmax(dim=-1)
    wanted = logs
    if how.temperature:
        noise = how.noise(stream, scores.shape[1] * scores.shape[2], scores.device).reshape(scores.shape[1:])
        hot = max(1.0, how.temperature)  # either way the same order; a tiny divisor would make all infinite
        wanted = logs / hot + noise * (how.temperature / hot)
    ids = wanted.argmax(dim=-1)
    return ids, logs.gather(2, ids[..., None])[..., 0]


def _decide(method: Any, state: _State, name: str, how: Generation) -> None:
    """All ids of a grid, the surest first; those that are decided are seen in the next step."""
    segment = method.heads[name].segment
    start, part = state.layout.span(segment)
    for step in range(1, how.steps + 1):
        queries = torch.zeros_like(state.known)
        queries[:, start : start + part.count] = ~state.known[:, start : start + part.count]
        open_ = int(queries[0].sum())
        if not open_:
            break
        decided = open_ - how.undecided(step, part.count)
        if decided < 1:
            continue
        ids, sure = _drawn(_scores(method, state, name, queries), how, f"generate {name} {step}")
        places = queries.to(torch.uint8).argsort(dim=1, stable=True, descending=True)[:, :open_] - start
        chosen = sure.topk(decided, dim=1).indices
        at = places.gather(1, chosen)
        state.values[segment] = state.values[segment].scatter(1, at[..., None], ids.gather(1, chosen)[..., None])
        state.known = state.known.scatter(1, at + start, True)


def _tell(method: Any, state: _State, name: str, part: SequenceTokenizer, how: Generation) -> None:
    """A sequence, id by id, from the sentinel of a span that hides all of it to the next one."""
    segment = method.heads[name].segment
    start, layout = state.layout.span(segment)
    length, sentinel = sequence_length(layout), part.config.vocabulary
    rows = len(state.known)
    own = torch.zeros(rows, layout.count, dtype=torch.int64, device=state.known.device)
    own[:, 0] = sentinel
    ended = torch.zeros(rows, dtype=torch.bool, device=own.device)
    for place in range(length):
        state.values[segment] = own[:, :, None]
        queries = torch.zeros_like(state.known)
        queries[:, start : start + place + 1] = True
        scores = _scores(method, state, name, queries)[:, -1:]
        scores[..., 0] = -torch.inf  # what fills a sequence up is never told
        ids = _drawn(scores, how, f"generate {name} {place}")[0][:, 0]
        ended = ended | (ids >= sentinel)
        own[:, place + 1] = ids.where(~ended, 0)
        if bool(ended.all()):
            break
    made = torch.nn.functional.pad(own[:, 1 : length + 1], (0, layout.count - length))
    state.values[segment] = made[:, :, None]
    state.known[:, start : start + layout.count] = made != 0
