"""Meshes: Wavefront OBJ, OFF and STL. They are read here, line by line, because what matters is to lose no face and to
merge no vertex, to be fast, and to take no more memory than their numbers do."""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from mim_pointcloud.columns import shades
from mim_pointcloud.files_shape import Floats, Ints, Shape, mesh
from mim_pointcloud.limits import check_end, check_lines, check_numbers

BOM = b"\xef\xbb\xbf"


def _lines(path: Path) -> Iterator[str]:
    """The lines of a text, one after another, each ended by a line feed, a return or both. Latin-1 reads any byte;
    names in other encodings are not looked at."""
    check_lines(path)
    with path.open("rb") as raw:
        head = raw.read(4096)
    wide = head.removeprefix(BOM)[:2] in (b"\xff\xfe", b"\xfe\xff")
    if not wide and b"\0" in head:
        raise ValueError("it is no text")
    with path.open(encoding="utf-16" if wide else "latin-1") as text:
        text.seek(len(BOM) if head.startswith(BOM) else 0)
        yield from text


def _words(line: str) -> list[str]:
    return line.split("#", 1)[0].split() if "#" in line else line.split()


def read_obj(path: Path) -> Shape:
    """Vertices (with colours behind x y z, if all have them) and faces of all objects and groups.

    Lines, points, curves, texture coordinates, normals and materials are not looked at.

    Raises:
        ValueError: The file cannot be read; names the first wrong line where there is one.
    """
    try:
        return _obj(path)
    except (ValueError, OverflowError) as error:
        raise ValueError(_wrong_line(path) or str(error)) from error


