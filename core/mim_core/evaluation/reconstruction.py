"""Inputs, what the encoder saw of them, and what was rebuilt, for reports."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from mim_core.data.loading import Readable
from mim_core.data.source import DataSource, Sample
from mim_core.data.views import entries, kinds
from mim_core.errors import MimError
from mim_core.methods.masked_autoencoder import Head
from mim_core.methods.method import Method
from mim_core.methods.modalities import placed
from mim_core.parts.layout import Layout, Patches
from mim_core.parts.mask import Mask
from mim_core.parts.tokenizer import JoinedTokenizer, Tokenizer


@dataclass(frozen=True)
class Rebuilt:
    """One head's pictures: the input, what was left of it, and the input with hidden units as predicted; in the
    modality's own shape, or, with ``features``, maps of features of it. ``hidden`` is what was hidden, bool, of units
    on a grid; ``unasked``, whether the head was not asked of some of it, which is blank; ``whole``, the sample itself
    where its units are ids, which tell less: ``input`` is what these stand for."""

    modality: str
    input: Tensor
    masked: Tensor
    rebuilt: Tensor
    needs_truth: bool
    hidden: Tensor | None = None
    unasked: bool = False
    features: bool = False
    whole: Tensor | None = None


@torch.no_grad()
def reconstruct(
    method: Any, sample: dict[str, Tensor], mask: Tensor | Mapping[str, Tensor] | None = None
) -> dict[str, Rebuilt]:
    """Hides, predicts and joins, for every head whose target has a way back to the input space. The first mask of each
    sample is shown; ``mask`` is drawn, or given as `Method.prepare` takes it. ``method`` is one that ``rebuilds``."""
    each, sample = _samples_of_item(method), _with_views(method, sample)
    if isinstance(mask, Tensor):
        mask = mask.repeat_interleave(each, dim=0)
    elif mask is not None:
        mask = {name: value.repeat_interleave(each, dim=0) for name, value in mask.items()}
    with _evaluating(method):
        prepared = method.prepare(sample, mask)
        outcome = method(prepared)
    patches = method.tokenizer.split(sample)
    reconstructions = {}
    for name, head in method.heads.items():
        assert isinstance(head, Head)
        if head.view or head.decoder.asks != "units":
            continue
        own, asked = head.local(patches, prepared.mask)
        answers = head.target.to_input_space(outcome.predictions[name], own, asked)
        tokenizer = method.tokenizer
        if head.segment is not None and isinstance(tokenizer, JoinedTokenizer):
            tokenizer = tokenizer.part(head.segment)
        if answers is None or not isinstance(own.values, Tensor):
            continue
        step = asked.per_sample
        hidden = asked.hidden[::step]
        shape = (*hidden.shape, *([1] * (own.values.ndim - 2)))
        valid = None if asked.query_valid is None else asked.query_valid[::step]
        filled = placed(own.values, asked.query_ids[::step], answers[::step], valid)
        pick = hidden.reshape(shape)
        rebuilt = torch.where(pick, filled, own.values)
        unknown = hidden & ~asked_units(asked, step)
        if valid is not None:  # what is hidden and was not asked is not known
            rebuilt = tokenizer.blank(rebuilt, unknown)
        joined = tokenizer.join(own.values, own.layout)[::each]
        reconstructions[name] = Rebuilt(
            modality=_modality(tokenizer),
            input=joined,
            masked=tokenizer.join(tokenizer.blank(own.values, hidden), own.layout)[::each],
            rebuilt=tokenizer.join(rebuilt, own.layout)[::each],
            needs_truth=head.target.needs_truth,
            hidden=None if own.layout.grid is None else _spread(tokenizer, pick, own)[::each],
            unasked=valid is not None and bool(unknown.any()),
            features=tokenizer.gives_features,
            whole=_named(tokenizer, sample, joined, each),
        )
    return reconstructions


def asked_units(asked: Mask, step: int) -> Tensor:
    """Which units of the first mask of each sample are asked, bool [B, N]."""
    hidden, ids = asked.hidden[::step], asked.query_ids[::step]
    valid = torch.ones_like(ids, dtype=torch.bool) if asked.query_valid is None else asked.query_valid[::step]
    counts = torch.zeros_like(hidden, dtype=torch.int64).scatter_add(1, ids, valid.to(torch.int64))
    return counts > 0


@contextmanager
def _evaluating(method: Method) -> Iterator[None]:
    """In evaluation mode, where nothing is reduced over ranks and no statistics change."""
    was_training = method.training
    method.eval()
    try:
        yield
    finally:
        method.train(was_training)


def _spread(tokenizer: Tokenizer, hidden: Tensor, own: Patches) -> Tensor:
    """Hidden units [B, N, 1, ...] in the modality's own shape, bool."""
    assert isinstance(own.values, Tensor)
    return tokenizer.join(hidden.expand_as(own.values).to(own.values.dtype), own.layout).bool()


