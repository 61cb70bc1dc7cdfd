"""What the headers of a TIFF file say, read without decoding it: Pillow tells neither the bands that it leaves out nor
why it cannot open a file."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

PAGES = 1000
"""Pages that are counted; a file with more is said to have this many."""
_TAGS = {254: "subfile", 256: "width", 257: "height", 258: "bits", 262: "photometric", 277: "samples", 338: "extra",
         339: "format"}  # fmt: skip
_SIZES = {1: ("B", 1), 3: ("H", 2), 4: ("I", 4), 16: ("Q", 8)}


@dataclass(frozen=True)
class Page:
    """One page: its size, bands (``samples``), bits of a value, kind of number (1 unsigned, 2 signed, 3 float)."""

    subfile: int = 0
    width: int = 0
    height: int = 0
    bits: int = 1
    photometric: int = 1
    samples: int = 1
    extra: int = -1
    format: int = 1


def read_pages(file: Any) -> list[Page]:
    """The pages of a TIFF file, reduced copies of others left out; empty for any other file. The place in the file is
    kept."""
    place = file.tell()
    try:
        return _pages(file)
    except (struct.error, OSError, ValueError, OverflowError):
        return []
    finally:
        file.seek(place)


def _pages(file: Any) -> list[Page]:
    file.seek(0)
    start = file.read(16)
    order = {b"II": "<", b"MM": ">"}.get(start[:2])
    if order is None or len(start) < 8:
        return []
    (version,) = struct.unpack(order + "H", start[2:4])
    if version not in (42, 43):
        return []
    big = version == 43
    (offset,) = struct.unpack(order + ("Q" if big else "I"), start[8:16] if big else start[4:8])
    pages, seen = list[Page](), set[int]()
    while offset and offset not in seen and len(pages) < PAGES and len(seen) < 2 * PAGES:
        seen.add(offset)
        try:
            page, offset = _page(file, order, big, offset)
        except struct.error:  # cut short: what came before counts
            break
        if not page.subfile & 1:
            pages.append(page)
    return pages


def _page(file: Any, order: str, big: bool, offset: int) -> tuple[Page, int]:
    """The page whose directory starts there, and where the next one does."""
    file.seek(offset)
    count_code, entry_size, link = ("Q", 20, "Q") if big else ("H", 12, "I")
    (count,) = struct.unpack(order + count_code, file.read(struct.calcsize(count_code)))
    if count > 4096:
        raise ValueError("no directory has so many entries")
    entries = file.read(count * entry_size)
    (following,) = struct.unpack(order + link, file.read(struct.calcsize(link)))
    found: dict[str, int] = {}
    for i in range(count):
        entry = entries[i * entry_size : (i + 1) * entry_size]
        tag, kind = struct.unpack(order + "HH", entry[:4])
        if tag not in _TAGS or kind not in _SIZES:
            continue
        code, size = _SIZES[kind]
        values, inline = entry[entry_size - (8 if big else 4) :], 8 if big else 4
        (number,) = struct.unpack(order + ("Q" if big else "I"), entry[4 : 12 if big else 8])
        if number * size > inline:  # many values: the first tells
            file.seek(struct.unpack(order + ("Q" if big else "I"), values)[0])
            values = file.read(size)
        found[_TAGS[tag]] = struct.unpack(order + code, values[:size])[0]
    return Page(**found), following


LARGEST_TAGS = 1 << 24
"""Bytes of the tags of a page, at most: Pillow reads them all when it opens a file, into many times the memory."""
_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
"""Type of a tag's values -> bytes of one."""


def check_tags(file: Any) -> None:
    """Before Pillow opens a file. The place in the file is kept.

    Raises:
        ValueError: It is a TIFF file whose tags hold more than `LARGEST_TAGS`.
    """
    place = file.tell()
    try:
        most = max(_tag_bytes(file), default=0)
    except struct.error:  # cut short: Pillow says so
        most = 0
    finally:
        file.seek(place)
    if most > LARGEST_TAGS:
        raise ValueError(f"its tags hold {most:,} bytes, and at most {LARGEST_TAGS:,} are read: it is damaged")


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
