"""Files of points: columns of text, NumPy arrays, and PCD as the Point Cloud Library writes it."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mim_pointcloud.files_shape import Floats, Shape, cloud

HEAD = 1 << 16
"""Bytes that are looked at to see what columns a text has."""
NAMES = {"xyz": ("x", "y", "z"), "normals": ("nx", "ny", "nz"), "rgb": ("red", "green", "blue")}
SAME = {"r": "red", "g": "green", "b": "blue", "normal_x": "nx", "normal_y": "ny", "normal_z": "nz"}
SAME |= {f"diffuse_{colour}": colour for colour in ("red", "green", "blue")}
WIDEST = 64
"""Columns of three points, beyond which an array is taken for one that lies on its side."""
LARGEST_ARRAY = 4 * 2**30
"""Bytes of an unpacked array."""


def from_fields(fields: Mapping[str, NDArray[Any]]) -> Shape:
    """A cloud of named columns: x y z, nx ny nz (or normal_x ...), red green blue (or r g b, diffuse_red ...)."""
    named = {SAME.get(name.lower(), name.lower()): values for name, values in fields.items()}
    found: dict[str, Floats | None] = {}
    for channel, columns in NAMES.items():
        there = all(column in named for column in columns)
        kinds = {named[column].dtype.kind for column in columns} if there else set()
        values = np.stack([named[column].astype(np.float64).reshape(-1) for column in columns], 1) if there else None
        if channel == "rgb" and values is not None:
            values = shades(values, whole=kinds <= {"u", "i"})
        found[channel] = values
    vertices = found["xyz"]
    if vertices is None:
        raise ValueError(f"it has no x, y and z; it has {', '.join(fields) or 'nothing'}")
    return cloud(vertices, found["normals"], found["rgb"])


def shades(values: Floats, whole: bool = False) -> Floats:
    """Colours from 0 to 1: whole numbers, and any that go over 1, are of 255; over 255, of 65,535."""
    largest = values.max(initial=0.0)
    return values / (65535.0 if largest > 255 else 255.0 if whole or largest > 1 else 1.0)


def from_table(table: Floats) -> Shape:
    """A cloud of unnamed columns [P, >= 3]: x y z first. Of the three columns from the 4th, the 7th or the 5th on,
    those of unit length are normals and those from 0 to 255 are colours; others, as labels or intensities, are not
    looked at.
    """
    _check_shape(table)
    found: dict[str, Floats] = {}
    for start in (3, 6, 4):
        triple = table[:, start : start + 3]
        if triple.shape[1] < 3 or not len(triple):
            continue
        length = np.sqrt((triple * triple).sum(1))
        unit = np.abs(length - 1) < 0.02
        if "normals" not in found and (unit | (length == 0)).all() and unit.any():
            found["normals"] = triple
        elif "rgb" not in found and triple.min() >= 0 and triple.max() <= 255:
            found["rgb"] = shades(triple)
        if start == 6 and found:
            break
    return cloud(table[:, :3], found.get("normals"), found.get("rgb"))


def _check_shape(table: NDArray[Any]) -> None:
    if table.ndim != 2 or table.shape[1] < 3:
        raise ValueError(f"its shape is {list(table.shape)}; [points, 3 or more] is needed")
    if table.shape[0] == 3 and table.shape[1] > WIDEST:
        raise ValueError(
            f"its shape is {list(table.shape)}, as of {table.shape[1]} points; transposed? Store [points, 3]"
        )


def read_text(path: Path) -> Shape:
    """Columns split by blanks, commas or semicolons; lines from # on are comments; a first line may hold the number
    of points (.pts) or the columns' names."""
    with path.open("rb") as raw:
        head = raw.read(HEAD)
    if b"\0" in head:
        raise ValueError("it is no text")
    lines = _lines(head)
    skip, named, said = _header(lines)
    delimiter = next((mark for mark in ",;" if skip < len(lines) and mark in lines[skip]), None)
    if delimiter == "," and re.search(r"\d,\d+\s+-?\d+,\d", lines[skip]):
        raise ValueError("numbers have decimal commas; write them with points")
    with path.open(encoding="latin-1") as text:
        text.seek(3 if head.startswith(b"\xef\xbb\xbf") else 0)
        for _ in range(skip):
            text.readline()
        try:
            table = np.loadtxt(text, dtype=np.float64, delimiter=delimiter, ndmin=2)
        except ValueError as error:
            raise ValueError(_first_wrong(path, skip, delimiter) or str(error)) from error
    if said is not None and len(table) != said:
        raise ValueError(f"its first line says {said} points, {len(table)} follow")
    if not table.size:
        raise ValueError("it has no points and no faces")
    if named and len(named) == table.shape[1]:
        return from_fields(dict(zip(named, table.T, strict=True)))
    return from_table(table)


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
    skip, named, said = 0, list[str](), None
    for line in lines:
        words = re.split(r"[\s,;]+", line.strip().lstrip("/#").strip().lower())
        if words == [""] or line.lstrip().startswith("#"):
            pass
        elif {"x", "y", "z"} <= set(words) and not named:
            named = words
        elif len(words) == 1 and words[0].isdigit() and said is None and not line.startswith("//"):
            said = int(words[0])
        elif not line.startswith("//"):
            break
        skip += 1
    return skip, named, said


