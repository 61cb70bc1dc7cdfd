"""Which kinds of files are opened, and how: the formats that are meant and no other, whatever a file is called.

Pillow opens any format that it knows by how a file starts. A file ``x.jpg`` may be PostScript, which Pillow hands to
another program. So every image is opened here.
"""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path
from typing import Any

from mim_core import check_picture, one_line
from PIL import Image, UnidentifiedImageError, features

from mim_image.dicom import ENDINGS, is_dicom, read_dicom
from mim_image.tiff import Page, read_pages

_OPTIONAL = {"avif": ("AVIF", (".avif",)), "jpg_2000": ("JPEG2000", (".jp2", ".j2k", ".jpx"))}
_BUILT_IN = [kind for feature, kind in _OPTIONAL.items() if features.check(feature)]
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", *(name for name, _ in _BUILT_IN))
"""Pillow's names of the formats that are opened; MPO, of many phones, is among JPEG."""
_ALWAYS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".jfif", ".ppm", ".pgm", ".pbm", ".pnm")
EXTENSIONS = (*_ALWAYS, *(ending for _, endings in _BUILT_IN for ending in endings), *ENDINGS)
"""Endings of the names of images."""
MEMORY = 10**9
"""Bytes that reading one image may take; what would take more is refused by name."""
_BESIDE = {"WEBP": 8, "AVIF": 8, "JPEG2000": 16, "GIF": 4}
"""Bytes per pixel that the decoder of a format takes beside the image."""
_BAND = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2, "I;16N": 2}


logging.getLogger("PIL.TiffImagePlugin").addHandler(logging.NullHandler())  # it prints at each file of many bands


class UnsupportedKind(ValueError):
    """The file is whole, and is of a kind that cannot be read as it is; says what it is and what to do."""


class NoRange(UnsupportedKind):
    """Its values could be read, if the user said which are black and white."""


def open_image(file: Any) -> Image.Image:
    """The image in a file, not yet decoded. The file is a path, or open for reading.

    Raises:
        OSError: It is no regular file, or none of an image of these formats.
        ValueError: It would take minutes or gigabytes, see `mim_core.check_picture`.
        UnsupportedKind: It is a TIFF file of a kind that Pillow cannot open; says which.
    """
    if isinstance(file, (str, Path)):
        about = os.stat(file)
        if not stat.S_ISREG(about.st_mode):  # opening a pipe would wait for ever
            raise OSError("it is no regular file")
        refuse_bytes(about.st_size)
        with open(file, "rb") as stream:
            check_picture(stream)
    else:
        check_picture(file)
    try:
        return Image.open(file, formats=FORMATS)
    except UnidentifiedImageError:
        if isinstance(file, (str, Path)):
            with open(file, "rb") as stream:
                image = _otherwise(stream)
        else:
            image = _otherwise(file)
        if image is None:
            raise
        return image


def _otherwise(file: Any) -> Image.Image | None:
    """What Pillow does not know: DICOM, decoded here; None where it is not. Raises UnsupportedKind for TIFF files, and
    for DICOM that is not read."""
    if is_dicom(file):
        try:
            return read_dicom(file, MEMORY)
        except Exception as error:  # pydicom raises many kinds
            raise UnsupportedKind(one_line(error)) from error
    pages = read_pages(file)
    if pages:
        raise UnsupportedKind(unreadable(pages[0])) from None
    return None


def refuse_bytes(size: int) -> None:
    """Raises OSError where a file is longer than one image may take in memory."""
    if size > MEMORY:
        raise OSError(f"its file has {size / 1e9:.1f} GB, more than the {MEMORY / 1e9:.0f} GB that one image may take")


def unreadable(page: Page) -> str:
    """Why a TIFF file cannot be read: what it holds, and what can be done."""
    number = {1: "", 2: "signed ", 3: "floating-point ", 6: "complex "}.get(page.format, "")
    bands = "1 band" if page.samples == 1 else f"{page.samples} bands"
    marked = " that are not marked as colour" if page.samples in (3, 4) and page.photometric < 2 else ""
    return (
        f"a TIFF of {bands} of {page.bits}-bit {number}values{marked}, which cannot be read: images have 1 band (grey, "
        "of 8 to 32 bits), or 3 or 4 that are marked as RGB (of 8 or 16 bits). Save the bands that you want so; or "
        "write a data source for such files (docs/plugins.md)"
    )


def refuse_large(image: Image.Image, full: int) -> None:
    """Raises UnsupportedKind for an image that would take more memory than one may, before it is decoded.

    Args:
        image: Not yet decoded; a JPEG may have been drafted to a smaller size.
        full: Its pixels as they lie in the file.
    """
    pixels = image.width * image.height
    band = _BAND.get(image.mode, 4)
    each = 2 * band + (8 if band == 2 or image.mode in ("I", "F") else 0)  # the image and a crop of it
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        each += 8  # laid on white
    taken = pixels * (each + _BESIDE.get(image.format or "", 0))
    if image.info.get("progressive"):
        taken += full * 6  # its coefficients are all held
    if taken > MEMORY:
        raise UnsupportedKind(
            f"too large: {image.width:,} x {image.height:,} pixels would take {taken / 1e9:.1f} GB when unpacked, more "
            f"than the {MEMORY / 1e9:.0f} GB that one image may take; cut or reduce it"
        )
