"""Which column of a table says the splits of files, and what its cells say."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from mim_core.data.collections import HELD_OUT, split_in, split_of

SPLITS = ("split", "set", "subset", "partition", "fold")
"""What the column of splits is called. A column of another name counts where all of its cells name splits."""
YES, NO = ("1", "1.0", "true", "yes", "y", "t"), ("0", "0.0", "false", "no", "n", "f", "")
"""What the cells of a column such as is_test hold, in small letters."""


@dataclass(frozen=True)
class TableSplits:
    """What a table says of splits.

    Attributes:
        columns: Numbers of the columns that say it; empty where none does.
        name: Their names, for people.
        rows: Of each row "train", "test", or empty where it says nothing.
        strange: Words that name no split, for people; empty where there are none.
    """

    columns: tuple[int, ...]
    name: str
    rows: tuple[str, ...]
    strange: str = ""


def table_splits(
    head: Sequence[str], rows: Sequence[Sequence[str]], taken: Collection[int] = (), bare: bool = True
) -> TableSplits:
    """The splits that the rows of a table say: by a column with one of the usual names; or one whose cells all name
    splits, some for training and some held out; or by columns of yes and no, such as is_train or is_test.

    Args:
        head: Names of the columns, in small letters.
        rows: Cells of each row; a short row lacks the last ones.
        taken: Numbers of columns that are something else, such as the labels.
        bare: Whether a column of yes and no that is called train or test says splits, and not whether a label
            of this name is there.
    """
    free = [i for i in range(len(head)) if i not in taken]
    words = {i: [row[i].strip() if i < len(row) else "" for row in rows] for i in free}
    splits = {i: [split_said(word) for word in words[i]] for i in free}
    usual = [i for name in SPLITS for i in free if head[i] == name]
    best = next((i for i in usual if any(splits[i])), None)
    if best is None:
        sure = (i for i in free if {"train", "test"} <= set(splits[i]) and _all_said(words[i], splits[i]))
        best = next(sure, None)
    if best is None:
        flags = {i: split for i in free if (split := _flag_of(head[i], bare)) and _flags(words[i])}
        if flags:
            names = ", ".join(head[i] for i in flags)
            return TableSplits(tuple(flags), names, tuple(_by_flags(flags, words, row) for row in range(len(rows))))
        best = next(iter(usual), None)
    if best is None:
        return TableSplits((), "", ("",) * len(rows))
    strange = sorted({word for word, split in zip(words[best], splits[best], strict=True) if word and not split})
    return TableSplits((best,), head[best], tuple(splits[best]), ", ".join(strange[:5]))


def split_said(word: str) -> str:
    """ "train" or "test" for a word in a column of splits, such as "VAL" or "PublicTest"; empty where it names none."""
    word = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", word.strip())
    known = (split_of(word) or split_in(word)) if word else None
    return "" if known is None else "test" if known in HELD_OUT else "train"


def _all_said(words: Sequence[str], splits: Sequence[str]) -> bool:
    return all(split or not word for word, split in zip(words, splits, strict=True))


def _flag_of(name: str, bare: bool) -> str:
    """The split that a column of yes and no is about, by its name; empty where it is about none."""
    about = re.sub(r"^(is|in|for)[\s_\-]", "", name)
    sure = about != name or (bare and split_of(about) in ("train", "test"))  # "val" may be short for value
    return split_said(about) if sure and split_of(about) else ""


def _flags(words: Sequence[str]) -> bool:
    cells = {word.lower() for word in words}
    return cells <= {*YES, *NO} and bool(cells & set(YES)) and bool(cells & set(NO))


def _by_flags(flags: dict[int, str], words: dict[int, list[str]], row: int) -> str:
    """A row is held out where a column says so, or where one says that it is not for training."""
    yes = {i: words[i][row].lower() in YES for i in flags}
    held = any(yes[i] == (split == "test") for i, split in flags.items())
    return "test" if held else "train"
