"""Which frames a clip takes, and from which place: pure functions of a file's timestamps. Draws come in as numbers in
[0, 1) that the caller takes from a key.

A clip that is shorter than what is asked repeats its last frame, or starts again ("loop").
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

Short = Literal["last", "loop"]
"""What fills a clip when the file ends: its last frame again and again, or the file from its start."""


def by_stride(count: int, frames: int, stride: int, place: float, short: Short = "last") -> Int64[Tensor, " T"]:
    """Every ``stride``-th frame.

    Args:
        count: Frames in the file.
        frames: Frames in the clip.
        stride: Steps from one to the next.
        place: Where it starts: 0 is the first frame, 1 as late as the clip fits; a uniform draw is fair to all starts.
        short: What to do when the file is shorter.
    """
    latest = max(0, count - 1 - (frames - 1) * stride)
    start = min(int(place * (latest + 1)), latest)
    wanted = start + stride * torch.arange(frames)
    return wanted % count if short == "loop" else wanted.clamp(max=count - 1)


def by_fps(
    times: Float64[Tensor, " n"], frames: int, fps: float, place: float, short: Short = "last"
) -> Int64[Tensor, " T"]:
    """The frames nearest to moments 1 / ``fps`` seconds apart, by the file's own timestamps; the rate may vary.

    ``place`` is as in `by_stride`. A file of fewer frames per second repeats some.
    """
    first, last = float(times[0]), float(times[-1])
    steps = torch.arange(frames, dtype=torch.float64) / fps
    start = first + place * max(0.0, last - first - float(steps[-1]))
    wanted = start + steps
    if short == "loop":
        usual = float(times.diff().median()) if len(times) > 1 else 1 / fps  # how long the last frame is shown
        wanted = first + (wanted - first) % (last - first + usual)
    return nearest(times, wanted)


def too_short(
    times: Float64[Tensor, " n"], frames: int, stride: int, fps: float | None = None, segments: bool = False
) -> str:
    """Why a file is shorter than a clip by segments, by rate, or else by stride; empty if it is not."""
    need, seconds = frames if segments else (frames - 1) * stride + 1, float(times[-1] - times[0])
    if fps is not None and seconds < (frames - 1) / fps - 1e-6:
        return f"it is shorter than a clip: {seconds:.3g} s of {(frames - 1) / fps:.3g} s"
    if fps is None and len(times) < need:
        return f"it is shorter than a clip: {len(times)} of {need} frames"
    return ""


def nearest(times: Float64[Tensor, " n"], wanted: Float64[Tensor, " T"]) -> Int64[Tensor, " T"]:
    """The frame closest in time to each moment; of two as close, the earlier."""
    after = torch.searchsorted(times, wanted).clamp(max=len(times) - 1)
    before = (after - 1).clamp(min=0)
    return torch.where((wanted - times[before]).abs() <= (times[after] - wanted).abs(), before, after)


def by_segments(count: int, places: Float64[Tensor, " T"]) -> Int64[Tensor, " T"]:
    """One frame from each of T equal parts of the file: ``places`` says where in its part, 0.5 is the middle.

    A file of fewer frames than parts repeats some.
    """
    parts = len(places)
    wanted = (torch.arange(parts, dtype=torch.float64) + places) * count / parts
    return wanted.floor().long().clamp(max=count - 1)


def window(times: Float64[Tensor, " n"], start: float, end: float) -> tuple[int, int]:
    """The frames shown from ``start`` to before ``end``, in seconds: the first, and the one after the last."""
    bounds = torch.searchsorted(times, torch.tensor([start, end], dtype=torch.float64)).tolist()
    return bounds[0], bounds[1]


def spread(count: int) -> list[float]:
    """``count`` places from 0 to 1, evenly; one alone is in the middle."""
    return [0.5] if count == 1 else [i / (count - 1) for i in range(count)]


def even_start(number: int, count: int, free: int) -> int:
    """Where view ``number`` of ``count`` begins, in frames or pixels, of which ``free`` are beyond one view: evenly
    from the first to the last, cut to whole numbers (VideoMAE, arXiv 2203.12602, code); one alone is in the middle."""
    if count == 1:
        return max(0, free) // 2
    return int(number * (max(0, free) / (count - 1)))


def by_buffer(count: int, frames: int, stride: int, number: int, segments: int) -> Int64[Tensor, " T"]:
    """The frames of one of several clips of a file: every ``stride``-th frame of the file, and of these as many as a
    clip has, from where `even_start` says. A file of fewer repeats its last."""
    kept = torch.arange(0, count, stride)
    start = even_start(number, segments, len(kept) - frames)
    return kept[(start + torch.arange(frames)).clamp(max=len(kept) - 1)]


def views(segments: int, crops: int) -> list[tuple[float, float]]:
    """Test-time views: (place in time, place along the longer side), times first. Kinetics has 5 x 3, SSv2 2 x 3."""
    return [(time, side) for time in spread(segments) for side in spread(crops)]
