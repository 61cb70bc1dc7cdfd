"""Which rows of a table name which items, and the splits that they say."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from mim_core import HELD_OUT, MimError, counted, split_of

from mim_multimodal.items import Items


def rows_by_item(paths: Sequence[str], items: Items) -> list[list[int]]:
    """The numbers of the rows that name each item. Their paths may name the split, the modality and the ending, or
    leave them out."""
    numbers: dict[str, list[int]] = {}
    for number, path in enumerate(paths):
        for name in {path, os.path.splitext(path)[0]}:
            numbers.setdefault(name, []).append(number)
    folders = ["", *(f"{folder}/" for folder in items.folders.values())]
    tails = ("", *items.suffixes.values())
    matches = []
    for i, stem in enumerate(items.stems):
        home = items.home(i)
        heads = [split + folder for split in (["", f"{home}/"] if home else [""]) for folder in folders]
        rows = [row for head in heads for tail in tails for row in numbers.get(head + stem + tail, ())]
        matches.append(list(dict.fromkeys(rows)))
    return matches


def splits_by_table(table: Path, rows: Sequence[tuple[str, str]], items: Items) -> tuple[list[str], tuple[str, ...]]:
    """The split of each item, "train", "test", or empty, by rows of a path and a word; and what does not fit, in words.

    Raises:
        MimError: No row names any of the items, or two say different things of one.
    """
    named = rows_by_item([path for path, _ in rows], items)
    lost = sorted(set(range(len(rows))) - {row for each in named for row in each})
    if len(lost) == len(rows):
        raise MimError(f"{table}: none of its rows names an item. Its paths should be such as {items.name(0)}.")
    strange = sorted({word for _, word in rows if word and split_of(word) is None})
    advice = []
    if strange:
        words = ", ".join(strange[:5])
        advice.append(f"{table}: its column of splits has words that name no split: {words}; they are ignored.")
    if lost:
        advice.append(f"{counted(len(lost), 'row')} of {table} name no item of {items.root} ({rows[lost[0]][0]}).")
    splits = []
    for i, each in enumerate(named):
        item_splits = dict.fromkeys(_split(rows[row][1]) for row in each)
        if len(item_splits) > 1:
            both = " and ".join(f"in {split or 'no split'}" for split in item_splits)
            raise MimError(f"{table} has {items.name(i)} in several rows, {both}. Leave one row for each item.")
        splits.append(next(iter(item_splits), ""))
    return splits, tuple(advice)


def _split(word: str) -> str:
    known = split_of(word) if word else None
    return "" if known is None else "test" if known in HELD_OUT else "train"
