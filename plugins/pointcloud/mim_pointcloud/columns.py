"""What the columns of a cloud are: by their names, as the user says, or by their values where these are certain."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from mim_core import counted
from numpy.typing import NDArray

from mim_pointcloud.files_shape import Shape, cloud
from mim_pointcloud.limits import check_numbers
from mim_pointcloud.polygons import Floats

NAMES = {"xyz": ("x", "y", "z"), "normals": ("nx", "ny", "nz"), "rgb": ("red", "green", "blue")}
SAME = {"r": "red", "g": "green", "b": "blue", "normal_x": "nx", "normal_y": "ny", "normal_z": "nz"}
SAME |= {f"diffuse_{colour}": colour for colour in ("red", "green", "blue")}
WIDEST = 64
"""Columns of three points, beyond which an array is taken for one that lies on its side."""
LETTERS = {"normals": ("nx", "ny", "nz"), "rgb": ("r", "g", "b")}
"""How a message and --data.columns name the columns of a channel."""


def same(name: str) -> str:
    """A column's name in lower case, and of its usual names the first."""
    return SAME.get(name.lower(), name.lower())


def from_fields(fields: Mapping[str, NDArray[Any]]) -> Shape:
    """A cloud of named columns: x y z, nx ny nz (or normal_x ...), red green blue (or r g b, diffuse_red ...).

    Raises:
        ValueError: There are no x, y and z, or a column that is read holds no real numbers.
    """
    named = {same(name): values for name, values in fields.items()}
    channels: dict[str, Floats | None] = {}
    for channel, columns in NAMES.items():
        complete = all(column in named for column in columns)
        kinds = {named[column].dtype.kind for column in columns} if complete else set()
        if not kinds <= set("fiub"):
            raise ValueError(f"its {', '.join(columns)} are no real numbers")
        values = np.stack([named[column].astype(np.float64).reshape(-1) for column in columns], 1) if complete else None
        if channel == "rgb" and values is not None:
            values = shades(values, whole=kinds <= {"u", "i"})
        channels[channel] = values
    vertices = channels["xyz"]
    if vertices is None:
        raise ValueError(f"it has no x, y and z; it has {', '.join(map(str, fields)) or 'nothing'}")
    known = {column for columns in NAMES.values() for column in columns}
    unread = tuple(str(name) for name in fields if same(name) not in known)
    return cloud(vertices, channels["normals"], channels["rgb"])._replace(unread=unread)


def shades(values: Floats, whole: bool = False) -> Floats:
    """Colours from 0 to 1: whole numbers, and any that go over 1, are of 255; over 255, of 65,535."""
    largest = values.max(initial=0.0)
    return values / (65535.0 if largest > 255 else 255.0 if whole or largest > 1 else 1.0)


def check_names(names: Sequence[str]) -> str:
    """What is wrong with names of columns; empty where nothing is."""
    counts = Counter(map(same, names))
    twice = [name for name, count in counts.items() if count > 1 and any(name in row for row in NAMES.values())]
    if twice:
        return f"{twice[0]} stands there twice"
    if not set(NAMES["xyz"]) <= set(counts):
        return "x, y and z have to be among them"
    for channel, columns in NAMES.items():
        if 0 < sum(name in counts for name in columns) < 3:
            return f"{' '.join(LETTERS.get(channel, columns))} go together"
    return ""


def from_table(table: NDArray[Any], columns: Sequence[str] = ()) -> Shape:
    """A cloud of unnamed columns [P, >= 3]: as ``columns`` names them, else x y z first.

    Without names, three columns of unit length are normals, and three from 0 to 255 are colours; others, as labels or
    intensities, are not looked at. Where more than one place is possible, the cloud has neither, and `Shape.unclear`
    says why: nothing is guessed.

    Raises:
        ValueError: Fewer than three columns, or others than are named.
    """
    check_table(table)
    if columns:
        if len(columns) != table.shape[1]:
            raise ValueError(f"it has {table.shape[1]} columns; --data.columns names {len(columns)}")
        return from_fields(dict(zip(map(same, columns), table.T, strict=True)))
    table = table.astype(np.float64)
    starts = range(3, min(table.shape[1], WIDEST) - 2)  # of more columns, the others are not looked at
    normals = [start for start in starts if _are_normals(table[:, start : start + 3])]
    free = [start for start in starts if not normals or abs(start - normals[0]) >= 3]
    colours = [start for start in free if _are_colours(table[:, start : start + 3])]
    channels, unclear = dict[str, Floats](), dict[str, str]()
    for channel, places in (("normals", normals), ("rgb", colours)):
        if len(places) == 1:
            channels[channel] = table[:, places[0] : places[0] + 3]
        elif places:
            unclear[channel] = _two_readings(channel, places, table.shape[1])
    rgb = shades(channels["rgb"]) if "rgb" in channels else None
    left = table.shape[1] - 3 - 3 * len(channels)
    unread = (counted(left, "column without a name", "columns without names"),) if left else ()
    return cloud(table[:, :3], channels.get("normals"), rgb)._replace(unclear=unclear, unread=unread)


def _are_normals(triple: Floats) -> bool:
    with np.errstate(all="ignore"):
        length = np.sqrt((triple * triple).sum(1))
        unit = np.abs(length - 1) < 0.02
    return bool((unit | (length == 0)).all() and unit.any())


def _are_colours(triple: Floats) -> bool:
    return bool(len(triple) and triple.min() >= 0 and triple.max() <= 255)


def _two_readings(channel: str, places: Sequence[int], width: int) -> str:
    """Why a channel was not taken, and the option that says where it is."""
    letters = LETTERS[channel]
    ends = " or ".join(f"{place + 1} to {place + 3}" for place in places[:3])
    others = ["other"] * (width - 6)
    names = ["x", "y", "z", *others[: places[-1] - 3], *letters, *others[places[-1] - 3 :]]
    return f"{' '.join(letters)} may be columns {ends} of {width}; say which, such as --data.columns {' '.join(names)}"


def check_table(table: NDArray[Any]) -> None:
    """Raises ValueError for what is no array of points, or of too many."""
    if table.ndim != 2 or table.shape[1] < 3:
        raise ValueError(f"its shape is {list(table.shape)}; [points, 3 or more] is needed")
    if table.shape[0] == 3 and table.shape[1] > WIDEST:
        raise ValueError(
            f"its shape is {list(table.shape)}, as of {table.shape[1]} points; transposed? Store [points, 3]"
        )
    check_numbers(*table.shape)
