"""Tables and lists beside the folders: rows of paths, and the names of classes."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path

from mim_core import MimError, counted, table_splits

LABELS = "labels.csv"
"""Labels and splits of whole items, below the root."""
Values = list[str]
Place = Callable[[Sequence[str], Sequence[Sequence[str]]], Values | None]
"""From the first line and the rows of a table, in small letters, to a value of each row; None where it has none."""


def rows_of(table: Path, column: str) -> list[tuple[str, str]]:
    """The columns path and another of a table, without its first line, which names them. Where none has the name of the
    other, it is the first that is neither path nor split; no rows where there is none.

    Raises:
        MimError: It is no such table; says which line is wrong.
    """

    def place(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Values | None:
        taken = [i for i, name in enumerate(head) if name in ("path", column)]
        splits = table_splits(head, rows, taken)
        others = (i for i in range(len(head)) if i not in (*splits.columns, *taken))
        chosen = head.index(column) if column in head else next(others, None)
        return None if chosen is None else [row[chosen] for row in rows]

    return _columns(table, column, place)


def split_rows(table: Path) -> list[tuple[str, str]]:
    """The column path, and the split that each row says (`mim_core.table_splits`): "train", "test", its own word where
    that names no split, or empty; no rows where no column says splits.

    Raises:
        MimError: It is no such table; says which line is wrong.
    """

    def place(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Values | None:
        taken = [i for i, name in enumerate(head) if name in ("path", "label")]
        splits = table_splits(head, rows, taken)
        if not splits.columns:
            return None
        words = [row[splits.columns[0]] for row in rows]
        return [split or word for split, word in zip(splits.rows, words, strict=True)]

    return _columns(table, "split", place)


def _columns(table: Path, column: str, place: Place) -> list[tuple[str, str]]:
    wanted = f"it needs a first line 'path,{column}' and two columns"
    rows = list[list[str]]()
    number = 1
    try:
        with open(table, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            head = [cell.strip().lower() for cell in next(filter(None, reader), [])]
            if "path" not in head or len(head) < 2:
                raise MimError(f"{table} cannot be read: {wanted}, and its first line is {','.join(head)[:100]!r}.")
            path = head.index("path")
            for row in filter(None, reader):
                if len(row) < len(head):
                    raise ValueError(f"a row has {counted(len(row), 'column')}, and the first line {len(head)}")
                if "\n" in row[path]:
                    raise ValueError("a path of several lines: a quote is left open")
                rows.append([_cell(cell) for cell in row])
                number = reader.line_num
    except UnicodeDecodeError as error:
        raise MimError(f"{table} cannot be read: it is not UTF-8; save it as UTF-8.") from error
    except (ValueError, csv.Error) as error:
        raise MimError(f"{table}, after line {number:,}, cannot be read ({error}): {wanted}.") from error
    values = place(head, rows)
    return [] if values is None else [(row[path], value) for row, value in zip(rows, values, strict=True)]


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
