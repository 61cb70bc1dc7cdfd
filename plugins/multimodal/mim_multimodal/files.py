"""One file of a modality each: colour, depth, class ids, captions. A ValueError says what is wrong with a file."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image, ImageOps

IGNORE = 255
"""The id that is no class."""
ORIENTATION = 0x0112
SIXTEEN = ("I;16", "I;16B", "I;16L", "I;16N")
STRANGE = {
    "RGB": "a colour picture",
    "RGBA": "a colour picture",
    "P": "a picture with a palette",
    "PA": "a picture with a palette",
    "LA": "a grey picture with opacity",
    "1": "a picture of black and white",
    "I": "32-bit whole numbers",
    "F": "floats",
}


class Colour(NamedTuple):
    """An upright colour picture, which may have been decoded smaller than it is.

    Attributes:
        image: Mode RGB.
        size: Height and width of the whole picture.
        turned: Its EXIF entry says that it lies on its side, so that height and width were swapped.
    """

    image: Image.Image
    size: tuple[int, int]
    turned: bool


def check_file(path: Path) -> None:
    """Opening a pipe would wait for ever.

    Raises:
        ValueError: It is no regular file.
    """
    if not path.is_file():
        raise ValueError("it is no regular file")
    if path.stat().st_size == 0:
        raise ValueError("the file is empty: it has no bytes")


def read_rgb(path: Path, side: int = 0) -> Colour:
    """A picture in 8-bit colour, upright by its EXIF entry. 16-bit grey is scaled, transparent parts become white.

    Args:
        path: The file.
        side: Large JPEGs may be decoded at a reduced size whose sides are at least this; 0 for the whole size.
    """
    check_file(path)
    with Image.open(path) as image:
        width, height = image.size
        if side:
            image.draft(None, (side, side))
        turned = image.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)
        upright = ImageOps.exif_transpose(image)
        upright.load()
    if upright.mode in (*SIXTEEN, "I"):
        values = np.clip(np.asarray(upright).astype(np.int64), 0, 65535)
        upright = Image.fromarray((values / 257).round().astype(np.uint8))
    elif upright.mode == "F":
        raise ValueError("32-bit float images have no known range of colours")
    if upright.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in upright.info:
        upright = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", upright.size, (255, 255, 255, 255)), upright)
    return Colour(upright.convert("RGB"), (width, height) if turned else (height, width), turned)


def read_depth(path: Path, bits: int | None = None, invalid: float | None = None) -> Float32[np.ndarray, "H W"]:
    """A depth map in the file's own unit; NaN where nothing was measured.

    Args:
        path: A grey png or tif of 8 or 16 bits, a tif of floats, or an npy of uint8, uint16 or floats.
        bits: 8 or 16: what the file must have. None: any.
        invalid: The value that means no measurement. None: 0 in files of 16 bits, and no value in others. Floats that
            are not finite mean it too.

    Raises:
        ValueError: Not a depth map, or of another bit depth; says what was found and what is wanted.
    """
    values = _depth_values(path)
    found = {"uint8": 8, "uint16": 16}.get(values.dtype.name)
    if bits is not None and found != bits:
        raise ValueError(f"it has {f'{found} bits' if found else 'floats'}, and depth_bits wants {bits} bits")
    none = 0.0 if invalid is None and found == 16 else invalid
    depth = values.astype(np.float32)
    lacking = ~np.isfinite(depth)
    if none is not None:
        lacking |= depth == none
    depth[lacking] = np.nan
    return depth


def read_ids(path: Path, classes: int | None = None) -> UInt8[np.ndarray, "H W"]:
    """A map of class ids; 255 is no class. Of a picture with a palette the ids are its entries' numbers.

    Args:
        path: A png of 8 or 16 bits, grey or with a palette.
        classes: How many there are. None: ids are not checked.

    Raises:
        ValueError: Not such a map, or an id that is no class.
    """
    check_file(path)
    ids = _grey(path, "a map of class ids", palette=True)
    wrong = ids >= (IGNORE if classes is None else classes)
    wrong &= ids != IGNORE
    if wrong.any():
        count = f"there are {classes} classes, ids 0 to {classes - 1}" if classes else "ids are 0 to 254"
        raise ValueError(f"it has the id {int(ids[wrong].max())}, but {count}, and {IGNORE} for none")
    return ids.astype(np.uint8)


def read_text(path: Path) -> str:
    """A caption; line breaks are spaces.

    Raises:
        ValueError: It is empty or not UTF-8.
    """
    check_file(path)
    text = " ".join(path.read_text(encoding="utf-8-sig").split())
    if not text:
        raise ValueError("the caption is empty")
    return text


def depth_kind(path: Path) -> str:
    """What a depth map's values are, by the file's head: "8 bits", "16 bits", "floats", or another kind's name."""
    check_file(path)
    if path.suffix.lower() == ".npy":
        name = np.load(path, mmap_mode="r", allow_pickle=False).dtype.name
        return {"uint8": "8 bits", "uint16": "16 bits"}.get(name, "floats" if name.startswith("float") else name)
    with Image.open(path) as image:
        sixteen = image.mode in SIXTEEN or (image.mode == "I" and image.format == "PNG")
        return "16 bits" if sixteen else {"L": "8 bits", "F": "floats"}.get(image.mode, f"mode {image.mode}")


def _depth_values(path: Path) -> np.ndarray:
    check_file(path)
    return _array(path) if path.suffix.lower() == ".npy" else _grey(path, "a depth map", floats=True)


def _array(path: Path) -> np.ndarray:
    with open(path, "rb") as file:
        if file.read(6) != np.lib.format.MAGIC_PREFIX:
            raise ValueError("it is no file of an array, as numpy.save writes it")
    values = np.load(path, allow_pickle=False)
    if values.ndim == 3 and 1 in (values.shape[0], values.shape[2]):
        values = values.squeeze(2 if values.shape[2] == 1 else 0)
    if values.ndim != 2 or 0 in values.shape:
        raise ValueError(f"a depth map is an array [H, W], and this is {list(values.shape)}")
    if values.dtype.name not in ("uint8", "uint16") and values.dtype.kind != "f":
        raise ValueError(f"a depth map has uint8, uint16 or floats, and this has {values.dtype.name}")
    return np.asarray(values)


def _grey(path: Path, what: str, palette: bool = False, floats: bool = False) -> np.ndarray:
    """Values of a grey picture as they are in the file: uint8, uint16, or float32 where allowed."""
    with Image.open(path) as image:
        mode = image.mode
        packed = str(image.tile[0][3]) if image.tile else ""
        if mode == "L" and (";2" in packed or ";4" in packed):
            raise ValueError(f"a grey picture of {packed[packed.index(';') + 1]} bits is stretched by readers; use 8")
        # 16-bit png is "I" in older versions of Pillow; elsewhere "I" has 32 bits
        kind = "I;16" if mode in SIXTEEN or (mode == "I" and image.format == "PNG") else mode
        allowed = {"L", "I;16"} | ({"P"} if palette else set()) | ({"F"} if floats else set())
        if kind in ("RGB", "RGBA") and palette:
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
    return values.astype({"I;16": np.uint16, "F": np.float32}.get(kind, np.uint8))
