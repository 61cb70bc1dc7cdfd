"""One file of a picture or a caption: what is opened at all, colour, and text. A ValueError says what is wrong."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
from mim_core import check_picture
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
"""What is opened, whatever a file is called; Pillow knows others, of which some start programs."""
PIXELS = 50_000_000
"""Most pixels of a picture once it is decoded: three pictures of an item are in memory together."""
WHOLE = 120_000_000
"""Most pixels of a JPEG, which may be decoded at a reduced size."""
CHARACTERS = 10_000
"""Longest caption."""
ORIENTATION = 0x0112
BANDS, EXTRA = 277, 338
"""Entries of a TIFF: how many values a pixel has, and what those beyond colour mean."""
OPACITY = (1, 2)
SIXTEEN = ("I;16", "I;16B", "I;16L", "I;16N")


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


def open_picture(path: Path, whole: bool = True) -> ImageFile.ImageFile:
    """A picture that is not yet decoded, to be closed by the caller.

    Args:
        path: The file.
        whole: It will be decoded as it is, so its size is checked.

    Raises:
        ValueError: It is of no known format, too large, or has several pages.
    """
    check_file(path)
    with open(path, "rb") as stream:
        check_picture(stream)
    try:
        # its size is checked below, in words of our own
        with warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning):
            image = Image.open(path, formats=FORMATS)
    except UnidentifiedImageError as error:
        with open(path, "rb") as file:
            tiff = file.read(3) in (b"II*", b"II+", b"MM\0")
        known = (
            "its bands are none that can be read" if tiff else f"known by their first bytes are {', '.join(FORMATS)}"
        )
        raise ValueError(f"it is no picture that can be read; {known}") from error
    try:
        if image.format in ("TIFF", "GIF", "WEBP") and getattr(image, "is_animated", False):
            raise ValueError("it has several pages, and an item is one picture; write each page to a file of its own")
        if whole:
            check_pixels(*image.size)
    except BaseException:
        image.close()
        raise
    return image


def check_pixels(width: int, height: int) -> None:
    """Raises ValueError for a size that would fill the memory."""
    if width * height > PIXELS:
        raise ValueError(
            f"it has {width:,} x {height:,} pixels, and at most {PIXELS // 10**6} million are read; make it smaller, "
            "or cut it up"
        )


def read_rgb(path: Path, side: int = 0) -> Colour:
    """A picture in 8-bit colour, upright by its EXIF entry. 16-bit grey is scaled, transparent parts become white.

    Args:
        path: The file.
        side: Large JPEGs may be decoded at a reduced size whose sides are at least this; 0 for the whole size.

    Raises:
        ValueError: It cannot be taken for colours; says what was found.
    """
    with open_picture(path, whole=False) as upright:
        width, height = upright.size
        if side and width * height <= WHOLE:
            upright.draft(None, (side, side))  # JPEG alone
        check_pixels(*upright.size)
        _check_bands(upright)
        turned = upright.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)
        upright.load()
        ImageOps.exif_transpose(upright, in_place=True)
        done = _colours(upright)
    return Colour(done, (width, height) if turned else (height, width), turned)


def _check_bands(image: Image.Image) -> None:
    """Raises ValueError for values that are no colours, or more than colours."""
    if image.mode == "F":
        raise ValueError("32-bit float images have no known range of colours")
    if image.format != "TIFF":
        return
    if image.mode == "I":
        raise ValueError("32-bit whole numbers have no known range of colours")
    tags = image.tag_v2  # type: ignore[attr-defined]
    bits, raw = max(tags.get(258, (8,))), str(getattr(image, "tile", ""))
    if image.mode not in (*SIXTEEN, "I", "F") and bits > 8 and ";16" not in raw:  # Pillow takes it for 8 bits
        raise ValueError(f"its colours have {bits} bits with one plane after the other; save it in 8 bits")
    bands, extra = int(tags.get(BANDS, 1)), tags.get(EXTRA, ())
    known = {"L": 1, "RGB": 3, "CMYK": 4}.get(image.mode, bands)
    opaque = [kind for kind in extra if kind in OPACITY]
    if bands > known + len(opaque) or (image.mode == "RGBA" and not opaque):
        raise ValueError(f"it has {bands} bands, and rgb takes 3, or a 4th of opacity; keep red, green and blue")


def _colours(image: Image.Image) -> Image.Image:
    """Mode RGB of a decoded picture."""
    if image.mode in (*SIXTEEN, "I"):
        return Image.fromarray(_eight_bits(np.asarray(image))).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        return _on_white(image.convert("RGBA"))
    return image.convert("RGB")


def _eight_bits(values: np.ndarray, part: int = 1 << 20) -> np.ndarray:
    """16 bits as 8, a part at a time, because whole numbers of 64 bits take eight times the file's memory."""
    flat, done = values.reshape(-1), np.empty(values.size, np.uint8)
    for start in range(0, len(flat), part):
        some = np.clip(flat[start : start + part].astype(np.int64), 0, 65535)
        done[start : start + part] = (some / 257).round()
    return done.reshape(values.shape)


def _on_white(image: Image.Image, pixels: int = 1 << 22) -> Image.Image:
    """RGBA on white, some rows at a time."""
    done, (width, height) = Image.new("RGB", image.size), image.size
    rows = max(1, pixels // max(1, width))
    for top in range(0, height, rows):
        part = image.crop((0, top, width, min(top + rows, height)))
        white = Image.new("RGBA", part.size, (255, 255, 255, 255))
        done.paste(Image.alpha_composite(white, part).convert("RGB"), (0, top))
    return done


def read_text(path: Path) -> str:
    """A caption; line breaks are spaces.

    Raises:
        ValueError: It is empty, not UTF-8, or no caption's length.
    """
    check_file(path)
    size = path.stat().st_size
    if size > 4 * CHARACTERS:
        raise ValueError(f"it has {size:,} bytes, and a caption at most {CHARACTERS:,} characters")
    try:
        return check_caption(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 (byte {error.start}); save it as UTF-8") from error


def check_caption(text: str) -> str:
    """The caption in one line.

    Raises:
        ValueError: It is empty, longer than any caption, or has NUL characters.
    """
    if "\0" in text:
        raise ValueError("it has NUL characters; save it as UTF-8")
    text = " ".join(text.split())
    if not text:
        raise ValueError("the caption is empty")
    if len(text) > CHARACTERS:
        raise ValueError(f"the caption has {len(text):,} characters, and may have {CHARACTERS:,}")
    return text
