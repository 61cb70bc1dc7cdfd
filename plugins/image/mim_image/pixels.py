"""From any image file's mode to grey, colour, or four channels."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image, ImageOps

from mim_image.formats import NoRange, UnsupportedKind

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
DEEP = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")
"""Modes of grey with more than 8 bits."""
OPACITY = ("RGBA", "LA", "PA", "RGBa", "La")
Range = tuple[float, float]


def raw_mode(image: Image.Image) -> str:
    """How the values lie in the file, by Pillow's name, such as "RGB;16B"; "" where Pillow does not tell. To be asked
    before the image is decoded."""
    for tile in getattr(image, "tile", ()):
        arguments = tile[3] if isinstance(tile[3], tuple) else (tile[3],)
        for argument in arguments:
            if isinstance(argument, str):
                return argument
    return ""


def tag(image: Image.Image, number: int, default: int) -> int:
    """The first value of a tag of a TIFF file."""
    value = getattr(image, "tag_v2", {}).get(number, default) if image.format == "TIFF" else default
    value = value[0] if isinstance(value, tuple) and value else value
    return value if isinstance(value, int) else default


def full_range(image: Image.Image) -> Range | None:
    """The values that are black and white by a file's kind; None where the kind does not say, as for floats."""
    if image.mode == "F" or (image.format == "TIFF" and tag(image, 339, 1) != 1):
        return None
    if image.mode == "I" and image.format == "TIFF" and tag(image, 258, 32) > 16:
        return None
    if image.mode not in DEEP:
        return (0, 255)
    return (0, 4095) if tag(image, 258, 16) == 12 else (0, 65535)


def is_deep_colour(image: Image.Image) -> bool:
    """Whether the file has more than 8 bits of colour, of which Pillow reads the upper 8."""
    return image.mode not in DEEP and ";16" in raw_mode(image)


def deep_values(image: Image.Image) -> Any:
    """The values of grey of more than 8 bits, or of signed ones, as the file means them: an array [H, W]."""
    values = np.asarray(image)
    kind = tag(image, 339, 1)
    if image.mode == "L" and kind == 2:
        return values.view(np.int8)
    if image.mode == "I" and kind == 1 and tag(image, 258, 16) == 32:
        values = values.view(np.uint32)
    if image.format == "TIFF" and tag(image, 262, 1) == 0 and image.mode != "F" and kind == 1:  # 0 is white
        values = {12: 4095, 16: 65535}.get(tag(image, 258, 16), 2**32 - 1) - values
    return values


def check_kind(image: Image.Image, channels: int, limits: Range | None = None) -> None:
    """Whether an image that is not yet decoded is of a kind that can be read.

    Raises:
        UnsupportedKind: Its kind does not say which values are black and white, and ``limits`` do not either; or it is
            one that cannot be read as colour.
    """
    if limits is not None and is_deep_colour(image):
        raise UnsupportedKind("colour of 16 bits, of which the upper 8 are read, so --data.range cannot hold for it")
    if image.mode not in DEEP and tag(image, 258, 8) > 8 and not is_deep_colour(image):  # Pillow takes it for 8 bits
        bits = tag(image, 258, 8)
        raise UnsupportedKind(f"colour of {bits} bits with one plane after the other, which cannot be read: save it "
                              "pixel by pixel, or in 8 bits")  # fmt: skip
    if image.mode == "LAB":
        raise UnsupportedKind("colour in Lab, which cannot be read: save it as RGB")
    if full_range(image) is None or image.mode in DEEP:
        bits = tag(image, 258, 32)
        kind = {2: "signed values", 3: "floating-point values"}.get(tag(image, 339, 1), "values")
        kind = "floating-point values" if image.mode == "F" else kind
        if image.mode not in ("L", *DEEP):
            raise UnsupportedKind(f"{image.mode} of {bits}-bit {kind}, which cannot be read: save it in 8 bits")
        if limits is None and full_range(image) is None:
            raise NoRange(f"grey of {bits}-bit {kind}, which have no known range; say which are black and white: "
                          "--data.range LOW HIGH")  # fmt: skip
    if channels == 4 and raw_mode(image).startswith("RGBXX"):
        raise UnsupportedKind(f"a TIFF of {tag(image, 277, 5)} bands; images have 1 (grey), 3 (colour) or 4")


