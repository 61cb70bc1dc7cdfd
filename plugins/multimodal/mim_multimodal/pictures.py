"""Modalities as pictures: colour as it is, depth by viridis with near bright, class ids by a fixed palette, captions as
text."""

from __future__ import annotations

import colorsys
import io
import textwrap

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from mim_core import Picture
from PIL import Image, ImageDraw, ImageFont
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
HIDDEN = (190, 190, 190)
"""Colour of what is hidden."""
LETTERS = 24
"""Height of a caption's letters in pixels; a report shows pictures of captions at half their size."""


def colour(pixels: UInt8[Tensor, "3 H W"]) -> Picture:
    """A picture as PNG."""
    return _png(pixels.cpu().permute(1, 2, 0).numpy())


def depth_map(depth: Float[Tensor, "1 H W"], hidden: Bool[Tensor, "1 H W"] | None = None) -> Picture:
    """A standardised depth map: near is yellow, far is violet; what is hidden is grey, which no depth is."""
    values = np.nan_to_num(depth[0].float().cpu().numpy())
    near = np.clip((REACH - values) / (2 * REACH), 0, 1) * (len(VIRIDIS) - 1)
    table = np.array(VIRIDIS, np.float64)
    below = np.floor(near).astype(int).clip(max=len(VIRIDIS) - 2)
    share = (near - below)[..., None]
    pixels = (table[below] * (1 - share) + table[below + 1] * share).round().astype(np.uint8)
    if hidden is not None:
        pixels[hidden[0].cpu().numpy()] = HIDDEN
    return _png(pixels)


def class_map(ids: Int[Tensor, "h w"], hidden: Bool[Tensor, "h w"] | None = None) -> Picture:
    """A map of class ids by `palette`; what is no class is dark grey, what is hidden a lighter one."""
    values = ids.cpu().numpy()
    pixels = palette()[np.where((values >= 0) & (values < 255), values, 255)]
    if hidden is not None:
        pixels[hidden.cpu().numpy()] = HIDDEN
    return _png(pixels)


def palette() -> UInt8[np.ndarray, "256 3"]:
    """A colour for every id: hues a golden angle apart, in three kinds of brightness; 255 is dark grey."""
    kinds = ((0.65, 0.95), (0.9, 0.7), (0.35, 0.85))
    rows = [colorsys.hsv_to_rgb(i * 0.618034 % 1, *kinds[i % 3]) for i in range(255)]
    return np.array([*([round(255 * c) for c in row] for row in rows), NONE], np.uint8)


def text(caption: str, width: int = 3 * WIDTH) -> Picture:
    """A caption in black on white, in letters that can be read where a report makes it smaller."""
    lines = textwrap.wrap(caption, int(1.7 * width / LETTERS)) or [""]
    image = Image.new("RGB", (width, max(WIDTH, (LETTERS + 6) * len(lines) + 12)), (255, 255, 255))
    draw = ImageDraw.Draw(image)
    draw.multiline_text((6, 4), "\n".join(lines), fill=(0, 0, 0), spacing=6, font=ImageFont.load_default(LETTERS))
    return _encoded(image, drawn=True)


def _png(pixels: np.ndarray) -> Picture:
    image = Image.fromarray(pixels)
    factor = max(1, -(-WIDTH // image.width))
    return _encoded(image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST))


def _encoded(image: Image.Image, drawn: bool = False) -> Picture:
    content = io.BytesIO()
    image.save(content, "png")
    return Picture("image/png", content.getvalue(), drawn)
