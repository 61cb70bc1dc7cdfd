"""Several labels for each sample: read from a table, and a source whose samples have them."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from mim_core.data.collections import HELD_OUT, every_fifth, splits_of
from mim_core.data.label_table import LABELS, PATHS, LabelTable
from mim_core.data.source import DataSource, Labelled
from mim_core.data.table_splits import table_splits
from mim_core.data.wrapped import WrappedSource
from mim_core.errors import MimError, one_line, unknown
from mim_core.text import counted

YES, NO = ("1", "1.0", "true", "yes", "y"), ("0", "0.0", "false", "no", "n", "", "-1", "-1.0")
"""What the cell of a label's own column may hold, in small letters."""
MARKS = ("|", ";")
"""What may stand between the names in one cell, where none is told."""


@dataclass(frozen=True)
class ManyLabels:
    """Labels of files, any number for each.

    Attributes:
        path: The table.
        classes: All labels, in the order of their columns, or sorted.
        rows: File, as the table has it -> (its labels, its split: "train", "test", or empty).
        strange: Words of its column of splits that name none, for people.
    """

    path: Path
    classes: tuple[str, ...]
    rows: Mapping[str, tuple[frozenset[str], str]]
    strange: str = ""


def read_many_labels(path: Path, columns: Sequence[str] = (), mark: str = "") -> ManyLabels:
    """A table whose first line names its columns: one of files, and for labels either one column of names (several
    with a mark between them, or in several rows of the same file), or a column for each label with 1 or 0.

    Args:
        path: Comma, semicolon or tab separated values.
        columns: The columns of labels; none: a column of names with one of the usual names, or else every column that
            holds nothing but 1 and 0.
        mark: What stands between names in one cell; empty: | or ;.

    Raises:
        MimError: It is no such table; says what it has.
    """
    head, rows = _read(path)
    small = [name.lower() for name in head]
    file = next((small.index(name) for name in PATHS if name in small), None)
    if file is None:
        raise MimError(f"{path} has no column of files ({', '.join(PATHS[:4])} ...); its columns are {_some(head)}.")
    chosen = [_column(path, head, name) for name in columns]
    named = next((small.index(name) for name in LABELS if name in small), None)
    splits = table_splits(small, rows, [file, *chosen, *([] if named is None else [named])], False)
    if not chosen:
        others = [i for i in range(len(head)) if i != file and i not in splits.columns]
        chosen = [i for i in others if _flags(rows, i)] if named is None else [named]
    if not chosen:
        raise MimError(
            f"{path} has neither a column of labels ({', '.join(LABELS[:4])} ...) nor columns of 1 and 0; its columns "
            f"are {_some(head)}. Name those of labels: --method.columns NAME NAME ..."
        )
    if len(chosen) > 1 or _flags(rows, chosen[0]):
        label_sets = _from_columns(path, head, rows, chosen)
    else:
        label_sets = _from_names(rows, chosen[0], mark)
    kept: dict[str, tuple[frozenset[str], str]] = {}
    for number, (row, labels, text) in enumerate(zip(rows, label_sets, splits.rows, strict=True), start=2):
        name = row[file].strip()
        if not name:
            raise MimError(f"{path}, row {number}: it names no file.")
        before = kept.get(name, (frozenset[str](), text))
        if before[1] != text:
            raise MimError(f"{path} puts {name} into two splits.")
        kept[name] = (before[0] | labels, text)
    every = frozenset[str]().union(*(labels for labels, _ in kept.values()))
    classes = tuple(head[i] for i in chosen) if len(chosen) > 1 else tuple(sorted(every))
    if len(classes) < 2:
        raise MimError(f"{path} has {counted(len(classes), 'label')} in all; there must be two at least.")
    text = f"{path}: its column {splits.name} has words that name no split: {splits.strange}; they are ignored."
    return ManyLabels(path, classes, kept, text if splits.strange else "")


