"""What is printed: plain lines, and rich's tables. The names of files are others' text, so nothing in it may steer the
terminal; see `mim_core.text.shown`."""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

from mim_core.text import shown

COLOUR = re.compile(r"(\x1b\[[0-9;]*m)")
"""What sets the colour of text, and nothing else."""


WIDTH = 80
"""Columns of a table where the output is no terminal, such as a file or a pipe."""


def tell(text: object, error: bool = False) -> None:
    """One print to standard output, or to standard error, at once."""
    print(shown(str(text)), file=sys.stderr if error else sys.stdout, flush=error)


@contextmanager
def escaped_output() -> Iterator[None]:
    """What another library prints meanwhile is shown and not obeyed; its own colours stay where there is a terminal."""
    buffers = {stream: io.StringIO() for stream in ("stdout", "stderr")}
    places = {stream: getattr(sys, stream) for stream in buffers}
    try:
        heard = {stream: _Heard(places[stream], kept) for stream, kept in buffers.items()}
        with redirect_stdout(heard["stdout"]), redirect_stderr(heard["stderr"]):
            yield
    finally:
        for stream, kept in buffers.items():
            parts = COLOUR.split(kept.getvalue()) if places[stream].isatty() else [kept.getvalue()]
            text = "".join(part if number % 2 else shown(part) for number, part in enumerate(parts))
            if text:
                places[stream].write(text)
                places[stream].flush()


class _Heard(io.TextIOBase):
    """A stream that keeps what is written, and says of itself what another says."""

    def __init__(self, place: Any, kept: io.StringIO) -> None:
        self.place, self.kept = place, kept

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return str(self.place.encoding)

    def isatty(self) -> bool:
        return bool(self.place.isatty())

    def write(self, text: str) -> int:
        return self.kept.write(text)


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

    rich_table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        rich_table.add_column(column, overflow="fold")
    return rich_table
