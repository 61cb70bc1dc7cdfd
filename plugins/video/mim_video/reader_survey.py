"""What PyAV finds in a file, so that readers of other libraries give the same frames upright and at the same times."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, UInt8
from torch import Tensor

from mim_video.reader_index import FrameIndex

SAME_SHAPE = 0.02
"""Share by which the ratio of two sides may differ; scaling from one to the other then changes no shape."""


def shown_size(stored: tuple[int, int], pixel: Fraction | None) -> tuple[int, int]:
    """Height and width of a frame as players show it: its width follows from that of a pixel.

    Args:
        stored: Height and width in the file.
        pixel: How much wider than high its pixels are, as the file says it; None where it does not. Up to `SAME_SHAPE`
            of one they count as square: such numbers are left by rounding a size.
    """
    if not pixel or abs(float(pixel) - 1) <= SAME_SHAPE:
        return stored
    return stored[0], max(1, round(stored[1] * pixel))


@dataclass(frozen=True)
class Turn:
    """How stored frames are brought upright: rows and columns are swapped first, then flipped."""

    swap: bool = False
    flip_rows: bool = False
    flip_columns: bool = False

    def apply(self, frame: np.ndarray) -> np.ndarray:
        """The frame [H, W, 3], upright."""
        frame = frame.swapaxes(0, 1) if self.swap else frame
        return frame[:: -1 if self.flip_rows else 1, :: -1 if self.flip_columns else 1]

    def __str__(self) -> str:
        names = {
            (False, False, False): "none",
            (True, False, True): "90 degrees clockwise",
            (False, True, True): "180 degrees",
            (True, True, False): "90 degrees counter-clockwise",
        }
        return names.get((self.swap, self.flip_rows, self.flip_columns), "mirrored")


def orientation(frame: Any) -> Turn:
    """The turn that a frame's display matrix asks for, to the next quarter.

    The matrix holds a, b, u, c, d, v, x, y, w: a point (x, y) goes to (a x + c y, b x + d y).
    """
    for entry in frame.side_data:
        if entry.type.name == "DISPLAYMATRIX":
            a, b, _, c, d = np.frombuffer(bytes(entry), dtype=np.int32)[:5].tolist()
            if abs(a) + abs(d) >= abs(b) + abs(c):
                return Turn(False, d < 0, a < 0)
            return Turn(True, b < 0, c < 0)
    return Turn()


@dataclass(frozen=True)
class Survey:
    """A file as PyAV sees it.

    Attributes:
        path: The file.
        times: When its frames are shown, in seconds.
        size: Height and width upright, with square pixels.
        turn: What brings stored frames upright.
        index: Timestamps and key frames.
        container: FFmpeg's name of the file's format.
        stream: Number of the video stream within the file.
        first: The first frame upright, in the pixels that are stored, where stored frames are not upright.
    """

    path: Path
    times: Float64[Tensor, " n"]
    size: tuple[int, int]
    turn: Turn
    index: FrameIndex
    container: str
    stream: int
    first: UInt8[Tensor, "H W 3"] | None

    def turn_left(self, frame: UInt8[Tensor, "h w 3"]) -> Turn:
        """What another library's first frame still needs: some turn frames themselves, some do not."""
        if self.first is None:
            return Turn()
        distances = {}
        for turn in (Turn(), self.turn):
            upright = turned(frame[None], turn)[0]
            if upright.shape == self.first.shape:
                distances[turn] = (upright.int() - self.first.int()).abs().float().mean().item()
        return min(distances, key=lambda turn: distances[turn], default=Turn())


def turned(frames: UInt8[Tensor, "n h w 3"], turn: Turn) -> UInt8[Tensor, "n H W 3"]:
    """Frames upright."""
    frames = frames.transpose(1, 2) if turn.swap else frames
    axes = [1] * turn.flip_rows + [2] * turn.flip_columns
    return frames.flip(axes).contiguous() if axes else frames.contiguous()
