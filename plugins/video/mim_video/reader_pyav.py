"""Reading videos with PyAV: an index of the file's own timestamps, then seeking and decoding by them."""

from __future__ import annotations

import bisect
import contextlib
import os
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from av.video.reformatter import Interpolation, VideoReformatter
from jaxtyping import Float64, UInt8
from mim_core import BadSample
from torch import Tensor

from mim_video.open_file import OpenFile, check_indices, check_process, scale
from mim_video.reader_index import FrameIndex, Scan, decode, index_by_frames, index_by_packets, scan
from mim_video.reader_survey import SAME_SHAPE, Survey, Turn, orientation, shown_size
from mim_video.stated import check_stated

COVER_PICTURE = 0x400
"""The bit of a stream's disposition that says: a still picture, such as an album's cover."""
MOST_PIXELS = 8192 * 4352
"""Pixels of a frame, at most: 8K. Decoders hold several frames, so that larger ones take gigabytes."""
PATIENCE = 30.0
"""Seconds in which a packet must be found: in gigabytes of zeros there is none."""
TOO_LONG = "looking for its frames takes too long: it is damaged, or padded with what is no video"

SKIPPABLE = frozenset({"h264", "hevc"})
"""Codecs whose decoder leaves out, when told to, frames that no other frame refers to."""
WIDEST = 4
"""Times that a pixel may be wider than high, or higher than wide: recordings of half the lines or columns have 3."""
UNREADABLE = {
    8: "YCgCo",
    10: "BT.2020 with constant luminance",
    11: "SMPTE 2085",
    12: "derived from its primaries",
    13: "derived from its primaries with constant luminance",
    14: "ICtCp",
    15: "IPT-C2",
    16: "YCgCo-R",
    17: "YCgCo-R",
}
"""Colour matrices (ITU-T H.273) that FFmpeg does not turn into RGB."""
IN_A_ROW = 16
"""Failures to read a packet, with none read between them, after which a file counts as ended."""
OUT_OF_TURN = 16
"""Frames that a decoder may give before an earlier one, behind damage: as many as H.264 holds back."""
WORTH_A_SEEK = 12
"""Frames that need not be decoded before a seek to a later key frame pays."""