def _read(path: Path) -> tuple[list[str], list[list[str]]]:
    """The names of the columns, and the rows, as many cells each."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise MimError(f"--method.labels-from {path} cannot be read: {one_line(error)}.") from error
    lines = [line for line in text.split("\n") if line.strip()]
    if "\0" in text or len(lines) < 2:
        raise MimError(f"{path} is no table: it should be text, with the names of the columns and a row for each file.")
    mark = next((mark for mark in ("\t", ",", ";") if mark in lines[0]), ",")
    try:
        head, *rows = csv.reader(lines, delimiter=mark, skipinitialspace=True)
    except csv.Error as error:
        raise MimError(f"{path} cannot be read: {error}.") from error
    odd = next((number for number, row in enumerate(rows, start=2) if len(row) != len(head)), None)
    if odd is not None:
        raise MimError(f"{path}, row {odd}: it has {len(rows[odd - 2])} cells, and there are {len(head)} columns.")
    return [name.strip() for name in head], rows


def _column(path: Path, head: Sequence[str], name: str) -> int:
    if name not in head:
        raise unknown(f"column of {path}", name, head)
    return head.index(name)


def _flags(rows: Sequence[Sequence[str]], column: int) -> bool:
    """Whether a column holds nothing but yes and no, and yes at least once."""
    cells = {row[column].strip().lower() for row in rows}
    return cells <= {*YES, *NO} and bool(cells & set(YES))


def _from_columns(
    path: Path, head: Sequence[str], rows: Sequence[Sequence[str]], columns: Sequence[int]
) -> list[frozenset[str]]:
    """The labels of each row, where each has a column of its own. -1 is no where nothing else says no."""
    cells = {row[column].strip().lower() for row in rows for column in columns}
    doubtful = bool(cells & {"-1", "-1.0"}) and bool(cells & set(NO[:2]))
    label_sets = []
    for number, row in enumerate(rows, start=2):
        for column in columns:
            cell = row[column].strip().lower()
            if cell not in (*YES, *NO) or (doubtful and cell.startswith("-1")):
                beside = " beside 0, which may mean that it is not known" if cell.startswith("-1") else ""
                raise MimError(
                    f"{path}, row {number}: {head[column]} is {row[column]!r}{beside}. A label's column holds 1 or 0; "
                    "write one of them, or leave the row out."
                )
        label_sets.append(frozenset(head[column] for column in columns if row[column].strip().lower() in YES))
    return label_sets


def _from_names(rows: Sequence[Sequence[str]], column: int, mark: str) -> list[frozenset[str]]:
    """The labels of each row, where one column names them."""
    mark = mark or next((mark for mark in MARKS if any(mark in row[column] for row in rows)), "")
    cells = (row[column].split(mark) if mark else [row[column]] for row in rows)
    return [frozenset(name.strip() for name in cell if name.strip()) for cell in cells]


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:8])) + (", ..." if len(names) > 8 else "")


# ---- the source ------------------------------------------------------------------------------------------------------


class ManyLabelsSource(WrappedSource):
    """A source whose samples have several labels, int64 ``label`` [K] of 0 and 1; so have its splits, [n, K].

    With a table, all files of the source are one collection, whose splits are those of the table, or else of the
    folders, or else every fifth file is held out. Files without a row are left out. Without a table, each sample has
    the one label that the source gives it.

    Args:
        source: Reads the files.
        table: The labels; None: the source's own classes.

    Raises:
        MimError: No row names a file, or a split is empty.
    """

    def __init__(self, source: DataSource, table: ManyLabels | None) -> None:
        super().__init__(source if table is None else _whole(source))
        self.table, self.samples_per_item = table, 1
        self.told: list[str] = []
        if table is None:
            self.parts = {split: _one_of_many(source.labelled(split)) for split in ("train", "test")}
        else:
            self.parts, self.numbers = self._by_table(table)

    def _by_table(self, table: ManyLabels) -> tuple[dict[str, Labelled], dict[str, list[int]]]:
        """Both splits, and the numbers of their samples among all."""
        items, root = self.source.plain(), Path(getattr(self.source.config, "root", None) or ".")
        texts = {file: " | ".join(sorted(labels)) or "none" for file, (labels, _) in table.rows.items()}
        sets = {text: table.rows[file][0] for file, text in texts.items()}
        as_one = LabelTable(table.path, {file: (texts[file], table.rows[file][1]) for file in texts}, table.strange)
        labelled = as_one.of(items.names, root)
        self.told = [*labelled.advice]
        own = [sets[labelled.classes[label]] if label >= 0 else None for label in labelled.labels]
        values = torch.tensor([[int(name in (labels or ())) for name in table.classes] for labels in own])
        numbers = _splits(items.names, labelled.splits, rarest(values).tolist(), [labels is not None for labels in own])
        parts = {}
        for split, chosen in numbers.items():
            if not chosen:
                raise MimError(f"{table.path}: none of the files that it names is for {split}ing.")
            picked = _Picked(items.items, chosen, items.views)
            names = tuple(items.names[number] for number in chosen)
            parts[split] = Labelled(split, values[chosen], table.classes, picked, "", items.views, names)
        return parts, numbers

    def __len__(self) -> int:
        return len(self.parts["train"].labels)

    def labelled(self, split: str) -> Labelled:
        """A split, with its labels int64 [n, K]."""
        return self.parts[split]

    def read_labelled(self, index: int, key: int) -> dict[str, Tensor]:
        """One item, augmented as the inner source does it, with its labels [K]."""
        label = self.parts["train"].labels[index]
        if self.table is None:
            return {**self.source.read_labelled(index, key), "label": label}
        item = self.source.read(self.numbers["train"][index], key)
        if self.source.samples_per_item > 1:  # the first of them: a sample is read as often as it is trained on
            item = {name: value[0] for name, value in item.items()}
        return {**item, "label": label}

    def files_of(self, split: str = "pretrain") -> Iterator[tuple[str, ...]]:
        """The files of a split, or of the training split."""
        if self.table is None:
            return self.source.files_of("train" if split == "pretrain" else split)
        files = list(self.source.files_of())
        return (files[number] for number in self.numbers["test" if split == "test" else "train"])

    def name_of(self, index: int) -> str:
        """Of a sample of the training split."""
        names = self.parts["train"].names
        return names[index] if names else str(index)

    def advice(self) -> list[str]:
        """The inner source's, and what does not fit in the table."""
        return [*self.source.advice(), *self.told]

    def plan(self) -> dict[str, str]:
        """The inner source's, with the splits of the table."""
        if self.table is None:
            return self.source.plan()
        return {**{k: v for k, v in self.source.plan().items() if k != "held out"}, "splits": self._counted()}

    def contents(self) -> dict[str, str]:
        """The inner source's, with the labels and splits of the table."""
        if self.table is None:
            return self.source.contents()
        train = self.parts["train"]
        named = ", ".join(train.classes[:5]) + (", ..." if len(train.classes) > 5 else "")
        each = float(train.labels.sum(dim=1).float().mean())
        rows = {
            "splits": self._counted(),
            "labels": f"{len(train.classes)} from {self.table.path}, {each:.2g} for each sample: {named}",
        }
        return {**{k: v for k, v in self.source.contents().items() if k not in ("splits", "classes")}, **rows}

    def _counted(self) -> str:
        """How many samples each split has."""
        train, test = (len(self.parts[split].labels) for split in ("train", "test"))
        return f"{train:,} for training, {test:,} held out"


