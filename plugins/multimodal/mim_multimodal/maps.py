"""One file of a map: depth, or class ids. A ValueError says what is wrong with a file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import Float32, UInt8

from mim_multimodal.files import PIXELS, SIXTEEN, check_file, open_picture

IGNORE = 255
"""The id that is no class."""
FARTHEST = 1e10
"""Depths of this size and beyond mean that nothing was measured: programs that draw write 1e10 where there is nothing,
others the largest float. No unit in use makes a real depth so large."""
SATURATED = 65535
STRANGE = {
    "RGB": "a colour picture",
    "RGBA": "a colour picture",
    "P": "a picture with a palette",
    "PA": "a picture with a palette",
    "LA": "a grey picture with opacity",
    "1": "a picture of black and white",
    "F": "floats",
}


def read_depth(
    path: Path, bits: int | None = None, invalid: float | None = None, signed: bool = False
) -> Float32[np.ndarray, "H W"]:
    """A depth map in the file's own unit; NaN where nothing was measured.

    Not measured are floats that are not finite, and sizes of 1e10 and beyond; negative values, unless ``signed``; and
    with no ``invalid``, 0 and a lone 65,535 in files of whole numbers, see `_sentinels`.

    Args:
        path: A grey png of 8 or 16 bits, a tif of whole numbers or floats, or an npy of these.
        bits: 8 or 16: what the file must have. None: any.
        invalid: The value that means no measurement. None: 0 in files of whole numbers of 16 bits or more, and no
            value in others.
        signed: Negative values are measured.

    Raises:
        ValueError: Not a depth map, of another bit depth, or without any measurement; says what was found and what is
            wanted.
    """
    return measured(depth_values(path), bits, invalid, signed)


def kind_of(values: np.ndarray) -> str:
    """What a depth map's values are, for people."""
    return "floats" if values.dtype.kind == "f" else f"{8 * values.dtype.itemsize} bits"


def measured(
    values: np.ndarray, bits: int | None = None, invalid: float | None = None, signed: bool = False
) -> Float32[np.ndarray, "H W"]:
    """The values of a depth map as floats, NaN where nothing was measured; as `read_depth` has it.

    Raises:
        ValueError: The values have another number of bits, or none was measured.
    """
    own_bits = None if values.dtype.kind == "f" else 8 * values.dtype.itemsize
    if bits is not None and own_bits != bits:
        raise ValueError(f"it has {f'{own_bits} bits' if own_bits else 'floats'}, and depth_bits wants {bits} bits")
    with np.errstate(over="ignore"):  # a float of 64 bits that is none of 32
        depth = values.astype(np.float32)
    lacking = ~(depth < FARTHEST)
    lacking |= depth <= (-FARTHEST if signed else -np.finfo(np.float32).tiny)
    for none in _sentinels(values) if invalid is None else (invalid,):
        lacking |= depth == np.float32(none)
    if lacking.all():
        more = "; negative values count with --data.depth-signed" if (depth < 0).any() else ""
        raise ValueError(f"no pixel was measured: its values are {_extent(values)}{more}")
    depth[lacking] = np.nan
    return depth