class PyavReader(OpenFile):
    """A video file read with PyAV. See :class:`mim_video.readers.Reader`.

    Decoding takes one thread.

    Args:
        path: A video file; its first video stream that is no cover picture is read.

    Raises:
        BadSample: It holds no video, or no frame of it decodes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._process = os.getpid()
        self._reformatter = VideoReformatter()
        self._container: Any = None
        try:
            self._open()
            scanned = scan(self._rest(), self._stream.codec_context)
            self._index = self._index_of(scanned)
        except (av.FFmpegError, ValueError) as error:
            self.close()
            raise BadSample(str(path), f"it cannot be read as a video: {error_text(error)}") from error
        except BaseException:
            self.close()
            raise
        if scanned.first is None or not self._index.shown:
            self.close()
            raise BadSample(str(path), "no frame of it decodes")
        self._stored = (scanned.first.height, scanned.first.width)
        self._turn = orientation(scanned.first)
        self._pixel, self._interlaced = self._stream.sample_aspect_ratio, bool(scanned.first.interlaced_frame)
        self._upright = self._turned(self._stored)
        self.size = self._turned(shown_size(self._stored, self._pixel))
        base = self._stream.time_base
        seconds = [stamp * base.numerator / base.denominator for stamp in self._index.shown]
        self.times: Float64[Tensor, " n"] = torch.tensor(seconds, dtype=torch.float64)

    def _turned(self, size: tuple[int, int]) -> tuple[int, int]:
        return size[::-1] if self._turn.swap else size

    def _open(self) -> None:
        """(Re)open the file, at its start."""
        self.close()
        self._container = open_container(self.path)
        self._stream: Any = main_stream(self._container, self.path)
        self._stream.codec_context.thread_count = 1

    def _index_of(self, scanned: Scan) -> FrameIndex:
        if scanned.exact(self._stream):
            return index_by_packets(scanned)
        stream, rate = self._stream, self._stream.average_rate or self._stream.guessed_rate or 25
        own_times, step = "avi" not in self._container.format.name.split(","), float(1 / (rate * stream.time_base))
        return index_by_frames(scanned, self._decode_from(-1), step, own_times, scanned.lacking(stream))

    def __len__(self) -> int:
        return len(self._index.shown)

    def _rest(self) -> Iterator[Any]:
        """The packets that follow, then one that empties the decoder. Where damage stops them, reading goes on behind
        it, as long as there are packets to be had."""
        failures = 0
        while failures < IN_A_ROW:
            try:
                for packet in self._container.demux(self._stream):
                    failures = 0
                    yield packet
                return
            except av.ExitError as error:
                raise BadSample(str(self.path), TOO_LONG) from error
            except av.FFmpegError:
                failures += 1
        last = av.Packet()
        last.stream = self._stream
        yield last

    def _decode_from(self, key: int, wanted: Sequence[int] = ()) -> Iterator[Any]:
        """Frames from a key frame on (-1: the start of the file).

        With the timestamps of wanted frames, it ends when they are decoded, and frames that no other refers to are
        left out.
        """
        try:
            if key >= 0:
                self._container.seek(self._index.keys[key][1], stream=self._stream, backward=True)
        except av.FFmpegError:
            key = -1
        if key < 0:
            self._open()
        yield from decode(self._rest()) if not wanted else self._decode_wanted(set(wanted))

    def _decode_wanted(self, wanted: set[int]) -> Iterator[Any]:
        context = self._stream.codec_context
        skips = context.codec.name in SKIPPABLE
        for packet in self._rest():
            if skips:
                context.skip_frame = "DEFAULT" if packet.pts in wanted or not packet.size else "NONREF"
            yield from decode([packet])
            wanted.discard(packet.pts)
            if not wanted:  # all that these frames refer to was decoded before them: empty the decoder at once
                with contextlib.suppress(av.FFmpegError):
                    yield from context.decode(None)
                return

    def frames_at(self, indices: Sequence[int], size: tuple[int, int] | None = None) -> UInt8[Tensor, "n H W 3"]:
        """RGB frames, upright, in the order asked for. See :class:`mim_video.readers.Reader`.

        Raises:
            ValueError: The reader is closed.
            BadSample: A frame does not decode.
        """
        if self._container is None:
            raise ValueError(f"{self.path}: this reader is closed")
        check_process(self._process, self.path)
        places = check_indices(indices, len(self))
        height, width = size or self.size
        frames = torch.empty((len(indices), height, width, 3), dtype=torch.uint8)
        decoded = self._counted(sorted(places)) if self._index.counted else self._stamped(sorted(places))
        for number, frame in decoded:
            upright = self._picture(frame, size or self.size)
            for place in places.pop(number):
                frames[place] = upright
        if places:
            raise BadSample(str(self.path), f"frame {min(places)} of {len(self)} does not decode")
        return frames

    def _counted(self, numbers: list[int]) -> Iterator[tuple[int, Any]]:
        wanted = set(numbers)
        for number, frame in enumerate(self._decode_from(-1)):
            if number in wanted:
                yield number, frame
            if number >= numbers[-1]:
                return

    def _stamped(self, numbers: list[int]) -> Iterator[tuple[int, Any]]:
        """Frames by timestamp: from the key frame before each, once more from the file's start if that fails."""
        stamps = {self._index.shown[number]: number for number in numbers}
        for group in self._groups(list(stamps)):
            left = set(group)
            for key in dict.fromkeys((self._index.key_before(group[0]), -1)):
                beyond = 0
                for frame in self._decode_from(key, sorted(left)):
                    if frame.pts in left:
                        left.remove(frame.pts)
                        yield stamps[frame.pts], frame
                    beyond += frame.pts is not None and frame.pts > group[-1]
                    if not left or beyond > OUT_OF_TURN:
                        break
                if not left:
                    break

    def _groups(self, stamps: list[int]) -> list[list[int]]:
        """Timestamps that are decoded in one go: a new group starts where a seek saves decoding."""
        groups: list[list[int]] = []
        for stamp in stamps:
            key = self._index.key_before(stamp)
            if groups and key >= 0:
                last, jump = groups[-1][-1], self._index.keys[key][0]
                between = bisect.bisect_left(self._index.shown, jump) - bisect.bisect_right(self._index.shown, last)
            if not groups or (key >= 0 and between > WORTH_A_SEEK):
                groups.append([])
            groups[-1].append(stamp)
        return groups

    def walk(self, size: tuple[int, int] | None = None) -> Iterator[tuple[int, UInt8[Tensor, "H W 3"]]]:
        """Every frame in turn, from one pass over the file: its timestamp, and the frame as in :meth:`frames_at`."""
        known = set(self._index.shown)
        for number, frame in enumerate(self._decode_from(-1)):
            if self._index.counted and number >= len(self):
                return
            stamp = self._index.shown[number] if self._index.counted else frame.pts
            if stamp in known:
                known.discard(stamp)
                yield stamp, self._picture(frame, size or self.size)

    def failing(self, most: int) -> list[int]:
        """Frames among the first ``most`` that do not decode, from one pass over the file."""
        shown, counted = self._index.shown[:most], self._index.counted
        left = dict.fromkeys(range(len(shown)) if counted else shown)
        beyond = 0
        for number, frame in enumerate(self._decode_from(-1)):
            left.pop(number if counted else frame.pts, None)
            beyond += not counted and frame.pts is not None and frame.pts > shown[-1]
            if not left or beyond > OUT_OF_TURN:
                break
        return [number if counted else bisect.bisect_left(shown, number) for number in sorted(left)]

    @property
    def time_base(self) -> Fraction:
        """Seconds of one unit of the file's timestamps."""
        base: Fraction = self._stream.time_base
        return base

    def _picture(self, frame: Any, size: tuple[int, int]) -> UInt8[Tensor, "H W 3"]:
        """A decoded frame in RGB, turned upright and scaled."""
        height, width = self._stored
        if abs(frame.width * height / (frame.height * width) - 1) > SAME_SHAPE:
            raise BadSample(
                str(self.path),
                f"its frames change from {width} x {height} to {frame.width} x {frame.height} pixels, which would "
                "stretch them; cut the file where they change",
            )
        try:
            stored = self._reformatter.reformat(
                frame, width, height, "rgb24", interpolation=Interpolation.BICUBIC, threads=1
            )
        except av.FFmpegError as error:
            raise BadSample(str(self.path), _colours(int(frame.colorspace), error_text(error))) from error
        upright = torch.from_numpy(np.ascontiguousarray(self._turn.apply(stored.to_ndarray())))
        return scale(upright[None], size)[0]

    def survey(self) -> Survey:
        """What the adapters of other libraries need to know of the file to give the same frames."""
        first = self.frames_at([0], self._upright)[0] if self._turn != Turn() else None
        container = self._container.format.name
        return Survey(self.path, self.times, self.size, self._turn, self._index, container, self._stream.index, first)

    def facts(self) -> dict[str, Any]:
        """What the file says of itself, for people: codec, pixel format, key-frame distance, rotation."""
        context, keys = self._stream.codec_context, [stamp for stamp, _ in self._index.keys]
        places = [bisect.bisect_left(self._index.shown, stamp) for stamp in keys]
        gaps = [after - before for before, after in zip(places, [*places[1:], len(self)], strict=True)]
        return {
            "container": self._container.format.name,
            "codec": context.name,
            "pixel_format": context.pix_fmt,
            "stored_size": list(self._stored),
            "turn": str(self._turn),
            "pixel_shape": pixel_shape(self._pixel) or "square",
            "interlaced": self._interlaced,
            "key_frames": len(keys) or None,
            "key_frame_distance": max(gaps, default=None),
            "audio_streams": len(self._container.streams.audio),
            "seekable": not self._index.counted,
        }

    def close(self) -> None:
        """Let go of the file and of the decoder's memory."""
        if self._container is not None:
            self._container.close()
        self._container = None