def is_words(path: Path) -> bool:
    """Whether the first line that says something is not three numbers or more."""
    with path.open("rb") as raw:
        head = raw.read(HEAD)
    lines = _lines(head)
    skip, named, said = _header(lines)
    words = re.split(r"[\s,;]+", lines[skip].strip()) if skip < len(lines) else []
    return not (named or said is not None or (len(words) >= 3 and all(map(_is_number, words[:3]))))


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def read_npy(path: Path) -> Shape:
    """An array [P, >= 3] of real numbers."""
    with path.open("rb") as raw:
        if raw.read(6) != b"\x93NUMPY":
            raise ValueError("it is no .npy: it does not begin as NumPy's arrays do")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        if "pickle" in str(error).lower() or "object" in str(error).lower():
            raise ValueError("it holds Python objects, not numbers; store an array [points, 3]") from error
        raise ValueError("it is cut off, or its header is damaged") from error
    return from_table(_real(array))


def read_npz(path: Path) -> Shape:
    """The only array, or the one named points, xyz or pc; ``normals`` and ``rgb`` or ``colors`` beside it."""
    with zipfile.ZipFile(path) as packed:
        sizes = {info.filename.removesuffix(".npy"): info.file_size for info in packed.infolist()}
    named = [name for name in ("points", "xyz", "pc") if name in sizes]
    if not named and len(sizes) != 1:
        raise ValueError(f"it holds {', '.join(sizes) or 'nothing'}; name one array points, xyz or pc")
    with np.load(path, allow_pickle=False) as arrays:

        def array(name: str) -> Floats:
            if sizes[name] > LARGEST_ARRAY:
                raise ValueError(f"its array {name} unpacks to {sizes[name] / 2**30:.1f} GiB")
            return _real(arrays[name])

        shape = from_table(array(named[0] if named else next(iter(sizes))))
        normals = array("normals") if "normals" in sizes else shape.normals
        colours = next((array(name) for name in ("rgb", "colors", "colours") if name in sizes), None)
    rgb = shape.rgb if colours is None else shades(colours[:, :3])
    for values in (normals, rgb):
        if values is not None and values.shape != shape.vertices.shape:
            raise ValueError(f"normals or colours {list(values.shape)} for points {list(shape.vertices.shape)}")
    return cloud(shape.vertices, normals, rgb)


def _real(array: NDArray[Any]) -> Floats:
    if array.dtype.kind not in "fiu":
        raise ValueError(f"it holds {array.dtype}, not real numbers")
    _check_shape(array)
    return array.astype(np.float64)


