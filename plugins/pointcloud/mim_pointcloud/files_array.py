"""Files of NumPy's arrays: .npy and .npz, whose headers are believed only as far as the bytes that follow go."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from mim_pointcloud.columns import check_table, from_fields, from_table, shades
from mim_pointcloud.files_shape import Shape, cloud
from mim_pointcloud.limits import WHOLE_LIMIT, check_end, check_numbers
from mim_pointcloud.polygons import Floats

MAGIC = b"\x93NUMPY"
ARRAYS = ("points", "xyz", "pc")
"""What the array of points may be called in an .npz."""
BESIDE = ("normals", "rgb", "colors", "colours")
"""What arrays beside it are called."""
UNPACKED = 2 * WHOLE_LIMIT
"""Bytes of the arrays of an .npz together, unpacked."""


@dataclass(frozen=True)
class Header:
    """What an array says of itself.

    Attributes:
        shape: Its sizes.
        dtype: What an entry is.
        fortran: Whether columns lie one after another.
        size: Bytes before its entries.
        needs: Bytes of its entries.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool
    size: int
    needs: int


def header_of(raw: Any) -> Header:
    """The header of a .npy; the stream is left behind it.

    Args:
        raw: A stream of bytes.

    Raises:
        ValueError: It is none, is damaged, or holds Python objects.
    """
    if raw.read(len(MAGIC)) != MAGIC:
        raise ValueError("it is no .npy: it does not begin as NumPy's arrays do")
    version = raw.read(2)
    sized = {b"\1\0": 2, b"\2\0": 4, b"\3\0": 4}.get(version)
    length = int.from_bytes(raw.read(sized or 0), "little")
    if sized is None or not 0 < length <= 1 << 16:
        raise ValueError("it is cut off, or its header is damaged")
    text = raw.read(length)
    prefix = MAGIC + version + length.to_bytes(sized, "little")
    whole = io.BytesIO(prefix + text)
    whole.seek(len(MAGIC) + 2)
    try:
        read = npy.read_array_header_1_0 if version == b"\1\0" else npy.read_array_header_2_0
        shape, fortran, dtype = read(whole, max_header_size=1 << 16)
    except (ValueError, TypeError, SyntaxError, KeyError, TokenError) as error:
        raise ValueError("it is cut off, or its header is damaged") from error
    if dtype.hasobject:
        raise ValueError("it holds Python objects, not numbers; store an array [points, 3]")
    if any(side < 0 for side in shape) or len(text) < length or not dtype.itemsize:
        raise ValueError("it is cut off, or its header is damaged")
    needs = dtype.itemsize
    for side in shape:
        needs *= side
    return Header(shape, dtype, fortran, len(prefix) + length, needs)


def mapped(path: Path) -> NDArray[Any]:
    """An array as it lies in its file, which is exactly as long as its header says.

    Raises:
        ValueError: The file is shorter or longer, or no .npy.
    """
    with path.open("rb") as raw:
        header = header_of(raw)
    check_end(path.stat().st_size, header.size + header.needs)
    order = "F" if header.fortran else "C"
    if not header.needs:
        return np.zeros(header.shape, header.dtype)
    return np.memmap(path, header.dtype, "r", header.size, header.shape, order)  # type: ignore[call-overload]


def read_npy(path: Path, columns: Sequence[str] = ()) -> Shape:
    """An array [P, >= 3] of real numbers, or one with named columns."""
    return _shape(mapped(path), columns)


def _shape(array: NDArray[Any], columns: Sequence[str]) -> Shape:
    if array.dtype.names:
        check_numbers(array.size, len(array.dtype.names))
        return from_fields({name: array[name] for name in array.dtype.names})
    _check_real(array)
    return from_table(array, columns)


def _check_real(array: NDArray[Any]) -> None:
    if array.dtype.kind not in "fiu":
        raise ValueError(f"it holds {array.dtype}, not real numbers")
    check_table(array)


def read_npz(path: Path, columns: Sequence[str] = ()) -> Shape:
    """The only array, or the one named points, xyz or pc; ``normals`` and ``rgb`` or ``colors`` beside it.

    Raises:
        ValueError: The file is no .npz, or it is damaged.
    """
    try:
        with zipfile.ZipFile(path) as packed:
            return _packed(packed, columns)
    except zipfile.BadZipFile as error:
        raise ValueError(f"it is no .npz, or it is damaged: {error}") from error
    except (zlib.error, NotImplementedError, EOFError, RuntimeError) as error:
        raise ValueError(f"its packed data is broken: {error}") from error


def _packed(packed: zipfile.ZipFile, columns: Sequence[str]) -> Shape:
    entries = {info.filename.removesuffix(".npy"): info for info in packed.infolist()}
    together = sum(entries[name].file_size for name in {*ARRAYS, *BESIDE} & {*entries})
    if together > UNPACKED:
        raise ValueError(f"its arrays unpack to {together / 2**30:.1f} GiB together; thin it out, or cut it up")
    named = [name for name in ARRAYS if name in entries]
    if not named and len(entries) != 1:
        raise ValueError(f"it holds {', '.join(entries)[:80] or 'nothing'}; name one array points, xyz or pc")

    def array(name: str) -> NDArray[Any]:
        return _unpacked(packed, entries[name], name)

    def beside(name: str) -> Floats:
        column = array(name)
        _check_real(column)
        return column[:, :3].astype(np.float64)

    shape = _shape(array(named[0] if named else next(iter(entries))), columns)
    normals = beside("normals") if "normals" in entries else shape.normals
    colours = next((beside(name) for name in BESIDE[1:] if name in entries), None)
    rgb = shape.rgb if colours is None else shades(colours)
    for values in (normals, rgb):
        if values is not None and values.shape != shape.vertices.shape:
            raise ValueError(f"normals or colours {list(values.shape)} for points {list(shape.vertices.shape)}")
    stated = {"normals": "normals" in entries, "rgb": colours is not None}
    unclear = {channel: why for channel, why in shape.unclear.items() if not stated[channel]}
    used = {named[0] if named else next(iter(entries)), *BESIDE}
    unread = (*shape.unread, *(name for name in entries if name not in used))
    return cloud(shape.vertices, normals, rgb)._replace(unclear=unclear, unread=unread)


def _unpacked(packed: zipfile.ZipFile, entry: zipfile.ZipInfo, name: str) -> NDArray[Any]:
    """One array; no more is unpacked than its header says, and that is within the limits."""
    with packed.open(entry) as raw:
        header = header_of(raw)
        check_numbers(header.needs // max(1, header.dtype.itemsize), max(1, len(header.dtype.names or ())), name)
        if header.needs > UNPACKED:
            raise ValueError(f"its array {name[:40]} unpacks to {header.needs / 2**30:.1f} GiB")
        data = raw.read(header.needs)
        check_end(len(data) + len(raw.read(1)), header.needs, f"bytes in {name[:40]}")
    array = np.frombuffer(data, header.dtype)
    return array.reshape(header.shape, order="F" if header.fortran else "C")
