"""Modalities as pictures: colour as it is, depth by viridis with near bright, class ids by a fixed palette, captions as
text."""

from __future__ import annotations

import colorsys
import io
import textwrap

import numpy as np
from jaxtyping import Float, Int, UInt8
from mim_core.data import Picture
from PIL import Image, ImageDraw
from torch import Tensor

WIDTH = 112
"""Pictures are shown at least this wide, so that small ones can be seen."""
VIRIDIS = (
    *((68, 1, 84), (72, 40, 120), (62, 74, 137), (49, 104, 142), (38, 130, 142)),
    *((31, 158, 137), (53, 183, 121), (109, 205, 89), (180, 222, 44), (253, 231, 37)),
)
"""Ten even steps of matplotlib's colour map of this name (CC0)."""
REACH = 3.0
"""Standardised depths are shown from minus to plus this; all alike, so that pictures can be compared."""
NONE = (64, 64, 64)
"""Colour of what is no class."""


def colour(pixels: UInt8[Tensor, "3 H W"]) -> Picture:
    """A picture as PNG."""
    return _png(pixels.cpu().permute(1, 2, 0).numpy())


def depth_map(depth: Float[Tensor, "1 H W"]) -> Picture:
    """A standardised depth map: near is yellow, far is violet."""
    values = np.nan_to_num(depth[0].float().cpu().numpy())
    near = np.clip((REACH - values) / (2 * REACH), 0, 1) * (len(VIRIDIS) - 1)
    table = np.array(VIRIDIS, np.float64)
    below = np.floor(near).astype(int).clip(max=len(VIRIDIS) - 2)
    share = (near - below)[..., None]
    return _png((table[below] * (1 - share) + table[below + 1] * share).round().astype(np.uint8))


def class_map(ids: Int[Tensor, "h w"]) -> Picture:
    """A map of class ids by `palette`; what is no class is dark grey."""
    values = ids.cpu().numpy()
    return _png(palette()[np.where((values >= 0) & (values < 255), values, 255)])


def palette() -> UInt8[np.ndarray, "256 3"]:
    """A colour for every id: hues a golden angle apart, in three kinds of brightness; 255 is dark grey."""
    kinds = ((0.65, 0.95), (0.9, 0.7), (0.35, 0.85))
    rows = [colorsys.hsv_to_rgb(i * 0.618034 % 1, *kinds[i % 3]) for i in range(255)]
    return np.array([*([round(255 * c) for c in row] for row in rows), NONE], np.uint8)


def text(caption: str, width: int = 2 * WIDTH) -> Picture:
    """A caption in black on white."""
    lines = textwrap.wrap(caption, width // 6) or [""]
    image = Image.new("RGB", (width, max(WIDTH // 2, 14 * len(lines) + 8)), (255, 255, 255))
    ImageDraw.Draw(image).multiline_text((4, 4), "\n".join(lines), fill=(0, 0, 0), spacing=3)
    return _encoded(image, drawn=True)


def _png(pixels: np.ndarray) -> Picture:
    image = Image.fromarray(pixels)
    factor = max(1, -(-WIDTH // image.width))
    return _encoded(image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST))


def _encoded(image: Image.Image, drawn: bool = False) -> Picture:
    content = io.BytesIO()
    image.save(content, "png")
    return Picture("image/png", content.getvalue(), drawn)
