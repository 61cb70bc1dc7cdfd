"""Clips that are folders of numbered pictures: ``run/v0/0001.jpg``, ``0002.jpg``, ... in the order of their numbers."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float64, UInt8
from mim_core import BadSample, check_picture, one_line
from PIL import Image, ImageOps
from torch import Tensor

from mim_video.open_file import OpenFile, check_indices, scale

PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
"""Endings of frames."""
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "PPM")
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
"""Pillow's modes of pictures with 8 bits a channel."""
RATE = 25.0
"""Frames per second where nobody says it; clips by stride or segments do not depend on it."""
MOST_PIXELS = 1 << 27
"""Pixels of a frame."""
_NUMBER = re.compile(r"(\d+)$")


def frame_names(names: Sequence[str]) -> list[str]:
    """Those names of a folder that are numbered pictures, as they come."""
    split = (os.path.splitext(name) for name in names if not name.startswith("."))
    return [stem + ending for stem, ending in split if ending.lower() in PICTURES and _NUMBER.search(stem)]


def in_order(names: Sequence[str]) -> list[str]:
    """Frames in the order of their numbers, which rise by the same step.

    Raises:
        BadSample: Frames are missing, two have one number, or they are of several kinds, such as img_1 and flow_1.
    """
    places = [(stem[: match.start()], int(match.group()), name)
              for name in sorted(names) if (match := _NUMBER.search(stem := os.path.splitext(name)[0]))]  # fmt: skip
    kinds = sorted({prefix for prefix, _, _ in places})
    if len(kinds) > 1:
        shown = ", ".join(next(name for prefix, _, name in places if prefix == kind) for kind in kinds[:3])
        raise BadSample("", f"it holds frames of {len(kinds)} kinds ({shown}): a folder for each kind is needed")
    ordered = sorted(places, key=lambda place: (place[1], place[2]))
    pairs = list(itertools.pairwise(ordered))
    steps = [after[1] - before[1] for before, after in pairs]
    step = min(steps, default=1)
    if step == 0:
        one, two = next((a[2], b[2]) for a, b in pairs if a[1] == b[1])
        raise BadSample("", f"two frames have one number: {one} and {two}")
    wrong = next((i for i, each in enumerate(steps) if each != step), None)
    if wrong is not None:
        before, after = ordered[wrong][2], ordered[wrong + 1][2]
        raise BadSample("", f"frames are missing between {before} and {after}")
    return [name for _, _, name in ordered]


class FrameFolder(OpenFile):
    """An open folder of frames, with the members of `mim_video.readers.Reader`. Frames are read when they are asked
    for; all have the size of the first.

    Args:
        path: The folder.
        rate: Frames per second that they were taken with.

    Attributes:
        times: When each frame is shown, in seconds.
        size: Height and width.

    Raises:
        BadSample: It holds no numbered pictures, or these are no whole sequence, or the first cannot be read.
    """

    def __init__(self, path: Path, rate: float = RATE) -> None:
        self.path = path
        try:
            self.names = in_order(frame_names(os.listdir(path)))
            if not self.names:
                raise BadSample("", "it holds no numbered pictures")
            self.times: Float64[Tensor, " n"] = torch.arange(len(self.names), dtype=torch.float64) / rate
            self.size = self._read(0, None).shape[:2]
        except BadSample as error:
            raise BadSample(str(path), error.reason) from error

    def __len__(self) -> int:
        """Frames."""
        return len(self.names)

    def close(self) -> None:
        """Nothing is open between frames."""

    def frames_at(self, indices: Sequence[int], size: tuple[int, int] | None = None) -> UInt8[Tensor, "n H W 3"]:
        """RGB frames in the order asked for, see `mim_video.readers.Reader.frames_at`."""
        places = check_indices(indices, len(self))
        wanted = size or (self.size[0], self.size[1])
        frames = torch.empty((len(indices), *wanted, 3), dtype=torch.uint8)
        for index, rows in places.items():
            frames[rows] = scale(torch.from_numpy(self._read(index, self.size))[None], wanted)
        return frames

    def _read(self, index: int, size: tuple[int, ...] | None) -> np.ndarray:
        """A frame, uint8 [H, W, 3]; ``size`` is that which it must have."""
        name = self.names[index]
        try:
            with open(self.path / name, "rb") as file:
                check_picture(file)
                with Image.open(file, formats=FORMATS) as image:
                    if image.mode not in MODES:
                        raise ValueError(f"it is of the mode {image.mode}; frames have 8 bits a channel")
                    if image.width * image.height > MOST_PIXELS:
                        raise ValueError(f"it has {image.width:,} x {image.height:,} pixels")
                    upright = ImageOps.exif_transpose(image)
                    values = np.array(_on_white(upright if upright is not None else image))
        except Exception as error:  # Pillow raises many kinds; whatever it is, the frame is named
            raise BadSample(str(self.path), f"its frame {name} cannot be read: {one_line(error)}") from error
        if size is not None and values.shape[:2] != tuple(size):
            sizes = [f"{width} x {height}" for height, width in (values.shape[:2], size)]
            raise BadSample(str(self.path), f"its frame {name} has {sizes[0]} pixels, and {self.names[0]} {sizes[1]}")
        return values


def _on_white(image: Image.Image) -> Image.Image:
    """The picture as RGB; what is transparent shows white."""
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        whole = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", whole.size, "white"), whole).convert("RGB")
    return image.convert("RGB")