def open_container(path: Path) -> Any:
    """An open file, of which no packet may take longer than `PATIENCE`.

    Raises:
        BadSample: It took longer, or the file says that it has more frames than fit into memory.
        av.FFmpegError: It cannot be opened.
    """
    try:
        check_stated(path)
        return av.open(f"file:{path}", metadata_errors="replace", timeout=(PATIENCE, PATIENCE))
    except av.ExitError as error:
        raise BadSample(str(path), TOO_LONG) from error
    except OSError as error:
        if isinstance(error, av.FFmpegError):
            raise
        raise BadSample(str(path), f"it cannot be read: {error.strerror or error}") from error


def main_stream(container: Any, path: Path) -> Any:
    """The video stream of an open file that is read: the first that is no cover picture.

    Raises:
        BadSample: There is none, it cannot be decoded, its frames are larger than `MOST_PIXELS`, or its colours cannot
            be turned into RGB.
    """
    streams = [s for s in container.streams.video if not int(s.disposition) & COVER_PICTURE]
    if not streams:
        sound = "; there is only sound" if container.streams.audio else ""
        raise BadSample(str(path), f"there is no video in it{sound}")
    context = streams[0].codec_context
    if context is None:
        raise BadSample(str(path), "its video is in a format that this FFmpeg cannot decode")
    if context.width * context.height > MOST_PIXELS:
        raise BadSample(
            str(path),
            f"its frames of {context.width:,} x {context.height:,} pixels are larger than 8K "
            f"({MOST_PIXELS / 1e6:.3g} million pixels), which would fill the memory; scale the video down",
        )
    if int(context.colorspace) in UNREADABLE and not (context.pix_fmt or "").startswith(("gbr", "rgb", "gray")):
        raise BadSample(str(path), _colours(int(context.colorspace)))
    pixel = streams[0].sample_aspect_ratio
    if pixel and not 1 / WIDEST <= pixel <= WIDEST:
        raise BadSample(
            str(path),
            f"it says that its pixels are {pixel_shape(pixel)}, which would draw it out beyond all shape; write it "
            "anew with others, such as ffmpeg -i IN -c copy -aspect 4:3 OUT",
        )
    context.options = {**context.options, "max_pixels": str(MOST_PIXELS)}  # the size may change in the file
    return streams[0]


def pixel_shape(pixel: Fraction | None) -> str:
    """The shape of pixels that are not square, width to height, for people; empty for others."""
    square = shown_size((1000, 1000), pixel) == (1000, 1000)
    return "" if square or pixel is None else f"{pixel.numerator}:{pixel.denominator}"


def _colours(matrix: int, why: str = "") -> str:
    """Why the colours of a file cannot be used."""
    name = UNREADABLE.get(matrix, f"matrix {matrix}")
    return (
        f"its colours ({name}) cannot be turned into RGB{f': {why}' if why else ''}; write it anew with others, such "
        "as ffmpeg -vf zscale=matrix=709"
    )


def error_text(error: BaseException) -> str:
    """What FFmpeg says, without its number."""
    return str(getattr(error, "strerror", None) or error)
