"""Frozen features of every place of a picture, and the labels there: what dense probes work on.

A place is a unit of the grid that the inputs share; its features are the tokens of all inputs there, side by side, and
its labels the pixels of the label map inside it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Shaped
from mim_core import (
    PRETRAINED,
    RAW,
    UNTRAINED,
    DataSource,
    Method,
    MimError,
    Readable,
    Sample,
    Study,
    Tokenizer,
    counted,
    loader,
    times,
)
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

PICTURES = ("rgb", "depth", "normal", "semseg")
"""Modalities that lie on a grid; a probe may see each of them that the run has."""
ITEMS = 1000
"""Items of each split that are used, at most, evenly spaced: dense labels are many per item."""
ROWS = (RAW, UNTRAINED, PRETRAINED)


@dataclass(frozen=True)
class Split:
    """The items of one split that are used, and their labels.

    Attributes:
        items: As `Aligned.dense` gives them.
        numbers: Of the items that can be read.
        labels: [n, h, w] of each of those.
    """

    items: Dataset[Any]
    numbers: tuple[int, ...]
    labels: Shaped[Tensor, "n h w"]


class Dense:
    """What dense probes of one label can ask of a study.

    Args:
        study: A run's.
        evaluation: Its name, for errors.
        label: The entry that holds the label maps, [B, h, w] or [B, 1, h, w].
        hidden: The modality that equals the label and is never an input.

    Raises:
        MimError: The study is of no run, or its data have no such maps.
    """

    def __init__(self, study: Study, evaluation: str, label: str, hidden: str) -> None:
        self.study, self.name = study, evaluation
        if study.source is None or PRETRAINED not in study.methods:
            raise MimError(
                f"evaluation {evaluation} needs a run's encoder and data; it cannot judge features during training "
                f"(--evaluate.online). Run: mim-core evaluate RUN --on multimodal:{evaluation}"
            )
        source: Any = getattr(
            study.source, "source", study.source
        )  # behind the labelled split, where one is trained on
        if not hasattr(source, "dense"):
            raise MimError(
                f"evaluation {evaluation} needs data with a map of {hidden} for every picture, as multimodal:aligned "
                f"reads them; {type(source).__name__} has none."
            )
        self.source: DataSource = source
        self.method = study.methods[PRETRAINED]()
        self.tokenizer: Tokenizer = self.method.tokenizer  # type: ignore[assignment]
        names = [name for name in PICTURES if name in self.tokenizer.shapes and name != hidden]
        if not names:
            known = ", ".join(self.tokenizer.shapes)
            raise MimError(
                f"evaluation {evaluation} needs an encoder of pictures other than {hidden}; it has: {known}."
            )
        splits = {split: source.dense(split) for split in ("train", "test")}
        self.inputs = self._inputs(names, splits.values(), hidden)
        self.train, self.test = (self._split(items, split, label) for split, items in splits.items())

    def _inputs(self, names: list[str], splits: Iterable[Any], hidden: str) -> list[tuple[str, ...]]:
        """Every modality that both splits have alone, and all together; or those that ``--evaluate.inputs`` names."""
        names = [name for name in names if all(name in getattr(items, "shapes", names) for items in splits)]
        asked = self.study.config.inputs
        if asked:
            names = [name for name in names if name in asked]
        if not names:
            more = f" of --evaluate.inputs {' '.join(asked)}" if asked else ""
            raise MimError(f"evaluation {self.name}: no modality but {hidden} is in both splits{more}.")
        return [tuple(names)] if asked else [(name,) for name in names] + ([tuple(names)] if len(names) > 1 else [])

    def _split(self, items: Any, split: str, label: str) -> Split:
        count = min(len(items), ITEMS)
        if count == 0:
            raise MimError(f"evaluation {self.name}: the {split} split has no items.")
        wanted = torch.linspace(0, len(items) - 1, count, dtype=torch.float64).round().long().tolist()
        numbers, labels = [], []
        for batch in self._batches(items, wanted):
            if label not in batch:
                known = ", ".join(name for name in batch if name != "index")
                raise MimError(f"evaluation {self.name}: the {split} split has no {label}; it has: {known}.")
            numbers += batch["index"].tolist()
            maps = batch[label].cpu()
            labels.append(maps[:, 0] if maps.ndim == 4 else maps)
        if not numbers:
            raise MimError(f"evaluation {self.name}: none of the {count:,} {split} items can be read.")
        lost = [f"{count - len(numbers):,} cannot be read."] if len(numbers) < count else []
        of = f" of {len(items):,}, evenly spaced" if count < len(items) else ""
        left_out = [items.note] if getattr(items, "note", "") else []
        text = [f"{self.name.capitalize()}: {counted(len(numbers), f'{split} item')}{of}.", *lost, *left_out]
        self.study.notes.append(" ".join(text))
        return Split(items, tuple(numbers), torch.cat(labels))

    def _batches(self, items: Dataset[Any], numbers: Sequence[int]) -> Iterator[Sample]:
        """Finished samples on the device, each with its ``index``; those that cannot be read are left out."""
        size, device = self.study.config.batch_size, self.study.device
        sampler = [list(numbers[first : first + size]) for first in range(0, len(numbers), size)]
        for batch in loader(Readable(items, self.source.item_seconds), sampler, 0, Readable.collate):
            if batch:
                yield self.source.finish({name: value.to(device) for name, value in batch.items()})

    def rows(self) -> Iterator[tuple[str, tuple[str, ...], Tensor, Tensor]]:
        """(row, inputs, features of the training split [n, N, D], of the test split [m, N, D]) for every row and every
        choice of inputs."""
        for row in ROWS:
            if row != RAW and row not in self.study.methods:
                continue
            method = None if row == RAW else self.method if row == PRETRAINED else self.study.methods[row]()
            for inputs in self.inputs:
                yield row, inputs, self.features(method, inputs, self.train), self.features(method, inputs, self.test)

    @torch.no_grad()
    def features(self, method: Method | None, inputs: tuple[str, ...], split: Split) -> Float[Tensor, "n N D"]:
        """Features of every place; the pixels there where no method is given.

        Raises:
            MimError: They are not finite.
        """
        if method is not None:
            method.eval().to(self.study.device)
        chunks = []
        for batch in self._batches(split.items, split.numbers):
            wanted = [*inputs, *(f"{name}.present" for name in inputs)]
            sample = {name: batch[name] for name in wanted if name in batch}
            chunks.append((self._raw(sample) if method is None else _tokens(method, sample)).float().cpu())
        features = torch.cat(chunks)
        if not features.isfinite().all():
            raise MimError(f"evaluation {self.name}: features are not finite; the weights may have diverged.")
        return features

    def _raw(self, sample: Sample) -> Tensor:
        """Values of all inputs at each place, [B, N, D]; class ids as a one for each class and for none."""
        values = self.tokenizer.split(sample).values
        count = getattr(self.source, "class_count", None) or 255
        parts = []
        for part in values.values() if isinstance(values, dict) else [values]:
            ids = not part.is_floating_point()
            parts.append((F.one_hot(part.clamp(0, count), count + 1).float() if ids else part).flatten(2))
        return torch.cat(parts, dim=2)

    def grid(self, inputs: tuple[str, ...]) -> tuple[int, ...]:
        """The grid of the places, which all inputs share.

        Raises:
            MimError: They share none, or it has not two axes.
        """
        shapes = self.study.source.shapes if self.study.source is not None else {}
        kinds = {name: torch.int64 if name == "semseg" else torch.float32 for name in inputs}
        sample = {name: torch.zeros(1, *shapes[name], dtype=kind) for name, kind in kinds.items()}
        layout = self.tokenizer.split(sample).layout
        parts = dict(layout.segments) or {inputs[0]: layout}
        grid = next(iter(parts.values())).grid
        if grid is None or len(grid) != 2 or any(part.grid != grid for part in parts.values()):
            text = ", ".join(f"{name} {times(part.grid) if part.grid else 'none'}" for name, part in parts.items())
            raise MimError(f"Dense probes need units of all inputs on one grid of two axes; the grids are: {text}.")
        return grid


def cut(maps: Shaped[Tensor, "n h w"], grid: tuple[int, ...]) -> Shaped[Tensor, "n N P"]:
    """The pixels of maps inside each unit of a grid, row by row.

    Raises:
        MimError: The grid does not divide the maps.
    """
    n, height, width = maps.shape
    rows, columns = grid
    if height % rows or width % columns:
        raise MimError(
            f"Label maps of {times((height, width))} do not fit units on a grid of {times(grid)}: no whole number of "
            "pixels lies in each."
        )
    parts = maps.reshape(n, rows, height // rows, columns, width // columns).transpose(2, 3)
    return parts.reshape(n, math.prod(grid), -1)


def _tokens(method: Any, sample: Sample) -> Tensor:
    """Tokens of all inputs at each place, [B, N, D]."""
    layout = method.tokenizer.split(sample).layout
    counts = [part.count for _, part in layout.segments] or [layout.count]
    tokens = method.encode(sample).tokens
    return torch.cat([part.flatten(2) for part in tokens.split(counts, dim=1)], dim=2)
