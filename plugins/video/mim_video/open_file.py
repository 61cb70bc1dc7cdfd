"""What all readers of videos share: closing, the process that may read, the order of frames, and their size."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from jaxtyping import UInt8
from mim_core import MimError
from torch import Tensor
from torch.nn.functional import interpolate

T = TypeVar("T")


class OpenFile:
    """What readers share: a ``with`` block closes them, and no other process gets them."""

    def close(self) -> None:
        """Let go of the file and of the decoder's memory."""
        raise NotImplementedError

    def __enter__(self: T) -> T:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> Any:
        raise TypeError("A video reader cannot be sent to another process: open the file there.")


def check_process(opened_in: int, path: Path) -> None:
    """Refuse to read in another process than the file was opened in, where libraries hang or fail.

    Raises:
        MimError: It is another one.
    """
    if os.getpid() != opened_in:
        raise MimError(
            f"{path} was opened in process {opened_in} and is read in {os.getpid()}: open videos in the worker that "
            "reads them."
        )


def check_indices(indices: Sequence[int], count: int) -> dict[int, list[int]]:
    """Where in the answer each frame goes.

    Raises:
        IndexError: There is no such frame.
    """
    places: dict[int, list[int]] = {}
    for place, index in enumerate(indices):
        if not 0 <= index < count:
            raise IndexError(f"There is no frame {index}: the video has frames 0 to {count - 1}.")
        places.setdefault(int(index), []).append(place)
    return places


def scale(frames: UInt8[Tensor, "n h w 3"], size: tuple[int, int]) -> UInt8[Tensor, "n H W 3"]:
    """Frames at another height and width, by a bilinear filter that averages where it makes them smaller.

    All readers share it, so that they agree whatever FFmpeg they come with.
    """
    if tuple(frames.shape[1:3]) == tuple(size):
        return frames
    return interpolate(frames.movedim(3, 1), size, mode="bilinear", antialias=True).movedim(1, 3).contiguous()