def _sentinels(values: np.ndarray) -> tuple[int, ...]:
    """What means no measurement in whole numbers of 16 bits or more: 0; and 65,535 where 16 bits have no other value
    in the upper half, so that a map that was stretched to the whole range keeps its farthest pixel."""
    if values.dtype.kind == "f" or values.dtype.itemsize < 2:
        return ()
    full = values.dtype == np.uint16 and int(values.max()) == SATURATED
    return (0, SATURATED) if full and not ((values > SATURATED // 2) & (values < SATURATED)).any() else (0,)


def unmeasured(values: np.ndarray, invalid: float | None = None, signed: bool = False) -> list[str]:
    """What stands for no measurement in a map, for people; as `read_depth` has it."""
    kinds = []
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        kinds.append("NaN or infinite")
    if (np.isfinite(values) & ((values >= FARTHEST) | (values <= -FARTHEST))).any():
        kinds.append("1e10 and beyond")
    if not signed and ((values < 0) & (values > -FARTHEST)).any():
        kinds.append("negative")
    stated = _sentinels(values) if invalid is None else (invalid,)
    return kinds + [f"{none:,.9g}" for none in stated if none >= 0 and (values == none).any()]


def _extent(values: np.ndarray) -> str:
    finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    if not finite.size:
        return "NaN or infinite"
    low, high = finite.min(), finite.max()
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def read_ids(
    path: Path, classes: int | None = None, values: Sequence[int] = (), void: int | None = None
) -> UInt8[np.ndarray, "H W"]:
    """A map of class ids; 255 is no class. Of a picture with a palette the ids are its entries' numbers.

    Args:
        path: A png of 1, 8 or 16 bits, grey or with a palette.
        classes: How many there are. None: ids are not checked.
        values: What the file has for each class, in the order of ids; empty where it has the ids.
        void: An id that is no class either; those above it count one less.

    Raises:
        ValueError: Not such a map, or an id that is no class.
    """
    return ids_of(id_values(path), classes, values, void)


def id_values(path: Path) -> np.ndarray:
    """A map of class ids as the file has it: uint8 or uint16 [H, W]."""
    return _grey(path, "a map of class ids", ids=True)


def ids_of(
    ids: np.ndarray, classes: int | None = None, values: Sequence[int] = (), void: int | None = None
) -> UInt8[np.ndarray, "H W"]:
    """The values of a map as class ids; as `read_ids` has it.

    Raises:
        ValueError: An id is beyond the last class.
    """
    if values:
        return _of_values(ids, values)
    none, class_ids = ids == IGNORE, ids
    if void is not None:
        none, class_ids = none | (ids == void), ids.astype(np.int32) - (ids > void)
    wrong = (class_ids >= (IGNORE if classes is None else classes)) & ~none
    if wrong.any():
        count = f"there are {classes} classes, ids 0 to {classes - 1}" if classes else "ids are 0 to 254"
        more = "" if void is None else f", once {void} is taken out (--data.void)"
        raise ValueError(f"it has the id {int(ids[wrong].max())}, but {count}{more}, and {IGNORE} for none")
    return np.where(none, IGNORE, class_ids).astype(np.uint8)


def _of_values(pixels: np.ndarray, values: Sequence[int]) -> UInt8[np.ndarray, "H W"]:
    """The number in the list of every value; 255 where it is 255 and not listed."""
    table = np.full(1 << 16, -1, np.int16)
    table[IGNORE] = IGNORE
    table[list(values)] = np.arange(len(values))
    ids = np.empty(pixels.shape, np.uint8)
    for row, line in enumerate(pixels):  # an index takes eight bytes a pixel
        classes = table[line]
        if (classes < 0).any():
            strange = int(line[classes < 0][0])
            raise ValueError(f"it has the value {strange}; --data.values lists {', '.join(map(str, values))}")
        ids[row] = classes
    return ids


def depth_kind(path: Path) -> str:
    """What a depth map's values are, by the file's head: "8 bits", "16 bits", "floats", or another kind's name."""
    check_file(path)
    if path.suffix.lower() == ".npy":
        with open(path, "rb") as file:
            dtype = _head(file)[1]
        return "floats" if dtype.kind == "f" else f"{8 * dtype.itemsize} bits"
    with open_picture(path) as image:
        sixteen = image.mode in SIXTEEN or (image.mode == "I" and image.format == "PNG")
        return (
            "16 bits"
            if sixteen
            else {"L": "8 bits", "I": "32 bits", "F": "floats"}.get(image.mode, f"mode {image.mode}")
        )


def depth_values(path: Path) -> np.ndarray:
    """A depth map as the file has it: whole numbers or floats [H, W]."""
    check_file(path)
    values = _array(path) if path.suffix.lower() == ".npy" else _grey(path, "a depth map")
    return values.astype(np.float32) if values.dtype == np.float16 else values  # whose largest value is 65,504


def _head(file: BinaryIO) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of an npy file, of which its bytes must be as many as it says."""
    if file.read(6) != np.lib.format.MAGIC_PREFIX:
        raise ValueError("it is no file of an array, as numpy.save writes it")
    file.seek(0)
    version = np.lib.format.read_magic(file)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"it is an npy file of version {version[0]}.{version[1]}, and 1.0 and 2.0 are read")
    try:
        shape, _, dtype = readers[version](file)
    except Exception as error:  # the head is parsed as Python, which fails in many ways
        raise ValueError("its head cannot be read: the file is damaged or cut short") from error
    if dtype.kind not in "uif" or min(shape, default=0) < 0:
        kind = "Python objects, which would have to be run" if dtype.hasobject else str(dtype.name)
        raise ValueError(f"a depth map has whole numbers or floats, and this has {kind}")
    count, rest = int(np.prod([*map(int, shape)], dtype=object)), os.fstat(file.fileno()).st_size - file.tell()
    if count > PIXELS:
        raise ValueError(f"it has {count:,} values, and at most {PIXELS // 10**6} million are read; make it smaller")
    if count * dtype.itemsize != rest:
        raise ValueError(
            f"its head says {list(shape)} of {dtype.name}, {count * dtype.itemsize:,} bytes, and {rest:,} follow: it "
            "is damaged or cut short"
        )
    return shape, dtype


def _array(path: Path) -> np.ndarray:
    with open(path, "rb") as file:
        shape, _ = _head(file)
        axes = [size for i, size in enumerate(shape) if not (len(shape) == 3 and size == 1 and i in _channel(shape))]
        if len(axes) != 2 or 0 in axes:
            raise ValueError(f"a depth map is an array [H, W], and this is {list(shape)}")
        file.seek(0)
        values = np.load(file, allow_pickle=False)
    return np.asarray(values.reshape(axes))


def _channel(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The axis of one that is left out of three: the last, or else the first."""
    return (2,) if shape[2] == 1 else (0,)


def _grey(path: Path, what: str, ids: bool = False) -> np.ndarray:
    """Values of a grey picture as they are in the file: bool, uint8, uint16, int32, or float32."""
    with open_picture(path) as image:
        mode = image.mode
        packed = str(image.tile[0][3]) if image.tile else ""
        if mode == "L" and (";2" in packed or ";4" in packed):
            raise ValueError(f"a grey picture of {packed[packed.index(';') + 1]} bits is stretched by readers; use 8")
        if ids and image.format == "JPEG":
            raise ValueError("it is a JPEG, whose values are blurred and no ids; write maps of class ids as png")
        # 16-bit png is "I" in older versions of Pillow; elsewhere "I" has 32 bits
        kind = "I;16" if mode in SIXTEEN or (mode == "I" and image.format == "PNG") else mode
        allowed = {"L", "I;16"} | ({"P", "1"} if ids else {"I", "F"})
        if kind in ("RGB", "RGBA") and ids:
            raise ValueError(
                f"{what} has the number of a class in each pixel, grey or with a palette, and this is a colour picture "
                f"(mode {mode}): is it another modality's folder (--data.folders semseg FOLDER), or a map drawn in "
                "colours?"
            )
        if kind not in allowed:
            raise ValueError(
                f"{what} is grey with 8 or 16 bits, and this is {STRANGE.get(mode, 'of another kind')} (mode {mode})"
            )
        values = np.asarray(image)
    types = {"I;16": np.uint16, "I": np.int32, "F": np.float32}
    return values.astype(types.get(kind, np.uint8), copy=False)
