"""How much one file may hold, so that reading it takes less than a gigabyte, whatever the file says."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from mim_core import BadSample

LIMIT = 2 * 2**30
"""Bytes of the largest file of arrays that is read; it is mapped, and its parts are read when they are asked for."""
WHOLE_LIMIT = 256 * 2**20
"""Bytes of the largest binary file that is read whole."""
TEXT_LIMIT = 512 * 2**20
"""Bytes of the largest text, which is read line by line."""
LONGEST_LINE = 2**22
"""Bytes of the longest line of a text, about; its words take many times as much memory."""
TREE_LIMIT = 32 * 2**20
"""Bytes of the largest file that becomes a tree of nodes, which takes many times as much memory."""
NUMBERS = 2**25
"""Numbers that one shape may hold once it is unpacked: 11 million points of x y z; 256 MiB as float64."""


def check_file(path: Path, limit: int = LIMIT) -> None:
    """Raises BadSample for what is no file, empty or over the limit; pipes, devices and sockets are never opened."""
    try:
        facts = os.stat(path)
    except FileNotFoundError:
        raise BadSample(str(path), "no such file") from None
    except (OSError, ValueError) as error:
        raise BadSample(str(path), getattr(error, "strerror", None) or "cannot be looked at") from error
    if not stat.S_ISREG(facts.st_mode):
        raise BadSample(str(path), "it is a folder" if stat.S_ISDIR(facts.st_mode) else "no regular file")
    if facts.st_size == 0:
        raise BadSample(str(path), "the file is empty")
    if facts.st_size > limit:
        size = f"{facts.st_size >> 20:,} MiB is over the limit of {limit >> 20:,} MiB"
        raise BadSample(str(path), f"{size} for {path.suffix.lower()}; thin it out, or cut it into several files")


def check_numbers(rows: int, columns: int, what: str = "points") -> None:
    """Raises ValueError for more numbers than `NUMBERS`."""
    if rows * columns > NUMBERS:
        raise ValueError(
            f"its {rows:,} {what}{f' of {columns}' if columns > 1 else ''} are over the limit of {NUMBERS:,} numbers; "
            "thin it out, or cut it up"
        )


def check_lines(path: Path) -> None:
    """Raises ValueError for a text with a line far over `LONGEST_LINE`."""
    with path.open("rb") as raw:
        while len(block := raw.read(LONGEST_LINE)) == LONGEST_LINE:
            if b"\n" not in block and b"\r" not in block:
                raise ValueError(f"a line of it has over {LONGEST_LINE:,} bytes: it is damaged, or no such text")


def check_end(has: int, needs: int, what: str = "bytes") -> None:
    """Raises ValueError where a file is shorter or longer than its header says; if longer, all behind the place where
    something was put in is wrong, and where that is cannot be told."""
    noun, _, rest = what.partition(" ")
    what = f"{noun.removesuffix('s') if abs(has - needs) == 1 else noun}{' ' if rest else ''}{rest}"
    if has < needs:
        raise ValueError(f"it is cut off: it has {needs - has:,} {what} less than its header says")
    if has > needs:
        raise ValueError(f"it has {has - needs:,} {what} more than its header says")