def convert_mode(image: Image.Image, channels: int, limits: Range | None = None) -> Image.Image:
    """The image upright, as "L", "RGB" or "RGBX" of 8 bits; or as "F", grey in units of 1/255 that keeps its levels,
    where the file has more bits.

    Applies the EXIF rotation; CMYK becomes colour; transparent parts become white unless there are four channels. Of
    these the fourth is the file's opacity, or its fourth band, or 255.

    Args:
        image: Not yet decoded.
        channels: 1, 3 or 4.
        limits: Values of the file that become 0 and 255 of grey with more than 8 bits. None: its whole range.

    Raises:
        UnsupportedKind: See `check_kind`.
    """
    check_kind(image, channels, limits)
    raw, full = raw_mode(image), full_range(image)
    if full is None or image.mode in DEEP:
        return _deep(image, limits or full or (0, 255))
    if raw == "RGBX" and channels == 4:
        return _four_bands(image)
    if raw.startswith("LX"):
        image.load()
        image = _upright(image).getchannel(0)
    image = _upright(image)
    if image.mode == "La":
        image = image.convert("LA")
    if (image.mode in OPACITY or "transparency" in image.info) and channels != 4:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    image.load()
    mode = MODES[channels]
    image = image if image.mode == mode else image.convert(mode)
    return _as_values(image) if channels == 4 else image


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of an image, decoded or not, once it is turned as its EXIF says."""
    width, height = image.size
    return (height, width) if image.getexif().get(0x0112, 1) in (5, 6, 7, 8) else (width, height)


def _upright(image: Image.Image) -> Image.Image:
    upright = ImageOps.exif_transpose(image)
    return upright if upright is not None else image


def _as_values(image: Image.Image) -> Image.Image:
    """Four channels that are resized each on its own; those of "RGBA" are weighted by opacity."""
    return Image.merge("RGBX", image.split())


def _four_bands(image: Image.Image) -> Image.Image:
    """A TIFF of four bands; Pillow reads it as colour, and keeps the fourth band only beside it."""
    image.load()
    bands = Image.frombytes("RGBX", image.size, image.tobytes("raw", "RGBX"))
    orientation = image.getexif().get(0x0112, 1)
    bands.getexif()[0x0112] = orientation
    return _upright(bands)


def _deep(image: Image.Image, limits: Range) -> Image.Image:
    """Grey in units of 1/255 that keeps its levels; what lies beyond the limits is black or white."""
    upright = image.getexif().get(0x0112, 1)
    low, high = limits
    values = deep_values(image)
    values = values.astype(np.float32 if values.dtype.itemsize < 4 or image.mode == "F" else np.float64)
    if not np.isfinite(values.sum(dtype=np.float64)) and not np.isfinite(values).all():
        raise ValueError("it holds values that are not finite")
    values -= low
    values *= 255 / (high - low)
    done = Image.fromarray(np.clip(values, 0, 255, out=values).astype(np.float32, copy=False))
    done.getexif()[0x0112] = upright
    return _upright(done)


def bands_of(image: Image.Image, channels: int) -> Any:
    """An image as `convert_mode` leaves it, as an array [C, H, W] of uint8 or float32."""
    array = np.array(image)
    array = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
    if image.mode != "F":
        return array
    array = np.repeat(np.clip(array, 0, 255), min(channels, 3), axis=0)  # a bicubic curve may overshoot
    return np.concatenate([array, np.full_like(array[:1], 255)]) if channels == 4 else array
