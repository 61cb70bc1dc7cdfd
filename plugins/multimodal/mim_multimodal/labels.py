"""Labels of whole items: a table's, or the names of their folders."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mim_core import MimError, counted, split_of

from mim_multimodal.items import Items
from mim_multimodal.layouts import ItemSplits
from mim_multimodal.table_splits import rows_by_item
from mim_multimodal.tables import LABELS, rows_of, split_rows


@dataclass(frozen=True)
class Labels:
    """Labels of whole items.

    Attributes:
        classes: Names of the classes that occur in both splits, at least two; empty where there are fewer.
        train: (item, class) of each labelled item of the training split.
        test: The same of the test split.
        note: How many items have none of these classes.
    """

    classes: tuple[str, ...] = ()
    train: tuple[tuple[int, int], ...] = ()
    test: tuple[tuple[int, int], ...] = ()
    note: str = ""


def find_labels(items: ItemSplits) -> Labels:
    """Labels by ``ROOT/labels.csv`` (columns path and label; an empty label is none), or else by CLASS folders,
    also where the table has splits alone.

    Raises:
        MimError: labels.csv cannot be read, names none of the items, or gives one item two labels.
    """
    table = items.train.root / LABELS
    both = (items.train, items.test)
    rows = rows_of(table, "label") if table.is_file() else []
    listed = table.is_file() and (rows or not split_rows(table))
    texts = _listed(table, rows, both) if listed else [[_folder_of(stem) for stem in i.stems] for i in both]
    common = sorted({text for text in texts[0] if text} & {text for text in texts[1] if text})
    if len(common) < 2:
        return Labels()
    number = {name: i for i, name in enumerate(common)}
    splits = [tuple((i, number[text]) for i, text in enumerate(part) if text in number) for part in texts]
    without = sum(map(len, texts)) - sum(map(len, splits))
    note = f"{without:,} items have no label that occurs in both splits; they are left out." if without else ""
    return Labels(tuple(common), splits[0], splits[1], note)


def _folder_of(stem: str) -> str:
    """The first folder that is named like no split."""
    return next((name for name in stem.split("/")[:-1] if split_of(name) is None), "")


def _listed(table: Path, rows: Sequence[tuple[str, str]], both: Iterable[Items]) -> list[list[str]]:
    """The label of every item, empty where the table has none."""
    rows = [(path, label) for path, label in rows if label]
    labels, two = [], list[str]()
    for items in both:
        labels.append(list[str]())
        for numbers in rows_by_item([path for path, _ in rows], items):
            own: dict[str, str] = {}
            for path, label in (rows[number] for number in numbers):
                own.setdefault(label, path)
            two += [", ".join(f"{path} is {label}" for label, path in own.items())] if len(own) > 1 else []
            labels[-1].append(next(iter(own), ""))
    if two:
        raise MimError(
            f"{table} gives {counted(len(two), 'item')} more than one label: {'; '.join(two[:3])}"
            f"{'; ...' if two[3:] else ''}. Leave one row for each."
        )
    if not any(map(any, labels)):
        raise MimError(f"{table} labels none of the items. Its paths should be such as {next(iter(both)).name(0)}.")
    return labels
