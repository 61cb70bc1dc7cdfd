"""How many frames an MP4 or QuickTime file says that it has, before a library makes a table of them: a file of a few
hundred bytes can say billions."""

from __future__ import annotations

import os
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from mim_core import BadSample

MOST_STATED = 8_000_000
"""Frames and pieces of sound in all tables of a file, at most; FFmpeg takes some 35 bytes for each."""
MOST_FRAMES = 2_000_000
"""Frames of a video that is read, at most: 22 hours at 25 a second. Their index takes some 250 bytes for each."""
LARGEST_HEAD = 1 << 28
"""Bytes of a table of contents, at most; of one that was compressed a quarter."""
HEADS = frozenset(
    b"moov moof cmov trak mdia minf stbl traf udta meta edts tref avss ilst wave dinf sinf iprp mvex".split()
)
"""Boxes in which FFmpeg looks for tables."""

BOXES = re.compile(
    rb"trak"
    rb"|hdlr\0{4}.{4}(?P<handler>.{4})"
    rb"|stts\0{4}(?P<times>.{12})"
    rb"|stsz\0{4}.{4}(?P<sizes>.{4})"
    rb"|stz2\0{4}.{4}(?P<small>.{4})"
    rb"|trun[\0\1].{3}(?P<run>.{4})"
    rb"|cmvd(?P<packed>.{4})",
    re.DOTALL,
)
"""Boxes of ISO/IEC 14496-12 that say how many samples follow, and what of; cmvd is QuickTime's compressed table."""


def check_stated(path: Path) -> None:
    """Refuses a file whose tables say more frames than `MOST_STATED`. Files of other containers pass.

    Args:
        path: A regular file.

    Raises:
        BadSample: Says how many.
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        count = sum(_stated(path, head) for head in _heads(path, file))
    if count > MOST_STATED:
        raise BadSample(
            str(path),
            f"its tables say {count:,} frames and pieces of sound, and at most {MOST_STATED:,} are read: it is "
            "damaged, or is to be cut into parts (ffmpeg -c copy -f segment)",
        )


def _heads(path: Path, file: BinaryIO) -> Iterator[bytes]:
    """The boxes of a file that may hold tables."""
    place, length = 0, os.fstat(file.fileno()).st_size
    while place + 8 <= length:
        file.seek(place)
        start = file.read(24)
        size, kind = struct.unpack(">I4s", start[:8])
        if size == 1 and len(start) >= 16:
            (size,) = struct.unpack(">Q", start[8:16])
        end = length if size == 0 else min(length, place + size)
        if kind in HEADS or (kind in (b"free", b"hoov") and start[12:16] in (b"mvhd", b"cmov")):
            if end - place > LARGEST_HEAD:
                raise BadSample(
                    str(path), f"its table of contents has {end - place:,} bytes, of at most {LARGEST_HEAD:,}"
                )
            file.seek(place)
            yield file.read(end - place)
        if end <= place:
            return
        place = end


def _stated(path: Path, head: bytes) -> int:
    """Samples that the tables of a part of a file say. Sound that is not compressed counts as none: it is a sample for
    each value, and FFmpeg takes it in larger pieces."""
    total, table, sound, single = 0, 0, False, False
    for box in BOXES.finditer(head):
        if box[0] == b"trak":
            total, table, sound, single = total + (0 if sound and single else table), 0, False, False
        elif box["handler"]:
            sound = box["handler"] == b"soun"
        elif box["times"]:
            entries, _, step = struct.unpack(">3I", box["times"])
            single = entries == 1 and step == 1
        elif number := box["sizes"] or box["small"]:
            table = max(table, *struct.unpack(">I", number))
        elif box["run"]:
            total += struct.unpack(">I", box["run"])[0]
        elif box["packed"]:
            total += _packed(path, head[box.end() :], *struct.unpack(">I", box["packed"]))
    return total + (0 if sound and single else table)


def _packed(path: Path, values: bytes, size: int) -> int:
    if size > LARGEST_HEAD // 4:
        raise BadSample(
            str(path), f"its compressed table of contents unpacks to {size:,} bytes, of at most {LARGEST_HEAD // 4:,}"
        )
    try:
        head = zlib.decompressobj().decompress(values, size)
    except zlib.error:  # FFmpeg says what is wrong with it
        return 0
    return _stated(path, head)
