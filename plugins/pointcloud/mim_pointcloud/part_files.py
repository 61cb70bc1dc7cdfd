"""Text with a part for every point, as ShapeNetPart has it; and the parts of categories that are not ShapeNetPart's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
from mim_core import BadSample, MimError
from numpy.typing import NDArray

from mim_pointcloud.files import reason_of
from mim_pointcloud.layouts_store import ShapeStore
from mim_pointcloud.limits import TREE_LIMIT, check_file
from mim_pointcloud.part_table import PartTable

WIDTHS = {7: "x y z nx ny nz part", 4: "x y z part"}
"""Numbers a line -> what they are."""
LARGEST_KEPT = 255
"""Own ids beyond it are numbered anew, because a network has an output for every number up to the largest."""
LOOKED_AT = 5
"""Files that tell how many columns ShapeNetPart's have."""


def part_rows(path: Path, width: int = 7) -> NDArray[np.float32]:
    """Lines of x y z nx ny nz part or x y z part, [n, width]; the first line may be these names.

    Raises:
        BadSample: It has no points, other columns, or ids that are no whole numbers from 0.
    """
    check_file(path, TREE_LIMIT)
    rows = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
    if rows and [word.lower() for word in rows[0]] == WIDTHS[width].split():
        rows[0] = []
    if not any(rows):
        raise BadSample("", "it has no points")
    ragged = next((at for at, row in enumerate(rows, 1) if row and len(row) != width), None)
    if ragged is not None:
        wrong = f"line {ragged} has {len(rows[ragged - 1])}"
        raise BadSample("", f"it should have {width} numbers a line ({WIDTHS[width]}); {wrong}")
    values = np.array([row for row in rows if row], np.float32)
    parts = values[:, -1]
    if not ((parts >= 0) & (parts < 2**24) & (parts == np.round(parts))).all():
        raise BadSample("", f"its last column ({WIDTHS[width]}) should hold whole numbers from 0")
    return values


def official(parts: Mapping[str, tuple[int, ...]], train: ShapeStore) -> PartTable:
    """ShapeNetPart's own numbers, in files of as many columns as most of the first have."""
    read = [_read_ids(train.root / file) for file in train.files[:LOOKED_AT]]
    return PartTable(parts, parts, _width([one[0] for one in read if not isinstance(one, str)]) or 7)


def from_training_files(train: ShapeStore) -> PartTable:
    """The sorted ids of each category's training files. They are kept where no two categories share one and none is
    large; else parts are numbered from one category to the next.

    Raises:
        MimError: No training file can be read.
    """
    read = [_read_ids(train.root / file) for file in train.files]
    width = _width([one[0] for one in read if not isinstance(one, str)])
    if width is None:
        raise MimError(
            f"None of the {len(train):,} training shapes in {train.root} has parts that can be read, such as "
            f"{train.name(0)}: {read[0]}. Each line holds {' or '.join(WIDTHS.values())}."
        )
    part_ids: dict[str, set[int]] = {name: set() for name in train.classes or ()}
    for label, one in zip(train.labels, read, strict=True):
        if not isinstance(one, str) and one[0] == width:  # others are refused by name when they are read
            part_ids[(train.classes or ())[label]] |= one[1]
    ids = {name: tuple(sorted(own)) for name, own in part_ids.items()}
    every = [part for own in ids.values() for part in own]
    if len(set(every)) == len(every) and max(every) <= LARGEST_KEPT:
        return PartTable(ids, ids, width, own=True)
    parts, start = dict[str, tuple[int, ...]](), 0
    for name, own in ids.items():
        parts[name] = tuple(range(start, start + len(own)))
        start += len(own)
    return PartTable(parts, ids, width, own=True)


def _width(widths: list[int]) -> int | None:
    return Counter(widths).most_common(1)[0][0] if widths else None


def _read_ids(path: Path) -> tuple[int, frozenset[int]] | str:
    """A file's columns and its ids; why it cannot be read."""
    try:
        stat = path.stat()
        return _ids_of(path, stat.st_size, stat.st_mtime_ns)
    except BadSample as error:
        return error.reason
    except (OSError, ValueError) as error:
        return reason_of(error)


@cache
def _ids_of(path: Path, size: int, changed: int) -> tuple[int, frozenset[int]]:
    """As `_read_ids`; the same file is read once."""
    check_file(path, TREE_LIMIT)
    with open(path, encoding="utf-8") as file:
        first = next((row for line in file if (row := line.split())), [])
    width = len(first) if len(first) in WIDTHS else 7
    return width, frozenset(map(int, np.unique(part_rows(path, width)[:, -1])))
