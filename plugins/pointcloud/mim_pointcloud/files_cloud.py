"""Files of points as columns of text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mim_pointcloud.columns import check_names, from_fields, from_table
from mim_pointcloud.files_shape import Shape
from mim_pointcloud.limits import NUMBERS, check_lines, check_numbers

HEAD = 1 << 16
"""Bytes that are looked at to see what columns a text has."""


def read_text(path: Path, columns: Sequence[str] = ()) -> Shape:
    """Columns split by blanks, commas or semicolons; lines from # on are comments; a first line may hold the number
    of points (.pts) or the columns' names, which a comment may hold too. ``columns`` names them where the file does
    not.

    Raises:
        ValueError: The file is no table of numbers, holds no points, or contradicts its own header.
    """
    with path.open("rb") as raw:
        head = raw.read(HEAD)
    if b"\0" in head:
        raise ValueError("it is no text")
    check_lines(path)
    lines = _lines(head)
    skip, named, point_count = _header(lines)
    delimiter = next((mark for mark in ",;" if skip < len(lines) and mark in lines[skip]), None)
    if delimiter == "," and re.search(r"\d,\d+\s+-?\d+,\d", lines[skip]):
        raise ValueError("numbers have decimal commas; write them with points")
    width = len(lines[skip].split(delimiter)) if skip < len(lines) else 1
    with path.open(encoding="latin-1") as text:
        text.seek(3 if head.startswith(b"\xef\xbb\xbf") else 0)
        for _ in range(skip):
            text.readline()
        try:
            most = NUMBERS // width + 1
            table = np.loadtxt(text, dtype=np.float64, delimiter=delimiter, ndmin=2, max_rows=most)
        except ValueError as error:
            raise ValueError(_first_wrong(path, skip, delimiter) or str(error)) from error
    if point_count is not None and len(table) != point_count:
        raise ValueError(f"its first line says {point_count} points, {len(table)} follow")
    if not table.size:
        raise ValueError("it has no points and no faces")
    check_numbers(*table.shape)
    named = named or _commented(lines, table.shape[1])
    if not named:
        return from_table(table, columns)
    if len(named) != table.shape[1]:
        raise ValueError(f"its first line names {len(named)} columns ({' '.join(named)[:60]}), it has {table.shape[1]}")
    wrong = check_names(named)
    if wrong:
        raise ValueError(f"its columns are {' '.join(named)[:60]}: {wrong}")
    return from_fields(dict(zip(named, table.T, strict=True)))


def _commented(lines: list[str], columns: int) -> list[str]:
    """The columns' names in the first comment that names as many as there are."""
    for line in lines:
        if not line.lstrip().startswith("#"):
            return []
        words = _split(line.strip().lstrip("#").strip().lower())
        if len(words) == columns and not check_names(words):
            return words
    return []


def _split(line: str) -> list[str]:
    return re.split(r"[\s,;]+", line)


def _first_wrong(path: Path, skip: int, delimiter: str | None) -> str | None:
    """What is wrong with the first line that cannot be in one table with those before it."""
    columns = 0
    with path.open(encoding="latin-1") as text:
        for number, line in enumerate(text, 1):
            words = line.split("#", 1)[0].strip().split(delimiter) if number > skip else []
            if not words or words == [""]:
                continue
            strange = next((word for word in words if not _is_number(word)), None)
            if strange is not None:
                return f"line {number}: {strange.strip()[:40]!r} is no number"
            if columns and len(words) != columns:
                return f"line {number} has {len(words)} numbers; those before it have {columns}"
            columns = len(words)
    return None


def _lines(head: bytes) -> list[str]:
    return head.removeprefix(b"\xef\xbb\xbf").decode("latin-1").splitlines()


def _header(lines: list[str]) -> tuple[int, list[str], int | None]:
    """Lines to leave out, the columns' names, and the number of points."""
    skip, named, point_count = 0, list[str](), None
    for line in lines:
        words = _split(line.strip().lstrip("/#").strip().lower())
        if words == [""] or line.lstrip().startswith("#"):
            pass
        elif {"x", "y", "z"} <= set(words) and not named:
            named = words
        elif len(words) == 1 and _is_count(words[0]) and point_count is None and not line.startswith("//"):
            point_count = int(words[0])
        elif not line.startswith("//"):
            break
        skip += 1
    return skip, named, point_count


def _is_count(word: str) -> bool:
    return word.isascii() and word.isdecimal() and len(word) < 19


def is_words(path: Path) -> bool:
    """Whether the first line that says something is not three numbers or more, behind the columns' names or a count.

    Raises:
        OSError: The file cannot be read.
    """
    with path.open("rb") as raw:
        head = raw.read(HEAD)
    lines = _lines(head)
    skip, named, _ = _header(lines)
    words = _split(lines[skip].strip()) if skip < len(lines) else []
    return not (named or (len(words) >= 3 and all(map(_is_number, words[:3]))))


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