def across(method: Any, sample: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Of several joined modalities, each predicted from each other one alone: head -> modality that is seen -> what is
    made of it. Heads whose pictures need the truth are left out, and so are modalities that a sample lacks. Nothing of
    a method that hides nothing."""
    if method.rebuilds != "hidden":
        return {}
    with _evaluating(method):
        prepared = method.prepare(_with_views(method, sample))
    each, mask = _samples_of_item(method), prepared.mask
    layout = prepared.layout.rows(torch.arange(0, len(mask.hidden) // mask.per_sample, each))
    if len(layout.segments) < 2:
        return {}
    reconstructions: dict[str, dict[str, Tensor]] = {}
    inputs = dict(method.masker.inputs_of(layout))
    for seen, _ in layout.segments:
        if seen not in inputs:  # never an input of this run
            continue
        for name, rebuilt in _from_one(method, sample, layout, seen).items():
            head = method.heads[name]
            if isinstance(head, Head) and head.segment != seen and not rebuilt[0].needs_truth:
                reconstructions.setdefault(name, {})[seen] = torch.cat([each.rebuilt for each in rebuilt])
    return reconstructions


def _from_one(method: Any, sample: dict[str, Tensor], layout: Layout, seen: str) -> dict[str, list[Rebuilt]]:
    """What every head makes of one modality, in parts of the batch: whole, or sample by sample where these have
    different numbers of its units; nothing where one has none."""
    start, count = layout.span(seen)[0], dict(layout.segments)[seen].count
    rows = 1 if layout.valid is None else len(layout.valid)
    present = torch.ones(rows, count, dtype=torch.bool)
    if layout.valid is not None:
        present = layout.valid[:, start : start + count].cpu()
    if not bool(present.any(dim=1).all()):
        return {}
    size = len(next(iter(sample.values())))
    alike = bool((present == present[:1]).all())
    reconstructions: dict[str, list[Rebuilt]] = {}
    for some in [slice(0, size)] if alike else [slice(i, i + 1) for i in range(size)]:
        part = {name: value[some] for name, value in sample.items()}
        hidden = ~present[:1] if alike else ~present[some]
        mask = {name: torch.ones(1, other.count, dtype=torch.bool) for name, other in layout.segments}
        mask = {name: value.repeat(some.stop - some.start, 1) for name, value in {**mask, seen: hidden}.items()}
        for name, rebuilt in reconstruct(method, part, mask).items():
            reconstructions.setdefault(name, []).append(rebuilt)
    return reconstructions


def _modality(tokenizer: Tokenizer) -> str:
    return next(iter(tokenizer.shapes))


def _named(tokenizer: Tokenizer, sample: Sample, joined: Tensor, each: int) -> Tensor | None:
    """The sample as it is, where its units are ids that stand for something else; None where they tell all of it."""
    modality = _modality(tokenizer)
    whole, own = sample[modality][::each], tokenizer.ids.get(modality)
    lossy = tokenizer.names > 0 and (whole.is_floating_point() or own != tokenizer.names)
    return whole if lossy and whole.shape == joined.shape else None


def _samples_of_item(method: Method) -> int:
    """How many samples of an item the method wants side by side."""
    return 2 if "pair" in kinds(method.views()) else 1


def _with_views(method: Method, sample: Sample) -> Sample:
    """The sample with itself, or a part of it, as every other view that the method trains on: held-out samples have
    none, and no picture shows them."""
    tensors = {name: value.repeat_interleave(_samples_of_item(method), dim=0) for name, value in sample.items()}
    shapes = {name: tuple(tensors[name].shape[1:]) for name in method.tokenizer.shapes if name in tensors}  # type: ignore[union-attr]
    for name, shape in entries(shapes, method.views()).items():
        if name in tensors:
            continue
        value = tensors[name.rpartition("." if name.endswith(".place") else "_")[0].removesuffix("_target")]
        if name.endswith(".place"):
            whole = torch.stack([value.new_zeros(shape[1]), value.new_ones(shape[1])])
            tensors[name] = whole.expand(len(value), -1, -1)
        elif name.endswith("_local"):
            part = value[tuple(slice(n) for n in (len(value), *shape[1:]))]
            tensors[name] = part[:, None].expand(-1, shape[0], *part.shape[1:])
        else:
            tensors[name] = value
    return tensors


def held_out_samples(source: DataSource, count: int) -> tuple[dict[str, Tensor], str]:
    """Held-out samples if there are any, else the first of the training data, without those that cannot be read; and
    which these are."""
    try:
        split = source.labelled("test")
        if len(split.labels) == 0:
            raise MimError("There are no held-out samples.")
        chosen = torch.linspace(0, len(split.labels) - 1, min(count, len(split.labels))).long().unique().tolist()
        chosen = [split.middle(index) for index in chosen]
        items, where = Readable(split.items, source.item_seconds), "held-out samples"
    except MimError:
        held: Any = source.held_out()
        where = "samples of the training data" if held is None else "held-out samples"
        size = len(source) if held is None else len(held)
        chosen = list(range(min(count, size)))
        if held is not None:
            chosen = torch.linspace(0, size - 1, len(chosen)).long().unique().tolist()
        items = Readable(_Augmented(source) if held is None else held, source.item_seconds)
    sample = Readable.collate([items[index] for index in chosen])
    if not sample:
        return {}, where
    sample["key"] = sample["index"]
    return source.finish(sample), where


def names_of(source: DataSource, index: Tensor) -> list[str]:
    """Names of the samples that `held_out_samples` gave, by their ``index``; empty where the source does not tell."""
    try:
        split = source.labelled("test")
        if len(split.labels):
            return [split.names[number // split.views] for number in index.tolist()] if split.names else []
    except MimError:
        pass
    return [] if source.held_out() is not None else [source.name_of(number) for number in index.tolist()]


class _Augmented(Dataset[Any]):
    """Training items, each under its index as key."""

    def __init__(self, source: DataSource) -> None:
        self.source = source

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.source.read(index, index)
