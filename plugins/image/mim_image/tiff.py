"""What the headers of a TIFF file say, read without decoding it: Pillow tells neither the bands that it leaves out nor
why it cannot open a file."""

from __future__ import annotations

import struct
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
    fields: dict[str, int] = {}
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
        fields[_TAGS[tag]] = struct.unpack(order + code, values[:size])[0]
    return Page(**fields), following
