"""When the frames of a file are shown: its packets' timestamps where they are exact, else those of decoded frames."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import av

from mim_video.stated import MOST_FRAMES

ONE_FRAME_A_PACKET = frozenset({"h264", "hevc", "vp9", "av1", "libdav1d", "mjpeg", "ffv1", "mpeg4"})
"""Codecs whose packets each show one frame, so that the packets' times are the frames' times."""
STUB = 12
"""Bytes. A shorter packet of MPEG-4 may say only that there is no new frame."""


@dataclass(frozen=True)
class FrameIndex:
    """When the frames of a stream are shown, in its time base.

    Attributes:
        shown: Timestamp of each frame, strictly rising.
        keys: (timestamp, decoding timestamp) of the key frames, rising.
        counted: Frames carry no timestamps of their own and are told apart by counting from the start.
        leading: Some frames come after a key frame in the file and are shown before it; they need the one before.
    """

    shown: tuple[int, ...]
    keys: tuple[tuple[int, int], ...] = ()
    counted: bool = False
    leading: bool = False

    def key_before(self, stamp: int) -> int:
        """Which key frame decoding a frame must start at; -1: the start of the file."""
        return bisect.bisect_right(self.keys, (stamp, 1 << 62)) - 1


@dataclass(frozen=True, slots=True)
class PacketFacts:
    """What a packet says without being decoded."""

    shown: int | None
    decoded: int | None
    size: int
    key: bool
    discard: bool
    corrupt: bool


@dataclass(frozen=True)
class Scan:
    """One pass over a stream's packets: what they say, and the first frame that decodes."""

    packets: tuple[PacketFacts, ...]
    first: Any

    def exact(self, stream: Any) -> bool:
        """Whether the packets' times are those of the frames that decoding would give."""
        packets, codec = self.packets, stream.codec_context.codec.name
        stamps = {packet.shown for packet in packets if packet.shown is not None}
        formats = stream.container.format.name.split(",")
        return (
            codec in ONE_FRAME_A_PACKET
            and self.first is not None
            and len(stamps) == len(packets)  # every packet has its own time
            and not self.lacking(stream)
            and packets[0].key
            and packets[0].shown == min(stamps)  # else frames that cannot decode may come before the first key frame
            and not any(packet.corrupt for packet in packets)
            and not ("avi" in formats and codec != "mpeg4" and stream.codec_context.has_b_frames)  # times are guessed
            and not (codec == "mpeg4" and any(packet.size < STUB for packet in packets))
        )

    def lacking(self, stream: Any) -> bool:
        """Whether the file's table of contents has packets that reading does not give."""
        tabled = {"mp4", "avi"} & set(stream.container.format.name.split(","))
        return bool(tabled) and len(self.packets) < len(getattr(stream, "index_entries", ()))

    def keys(self) -> tuple[tuple[int, int], ...]:
        """(timestamp, decoding timestamp) of the key frames that can be sought, rising."""
        keys = [p for p in self.packets if p.key and not p.corrupt]
        stamps = [(p.shown, p.shown if p.decoded is None else p.decoded) for p in keys if p.shown is not None]
        return tuple(sorted(stamps))

    def leading(self) -> bool:
        """Whether frames that follow a key frame are shown before it (open groups of pictures)."""
        key: int | None = None
        for packet in self.packets:
            if packet.shown is None:
                continue
            if packet.key:
                key = packet.shown
            elif key is not None and packet.shown < key:
                return True
        return False


def scan(packets: Iterable[Any], context: Any) -> Scan:
    """Read the packets of a stream, decoding no more than the first frame.

    Args:
        packets: From the stream's start.
        context: Its decoder; what it holds afterwards is of no use.

    Raises:
        ValueError: There are more than `MOST_FRAMES`.
    """
    facts: list[PacketFacts] = []
    first = None
    for packet in packets:
        if first is None:
            first = next(decode([packet]), None)
        if first is None and not facts and packet.size and not packet.is_corrupt:  # it waits for more: make it answer
            first = _emptied(context)
        if len(facts) > MOST_FRAMES:
            raise ValueError(
                f"it has more than {MOST_FRAMES:,} frames, whose index would fill the memory; cut it into parts "
                "(ffmpeg -c copy -f segment)"
            )
        if packet.size:
            facts.append(
                PacketFacts(
                    packet.pts, packet.dts, packet.size, packet.is_keyframe, packet.is_discard, packet.is_corrupt
                )
            )
    return Scan(tuple(facts), first)


def _emptied(context: Any) -> Any:
    """A frame that the decoder holds back, or None; it can be fed again afterwards."""
    try:
        return next(iter(context.decode(None)), None)
    except av.FFmpegError:
        return None
    finally:
        context.flush_buffers()


def decode(packets: Iterable[Any]) -> Iterator[Any]:
    """Frames in the order of presentation. Packets that are damaged or do not decode are left out."""
    for packet in packets:
        if packet.is_corrupt and packet.size:
            continue
        try:
            yield from packet.decode()
        except av.EOFError:
            return
        except av.FFmpegError:
            continue


def index_by_packets(scanned: Scan) -> FrameIndex:
    """The index of a stream whose packets' times are exact."""
    shown = sorted(p.shown for p in scanned.packets if not p.discard and p.shown is not None)
    return FrameIndex(tuple(shown), scanned.keys(), leading=scanned.leading())


def index_by_frames(
    scanned: Scan, frames: Iterable[Any], step: float, own_times: bool = True, lacking: bool = False
) -> FrameIndex:
    """The index of a stream that has to be decoded to be known.

    Args:
        scanned: Its packets.
        frames: All its frames, decoded.
        step: A frame's duration by the container's fixed rate, in its time base; for frames that have no time at all.
        own_times: The container has a time for each packet; where it has none, packets are counted, and behind damage
            reading from the start counts otherwise than the table of contents by which seeking goes.
        lacking: See `Scan.lacking`.
    """
    shown = [frame.pts for frame in frames]
    timed = all(packet.shown is not None for packet in scanned.packets) and None not in shown
    if timed and not own_times and lacking and shown == sorted(set(shown)):
        return FrameIndex(tuple(shown), counted=True)
    damaged = any(packet.corrupt for packet in scanned.packets)  # decoders give frames out of turn behind damage
    if timed and (shown == sorted(shown) or (damaged and own_times)):
        return FrameIndex(tuple(sorted(set(shown))), scanned.keys(), leading=scanned.leading())
    decoded = sorted({packet.decoded for packet in scanned.packets if packet.decoded is not None})
    if len(decoded) == len(shown):  # no times of presentation: those of decoding, in order, are the same set
        return FrameIndex(tuple(decoded), counted=True)
    start = decoded[0] if decoded else 0
    return FrameIndex(tuple(start + round(number * step) for number in range(len(shown))), counted=True)
