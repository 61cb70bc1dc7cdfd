"""Which part of an item's pictures is shown, and how it is cut out: the same part at every resolution. Draws come in as
numbers in [0, 1)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Shaped, UInt8
from PIL import Image
from torch import Tensor

TRIES = 10
DRAWS = 4 * TRIES + 1
"""How many draws a random crop takes: four for every try, and one for the flip."""


PICTURES = ("rgb", "depth", "normal", "semseg")
SHAPES = "rgb (3, H, W), depth (1, H, W), normal (3, H, W), semseg (h, w) and caption (L,)"


class Box(NamedTuple):
    """A part of a frame, in the frame's pixels."""

    top: float
    left: float
    height: float
    width: float


class Cut(NamedTuple):
    """What is done to all pictures of an item: a box of the frame, whose height and width are ``frame``; then perhaps
    a flip."""

    frame: tuple[int, int]
    box: Box
    flip: bool = False


def random_resized(
    frame: tuple[int, int],
    size: tuple[int, int],
    area: tuple[float, float],
    ratio: tuple[float, float],
    draws: Sequence[float],
) -> Box:
    """A box with a share of the frame's area within ``area`` and its sides' ratio (width to height, relative to that of
    ``size``) within ``ratio``, log-uniformly; of ten tries the first that the frame has room for, else the largest
    centred box (Inception's crop, arXiv 1409.4842, section 6)."""
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for try_ in range(TRIES):
        share, shape, y, x = draws[4 * try_ : 4 * try_ + 4]
        pixels = (area[0] + share * (area[1] - area[0])) * frame[0] * frame[1]
        wide = size[1] / size[0] * math.exp(low + shape * (high - low))
        height, width = max(1, round(math.sqrt(pixels / wide))), max(1, round(math.sqrt(pixels * wide)))
        if height <= frame[0] and width <= frame[1]:
            top, left = int(y * (frame[0] - height + 1)), int(x * (frame[1] - width + 1))
            return Box(top, left, height, width)
    return centred(frame, size)


def centred(frame: tuple[int, int], size: tuple[int, int], share: float = 1.0) -> Box:
    """The middle of a frame: ``share`` of the sides of the largest box with the sides' ratio of ``size``."""
    factor = share * min(frame[0] / size[0], frame[1] / size[1])
    height, width = size[0] * factor, size[1] * factor
    return Box((frame[0] - height) / 2, (frame[1] - width) / 2, height, width)


def smooth(image: Image.Image, cut: Cut, size: tuple[int, int]) -> UInt8[Tensor, "3 H W"]:
    """The box of a picture, scaled to ``size`` by bicubic interpolation that smooths when it makes smaller. The picture
    may have another resolution than the frame."""
    y, x = image.height / cut.frame[0], image.width / cut.frame[1]
    top, left, height, width = cut.box
    box = (left * x, top * y, min((left + width) * x, image.width), min((top + height) * y, image.height))
    part = image.resize((size[1], size[0]), Image.Resampling.BICUBIC, box=box)
    pixels = torch.from_numpy(np.array(part)).permute(2, 0, 1)
    return (pixels.flip(2) if cut.flip else pixels).contiguous()


def nearest(values: Shaped[np.ndarray, "h w"], cut: Cut, size: tuple[int, int]) -> Shaped[Tensor, "H W"]:
    """The box of a map of values that cannot be mixed: each output pixel is the input pixel under its middle. The map
    may have another resolution than the frame."""
    top, left, height, width = cut.box
    rows = _places(top, height, size[0], cut.frame[0], values.shape[0])
    columns = _places(left, width, size[1], cut.frame[1], values.shape[1])
    part = torch.from_numpy(values[rows[:, None], columns[None, :]])
    return (part.flip(1) if cut.flip else part).contiguous()


def _places(start: float, length: float, count: int, frame: int, pixels: int) -> np.ndarray:
    middles = start + (np.arange(count) + 0.5) * length / count
    return np.clip(np.floor(middles * pixels / frame), 0, pixels - 1).astype(np.int64)


def whole_factor(frame: tuple[int, int], size: tuple[int, int]) -> bool:
    """Whether one of two sizes is the other times a whole number, the same on both axes."""
    small, large = sorted((frame, size))
    factor = large[0] // max(1, small[0])
    return (small[0] * factor, small[1] * factor) == large


def largest_size(shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int]:
    """Height and width of the finest pictures of those that are wanted.

    Raises:
        ValueError: A modality or a shape that this source does not give.
    """
    wanted = ", ".join(f"{name} {tuple(shape)}" for name, shape in shapes.items())
    heads: dict[str, tuple[int, ...]] = {"rgb": (3,), "depth": (1,), "normal": (3,), "semseg": (), "caption": ()}
    for name, shape in shapes.items():
        axes = 1 if name == "caption" else 2
        if name not in heads or tuple(shape[:-axes]) != heads[name] or len(shape) != len(heads[name]) + axes:
            raise ValueError(f"aligned data gives {SHAPES}; the tokenizers want {wanted}")
    sizes = [(shapes[name][-2], shapes[name][-1]) for name in PICTURES if name in shapes]
    if not sizes:
        raise ValueError(
            f"aligned data needs at least one of rgb, depth, normal and semseg; the tokenizers want {wanted}"
        )
    height, width = max(sizes)
    if any(height * w != width * h for h, w in sizes):
        raise ValueError(f"pictures that show the same part need sides of one ratio; the tokenizers want {wanted}")
    return height, width
