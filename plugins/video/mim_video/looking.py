"""A look at some files of a collection: what their headers say, for people. A frame is decoded only where the header
does not say whether it is interlaced."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import av
from mim_core import BadSample, counted, in_time, lasting

from mim_video.layouts import ClipStore
from mim_video.reader_frames import FrameFolder
from mim_video.reader_pyav import COVER_PICTURE, error_text, main_stream, open_container, pixel_shape
from mim_video.readers import check_file

MOST = 16
"""Files that are looked at."""
LIKELY = 1000
"""Frames per second, below which a header is believed."""
PROGRESSIVE = 1
"""FFmpeg's number for frames that are whole; 0 is unknown, others are orders of fields."""
TRANSFERS = {16: "HDR (PQ)", 18: "HDR (HLG)"}
"""What a stream says of its brightness -> for people; it is read as other videos are."""


@dataclass(frozen=True)
class Facts:
    """What a file's header says. Seconds, frames and rate are None where it does not.

    Attributes:
        kind: Container and codec, such as "mp4 (h264)".
        size: Height and width, as stored.
        rate: Frames per second, on average.
        seconds: How long it says that it is.
        frames: Frames, counted or by rate and length.
        bits: Bits of a channel.
        colour: Whether it is stored in colour.
        more: What is there and not read: "sound", "an alpha channel", "more video streams", "HDR (PQ)".
        pixel: The shape of pixels that are not square, such as "16:15"; empty for others.
        interlaced: Whether a frame is two fields of different times.
    """

    kind: str
    size: tuple[int, int]
    rate: float | None
    seconds: float | None
    frames: int | None
    bits: int
    colour: bool
    more: tuple[str, ...]
    pixel: str = ""
    interlaced: bool = False


def header(path: Path, rate: float | None = None) -> Facts:
    """What a file says of itself; or a folder of frames, by its first, which were taken at this rate.

    Raises:
        BadSample: It cannot be opened, or holds no video.
    """
    if path.is_dir():
        return _frames(path, rate)
    check_file(path)
    try:
        with in_time(str(path)), open_container(path) as container:
            return _facts(container, main_stream(container, path))
    except (av.FFmpegError, ValueError) as error:
        raise BadSample(str(path), f"it cannot be read as a video: {error_text(error)}") from error


def _frames(path: Path, rate: float | None) -> Facts:
    with in_time(str(path)), FrameFolder(path) as reader:
        endings = sorted({os.path.splitext(name)[1].lower() for name in reader.names})
        count = len(reader)
        height, width = reader.size[:2]
        seconds = count / rate if rate else None
        return Facts(f"folders of frames ({', '.join(endings)})", (height, width), rate, seconds, count, 8, True, ())


def _facts(container: Any, stream: Any) -> Facts:
    context = stream.codec_context
    rate = float(stream.average_rate) if stream.average_rate and stream.average_rate < LIKELY else None
    length = stream.duration * stream.time_base if stream.duration else (container.duration or 0) / av.time_base
    seconds = float(length) or None
    frames = stream.frames or (round(seconds * rate) if seconds and rate else None)
    shown = context.format
    bits = max((part.bits for part in shown.components), default=8) if shown else 8
    colour = not (context.pix_fmt or "").startswith(("gray", "mono"))
    videos = [other for other in container.streams.video if not int(other.disposition) & COVER_PICTURE]
    more = {
        "sound": bool(container.streams.audio),
        "an alpha channel": bool(shown)
        and shown.has_palette is False
        and any(part.is_alpha for part in shown.components),
        "more video streams": len(videos) > 1,
        TRANSFERS.get(int(context.color_trc or 0), ""): int(context.color_trc or 0) in TRANSFERS,
    }
    kind = f"{container.format.name.split(',')[0]} ({context.name})"
    return Facts(kind, (context.height, context.width), rate, seconds, frames, bits, colour,
                 tuple(name for name, present in more.items() if present),
                 pixel_shape(stream.sample_aspect_ratio), _interlaced(container, stream))  # fmt: skip


