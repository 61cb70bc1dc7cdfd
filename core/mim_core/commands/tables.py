"""Tables of scores on the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from mim_core.scores import Score, cell, columns_of
from mim_core.terminal import console
from mim_core.text import shown

GAP = 2
"""Spaces between two columns."""


def print_table(scores: Sequence[Score], lines: Iterable[str], corner: str) -> None:
    """Rows and columns in order of appearance, ``corner`` above the rows, and what is to be said below.

    No score and no column is cut off, however narrow the terminal: a table that is too wide is turned, then its names
    wrap, and then it is split into tables of some of the columns each. A ``corner`` that is longer than the names of
    the rows is a line above the table.
    """
    names, columns = columns_of(scores)
    cells = tuple(tuple(cell(scores, row, column) for column in columns) for row in names)
    screen = console()
    above = cell_len(corner) > max(map(cell_len, (*names, "untrained")))
    if above:
        screen.print(Text(shown(corner), style="bold"))
    whole = _Grid("" if above else corner, names, columns, cells, screen.width)
    for number, grid in enumerate(_fitting(whole)):
        if number:
            screen.print()
        screen.print(grid.table())
    for line in lines:
        screen.print(line, markup=False)


@dataclass(frozen=True)
class _Grid:
    """A table with names of rows and columns, for a terminal of so many columns."""

    corner: str
    names: Sequence[str]
    columns: Sequence[str]
    cells: Sequence[Sequence[str]]
    room: int

    def turned(self) -> _Grid:
        return replace(self, names=self.columns, columns=self.names, cells=tuple(zip(*self.cells, strict=True)))

    def needs(self, wrap: bool) -> int:
        """The least width, with names in one piece, or in one piece for each word; scores are never broken."""
        cut = _longest_word if wrap else _width
        widths = [max(cut(name), *map(_width, cells)) for name, cells in self.each()]
        return max(cut(text) for text in (self.corner, *self.names)) + GAP * len(widths) + sum(widths)

    def blocks(self) -> Iterator[_Grid]:
        """Tables of as many columns as fit each, at least one."""
        start, used = 0, self.first()
        for number, own in enumerate(self.widths()):
            if number > start and used + GAP + own > self.room:
                yield self.part(start, number)
                start, used = number, self.first()
            used += GAP + own
        yield self.part(start, len(self.columns))

    def part(self, start: int, end: int) -> _Grid:
        """Some of the columns."""
        return replace(self, columns=self.columns[start:end], cells=[row[start:end] for row in self.cells])

    def first(self) -> int:
        """The least width of the names of the rows; words are broken that would take more than a third of the room."""
        return max(1, min(self.room // 3, max(map(_longest_word, (self.corner, *self.names)))))

    def widths(self) -> list[int]:
        """The least width of each column; scores are broken only where they alone are wider than the room."""
        most = max(1, self.room - GAP - self.first())
        return [min(most, max(_longest_word(name), *map(_width, cells))) for name, cells in self.each()]

    def each(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """The name of each column, and what stands below it."""
        return zip(self.columns, zip(*self.cells, strict=True), strict=True)

    def table(self) -> Table:
        """With a width of each column: the least, and what is left of the room to the names that it breaks."""
        table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, GAP, 0, 0))
        widths = [self.first(), *self.widths()]
        wanted = [max(map(_width, (self.corner, *self.names))), *map(_width, self.columns)]
        left = self.room - sum(widths) - GAP * len(self.columns)
        for number, most in enumerate(wanted):
            more = max(0, min(left, most - widths[number]))
            left -= more
            table.add_column(
                _text((self.corner, *self.columns)[number]),
                justify="right" if number else "left",
                overflow="fold",
                width=widths[number] + more,
            )
        for name, row in zip(self.names, self.cells, strict=True):
            table.add_row(_text(name), *map(_text, row))
        return table


def _fitting(grid: _Grid) -> list[_Grid]:
    """The table, or the tables, that show all of it."""
    both = (grid, grid.turned())
    for wrap in (False, True):
        for one in both:
            if one.needs(wrap) <= grid.room:
                return [one]
    return min((list(one.blocks()) for one in both), key=len)


def _text(text: str) -> Text:
    """As it is, without markup."""
    return Text(shown(text))


def _width(text: str) -> int:
    return cell_len(shown(text))


def _longest_word(text: str) -> int:
    return max(map(_width, text.split()), default=0)
