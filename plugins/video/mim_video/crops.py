"""Which part of the frames a clip shows, and how it is cut out. The same part of every frame; draws come in as numbers
in [0, 1)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import UInt8
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode, functional

from mim_video.sampling import even_start

PLACES = tuple((y, x) for y in range(5) for x in range(5) if y % 2 == x % 2)
"""Places of multi-scale crops in quarters of the free room: corners, edges' middles, centre, and four between."""


class Box(NamedTuple):
    """A part of a frame, in its pixels."""

    top: int
    left: int
    height: int
    width: int


def largest(frame: tuple[int, int], size: tuple[int, int]) -> tuple[float, float]:
    """Height and width of the largest box with the sides' ratio of ``size`` that a frame holds."""
    factor = min(frame[0] / size[0], frame[1] / size[1])
    return size[0] * factor, size[1] * factor


def multi_scale(frame: tuple[int, int], size: tuple[int, int], shares: Sequence[float], draws: Sequence[float]) -> Box:
    """VideoMAE's crop: each side is one of ``shares`` of the largest box, the two at most one step apart; it lies at
    one of 13 fixed places. ``draws`` are two."""
    steps = range(len(shares))
    pairs = [(shares[i], shares[j]) for i in steps for j in steps if abs(i - j) <= 1]
    high, wide = largest(frame, size)
    share = pairs[int(draws[0] * len(pairs))]
    height, width = max(1, round(high * share[0])), max(1, round(wide * share[1]))
    y, x = PLACES[int(draws[1] * len(PLACES))]
    return Box((frame[0] - height) * y // 4, (frame[1] - width) * x // 4, height, width)


def random_resized(
    frame: tuple[int, int], size: tuple[int, int], area: tuple[float, float], draws: Sequence[float]
) -> Box:
    """A box with a share of the frame's area within ``area``, its sides' ratio 3/4 to 4/3 of that of ``size``. Where
    the frame has no room for it, both sides are made smaller alike, so that no other shape is seen than in evaluation.
    ``draws`` are four: area, ratio, and the place."""
    share = area[0] + draws[0] * (area[1] - area[0])
    ratio = size[1] / size[0] * (3 / 4) ** (1 - 2 * draws[1])
    pixels = share * frame[0] * frame[1]
    high, wide = math.sqrt(pixels / ratio), math.sqrt(pixels * ratio)
    fits = min(1.0, frame[0] / high, frame[1] / wide)
    height = min(frame[0], max(1, round(high * fits)))
    width = min(frame[1], max(1, round(wide * fits)))
    top, left = int(draws[2] * (frame[0] - height + 1)), int(draws[3] * (frame[1] - width + 1))
    return Box(top, left, height, width)


def placed(frame: tuple[int, int], size: tuple[int, int], share: float = 1.0, place: float = 0.5) -> Box:
    """``share`` of the largest box, at ``place`` along the frame's longer side, and in the middle of the other."""
    high, wide = largest(frame, size)
    height, width = max(1, round(high * share)), max(1, round(wide * share))
    y, x = (place, 0.5) if frame[0] - height > frame[1] - width else (0.5, place)
    return Box(round((frame[0] - height) * y), round((frame[1] - width) * x), height, width)


def placed_evenly(frame: tuple[int, int], size: tuple[int, int], share: float, number: int, count: int) -> Box:
    """The same at one of several places, evenly along the longer side, see `sampling.even_start`."""
    high, wide = largest(frame, size)
    height, width = max(1, round(high * share)), max(1, round(wide * share))
    free = frame[0] - height, frame[1] - width
    if free[0] >= free[1]:
        return Box(even_start(number, count, free[0]), round(free[1] / 2), height, width)
    return Box(round(free[0] / 2), even_start(number, count, free[1]), height, width)


def decode_size(frame: tuple[int, int], size: tuple[int, int], boxes: Iterable[Box]) -> tuple[int, int] | None:
    """The smallest size of whole frames at which every box still has ``size``; None when that is the file's own."""
    factor = max(max(size[0] / box.height, size[1] / box.width) for box in boxes)
    if factor >= 1:
        return None
    return math.ceil(frame[0] * factor), math.ceil(frame[1] * factor)


def cut(
    frames: UInt8[Tensor, "T H W C"], frame: tuple[int, int], box: Box, size: tuple[int, int], flip: bool = False
) -> UInt8[Tensor, "C T h w"]:
    """A box of frames, scaled to ``size``. The frames may have been scaled from ``frame``, in whose pixels the box
    is."""
    y, x = frames.shape[1] / frame[0], frames.shape[2] / frame[1]
    top, left = round(box.top * y), round(box.left * x)
    bottom, right = max(top + 1, round((box.top + box.height) * y)), max(left + 1, round((box.left + box.width) * x))
    part = frames[:, top:bottom, left:right].permute(0, 3, 1, 2)
    if part.shape[2:] != torch.Size(size):
        part = functional.resize(part, list(size), interpolation=InterpolationMode.BILINEAR, antialias=True)
    return (part.flip(3) if flip else part).permute(1, 0, 2, 3).contiguous()