def _interlaced(container: Any, stream: Any) -> bool:
    """Whether frames are marked as two fields; where the header does not say it, by the first frame that decodes."""
    order = int(stream.codec_context.field_order)
    if order:
        return order != PROGRESSIVE
    try:
        return any(bool(frame.interlaced_frame) for frame in itertools.islice(container.decode(stream), 1))
    except av.FFmpegError:  # reading it names the fault
        return False


class Look:
    """A look at up to `MOST` files of a store, evenly spaced. They are opened when something is asked.

    Args:
        store: The files.
        rate: Frames per second of folders of frames, where it is known.
    """

    def __init__(self, store: ClipStore, rate: float | None = None) -> None:
        self.store, self.rate = store, rate

    @cached_property
    def seen(self) -> tuple[list[Facts], dict[str, str]]:
        """What the headers say, and files that cannot be used -> why."""
        files = list(dict.fromkeys(self.store.files))
        count = min(MOST, len(files))
        facts, bad = list[Facts](), dict[str, str]()
        for name in (files[i * len(files) // count] for i in range(count)):
            try:
                facts.append(header(self.store.root / name, self.rate))
            except BadSample as error:
                bad[name] = error.reason
        return facts, bad

    def seconds(self) -> list[float]:
        """Lengths of the files that state them, rising."""
        return sorted(facts.seconds for facts in self.seen[0] if facts.seconds is not None)

    def text(self, needed: int) -> str:
        """One line: kinds, sizes, rates, lengths, bits, what is not read, and files that cannot be used.

        Args:
            needed: Frames that a clip spans; 0 where files of any length do.
        """
        facts, bad = self.seen
        files = len(set(self.store.files))
        looked = f"{len(facts) + len(bad):,} of {files:,} looked at: "
        parts = _parts(facts, needed) if facts else []
        if bad:
            name, why = next(iter(bad.items()))
            parts.append(f"{counted(len(bad), 'file')} cannot be used ({name}: {why})")
        return looked + "; ".join(parts)


def _parts(facts: Sequence[Facts], needed: int) -> list[str]:
    kinds = Counter(fact.kind for fact in facts)
    named = [f"{kind}{f' x {count}' if len(kinds) > 1 else ''}" for kind, count in kinds.most_common(4)]
    sizes = sorted({fact.size for fact in facts}, key=lambda size: (size[0] * size[1], size))
    parts = [", ".join(named) + (", ..." if len(kinds) > 4 else "")]
    parts.append(_range([f"{width} x {height}" for height, width in sizes]) + " pixels")
    if rates := sorted(fact.rate for fact in facts if fact.rate):
        parts.append(_range([f"{rate:.4g}" for rate in rates]) + " frames/s")
    if lengths := sorted(fact.seconds for fact in facts if fact.seconds):
        parts.append(_range([lasting(seconds) for seconds in lengths]))
    else:
        parts.append("no lengths in the headers")
    bits = Counter(fact.bits for fact in facts)
    parts.append(_range([str(number) for number in sorted(bits)]) + " bits" + (", read as 8" if max(bits) > 8 else ""))
    short = sum(fact.frames is not None and fact.frames < needed for fact in facts)
    if short:
        parts.append(f"{counted(short, 'file')} shorter than a clip of {needed} frames")
    shapes = Counter(fact.pixel for fact in facts if fact.pixel)
    parts += [f"pixels of {pixel} in {count}, shown in their shape" for pixel, count in shapes.items()]
    if fields := sum(fact.interlaced for fact in facts):
        parts.append(f"interlaced in {fields}, read with both fields in a frame")
    unread = Counter(name for fact in facts for name in fact.more)
    parts += [f"{name} in {count}, {'read as any other' if 'HDR' in name else 'not read'}" for name, count in
              unread.items()]  # fmt: skip
    return parts


def _range(values: Sequence[str]) -> str:
    return values[0] if values[0] == values[-1] else f"{values[0]} to {values[-1]}"
