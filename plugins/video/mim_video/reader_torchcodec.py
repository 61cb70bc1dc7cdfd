"""Reading videos with torchcodec, on PyAV's index of the file's timestamps."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from mim_core import BadSample
from torch import Tensor

from mim_video.open_file import OpenFile, check_indices, check_process, scale
from mim_video.reader_pyav import PyavReader
from mim_video.reader_survey import Survey, turned

VideoDecoder: Any = importlib.import_module("torchcodec.decoders").VideoDecoder
AT_ONCE = 32
"""Frames of full size that are held at a time."""
SAME_TIME = 1e-4
"""Seconds by which the time of a frame may differ from the file's."""


class TorchcodecReader(OpenFile):
    """A video file read with torchcodec. See :class:`mim_video.readers.Reader`.

    Args:
        path: A video file.

    Raises:
        BadSample: PyAV or torchcodec cannot read it, or its frames carry no times.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._process = os.getpid()
        with PyavReader(path) as ground:
            survey = ground.survey()
        if survey.index.counted or not survey.index.keys:
            raise BadSample(str(path), "its frames carry no times, which torchcodec needs; PyAV reads it (reader pyav)")
        self.times, self.size = survey.times, survey.size
        self._decoder: Any = None
        try:
            self._decoder = VideoDecoder(
                str(path), stream_index=survey.stream, dimension_order="NHWC", custom_frame_mappings=mapping(survey)
            )
            first = self._read([0])
        except (RuntimeError, ValueError) as error:
            self.close()
            raise refusal(path, error) from error
        except BaseException:
            self.close()
            raise
        self._turn = survey.turn_left(first[0])

    def __len__(self) -> int:
        return len(self.times)

    def _read(self, numbers: Sequence[int]) -> UInt8[Tensor, "n h w 3"]:
        """Frames as torchcodec gives them, whose times are checked."""
        batch = self._decoder.get_frames_at(list(numbers))
        late = (batch.pts_seconds - self.times[list(numbers)]).abs().max().item()
        if late > SAME_TIME:
            raise BadSample(str(self.path), f"torchcodec gives frames {late:.3f} s beside the asked; take reader pyav")
        frames: Tensor = batch.data
        return frames

    def frames_at(self, indices: Sequence[int], size: tuple[int, int] | None = None) -> UInt8[Tensor, "n H W 3"]:
        """RGB frames, upright, in the order asked for. See :class:`mim_video.readers.Reader`.

        Raises:
            ValueError: The reader is closed.
            BadSample: torchcodec does not decode the file.
        """
        if self._decoder is None:
            raise ValueError(f"{self.path}: this reader is closed")
        check_process(self._process, self.path)
        places = check_indices(indices, len(self))
        numbers = sorted(places)
        frames = torch.empty((len(indices), *(size or self.size), 3), dtype=torch.uint8)
        for start in range(0, len(numbers), AT_ONCE):
            part = numbers[start : start + AT_ONCE]
            try:
                images = scale(turned(self._read(part), self._turn), size or self.size)
            except (RuntimeError, ValueError) as error:
                raise refusal(self.path, error) from error
            for number, frame in zip(part, images, strict=True):
                frames[places[number]] = frame
        return frames

    def close(self) -> None:
        """Let go of the file and of the decoder's memory."""
        self._decoder = None


def mapping(survey: Survey) -> str:
    """PyAV's index in the form that torchcodec takes, so that it need not scan the file again."""
    shown, keys = survey.index.shown, {stamp for stamp, _ in survey.index.keys}
    gaps = [after - before for before, after in pairwise(shown)]
    gaps.append(gaps[-1] if gaps else 1)
    frames = [
        {"pts": stamp, "duration": gap, "key_frame": int(stamp in keys)} for stamp, gap in zip(shown, gaps, strict=True)
    ]
    return json.dumps({"frames": frames})


def refusal(path: Path, error: Exception) -> BadSample:
    """The error for a file that PyAV reads and torchcodec does not."""
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return BadSample(str(path), f"torchcodec does not decode it: {reason} (PyAV may: reader pyav)")