def _obj(path: Path) -> Shape:
    vertices, colours, coloured = array("d"), array("d"), True
    corners, counts = array("q"), array("q")
    for line in _joined(path):
        words = _words(line)
        if not words:
            continue
        if words[0] == "v":
            x, y, z = words[1:4]
            vertices.extend((float(x), float(y), float(z)))
            check_numbers(len(vertices) // 3, 3)
            coloured = coloured and len(words) >= 7
            if coloured:
                colours.extend(map(float, words[4:7]))
        elif words[0] in ("f", "fo"):
            before = len(vertices) // 3  # what negative numbers count from
            numbers = [int(corner.partition("/")[0]) for corner in words[1:]]
            if 0 in numbers:
                raise ValueError("a face names vertex 0; OBJ counts from 1")
            corners.extend(number - 1 if number > 0 else before + number for number in numbers)
            counts.append(len(numbers))
            check_numbers(len(corners), 1, "corners of faces")
    if not vertices:
        raise ValueError("it has no vertices")
    rgb = shades(np.array(colours).reshape(-1, 3)) if coloured else None
    return mesh(np.array(vertices).reshape(-1, 3), np.array(corners, np.int64), np.array(counts, np.int64), rgb)


def _joined(path: Path) -> Iterator[str]:
    """Lines; one that ends in a backslash goes on in the next."""
    parts: list[str] = []
    for line in _lines(path):
        if line.endswith("\\\n"):
            parts.append(line[:-2])
        elif parts:
            yield " ".join([*parts, line])
            parts = []
        else:
            yield line
    if parts:
        yield " ".join(parts)


def _wrong_line(path: Path) -> str | None:
    """What is wrong with the first line of an OBJ whose vertex or face cannot be read."""
    last = sum(1 for _ in _lines(path))
    for number, line in enumerate(_lines(path), 1):
        kind, *words = line.split("#", 1)[0].replace("\\", " ").split() or [""]
        cut = number == last and not line.endswith("\n")
        where = f"line {number}{', the last one: it is cut off' if cut else ''}"
        if kind == "v" and (len(words) < 3 or not all(map(_is_float, words[:6]))):
            return f"{where}: a vertex needs three numbers, not {' '.join(words)[:40]!r}"
        if kind in ("f", "fo"):
            strange = next((word for word in words if not _is_index(word.split("/", 1)[0])), None)
            if strange is not None:
                return f"{where}: a face cannot name vertex {strange[:40]!r}"
    return None


def _is_float(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _is_index(word: str) -> bool:
    digits = word.lstrip("+-")
    return digits.isdecimal() and len(digits) < 20 and abs(int(digits)) < 2**63


def read_off(path: Path) -> Shape:
    """OFF with or without its keyword, COFF and NOFF, and ModelNet's, where the counts follow the keyword at once.

    Raises:
        ValueError: There are no counts, the file is binary or not of three dimensions, or it is cut off.
    """
    rows = (words for line in _lines(path) if (words := _words(line)))
    first = next(rows, None)
    if first is None:
        raise ValueError("it has no counts of vertices and faces")
    keyword = re.match(r"(?:ST)?(C?)(N?)(4?)(n?)(?:OFF|off)", first[0])
    if keyword:
        if keyword[3] or keyword[4] or "BINARY" in first:
            raise ValueError(f"{' '.join(first)[:40]} is not read: only three dimensions, as text")
        rest = first[0][keyword.end() :]
        first = ([rest] if rest else []) + first[1:]
        first = first or next(rows, [])
    if len(first) < 2 or not all(map(_is_index, first[:2])) or min(map(int, first[:2])) < 0:
        raise ValueError(f"no counts of vertices and faces, but {' '.join(first)[:40]!r}" if first else "no counts")
    points, polygons = int(first[0]), int(first[1])
    values, rgb = _vertices(islice(rows, points), 6 if keyword and keyword[2] else 3)
    corners, counts = _polygons(islice(rows, polygons))
    claim, follow = f"it says {points} vertices and {polygons} faces", len(values) + len(counts)
    if follow < points + polygons:
        raise ValueError(f"it is cut off: {claim}, {follow} lines follow")
    check_end(follow + sum(1 for _ in rows), follow, "lines")
    return mesh(values, corners, counts, rgb)


def _vertices(rows: Iterator[list[str]], start: int) -> tuple[Floats, Floats | None]:
    """x y z, and the colours from a column on, if all have them."""
    values, colours, coloured = array("d"), array("d"), True
    for words in rows:
        x, y, z = _three(words)
        values.extend((float(x), float(y), float(z)))
        check_numbers(len(values) // 3, 3)
        coloured = coloured and len(words) >= start + 3
        if coloured:
            colours.extend(map(float, words[start : start + 3]))
    rgb = shades(np.array(colours).reshape(-1, 3)) if coloured and values else None
    return np.array(values).reshape(-1, 3), rgb


def _three(words: list[str]) -> list[str]:
    if len(words) < 3:
        raise ValueError(f"a vertex has {len(words)} numbers instead of 3: {' '.join(words)[:40]!r}")
    return words[:3]


def _polygons(rows: Iterator[list[str]]) -> tuple[Ints, Ints]:
    """Corners one after another, and how many each face has; colours behind them are not looked at."""
    corners, counts = array("q"), array("q")
    for words in rows:
        count = int(words[0])
        if not 0 <= count < len(words):
            raise ValueError(f"a face does not have the corners it says: {' '.join(words)[:40]!r}")
        try:
            corners.extend(map(int, words[1 : 1 + count]))
        except OverflowError:
            huge = next(word for word in words[1 : 1 + count] if not _is_index(word))
            raise ValueError(f"a face cannot name vertex {huge[:40]}") from None
        counts.append(count)
        check_numbers(len(corners), 1, "corners of faces")
    return np.array(corners, np.int64), np.array(counts, np.int64)


STL = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("more", "<u2")])
"""A face of a binary STL."""


def read_stl(path: Path) -> Shape:
    """Binary or as text; corners stay as they are, three of their own for each face.

    A binary file is 84 bytes and 50 for each face, no more and no less: where bytes were put in, all faces behind the
    place are garbage, and no reader can tell them from bytes that a program left at the end.

    Raises:
        ValueError: The file is cut off, or no STL.
    """
    data = path.read_bytes()
    count = int.from_bytes(data[80:84], "little")
    words = data.removeprefix(BOM).lstrip()[:5].lower() == b"solid" and b"facet" in data[:4096].lower()
    words = words and b"\0" not in data[:4096]
    if len(data) >= 84 and (len(data) == 84 + 50 * count or not words):
        if len(data) < 84 + 50 * count:
            raise ValueError(f"it is cut off, or no STL: it says {count} faces, {(len(data) - 84) // 50} follow")
        check_end(len(data), 84 + 50 * count)
        check_numbers(count, 9, "faces")
        vertices = np.frombuffer(data, STL, count, 84)["corners"].reshape(-1, 3).astype(np.float64)
    else:
        vertices = _stl_text(path)
    return Shape(vertices, np.arange(len(vertices)).reshape(-1, 3))


def _stl_text(path: Path) -> Floats:
    vertices, ends = array("d"), False
    for line in _lines(path):
        row = line.split()
        kind = row[0].lower() if row else ""
        if kind == "vertex":
            x, y, z = _three(row[1:])
            vertices.extend((float(x), float(y), float(z)))
            check_numbers(len(vertices) // 3, 3)
        elif kind == "endfacet" and len(vertices) % 9:
            raise ValueError(f"face {len(vertices) // 9} does not have three corners")
        ends = kind == "endsolid" or (ends and kind not in ("solid", "facet", "vertex"))
    if not ends or len(vertices) % 9:
        raise ValueError("it is cut off, or no STL: it does not end in endsolid")
    return np.array(vertices).reshape(-1, 3)
