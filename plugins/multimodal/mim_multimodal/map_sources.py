"""Aligned data with a map as each item's answer: what methods with an answer at every pixel learn from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from mim_core import DataSource, Labelled, MimError, Sample, WrappedSource, share_of
from torch import Tensor
from torch.utils.data import Dataset

from mim_multimodal import data_facts, maps

IGNORE = 255
"""The id that is no class."""
ANSWER = "answer"
"""The entry of a sample that holds the map to learn from, in the file's own values."""
LOOKED_AT = 32
"""Maps that are looked at before a run."""


class MapItems(Dataset[Any]):
    """Items of a split under evaluation's crop, with the map to compare with under the name "answer".

    Args:
        source: Aligned data.
        items: Of a split.
        numbers: Of those that have all files.
        shapes: What to read.
        label: The modality that is the answer.
        keep: Whether it is an input too.
    """

    def __init__(self, source: Any, items: Any, numbers: list[int], shapes: Mapping[str, Any], label: str) -> None:
        self.source, self.items, self.numbers, self.shapes, self.label = source, items, numbers, dict(shapes), label

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.read(index, None)

    def read(self, index: int, key: int | None) -> dict[str, Tensor]:
        """One item, under the crop that a key draws."""
        sample: dict[str, Tensor] = self.source.take(self.items, self.numbers[index], self.shapes, key)
        sample.pop("depth_raw", None)
        sample[ANSWER] = sample.pop(self.label)
        return sample

    def name(self, index: int) -> str:
        """The path of an item's first file."""
        return str(self.items.name(self.numbers[index]))


class MapSource(WrappedSource):
    """Aligned data whose items have a map as their answer, at the size of the pictures; of those for training the share
    that ``labels`` says.

    Raises:
        MimError: The data have no such maps.
    """

    def __init__(self, source: DataSource, label: str, size: tuple[int, int]) -> None:
        super().__init__(source)
        inner: Any = source
        if not hasattr(inner, "collection"):
            raise MimError(
                f"This method learns from a map of {label} for every picture, as multimodal:aligned reads them; "
                f"{type(source).__name__} has none."
            )
        if label in source.shapes:
            raise MimError(
                f"{label} is what is predicted, so it cannot be an input too. Take it out: --use {label}.tokenizer=none"
            )
        shape = size if label == "semseg" else (1, *size)
        self.label, self.wanted = label, {**source.shapes, label: shape}
        self.train, self.test = (self._items(inner, split) for split in ("train", "test"))
        self.every = len(self.train)
        _, chosen = share_of(self.labelled("train"), float(getattr(inner.config, "labels", 0.0)))
        self.train.numbers = [self.train.numbers[number] for number in chosen.tolist()]
        self.samples_per_item = 1
        self._looked: data_facts.Looked | None = None

    def looked_at_maps(self) -> data_facts.Looked:
        """What some of the maps that are learned from hold; they are looked at once."""
        if self._looked is None:
            items = self.train.items.subset(self.train.numbers)
            self._looked = data_facts.look(self.source, items, (self.label,))
        return self._looked

    def contents(self) -> dict[str, str]:
        """The source's; the files hold also the maps that are learned from."""
        rows, looked = self.source.contents(), self.looked_at_maps()
        seen = f"{looked.items:,} of {len(self):,} looked at"
        note = f"learned from: {self.label} {looked.texts.get(self.label, '')}, {seen}"
        return {**rows, "files hold": "; ".join([*filter(None, [rows.get("files hold")]), note])}

    def _items(self, source: Any, split: str) -> MapItems:
        items = source.collection.train if split == "train" else source.collection.test
        if self.label not in items.endings:
            raise MimError(f"{source.root} has no {self.label} in its {split} split, only: {', '.join(items.endings)}.")
        numbers = [i for i in range(len(items)) if all(items.has(name, i) for name in self.wanted)]
        if not numbers:
            raise MimError(f"No {split} item of {source.root} has a file of each of {', '.join(self.wanted)}.")
        return MapItems(source, items, numbers, self.wanted, self.label)

    def __len__(self) -> int:
        return len(self.train)

    def read(self, index: int, key: int) -> dict[str, Tensor]:
        """An item of the training split under a drawn crop and flip."""
        return self.train.read(index, key)

    def name_of(self, index: int) -> str:
        """The path of the item's first file."""
        return self.train.name(index)

    def files_of(self, split: str = "pretrain") -> Iterator[tuple[str, ...]]:
        """The files of each item."""
        held = self.test if split == "test" else self.train
        return (tuple(held.items.paths(number)) for number in held.numbers)

    def presence(self) -> Mapping[frozenset[str], tuple[int, str]]:
        """Not looked up: items that lack a file are left out."""
        return {}

    def labelled(self, split: str) -> Labelled:
        """Items with their map; the classes are none, since each pixel has its own."""
        items = self.train if split == "train" else self.test
        names = tuple(map(items.name, range(len(items))))
        return Labelled(split, torch.zeros(len(items), dtype=torch.int64), ("",), items, names=names)

    def finish(self, sample: Sample) -> Sample:
        """The source's; class ids become int64."""
        done = self.source.finish(sample)
        if self.label == "semseg" and ANSWER in done:
            done[ANSWER] = done[ANSWER].long()
        return done

    def plan(self) -> dict[str, str]:
        """The source's, and what is learned from."""
        of = f" of {self.every:,}" if len(self.train) < self.every else ""
        note = f"{len(self.train):,}{of} training items with a map of {self.label}"
        void = getattr(self.source, "config", None) and self.source.config.void
        if self.label == "semseg" and void is not None:
            note += f"; {void} in them is no class, and the ids above it count one less (--data.void)"
        return {**self.source.plan(), "labels": note}

    def advice(self) -> list[str]:
        """The source's, what in the maps is rarely meant, and where an id is taken out as no class (``void``) of maps
        that seem to start at 0."""
        lines: list[str] = [*self.source.advice(), *self.looked_at_maps().advice]
        config: Any = getattr(self.source, "config", None)
        count = getattr(self.source, "class_count", None)
        if self.label != "semseg" or not count or getattr(config, "void", None) is None:
            return lines
        seen = {value for number in range(min(LOOKED_AT, len(self.train))) for value in self._ids(number)}
        if seen != set(range(count)):
            return lines
        return [
            *lines,
            f"The class maps looked at hold all ids from 0 to {count - 1}, as {count} classes that start at 0 do, and "
            f"{config.void} is taken out as no class. If it is one: --data.void None",
        ]

    def _ids(self, number: int) -> set[int]:
        """The ids of a training map, as the file has them; none where it cannot be read."""
        items = self.train.items
        try:
            ids = maps.id_values(items.root / items.file(self.label, self.train.numbers[number]))
        except (OSError, ValueError):  # said when it is read
            return set()
        return set(np.unique(ids).tolist()) - {IGNORE}
