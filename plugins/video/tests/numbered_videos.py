"""Small real video files whose frames each show their own number in blocks that survive compression."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np

BITS = 8
STAMP = Fraction(1, 1000)


@dataclass(frozen=True)
class Kind:
    """How a file is encoded.

    Attributes:
        name: The file's name.
        size: Height and width upright.
        times: When frames are shown, in milliseconds; 40 apart by default.
        hidden: Frames at the start that the file says not to show.
        rotation: Counter-clockwise degrees in the file's metadata; what is stored is turned the other way.
    """

    name: str
    frames: int = 60
    size: tuple[int, int] = (96, 128)
    codec: str = "libx264"
    pixels: str = "yuv420p"
    every: int = 12
    between: int = 2
    times: tuple[int, ...] = ()
    hidden: int = 0
    rotation: int = 0
    audio: bool = False
    options: tuple[tuple[str, str], ...] = ()
    muxer: tuple[tuple[str, str], ...] = ()

    @property
    def milliseconds(self) -> list[int]:
        return list(self.times) or [40 * number for number in range(self.frames)]


def variable_times(frames: int, seed: int = 7) -> tuple[int, ...]:
    """Milliseconds with gaps from 10 to 400, half of the video much slower than the other."""
    draw = np.random.default_rng(seed)
    slow, fast = draw.integers(100, 400, frames // 2), draw.integers(10, 40, frames - frames // 2)
    return tuple(int(t) for t in np.concatenate([[0], np.cumsum(np.concatenate([fast, slow]))[:-1]]))


KINDS = (
    Kind("constant.mp4"),
    Kind("variable.mp4", times=variable_times(60)),
    Kind("variable.webm", codec="libvpx-vp9", times=variable_times(60), between=0),
    Kind("many-b.mp4", between=6, options=(("b-pyramid", "normal"), ("b-adapt", "0"))),
    Kind("no-b.mp4", between=0),
    Kind("turned-90.mp4", rotation=90),
    Kind("turned-180.mp4", rotation=180),
    Kind("turned-270.mp4", rotation=-90),
    Kind("odd.webm", codec="libvpx-vp9", size=(97, 131), between=0),
    Kind("odd-444.mp4", pixels="yuv444p", size=(97, 131)),
    Kind("ten-bit.mp4", pixels="yuv420p10le"),
    Kind("bt709.mp4", options=(("x264-params", "colormatrix=bt709:colorprim=bt709:transfer=bt709"),)),
    Kind("full-range.mp4", pixels="yuvj420p"),
    Kind("audio.mp4", audio=True),
    Kind("late.mp4", times=tuple(1500 + 40 * i for i in range(60))),
    Kind("late.mkv", times=tuple(1500 + 40 * i for i in range(60))),
    Kind("long.mp4", frames=120, every=250),
    Kind("open-gop.mp4", options=(("x264-params", "open-gop=1"),)),
    Kind("hevc.mp4", codec="libx265", options=(("x265-params", "log-level=none:open-gop=1"),)),
    Kind("trimmed.mp4", hidden=10, times=tuple(40 * i - 400 for i in range(60))),
    Kind("stream.ts"),
    Kind("xvid.avi", codec="mpeg4", between=0),
    Kind("xvid-b.avi", codec="mpeg4", between=2),
    Kind("h264-b.avi"),
    Kind("raw.h264"),
    Kind("flash.flv"),
    Kind("open-gop.mkv", codec="libx265", options=(("x265-params", "log-level=none:open-gop=1"),)),
    Kind("vp8.webm", codec="libvpx", between=0, options=(("auto-alt-ref", "1"), ("lag-in-frames", "16"))),
)
"""Files that every reader has to read right."""


def picture(number: int, size: tuple[int, int]) -> np.ndarray:
    """A frame that shows a number: bits along the columns, each above its opposite; red and blue at the foot."""
    height, width = size
    frame = np.empty((height, width, 3), dtype=np.uint8)
    edges, third = np.linspace(0, width, BITS + 1).astype(int), height // 3
    for bit in range(BITS):
        on = 235 if number >> bit & 1 else 20
        frame[:third, edges[bit] : edges[bit + 1]] = on
        frame[third : 2 * third, edges[bit] : edges[bit + 1]] = 255 - on
    frame[2 * third :] = (220, 30, 30)
    frame[2 * third :, width // 2 :] = (30, 30, 220)
    spot = (number * 3) % (width - 8)
    frame[-8:, spot : spot + 8] = 128
    return frame


def number_of(frame: np.ndarray) -> int:
    """The number that a frame shows.

    Raises:
        ValueError: It is not upright, or red and blue are swapped.
    """
    height, width = frame.shape[:2]
    frame = frame.astype(float)
    edges, third = np.linspace(0, width, BITS + 1).astype(int), height // 3
    foot = frame[2 * third + 1 : 2 * third + max(2, third // 2)]
    red, blue = foot[:, : width // 2 - 2].mean((0, 1)), foot[:, width // 2 + 2 :].mean((0, 1))
    if not (red[0] > red[2] + 60 and blue[2] > blue[0] + 60):
        raise ValueError(f"not upright, or not RGB: {red} {blue}")
    bright = frame.mean(2)
    tops = [bright[:third, a:b].mean() for a, b in pairwise(edges)]
    feet = [bright[third : 2 * third, a:b].mean() for a, b in pairwise(edges)]
    return sum(1 << bit for bit in range(BITS) if tops[bit] > feet[bit])


def encode(folder: Path, kind: Kind, numbers: Sequence[int] | None = None) -> Path:
    """Write a file of a kind; its frames show 0, 1, 2, ... or the numbers given."""
    path = folder / kind.name
    path.parent.mkdir(parents=True, exist_ok=True)
    fixed = path.suffix == ".avi"
    stamp = Fraction(1, 25) if fixed else STAMP
    times = [t // 40 for t in kind.milliseconds] if fixed else kind.milliseconds
    with av.open(str(path), "w", options=dict(kind.muxer)) as out:
        stream = out.add_stream(kind.codec, rate=25, options={"crf": "18", **dict(kind.options)})
        shown = np.rot90(picture(0, kind.size), -kind.rotation // 90)
        stream.height, stream.width = shown.shape[:2]
        stream.pix_fmt, stream.codec_context.gop_size = kind.pixels, kind.every
        stream.codec_context.max_b_frames, stream.codec_context.time_base = kind.between, stamp
        stream.codec_context.thread_count = 1
        if kind.codec == "mpeg4":
            stream.codec_context.bit_rate = 2_000_000
        if kind.rotation:
            stream.set_display_rotation(kind.rotation)
        sound = out.add_stream("aac", rate=16000) if kind.audio else None
        for number, time in zip(numbers or range(kind.frames), times, strict=False):
            image = np.ascontiguousarray(np.rot90(picture(number, kind.size), -kind.rotation // 90))
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=kind.pixels)
            frame.pts, frame.time_base = time, stamp
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
        if sound is not None:
            _silence(out, sound, times[-1] / 1000)
    return path


def _silence(out: av.container.OutputContainer, sound: av.AudioStream, seconds: float) -> None:
    for start in range(0, int(16000 * seconds), 1024):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 16000, start
        out.mux(sound.encode(frame))
    out.mux(sound.encode(None))
