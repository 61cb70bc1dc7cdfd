"""Tables and lists beside the folders: rows of paths, and the names of classes."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path

from mim_core import SPLITS, MimError, counted

LABELS = "labels.csv"
"""Labels and splits of whole items, below the root."""


def rows_of(table: Path, column: str) -> list[tuple[str, str]]:
    """The columns path and another of a table, without its first line, which names them. Where none has the name of the
    other, it is the first that is neither path nor split; no rows where there is none.

    Raises:
        MimError: It is no such table; says which line is wrong.
    """

    def place(head: Sequence[str]) -> int | None:
        others = [i for i, name in enumerate(head) if name != "path" and name not in SPLITS]
        return head.index(column) if column in head else next(iter(others), None)

    return _columns(table, column, place)


def split_rows(table: Path) -> list[tuple[str, str]]:
    """The columns path and split (set, subset, partition, fold) of a table; no rows where it has no such column.

    Raises:
        MimError: It is no such table; says which line is wrong.
    """
    return _columns(table, "split", lambda head: next((head.index(name) for name in SPLITS if name in head), None))


def _columns(table: Path, column: str, place: Callable[[Sequence[str]], int | None]) -> list[tuple[str, str]]:
    wanted = f"it needs a first line 'path,{column}' and two columns"
    found: list[tuple[str, str]] = []
    number = 1
    try:
        with open(table, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            head = [cell.strip().lower() for cell in next(filter(None, reader), [])]
            if "path" not in head or len(head) < 2:
                raise MimError(f"{table} cannot be read: {wanted}, and its first line is {','.join(head)[:100]!r}.")
            path, value = head.index("path"), place(head)
            if value is None:
                return []
            for row in filter(None, reader):
                if len(row) <= max(path, value):
                    raise ValueError(f"a row has {counted(len(row), 'column')}")
                if "\n" in row[path]:
                    raise ValueError("a path of several lines: a quote is left open")
                found.append((_cell(row[path]), _cell(row[value])))
                number = reader.line_num
    except UnicodeDecodeError as error:
        raise MimError(f"{table} cannot be read: it is not UTF-8; save it as UTF-8.") from error
    except (ValueError, csv.Error) as error:
        raise MimError(f"{table}, after line {number:,}, cannot be read ({error}): {wanted}.") from error
    return found


def _cell(text: str) -> str:
    if "\0" in text:
        raise ValueError("it has NUL characters")
    return text.strip()


def class_names(root: Path) -> tuple[str, ...]:
    """Names of the classes of maps, from ``ROOT/classes.txt``: one a line, the id is the number of the line, from 0.
    Empty without that file.

    Raises:
        MimError: The file is empty or not UTF-8.
    """
    path = root / "classes.txt"
    if not path.is_file():
        return ()
    try:
        names = tuple(line.strip() for line in path.read_text(encoding="utf-8-sig").rstrip().splitlines())
    except UnicodeDecodeError as error:
        raise MimError(f"{path} cannot be read: it is not UTF-8.") from error
    if any("\0" in name for name in names):
        raise MimError(f"{path} cannot be read: it has NUL characters; save it as UTF-8.")
    if not names:
        raise MimError(f"{path} is empty; it should hold the name of a class in each line.")
    return names
