"""The table that lies beside files and that nobody has named: ``ROOT/labels.csv``. It is read, or it is said why not;
files that it holds out are never trained on in silence."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from mim_core.data.label_table import PATHS, LabelTable, read_label_table
from mim_core.data.table_splits import table_splits
from mim_core.errors import MimError

NAME = "labels.csv"
"""What it is called."""
Found = TypeVar("Found")


def with_table_beside(
    splits: Found, again: Callable[[LabelTable], Found], root: Path, column: str, classes: bool, shards: bool = False
) -> tuple[Found, str]:
    """What there is, with the labels and splits of the table beside it; and why it is ignored, empty where it is
    not.

    Args:
        splits: What folders say.
        again: The same with a table.
        root: The folder of files.
        column: The column of labels; empty: one of the usual names.
        classes: Whether folders are classes, whose labels the table then does not change.
        shards: Whether items lie in shards, whose members say their labels.

    Raises:
        MimError: The table cannot be used, and it holds files out.
    """
    path = root / NAME
    if not path.is_file():
        return splits, ""
    if shards:
        note = f"{path} is not read: items in shards have labels and splits of their own"
        return splits, f"{note}. To hold some out, put them into test-0.tar." if _columns(path) else ""
    if classes:
        note = f"{path} is not read, because folders are classes. To use it: --data.labels-from {path}"
        return splits, note if _columns(path) else ""
    try:
        return again(read_label_table(path, column, labels=False)), ""
    except MimError as error:  # it may be of something else, and labels may not be needed
        if holds_out(path):
            raise MimError(
                f"{error} The table says which files are held out, so it is not ignored: mend it, or give it "
                "another name to train on all of them."
            ) from error
        return splits, f"{path} is ignored. {error}"


def holds_out(path: Path) -> bool:
    """Whether a table, which may be damaged or lack its first line, says of any file that it is held out."""
    read = _columns(path)
    if read is not None:
        return "test" in table_splits(*read).rows
    return any("test" in table_splits([""] * max(map(len, rows)), rows).rows for rows in _rows(path) if rows)


def _columns(path: Path) -> tuple[list[str], list[list[str]]] | None:
    """Names of the columns, and rows, as far as they can be read; None where no column is one of files."""
    for rows in _rows(path):
        for start in range(min(3, len(rows))):  # notes may stand above
            head = [re.sub(r"[\s\-]+", "_", cell.lower()) for cell in rows[start]]
            if len(head) > 1 and set(head) & set(PATHS):
                return head, rows[start + 1 :]
    return None


def _rows(path: Path) -> Iterator[list[list[str]]]:
    """The rows of a table, by each of the marks that may stand between cells."""
    try:
        data = path.read_bytes()
    except OSError:
        return
    code = "utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    lines = [line for line in data.decode(code, "replace").splitlines() if line.strip()]
    for mark in "\t,;|":
        try:
            yield [[cell.strip().strip("'") for cell in row] for row in csv.reader(lines, delimiter=mark)]
        except csv.Error:
            continue