class _Picked(Dataset[Any]):
    """Some samples, with all of their views."""

    def __init__(self, items: Dataset[Any], chosen: Sequence[int], views: int) -> None:
        self.items, self.chosen, self.views = items, chosen, views

    def __getitem__(self, index: int) -> Any:
        return self.items[self.chosen[index // self.views] * self.views + index % self.views]


def _whole(source: DataSource) -> DataSource:
    """The source with all of its files as one collection."""
    if not getattr(source.config, "splits", False):
        return source
    whole: DataSource = type(source)(replace(source.config, splits=False), source.shapes)
    whole.ids, whole.item_seconds = source.ids, source.item_seconds
    return whole


def _one_of_many(split: Labelled) -> Labelled:
    return replace(split, labels=F.one_hot(split.labels, len(split.classes)))


def _splits(
    names: Sequence[str], given_splits: Sequence[str], strata: Sequence[int], listed: Sequence[bool]
) -> dict[str, list[int]]:
    """Numbers of the samples for training and for the test."""
    rows = [number for number, is_listed in enumerate(listed) if is_listed]
    if any(given_splits[number] for number in rows):
        kinds = {number: given_splits[number] or "train" for number in rows}
    else:
        folders = splits_of([PurePath(names[number]).parts[:-1] for number in rows])
        kinds = {n: "test" if kind in HELD_OUT else "train" for n, kind in zip(rows, folders, strict=True)}
    if "test" in kinds.values():
        return {split: [number for number in rows if kinds[number] == split] for split in ("train", "test")}
    train, test = every_fifth(strata, rows)
    return {"train": train, "test": test}


def rarest(labels: Int[Tensor, "n K"]) -> Int[Tensor, " n"]:
    """Of each sample, the label that fewest samples have of those that it has; K for a sample without any. What shares
    and splits of samples with several labels go by."""
    count = Counter({number: int(each) for number, each in enumerate(labels.sum(dim=0))})
    order = torch.tensor(sorted(range(labels.shape[1]), key=lambda number: (count[number], number)))
    has = labels[:, order].bool()
    return torch.where(has.any(dim=1), order[has.int().argmax(dim=1)], labels.shape[1])
