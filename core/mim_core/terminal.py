"""What is printed: plain lines, and rich's tables. The names of files are others' text, so nothing in it may steer the
terminal; see `mim_core.text.shown`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import Any

from mim_core.text import shown

WIDTH = 80
"""Columns of a table where the output is no terminal, such as a file or a pipe."""


def tell(text: object, error: bool = False) -> None:
    """One print to standard output, or to standard error, at once."""
    print(shown(str(text)), file=sys.stderr if error else sys.stdout, flush=error)


def console(error: bool = False, wide: bool = True, **options: Any) -> Any:
    """rich's console, on which text of others is shown and not obeyed.

    Args:
        error: On standard error.
        wide: Where it is no terminal, lines are `WIDTH` characters long, or as long as COLUMNS in the environment says.
        options: Of `rich.console.Console`.
    """
    from rich.console import Console as Base
    from rich.segment import Segment

    class Console(Base):
        def render(self, *arguments: Any, **named: Any) -> Iterable[Segment]:
            for text, style, control in super().render(*arguments, **named):
                yield Segment(text if control else shown(text), style, control)

    made = Console(highlight=False, stderr=error, **options)
    if made.is_terminal or not wide:
        return made
    asked = os.environ.get("COLUMNS", "")
    width = int(asked) if asked.isdecimal() and int(asked) > 0 else WIDTH
    return Console(highlight=False, stderr=error, width=width, **options)


def table(*columns: str) -> Any:
    """A table without lines, whose cells are folded rather than cut off."""
    from rich.table import Table

    found = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        found.add_column(column, overflow="fold")
    return found
