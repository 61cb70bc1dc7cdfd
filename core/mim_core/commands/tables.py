"""Tables of scores on the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table

from mim_core.evaluation import Score, cell, columns_of


def print_table(scores: Sequence[Score], lines: Iterable[str], corner: str) -> None:
    """Rows and columns in order of appearance, ``corner`` above the rows, and what is to be said below."""
    rows, columns = columns_of(scores)
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column(corner, no_wrap=True, min_width=max(map(len, rows), default=0))
    for column in columns:  # headings may wrap, scores may not
        widest = max(len(cell(scores, row, column)) for row in rows)
        table.add_column(column, justify="right", min_width=max(widest, *map(len, column.split())))
    for row in rows:
        table.add_row(row, *(cell(scores, row, column) for column in columns))
    console = Console(highlight=False)
    console = console if console.is_terminal else Console(highlight=False, width=160)
    console.print(table)
    for line in lines:
        console.print(line, markup=False)