def read_pcd(path: Path) -> Shape:
    """PCD 0.7: ascii, binary or binary_compressed; rgb packed into one number is taken apart. Points with NaN for x, y
    and z are left out: so a depth camera's picture says that it saw nothing there."""
    data = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    start = re.search(rb"^DATA[ \t]+(\w+)[ \t]*\r?\n", data, re.MULTILINE)
    if start is None:
        raise ValueError("it has no PCD header that ends in DATA")
    said: dict[str, list[str]] = {}
    for line in data[: start.start()].decode("latin-1").splitlines():
        words = line.split()
        if words and not words[0].startswith("#"):
            said[words[0].upper()] = words[1:]
    names, kinds = said["FIELDS"], [kind.lower() for kind in said["TYPE"]]
    counts = [int(count) for count in said.get("COUNT", ["1"] * len(names))]
    columns = [(f"{name} {at}", f"<{kind}{size}", (count,)) for at, (name, kind, size, count)
               in enumerate(zip(names, kinds, said["SIZE"], counts, strict=True))]  # fmt: skip
    points = int(said["POINTS"][0]) if "POINTS" in said else int(said["WIDTH"][0]) * int(said["HEIGHT"][0])
    table = _pcd_rows(data[start.end() :], start.group(1).decode().lower(), np.dtype(columns), points)
    fields: dict[str, NDArray[Any]] = {}
    for name, column in zip(names, columns, strict=True):
        if name in ("rgb", "rgba"):
            packed = np.ascontiguousarray(table[column[0]][:, 0]).view(np.uint32)
            fields |= {colour: (packed >> at & 255).astype(np.uint8) for colour, at in zip("rgb", (16, 8, 0))}  # noqa: B905
        elif name != "_":
            fields[name] = table[column[0]][:, 0]
    places = [values for name, values in fields.items() if name.lower() in NAMES["xyz"] and values.dtype.kind == "f"]
    seen = ~np.logical_and.reduce([np.isnan(values) for values in places]) if len(places) == 3 else slice(None)
    return from_fields({name: values[seen] for name, values in fields.items()})


def _pcd_rows(body: bytes, coding: str, kind: np.dtype[Any], points: int) -> NDArray[Any]:
    if coding == "ascii":
        flat = np.loadtxt(io.StringIO(body.decode("latin-1")), dtype=kind, ndmin=1)
        if len(flat) != points:
            raise ValueError(f"its header says {points} points, {len(flat)} follow")
        return flat
    if coding == "binary_compressed":
        packed, whole = (int(size) for size in np.frombuffer(body[:8], "<u4"))
        if whole != points * kind.itemsize or len(body) < 8 + packed:
            raise ValueError(f"it is cut off: {points} points need {points * kind.itemsize} bytes")
        plain, rows, at = _unpack(body[8 : 8 + packed], whole), np.empty(points, kind), 0
        for name in kind.names or ():
            field = kind[name]
            rows[name] = np.frombuffer(plain, field.base, points * field.shape[0], at).reshape(points, -1)
            at += points * field.itemsize
        return rows
    if coding != "binary":
        raise ValueError(f"DATA {coding} is not known; ascii, binary and binary_compressed are")
    if points < 0 or len(body) < points * kind.itemsize:
        raise ValueError(f"it is cut off: {points} points need {points * kind.itemsize} bytes, {len(body)} follow")
    return np.frombuffer(body, kind, points)


def _unpack(packed: bytes, size: int) -> bytes:
    """LZF, as liblzf describes it: runs of bytes as they are, and copies of earlier ones that may overlap."""
    out, at = bytearray(), 0
    while at < len(packed) and len(out) <= size:
        code = packed[at]
        at += 1
        if code < 32:
            out += packed[at : at + code + 1]
            at += code + 1
            continue
        length = code >> 5
        if length == 7:
            length += packed[at]
            at += 1
        back = ((code & 31) << 8 | packed[at]) + 1
        at += 1
        if back > len(out):
            raise ValueError("its packed data is broken")
        piece = bytes(out[len(out) - back :][: length + 2])
        out += (piece * ((length + 2) // back + 1))[: length + 2]
    if len(out) != size:
        raise ValueError("its packed data is broken")
    return bytes(out)
