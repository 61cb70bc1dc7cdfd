"""Reading videos with decord (or decord2, eva-decord), on PyAV's index of the file's timestamps."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from mim_core import BadSample
from torch import Tensor

from mim_video.open_file import OpenFile, check_indices, check_process, scale
from mim_video.reader_pyav import PyavReader
from mim_video.reader_survey import Survey, turned

decord: Any = importlib.import_module("decord")
AT_ONCE = 32
"""Frames of full size that are held at a time."""
SOUND = ("mp4", "matroska", "avi")
"""Containers in which its seeking was found right."""
SAME_TIME = 2e-3
"""Seconds by which decord's float32 times may differ from the file's."""


class DecordReader(OpenFile):
    """A video file read with decord. See :class:`mim_video.readers.Reader`.

    decord forgets when a stream starts, and some versions leave frames lying on their side: this adapter sets that
    right. It gives wrong frames, without a word, for files with open groups of pictures (x265 makes them), with frames
    that an edit list hides, and in most containers but MP4, Matroska and AVI: those are refused.

    Args:
        path: A video file.

    Raises:
        BadSample: PyAV or decord cannot read it, or decord's frames cannot be told apart by their times.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._process = os.getpid()
        with PyavReader(path) as ground:
            survey = ground.survey()
        self.times, self.size = survey.times, survey.size
        self._reader: Any = None
        try:
            self._reader = decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1)
            if wrong := trouble(survey, self._reader):
                raise BadSample(str(path), f"{wrong}; PyAV reads it (reader pyav)")
            first = self._read([0])
        except (decord.DECORDError, RuntimeError, StopIteration) as error:
            self.close()
            raise refusal(path, error) from error
        except BaseException:
            self.close()
            raise
        self._turn = survey.turn_left(first[0])

    def __len__(self) -> int:
        return len(self.times)

    def _read(self, numbers: Sequence[int]) -> UInt8[Tensor, "n h w 3"]:
        return torch.from_numpy(self._reader.get_batch(list(numbers)).asnumpy())

    def frames_at(self, indices: Sequence[int], size: tuple[int, int] | None = None) -> UInt8[Tensor, "n H W 3"]:
        """RGB frames, upright, in the order asked for. See :class:`mim_video.readers.Reader`.

        Raises:
            ValueError: The reader is closed.
            BadSample: decord does not decode the file.
        """
        if self._reader is None:
            raise ValueError(f"{self.path}: this reader is closed")
        check_process(self._process, self.path)
        places = check_indices(indices, len(self))
        numbers = sorted(places)
        frames = torch.empty((len(indices), *(size or self.size), 3), dtype=torch.uint8)
        for start in range(0, len(numbers), AT_ONCE):
            part = numbers[start : start + AT_ONCE]
            try:
                pictures = scale(turned(self._read(part), self._turn), size or self.size)
            except (decord.DECORDError, RuntimeError, StopIteration) as error:
                raise refusal(self.path, error) from error
            for number, frame in zip(part, pictures, strict=True):
                frames[places[number]] = frame
        return frames

    def close(self) -> None:
        """Let go of the file and of the decoder's memory."""
        self._reader = None


def trouble(survey: Survey, reader: Any) -> str:
    """Why decord would give wrong frames of this file; empty if it would not."""
    if not any(name in survey.container for name in SOUND):
        return f"decord seeks wrongly in {survey.container} files"
    if survey.index.leading:
        return "decord seeks wrongly in open groups of pictures"
    theirs = np.asarray(reader.get_frame_timestamp(range(len(reader))), dtype=np.float64)[:, 0]
    ours = survey.times.numpy()
    if survey.index.counted or len(theirs) != len(ours):
        return f"decord sees {len(theirs)} frames where {len(ours)} are shown"
    if np.abs((theirs - theirs[0]) - (ours - ours[0])).max() > SAME_TIME:
        return "decord's times of its frames are not the file's"
    return ""


def refusal(path: Path, error: BaseException) -> BadSample:
    """The error for a file that PyAV reads and decord does not."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    reason = lines[0] if lines else type(error).__name__
    return BadSample(str(path), f"decord does not decode it: {reason[:200]} (PyAV may: reader pyav)")
