"""PLY: meshes and clouds, as text or binary."""

from __future__ import annotations

import re
import struct
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mim_pointcloud.columns import from_fields
from mim_pointcloud.files_shape import Shape, mesh
from mim_pointcloud.limits import LONGEST_LINE, check_end, check_numbers
from mim_pointcloud.polygons import Ints

CORNERS = ("vertex_indices", "vertex_index")
TYPES = {
    **dict.fromkeys(("char", "int8"), "i1"),
    **dict.fromkeys(("uchar", "uint8"), "u1"),
    **dict.fromkeys(("short", "int16"), "i2"),
    **dict.fromkeys(("ushort", "uint16"), "u2"),
    **dict.fromkeys(("int", "int32"), "i4"),
    **dict.fromkeys(("uint", "uint32"), "u4"),
    **dict.fromkeys(("float", "float32"), "f4"),
    **dict.fromkeys(("double", "float64"), "f8"),
}
"""A property's type -> NumPy's."""
CODES = {"i1": "b", "u1": "B", "i2": "h", "u2": "H", "i4": "i", "u4": "I", "f4": "f", "f8": "d"}
FORMATS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}
HEAD = 1 << 20
"""Bytes that a header lies in."""
MOST_LISTS = 20_000_000
"""Rows with lists of unequal length, which are read one by one."""


@dataclass
class Element:
    """What a header says of one kind of row.

    Attributes:
        name: Such as vertex or face.
        count: How many rows.
        properties: Name, type, and of a list the type of its length.
    """

    name: str
    count: int
    properties: list[tuple[str, str, str]] = field(default_factory=list)

    def is_plain(self) -> bool:
        """Whether no property is a list."""
        return not any(length for _, _, length in self.properties)

    def corners(self) -> int | None:
        """Which property lists the corners."""
        places = (at for at, (name, _, length) in enumerate(self.properties) if length and name in CORNERS)
        return next(places, None)


Rows = dict[str, NDArray[Any]]
"""Of an element: its plain properties by name; of faces their "corners" and "counts" alone."""


def read_ply(path: Path) -> Shape:
    """Vertices with normals and colours if there are any, and faces. Other elements are not looked at.

    Raises:
        ValueError: There is no header, the file is cut off, or vertices or faces are missing or of a form that is
            not read.
    """
    data = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    end = re.search(rb"^end_header[ \t]*(\r\n|\n|\r)", data[:HEAD], re.MULTILINE)
    end = end or re.search(rb"\rend_header[ \t]*(\r)", data[:HEAD])
    if not data.startswith(b"ply") or end is None:
        raise ValueError("it has no PLY header")
    order, elements = _header(data[: end.start()].decode("latin-1"))
    rows = sum(element.count for element in elements)
    if rows > len(data) - end.end():
        raise ValueError(f"it is cut off: its header says {rows} rows, {len(data) - end.end()} bytes follow")
    if "vertex" not in {element.name for element in elements}:
        raise ValueError(f"it has no vertices; it has {', '.join(e.name for e in elements)[:60] or 'nothing'}")
    if not next(element for element in elements if element.name == "vertex").is_plain():
        raise ValueError("its vertices have lists, which are not read")
    read = _binary(data, end.end(), order, elements) if order else _ascii(data, end.end(), elements)
    shape = from_fields(read["vertex"])
    if "tristrips" in read and "face" not in read:
        raise ValueError("its faces are strips (tristrips), which are not read; write it with faces")
    if "face" not in read or not next(e.count for e in elements if e.name == "face"):
        return shape
    if "counts" not in read["face"]:
        raise ValueError("its faces have no vertex_indices")
    surface = mesh(shape.vertices, read["face"]["corners"], read["face"]["counts"], shape.rgb)
    return surface._replace(unread=shape.unread)


