"""Predicted modalities as files of their own kind: what `Aligned` reads again, not only what people look at."""

from __future__ import annotations

import io

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor

from mim_multimodal.pictures import palette

MIDDLE, STEP = 32768, 4096
"""Standardised depth d is written as MIDDLE + STEP d, from -8 to 8."""


def colour(pixels: UInt8[Tensor, "3 H W"]) -> bytes:
    """PNG, pixel for pixel."""
    return _png(Image.fromarray(np.ascontiguousarray(pixels.cpu().permute(1, 2, 0).numpy())))


def depth(values: Float[Tensor, "1 H W"]) -> bytes:
    """PNG of 16 bits: standardised depths, cut at -8 and 8; 0 is never written, so that it may mean no measurement."""
    code = (values[0].float().cpu() * STEP + MIDDLE).round().clamp(1, 65535)
    return _png(Image.fromarray(code.numpy().astype(np.uint16)))


def whole_depth(values: Float[Tensor, "1 H W"]) -> bytes:
    """PNG of 16 bits: depths in a unit of whole numbers, rounded, from 1 to 65,535; 0 means no measurement."""
    code = values[0].float().cpu().round().clamp(1, 65535)
    return _png(Image.fromarray(code.numpy().astype(np.uint16)))


def float_depth(values: Float[Tensor, "1 H W"]) -> bytes:
    """The array of a .npy: float32 [H, W]."""
    content = io.BytesIO()
    np.save(content, values[0].float().cpu().numpy())
    return content.getvalue()


def class_map(ids: Int[Tensor, "h w"]) -> bytes:
    """PNG of 8 bits: the ids themselves, with a palette that shows them in colours."""
    values = ids.cpu().numpy()
    image = Image.fromarray(np.where((values >= 0) & (values < 255), values, 255).astype(np.uint8), "P")
    image.putpalette(palette().tobytes())
    return _png(image)


def _png(image: Image.Image) -> bytes:
    content = io.BytesIO()
    image.save(content, "png")
    return content.getvalue()
