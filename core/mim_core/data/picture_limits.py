"""Files of pictures that are small and would take minutes or gigabytes: told by their headers, before a library reads
them."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

LARGEST_TAGS = 1 << 24
"""Bytes of the tags of a page, at most: Pillow reads them all when it opens a file, into many times the memory."""
_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
"""Type of a tag's values -> bytes of one."""


MOST_SCANS = 100
"""Passes over a progressive JPEG, at most. Encoders make some ten; each costs as much as a whole picture."""


def check_picture(file: Any) -> None:
    """Before Pillow opens a file. The place in the file is kept.

    Raises:
        ValueError: It is a TIFF file whose tags hold more than `LARGEST_TAGS`, or a JPEG of more than `MOST_SCANS`.
    """
    place = file.tell()
    try:
        most, scans = max(_tag_bytes(file), default=0), _scans(file)
    except struct.error:  # cut short: Pillow says so
        most = scans = 0
    finally:
        file.seek(place)
    if most > LARGEST_TAGS:
        raise ValueError(f"its tags hold {most:,} bytes, and at most {LARGEST_TAGS:,} are read: it is damaged")
    if scans > MOST_SCANS:
        raise ValueError(f"it is a JPEG of {scans:,} passes, and at most {MOST_SCANS} are read: it would take minutes")


def _scans(file: Any) -> int:
    """Passes over a progressive JPEG; 0 for any other file, which is not read."""
    file.seek(0)
    if file.read(2) != b"\xff\xd8":
        return 0
    while True:
        mark, kind, length = struct.unpack(">BBH", file.read(4))
        if mark != 0xFF or kind in (0xC0, 0xC1, 0xDA):  # damaged, or one pass
            return 0
        if kind in (0xC2, 0xC6, 0xCA, 0xCE):  # a marker cannot lie within packed values, where 0 follows 255
            return int(file.read().count(b"\xff\xda"))
        file.seek(length - 2, 1)


def _tag_bytes(file: Any) -> Iterator[int]:
    """Of each page of a TIFF file, the bytes that its tags say; none for any other file."""
    file.seek(0)
    start, seen = file.read(16), set[int]()
    order, big = {b"II": "<", b"MM": ">"}.get(start[:2]), start[2:4] in (b"\x2b\0", b"\0\x2b")
    if order is None or len(start) < 16 or not (big or start[2:4] in (b"\x2a\0", b"\0\x2a")):
        return
    (offset,) = struct.unpack(order + ("Q" if big else "I"), start[8:16] if big else start[4:8])
    head, entry, link = ("Q", "HHQ8x", "Q") if big else ("H", "HHI4x", "I")
    while 0 < offset < 2**63 and offset not in seen and len(seen) < 2000:
        seen.add(offset)
        file.seek(offset)
        (count,) = struct.unpack(order + head, file.read(struct.calcsize(order + head)))
        size = struct.calcsize(order + entry)
        if count > 1 << 16:
            return
        entries = file.read(count * size)
        yield sum(_BYTES.get(kind, 0) * n for _, kind, n in struct.iter_unpack(order + entry, entries))
        (offset,) = struct.unpack(order + link, file.read(struct.calcsize(order + link)))
