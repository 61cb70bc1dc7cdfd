"""From any image file's mode to grey, colour, or colour and opacity."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageOps

MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def convert_mode(image: Image.Image, channels: int) -> Image.Image:
    """The image upright and with 1, 3 or 4 channels of 8 bits.

    Applies the EXIF rotation. 16-bit grey is scaled, not clipped; CMYK becomes colour; transparent parts become white
    unless opacity is kept.

    Raises:
        ValueError: The mode is one that cannot be shown, such as 32-bit floats.
    """
    upright = ImageOps.exif_transpose(image)
    image = upright if upright is not None else image
    if image.mode in ("I;16", "I;16B", "I;16L", "I;16N", "I"):
        values = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        image = Image.fromarray((values / 257).round().astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("32-bit float images have no known range")
    transparent = image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info
    if transparent and channels != 4:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    mode = MODES[channels]
    image.load()
    return image if image.mode == mode else image.convert(mode)
