"""What commands print: plain lines, tables, and what goes to standard error. Imports no torch."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.table import Table

WIDTH = 80
"""Columns where standard output is no terminal, such as a file or a pipe."""


def say(text: str) -> None:
    """A line on standard output, at once."""
    print(text, flush=True)  # noqa: T201


def complain(text: str) -> None:
    """A line on standard error, at once."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201


def console(markup: bool = True) -> Console:
    """Standard output with tables: as wide as the terminal, or 80 columns."""
    found = Console(highlight=False, markup=markup)
    return found if found.is_terminal else Console(highlight=False, markup=markup, width=WIDTH)


def table(*columns: str) -> Table:
    """A table without lines, whose cells are folded rather than cut off."""
    found = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        found.add_column(column, overflow="fold")
    return found
