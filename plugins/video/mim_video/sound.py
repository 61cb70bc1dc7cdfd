"""A video's audio track, carried over into the file that is written."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av

CARRIED = frozenset({"aac", "mp3", "ac3", "eac3", "alac", "flac", "opus"})
"""Codecs that MP4 holds and players know; other tracks are encoded anew, as AAC in mono or stereo."""
RATES = frozenset({8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000})
"""Samples per second that stay; others become 48,000."""


class Sound:
    """The first audio track of a file, on its way into another.

    Args:
        source: The open container that is read.
        out: The open container that is written; nothing has been written to it yet.
    """

    def __init__(self, source: Any, out: Any) -> None:
        self._out, track = out, source.streams.audio[0]
        self.codec: str = track.codec_context.name
        if self.codec in CARRIED:
            self._stream = out.add_stream_from_template(track)
            self._packets = self._copied(source, track)
        else:
            rate, channels = track.codec_context.sample_rate, track.codec_context.channels
            self.codec = "aac"
            self._stream = out.add_stream("aac", rate=rate if rate in RATES else 48000)
            self._stream.codec_context.layout = "mono" if channels == 1 else "stereo"
            self._packets = self._encoded(source, track)
        self._next = next(self._packets, None)

    def _copied(self, source: Any, track: Any) -> Iterator[Any]:
        for packet in source.demux(track):
            if packet.dts is not None:
                packet.stream = self._stream
                yield packet

    def _encoded(self, source: Any, track: Any) -> Iterator[Any]:
        context = self._stream.codec_context
        resampler = av.AudioResampler(context.format, context.layout, context.sample_rate, frame_size=1024)
        for frame in itertools.chain(source.decode(track), (None,)):
            for piece in resampler.resample(frame):
                yield from self._stream.encode(piece)
        yield from self._stream.encode(None)

    def write_until(self, seconds: float) -> None:
        """Writes the track up to a time of the source's clock, so that pictures and sound lie side by side."""
        while self._next is not None:
            start = self._next.pts if self._next.pts is not None else self._next.dts
            if seconds < math.inf and start * self._next.time_base > seconds:
                return
            self._out.mux(self._next)
            self._next = next(self._packets, None)


@contextmanager
def open_sound(path: Path, out: Any) -> Iterator[Sound | None]:
    """The sound of a file, to be written to ``out``; None where it has none."""
    with av.open(f"file:{path}", metadata_errors="replace") as source:
        streams = [stream for stream in source.streams.audio if stream.codec_context is not None]
        yield Sound(source, out) if streams else None