def _header(text: str) -> tuple[str, list[Element]]:
    """The order of bytes, empty for text, and the elements."""
    order, elements = None, list[Element]()
    for line in text.splitlines()[1:]:
        words = line.split()
        if not words or words[0] in ("comment", "obj_info"):
            continue
        if words[0] == "format" and len(words) > 1 and words[1] in FORMATS:
            order = FORMATS[words[1]]
        elif words[0] == "element" and len(words) == 3 and words[2].isdecimal() and len(words[2]) < 19:
            elements.append(Element(words[1], int(words[2])))
        elif words[0] == "property" and elements and len(words) in (3, 5):
            length = TYPES.get(words[2], "?") if len(words) == 5 and words[1] == "list" else ""
            kind = TYPES.get(words[-2], "?")
            if "?" in (kind, length) or length.startswith("f") or (len(words) == 5 and not length):
                raise ValueError(f"its header is damaged: {line[:60]!r}")
            elements[-1].properties.append((words[-1], kind, length))
        else:
            raise ValueError(f"its header is damaged: {line[:60]!r}")
    if order is None:
        raise ValueError("its header says no format")
    for element in elements:
        names = [name for name, _, _ in element.properties]
        if len(set(names)) < len(names) or (element.count and not names):
            raise ValueError(f"its header is damaged: element {element.name[:40]} has no properties, or one twice")
    if len({element.name for element in elements}) < len(elements):
        raise ValueError("its header is damaged: an element stands there twice")
    return order, elements


# ---- binary ----------------------------------------------------------------------------------------------------------


def _binary(data: bytes, at: int, order: str, elements: list[Element]) -> dict[str, Rows]:
    tables: dict[str, Rows] = {}
    for element in elements:
        if element.is_plain():
            kind = np.dtype([(name, order + kind) for name, kind, _ in element.properties])
            needs = element.count * kind.itemsize
            if at + needs > len(data):
                raise ValueError(_cut_off(element, len(data) - at))
            if element.name == "vertex":
                check_numbers(element.count, len(element.properties))
                table = np.frombuffer(data, kind, element.count, at)
                tables[element.name] = {name: table[name] for name, _, _ in element.properties}
            at += needs
        else:
            equal = _equal_lists(data, at, order, element)
            corners, at = equal if equal is not None else _lists(data, at, order, element)
            tables[element.name] = corners
        tables.setdefault(element.name, {})
    check_end(len(data), at)
    return tables


NO_CORNERS = "a face has no corners: values are missing, or there are more than its header says"


def _cut_off(element: Element, left: int) -> str:
    return f"it is cut off: it says {element.count} of {element.name[:40]}, {left} bytes follow"


def _equal_lists(data: bytes, start: int, order: str, element: Element) -> tuple[Rows, int] | None:
    """Rows whose lists are as long as those of the first, all at once; None where they are not."""
    at, columns = start, list[tuple[Any, ...]]()
    for number, (_, kind, length) in enumerate(element.properties):
        if length:
            size = np.dtype(length).itemsize
            many = int.from_bytes(data[at : at + size], "little" if order == "<" else "big")
            columns += [(f"n{number}", order + length), (f"v{number}", order + kind, (many,))]
            at += size + many * np.dtype(kind).itemsize
        else:
            columns.append((f"v{number}", order + kind))
            at += np.dtype(kind).itemsize
        if at > len(data):
            return None
    row = np.dtype(columns)
    if not element.count or start + element.count * row.itemsize > len(data):
        return None
    table = np.frombuffer(data, row, element.count, start)
    if any((table[name] != table[name][0]).any() for name in row.names or () if name[0] == "n"):
        return None
    end, which = start + element.count * row.itemsize, element.corners()
    if which is None:
        return {}, end
    if not table[f"v{which}"].shape[1]:
        raise ValueError(NO_CORNERS)
    check_numbers(element.count, table[f"v{which}"].shape[1], "faces")
    corners = table[f"v{which}"].reshape(-1).astype(np.int64)
    return {"corners": corners, "counts": np.full(element.count, table[f"v{which}"].shape[1], np.int64)}, end


