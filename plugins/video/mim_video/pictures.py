"""Clips as pictures: a film strip, and a GIF."""

from __future__ import annotations

import io

import numpy as np
import torch
from jaxtyping import UInt8
from mim_core import Picture
from PIL import Image
from torch import Tensor

WIDTH = 112
"""Frames are shown at least this wide, so that small ones can be seen."""


def film_strip(frames: UInt8[Tensor, "T H W C"], most: int = 8) -> Picture:
    """Up to ``most`` frames side by side, evenly over the clip, the first and the last among them, as PNG."""
    chosen = torch.linspace(0, len(frames) - 1, min(most, len(frames))).round().long()
    shown = [np.asarray(image) for image in _images(frames[chosen])]
    gap = np.full((shown[0].shape[0], 2, 3), 255, np.uint8)
    row = [part for image in shown for part in (image, gap)][:-1]
    return _picture(Image.fromarray(np.concatenate(row, axis=1)), "png")


def moving(frames: UInt8[Tensor, "T H W C"], milliseconds: int = 120) -> Picture:
    """The clip as a GIF that starts again for ever."""
    first, *others = (image.quantize(64) for image in _images(frames))
    return _picture(first, "gif", save_all=True, append_images=others, duration=milliseconds, loop=0)


def _images(frames: Tensor) -> list[Image.Image]:
    factor = max(1, -(-WIDTH // frames.shape[2]))
    size = (frames.shape[2] * factor, frames.shape[1] * factor)
    pixels = frames.expand(*frames.shape[:3], 3).contiguous().numpy()
    return [Image.fromarray(frame).resize(size, Image.Resampling.NEAREST) for frame in pixels]


def _picture(image: Image.Image, kind: str, **options: object) -> Picture:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return Picture(f"image/{kind}", content.getvalue())
