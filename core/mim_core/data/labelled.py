"""A source whose labelled training split is trained on."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import Dataset

from mim_core.data.many_labels import rarest
from mim_core.data.source import DataSource, Labelled, Sample
from mim_core.data.wrapped import WrappedSource
from mim_core.errors import MimError
from mim_core.randomness import bits, name_code
from mim_core.text import counted

OF_PRETRAINING = ("an epoch", "repeats")
"""Rows of a source's plan and contents that tell how often pre-training reads an item; labelled items are read once."""
REPEATS = "repeats"
"""Entry of an item that holds several samples, and the stream of their keys."""


class Chosen(Dataset[Any]):
    """Some samples of a split, in another order.

    Args:
        items: Of the split.
        chosen: Numbers of the samples.
        views: Items of each.
    """

    def __init__(self, items: Dataset[Any], chosen: Int[Tensor, " k"], views: int) -> None:
        self.items, self.chosen, self.views = items, chosen, views

    def __getitem__(self, index: int) -> Any:
        return self.items[int(self.chosen[index // self.views]) * self.views + index % self.views]


def share_of(split: Labelled, amount: float) -> tuple[Labelled, Int[Tensor, " k"]]:
    """A share of a split's samples, alike for each class, and their numbers. A sample with several labels counts for
    the rarest of them.

    Which samples follows from their names alone (from their numbers, where the source does not name them), so that
    others draw the same ones, and the smaller of two shares is part of the larger.

    Args:
        split: All samples.
        amount: Below 1 a share of each class, else a number of samples; 0: all.

    Raises:
        MimError: There are not so many, or fewer than classes are asked for.
    """
    count = len(split.labels)
    if amount == 0:
        return split, torch.arange(count)
    wanted = amount if amount >= 1 else amount * count
    if not 0 < amount <= count or (amount > 1 and amount != int(amount)):
        raise MimError(f"--data.labels takes a share between 0 and 1, or a number up to {count:,}; got {amount:g}.")
    names = split.names or tuple(map(str, range(count)))
    strata = split.labels if split.labels.ndim == 1 else rarest(split.labels)
    order = sorted(range(count), key=lambda index: (name_code(f"labels {names[index]}"), index))
    shuffled = strata[order]
    present = shuffled.unique().tolist()
    if amount >= 1 and wanted < len(present):
        raise MimError(f"--data.labels {amount:g} is less than one for each of the {len(present)} classes.")
    places = {label: (shuffled == label).nonzero()[:, 0] for label in present}
    each = _apportioned({label: len(members) for label, members in places.items()}, wanted / count, amount >= 1)
    kept = torch.cat([places[label][: each[label]] for label in present])
    chosen = torch.tensor(order)[kept].sort().values
    names = tuple(split.names[index] for index in chosen.tolist()) if split.names else ()
    items = Chosen(split.items, chosen, split.views)
    return replace(split, labels=split.labels[chosen], names=names, items=items), chosen


def _apportioned(counts: Mapping[int, int], share: float, exact: bool) -> dict[int, int]:
    """How many of each class: its share, rounded, and at least one; ``exact``: so many in all, by largest
    remainders."""
    if not exact:
        return {label: max(1, round(share * count)) for label, count in counts.items()}
    total = round(share * sum(counts.values()))
    quotas = {label: max(1, int(share * count)) for label, count in counts.items()}
    by_rest = sorted(counts, key=lambda label: (quotas[label] - share * counts[label], label))
    while (missing := total - sum(quotas.values())) != 0:
        step = 1 if missing > 0 else -1
        free = [label for label in by_rest[::step] if 1 <= quotas[label] + step <= counts[label]]
        for label in free[: abs(missing)]:
            quotas[label] += step
    return quotas


class LabelledSource(WrappedSource):
    """A source whose labelled training split is what is trained on; for methods that learn from labels.

    Args:
        source: Has the split.
        repeats: Samples that are made of each item, each augmented by draws of its own.

    Raises:
        MimError: The source has no labels.
    """

    def __init__(self, source: DataSource, repeats: int = 1) -> None:
        super().__init__(source)
        amount = float(getattr(source.config, "labels", 0.0))
        self.split, self.chosen = share_of(source.labelled("train"), amount)
        self.samples_per_item = repeats  # `read_labelled` gives one sample of each

    def __len__(self) -> int:
        return len(self.split.labels)

    def files_of(self, split: str = "pretrain") -> Iterator[tuple[str, ...]]:
        """The source's; what is trained on is its split "train"."""
        if split == "test":
            return self.source.files_of(split)
        files, chosen = list(self.source.files_of("train")), self.chosen.tolist()
        # a source need not say which files its labelled items are from
        return (files[index] for index in chosen) if len(files) > max(chosen, default=0) else iter(files)

    def read(self, index: int, key: int) -> dict[str, Tensor]:
        """An augmented item with its ``label``; several, [repeats, ...], where each item gives several samples."""
        own, count = int(self.chosen[index]), self.samples_per_item
        if count == 1:
            return self.source.read_labelled(own, key)
        each = [self.source.read_labelled(own, int(one)) for one in bits(torch.tensor([key]), REPEATS, count)[0]]
        return {REPEATS: torch.tensor(count), **{name: torch.stack([item[name] for item in each]) for name in each[0]}}

    def finish(self, sample: Sample) -> Sample:
        """The source's, of all samples of each item."""
        if REPEATS in sample:  # not in what a test reads
            count, about = self.samples_per_item, ("index", "key", REPEATS)
            entries = {name: value.flatten(0, 1) for name, value in sample.items() if name not in about}
            if "index" in sample:
                entries["index"] = sample["index"].repeat_interleave(count)
            if "key" in sample:
                entries["key"] = bits(sample["key"], REPEATS, count).flatten()
            sample = entries
        return self.source.finish(sample)

    def name_of(self, index: int) -> str:
        """As the source names it; where it does not tell, the item's number and its class."""
        if self.split.names:
            return self.split.names[index]
        label = self.split.labels[index]
        return f"{index} ({self.split.classes[int(label)]})" if label.ndim == 0 else str(index)

    def items_named(self, names: Collection[str]) -> dict[str, int]:
        """Of labelled items; where a bad file has another name than its item, as the source has them."""
        own = {self.name_of(index): index for index in range(len(self))}
        others = {name for name in names if name not in own}
        items = {name: self.source.name_of(i) for name, i in self.source.items_named(others).items()} if others else {}
        known = {**{name: name for name in names if name in own}, **items}
        return {name: own[item] for name, item in known.items() if item in own}

    def presence(self) -> Mapping[frozenset[str], tuple[int, str]]:
        """Not looked up: the source's is of its items for pre-training."""
        return {}

    def labelled(self, split: str) -> Labelled:
        """The source's."""
        return self.split if split == "train" else self.source.labelled(split)

    def plan(self) -> dict[str, str]:
        """The source's, the labelled samples, and whether they are augmented."""
        split = self.split
        classes = counted(len(split.classes), "class", "classes")
        of = f" of {len(self.source.labelled('train').labels):,}, the same share of each class"
        share = of if float(getattr(self.source.config, "labels", 0.0)) else ""
        rows = {"labels": f"{len(split.labels):,} labelled training samples{share} of {classes}"}
        if type(self.source).read_labelled is DataSource.read_labelled:
            rows["augmentation"] = "none: this data source reads its labelled samples as they are"
        return {**_on_labels(self.source.plan()), **rows}

    def contents(self) -> dict[str, str]:
        """The source's, without how often pre-training reads an item."""
        return _on_labels(self.source.contents())


def _on_labels(rows: Mapping[str, str]) -> dict[str, str]:
    """Rows of a plan without those of pre-training alone."""
    return {name: text for name, text in rows.items() if name not in OF_PRETRAINING}
