"""Surface normals as pictures of three channels: x to the right, y up or down as the files have it, z towards the
viewer, each -1 to 1 as 0 to 255."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from torch import Tensor

from mim_multimodal.crops import Cut, smooth
from mim_multimodal.files import Colour, check_pixels, open_picture


def read_normal(path: Path) -> Colour:
    """A map of normals as it lies in the file: it is not turned by an EXIF entry, which would turn its vectors too.

    Raises:
        ValueError: It has no three channels of 8 bits.
    """
    with open_picture(path) as image:
        packed = str(image.tile[0][3]) if image.tile else ""
        if image.mode != "RGB" or ";16" in packed:
            deep = "16 bits a channel" if ";16" in packed else f"mode {image.mode}"
            raise ValueError(f"a map of normals has three channels of 8 bits, and this has {deep}")
        check_pixels(*image.size)
        image.load()
        return Colour(image.copy(), (image.height, image.width), False)


def cut_out(opened: Colour, cut: Cut, size: tuple[int, int]) -> UInt8[Tensor, "3 H W"]:
    """The box of a map, scaled as colour is. Where it is flipped, what points to the right then points to the left: x
    is negated. Vectors that were mixed are a little shorter than 1, and stay so."""
    part = smooth(opened.image, cut, size)
    if cut.flip:
        part[0] = 255 - part[0]
    return part


def vectors(pixels: UInt8[Tensor, "*B 3 H W"]) -> Float[Tensor, "*B 3 H W"]:
    """From 0 to 255 as -1 to 1."""
    return pixels.float() / 127.5 - 1.0


def pixels_of(values: Float[Tensor, "3 H W"]) -> UInt8[Tensor, "3 H W"]:
    """The way back, of what a method predicts too."""
    return ((values.float() + 1.0) * 127.5).round().clamp(0, 255).byte()


def mean_length(colour: Colour) -> float:
    """Of the vectors of a map."""
    values = np.asarray(colour.image, dtype=np.float32) / 127.5 - 1.0
    return float(np.linalg.norm(values, axis=2).mean())
