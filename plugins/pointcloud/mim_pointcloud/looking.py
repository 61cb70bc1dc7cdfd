"""What the files of a collection hold, as far as a look at a few of them tells."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from mim_core import BadSample, MimError, counted, in_time

from mim_pointcloud.columns import from_table
from mim_pointcloud.files import UNNAMED, check_values, read_shape, reason_of
from mim_pointcloud.files_array import mapped
from mim_pointcloud.files_shape import Shape
from mim_pointcloud.layouts_hdf5 import NORMALS
from mim_pointcloud.layouts_store import ShapeStore
from mim_pointcloud.limits import check_file

FILES = 32
"""Files that are looked at."""
LARGEST_LOOK = 2 * 2**20
"""Bytes of a file that is read for a look; of larger ones, the size alone counts. Arrays are not read whole."""
LARGEST_LOOKS = 8 * 2**20
"""Bytes of all of them."""
NAMED = 12
"""Names that are listed."""
ROWS = 1024
"""Rows of an array that are looked at."""
FAR = 100
"""Times the distance of most points from their middle, beyond which a point is rarely meant."""
DOUBLED = 0.25
"""Share of points that lie where others do, beyond which they are rarely meant."""
TEXTURES = (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".tga", ".tif", ".tiff", ".dds", ".webp")


@dataclass(frozen=True)
class Look:
    """One file.

    Attributes:
        points: Points of a cloud, or vertices.
        faces: Triangles of a mesh; 0 for a cloud.
        channels: What it has.
        unclear: Channel -> why it is not among them.
        unread: What else it says of its points.
        low: The smallest coordinate.
        high: The largest.
        extent: The longest side of its box.
        name: The file.
        far: Some points of a cloud lie beyond `FAR` times the distance of most.
        doubled: Share of the points of a cloud that lie where others do.
    """

    points: int
    faces: int
    channels: tuple[str, ...]
    unclear: Mapping[str, str]
    unread: tuple[str, ...]
    low: float
    high: float
    extent: float
    name: str = ""
    far: bool = False
    doubled: float = 0.0


def look(path: Path, columns: Sequence[str] = ()) -> Look | None:
    """What a file holds; None for one that is too large for a look.

    Raises:
        BadSample: It cannot be read.
    """
    check_file(path)
    if path.suffix.lower() == ".npy":
        try:
            array = mapped(path)
            if not array.dtype.names and array.ndim == 2 and len(array) and array.dtype.kind in "fiu":
                rows = np.linspace(0, len(array) - 1, min(ROWS, len(array))).astype(np.int64)
                return _look(path, from_table(array[rows], columns), len(array))
        except (ValueError, TypeError) as error:
            raise BadSample(str(path), reason_of(error)) from error
    if path.stat().st_size > LARGEST_LOOK:
        return None
    with in_time(str(path)):
        shape = read_shape(path, columns)
    try:
        return _look(path, shape, len(shape.vertices))
    except ValueError as error:
        raise BadSample(str(path), reason_of(error)) from error


def _look(path: Path, shape: Shape, points: int) -> Look:
    check_values(shape)
    used = shape.vertices[np.unique(shape.faces)] if len(shape.faces) else shape.vertices
    low, high = used.min(0), used.max(0)
    normals = shape.normals is not None or len(shape.faces) > 0
    channels = ("xyz", *(["normals"] if normals else []), *(["rgb"] if shape.rgb is not None else []))
    ends = float(low.min()), float(high.max())
    extent = float((high - low).max())
    odd = (False, 0.0) if len(shape.faces) else _odd(used)
    return Look(points, len(shape.faces), channels, shape.unclear, shape.unread, *ends, extent, path.name, *odd)


def _odd(places: np.ndarray) -> tuple[bool, float]:
    """Whether some points lie far out, and the share of those that lie where others do."""
    out = np.linalg.norm(places - np.median(places, axis=0), axis=1)
    most = float(np.median(out[out > 0])) if (out > 0).any() else 0.0
    doubled = 1 - len(np.unique(places, axis=0)) / len(places)
    return bool(most and out.max() > FAR * most), doubled


def evenly(count: int, most: int) -> list[int]:
    """Numbers below ``count``, at most so many, the first and the last among them."""
    taken = min(count, most)
    return sorted({round(at * (count - 1) / max(1, taken - 1)) for at in range(taken)})


@dataclass(frozen=True)
class Looks:
    """Some files of a collection.

    Attributes:
        files: How many there are in all.
        numbers: How many were looked at.
        endings: Their endings, and how many have each.
        found: What they hold.
        wrong: Those that cannot be read, each with why.
        large: How many are too large for a look.
    """

    files: int
    numbers: int
    endings: Counter[str]
    found: tuple[Look, ...]
    wrong: tuple[str, ...]
    large: int


def looks_at(store: ShapeStore, columns: Sequence[str] = ()) -> Looks:
    """A look at some files, each of which holds one shape.

    Args:
        store: The files.
        columns: As the user names them.
    """
    looks, endings, wrong, large, left = list[Look](), Counter[str](), list[str](), 0, LARGEST_LOOKS
    numbers = [] if store.rows else evenly(len(store), FILES)
    for number in numbers:
        path = store.root / store.files[number]
        endings[path.suffix.lower()] += 1
        try:
            whole = 0 if path.suffix.lower() == ".npy" else path.stat().st_size
            seen = look(path, columns) if whole <= left else None
        except (BadSample, OSError) as error:
            wrong.append(f"{store.name(number)}: {error.reason if isinstance(error, BadSample) else error.strerror}")
            continue
        left -= whole if seen else 0
        looks, large = [*looks, *([seen] if seen else [])], large + (seen is None)
    return Looks(len(store), len(numbers), endings, tuple(looks), tuple(wrong), large)


def files_hold(store: ShapeStore, looks: Looks, asked: Sequence[str] = ("xyz",), parts: bool = False) -> str:
    """Formats, points, faces, channels and coordinates of some files, and what of them is not read.

    Args:
        store: The files.
        looks: At some of them.
        asked: Channels that the run reads.
        parts: The run reads parts of points too.
    """
    if store.rows:
        return _rows(store, asked)
    listed = ", ".join(f"{count} x {ending}" for ending, count in looks.endings.most_common())
    notes = [f"{looks.numbers:,} of {looks.files:,} looked at: {listed}", *_kinds_text(looks.found, asked, parts)]
    notes += [f"{looks.large} too large for a look"] if looks.large else []
    notes += [f"{counted(len(looks.wrong), 'file')} cannot be read ({looks.wrong[0]})"] if looks.wrong else []
    return "; ".join(notes)


def rarely_meant(looks: Looks, count: int) -> list[str]:
    """What of some clouds is read as it is and was hardly meant, with what to do.

    Args:
        looks: At some files.
        count: Points of a cloud that are asked for.
    """
    clouds = [one for one in looks.found if not one.faces]
    of, notes = f"of {counted(len(clouds), 'cloud')} looked at", list[str]()
    if far := [one.name for one in clouds if one.far]:
        notes.append(
            f"{len(far)} {of} have points more than {FAR} times as far out as most (such as {far[0]}). Clouds are "
            "scaled by their farthest point, so all others shrink to a spot. If these mean no measurement, such as "
            "-9999, take them out"
        )
    if doubled := [one for one in clouds if one.doubled > DOUBLED]:
        most = max(doubled, key=lambda one: one.doubled)
        notes.append(
            f"{len(doubled)} {of} have many points that lie where others do ({most.name}: {most.doubled:.0%}). If "
            "these fill up what was not measured, take them out"
        )
    if few := [one.points for one in clouds if one.points < count]:
        notes.append(
            f"{len(few)} {of} have fewer than the {count:,} points that are asked for, {min(few):,} at least; theirs "
            "are repeated. Fewer: --tokenizer.points N"
        )
    return notes


def _kinds_text(looks: Sequence[Look], asked: Sequence[str], parts: bool) -> list[str]:
    if not looks:
        return []
    notes = []
    meshes, clouds = [one for one in looks if one.faces], [one for one in looks if not one.faces]
    if meshes:
        notes.append(f"{counted(len(meshes), 'mesh', 'meshes')} of {_range(one.faces for one in meshes)} triangles")
    if clouds:
        notes.append(f"{counted(len(clouds), 'cloud')} of {_range(one.points for one in clouds)} points")
    has = Counter(channel for one in looks for channel in one.channels)
    notes.append(_counted(has, len(looks)))
    unread = Counter(name[:40] for one in looks for name in (() if parts else one.unread))
    extras = Counter(name for one in clouds for name in one.channels if name not in asked)
    notes += [f"not read: {_counted(unread, len(looks))}"] if unread else []
    notes += [f"not asked for: {_counted(extras, len(looks))} (--data.channels)"] if extras else []
    unclear = {why for one in looks for why in one.unclear.values()} if not parts else set()
    notes += [f"unclear: {why}" for why in sorted(unclear)[:2]]
    ends = f"{min(one.low for one in looks):.4g} to {max(one.high for one in looks):.4g}"
    return [*notes, f"coordinates from {ends}", f"longest sides {_range(one.extent for one in looks)}"]


def _counted(names: Counter[str], most: int) -> str:
    """Such as "xyz, normals in 3"."""
    listed = [name if many == most else f"{name} in {many}" for name, many in list(names.items())[:NAMED]]
    return ", ".join(listed) + (", ..." if len(names) > NAMED else "")


def _range(values: Iterable[float]) -> str:
    numbers = list(values)
    low, high = (f"{end:,}" if isinstance(end, int) else f"{end:.4g}" for end in (min(numbers), max(numbers)))
    return low if low == high else f"{low} to {high}"


def _rows(store: ShapeStore, channels: Sequence[str]) -> str:
    """Of files with many shapes, their header."""
    notes = []
    for file in dict.fromkeys(store.files):
        path, others = store.root / file, list[str]()
        try:
            if path.suffix == ".h5":
                with h5py.File(path, "r") as opened:
                    shape, kind = opened["data"].shape, opened["data"].dtype
                    others = sorted(set(opened) - {"data", "label", *([NORMALS] if "normals" in channels else [])})
            else:
                array = mapped(path)
                shape, kind = array.shape, array.dtype
        except Exception as error:  # what is wrong with it is said where it is read
            notes.append(f"{file}: {reason_of(error)}")
            continue
        unread = f"; not read: {', '.join(others[:NAMED])}" if others else ""
        notes.append(f"{file}: {shape[0]:,} clouds of {shape[1]:,} points, {kind}{unread}")
    return "; ".join(notes[:3])


def check_columns(store: ShapeStore, channels: Sequence[str], columns: Sequence[str]) -> None:
    """Whether it is certain where the channels that were asked for lie, in some files whose columns have no names.

    Raises:
        MimError: It is not; says which option tells.
    """
    unnamed = [number for number, file in enumerate(store.files) if Path(file).suffix.lower() in UNNAMED]
    for at in evenly(len(unnamed), 8) if unnamed and not store.rows else ():
        path = store.root / store.files[unnamed[at]]
        try:
            seen = look(path, columns)
        except BadSample:
            continue
        why = next((seen.unclear[channel] for channel in channels if channel in seen.unclear), "") if seen else ""
        if why:
            raise MimError(f"--data.channels {' '.join(channels)}: in {path}, {why}.")
