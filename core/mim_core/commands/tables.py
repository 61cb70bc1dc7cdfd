"""Tables of scores on the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.table import Table

from mim_core.scores import Score, cell, columns_of
from mim_core.terminal import console


def print_table(scores: Sequence[Score], lines: Iterable[str], corner: str) -> None:
    """Rows and columns in order of appearance, ``corner`` above the rows, and what is to be said below. A table that
    would be wider than the terminal is turned, and the names of its rows wrap where it still is: no column is cut
    off."""
    rows, columns = columns_of(scores)
    cells = [[cell(scores, row, column) for column in columns] for row in rows]
    screen = console()
    table, width = _table(corner, rows, columns, cells)
    if width > screen.width:
        swapped = [list(column) for column in zip(*cells, strict=True)]
        turned, narrower = _table(corner, columns, rows, swapped)
        if narrower > screen.width:
            turned, narrower = _table(corner, columns, rows, swapped, wrap=True)
        table = turned if narrower < width else _table(corner, rows, columns, cells, wrap=True)[0]
    screen.print(table)
    for line in lines:
        screen.print(line, markup=False)


def _table(
    corner: str, rows: Sequence[str], columns: Sequence[str], cells: Sequence[Sequence[str]], wrap: bool = False
) -> tuple[Table, int]:
    """The table, and the least width that cuts off nothing: headings may wrap, scores may not."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    words = [word for row in rows for word in row.split()] if wrap else rows
    first = max(map(len, words), default=0)
    table.add_column(corner, no_wrap=not wrap, min_width=first)
    total = first
    for number, column in enumerate(columns):
        widest = max(len(row[number]) for row in cells)
        table.add_column(column, justify="right", min_width=max(widest, *map(len, column.split())))
        total += 2 + max(widest, len(column))
    for row, values in zip(rows, cells, strict=True):
        table.add_row(row, *values)
    return table, total