def _lists(data: bytes, at: int, order: str, element: Element) -> tuple[Rows, int]:
    """Rows with lists of any length, one by one."""
    if element.count > MOST_LISTS:
        raise ValueError(f"it has {element.count:,} faces of unequal length; at most {MOST_LISTS:,} are read")
    corners, counts, which = array("q"), array("q"), element.corners()
    steps = [
        (struct.Struct(order + CODES[length]) if length else None, CODES[kind], np.dtype(kind).itemsize, number)
        for number, (_, kind, length) in enumerate(element.properties)
    ]
    try:
        for _ in range(element.count):
            for head, code, size, number in steps:
                if head is None:
                    at += size
                    continue
                (many,) = head.unpack_from(data, at)
                at += head.size
                if many < 0 or at + many * size > len(data):
                    raise ValueError(_cut_off(element, len(data) - at))
                if number == which:
                    if not many:
                        raise ValueError(NO_CORNERS)
                    check_numbers(len(corners) + many, 1, "corners of faces")
                    corners.extend(map(int, struct.unpack_from(f"{order}{many}{code}", data, at)))
                    counts.append(many)
                at += many * size
    except struct.error:
        raise ValueError(_cut_off(element, 0)) from None
    if at > len(data):
        raise ValueError(_cut_off(element, 0))
    return ({} if which is None else _faces(corners, counts)), at


def _faces(corners: array[int], counts: array[int]) -> Rows:
    return {"corners": _ints(corners), "counts": _ints(counts)}


def _ints(numbers: array[int]) -> Ints:
    return np.array(numbers, np.int64)


# ---- text ------------------------------------------------------------------------------------------------------------


def _ascii(data: bytes, at: int, elements: list[Element]) -> dict[str, Rows]:
    lines = (line for line in _split(data, at) if line.strip())
    tables: dict[str, Rows] = {}
    for element in elements:
        rows = islice(lines, element.count)
        if element.name == "vertex" and element.is_plain():
            tables[element.name] = _ascii_plain(rows, element)
        elif element.corners() is not None:
            tables[element.name] = _ascii_faces(rows, element)
        else:
            tables[element.name] = {}
            _count(sum(1 for _ in rows), element)
    left = sum(1 for _ in lines)
    check_end(left, 0, "lines")
    return tables


def _split(data: bytes, at: int) -> Iterator[bytes]:
    """Lines of text from a place on, one after another."""
    mark = b"\n" if data.find(b"\n", at) >= 0 else b"\r"
    while at < len(data):
        end = data.find(mark, at)
        end = len(data) if end < 0 else end
        if end - at > LONGEST_LINE:
            raise ValueError(f"a line of it has {end - at:,} bytes; up to {LONGEST_LINE:,} are read")
        yield data[at:end]
        at = end + 1


def _count(got: int, element: Element) -> None:
    if got < element.count:
        raise ValueError(f"it is cut off: it says {element.count} of {element.name[:40]}, {got} lines follow")


def _ascii_plain(rows: Iterator[bytes], element: Element) -> Rows:
    width = len(element.properties)
    check_numbers(element.count, width)
    values = array("d")
    for row in rows:
        words = row.split()
        if len(words) != width:
            raise ValueError(f"a {element.name[:40]} has {len(words)} numbers instead of {width}")
        values.extend(map(float, words))
    _count(len(values) // width, element)
    table = np.array(values).reshape(-1, width).T
    rows_of = {}
    for values_of, (name, kind, _) in zip(table, element.properties, strict=True):
        if kind[0] != "f" and len(values_of):
            ends = np.iinfo(kind)
            if not ends.min <= values_of.min() <= values_of.max() <= ends.max:
                raise ValueError(f"{name[:40]} has numbers that its type does not hold")
        rows_of[name] = values_of.astype(kind)
    return rows_of


def _ascii_faces(rows: Iterator[bytes], element: Element) -> Rows:
    corners, counts, which = array("q"), array("q"), element.corners()
    for row in rows:
        words, at = row.split(), 0
        for number, (_, _, length) in enumerate(element.properties):
            many = int(words[at]) if length and at < len(words) else 0
            if many < 0 or at + many >= len(words):
                raise ValueError(
                    f"a {element.name[:40]} has fewer numbers than it says: {row[:40].decode('latin-1')!r}"
                )
            if number == which:
                check_numbers(len(corners) + many, 1, "corners of faces")
                corners.extend(map(int, words[at + 1 : at + 1 + many]))
                counts.append(many)
            at += 1 + many
        if at != len(words):
            raise ValueError(f"a {element.name[:40]} has more numbers than it says: {row[:40].decode('latin-1')!r}")
    _count(len(counts), element)
    return _faces(corners, counts)
