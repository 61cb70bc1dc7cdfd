"""Points of one file: sampled from the surface of a mesh, or taken from a cloud; all draws come from a key."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from mim_core import BadSample, MimError, one_line, unknown
from numpy.typing import NDArray
from torch import Tensor

from mim_pointcloud import files_array, files_cloud, files_gltf, files_mesh, files_pcd, files_ply, files_vrml
from mim_pointcloud.files_shape import Shape, of_cloud, on_surface
from mim_pointcloud.limits import LIMIT, TEXT_LIMIT, TREE_LIMIT, WHOLE_LIMIT, check_file

READERS: dict[str, Callable[[Path], Shape]] = {
    ".obj": files_mesh.read_obj,
    ".off": files_mesh.read_off,
    ".stl": files_mesh.read_stl,
    ".glb": files_gltf.read_gltf,
    ".gltf": files_gltf.read_gltf,
    ".ply": files_ply.read_ply,
    ".wrl": files_vrml.read_wrl,
    ".pcd": files_pcd.read_pcd,
}
"""Extension in lower case -> what reads it. Readers may raise anything; `read_cloud` says it as a bad file."""
UNNAMED: dict[str, Callable[[Path, Sequence[str]], Shape]] = {
    ".npy": files_array.read_npy,
    ".npz": files_array.read_npz,
    ".xyz": files_cloud.read_text,
    ".txt": files_cloud.read_text,
    ".pts": files_cloud.read_text,
}
"""The same, for files whose columns may have no names; these are told to the reader."""
EXTENSIONS: tuple[str, ...] = (*READERS, *UNNAMED)
CHANNELS = ("xyz", "normals", "rgb")
"""What may be asked of a file, three numbers each."""
LIMITS = {
    ".wrl": TREE_LIMIT,
    **dict.fromkeys((".obj", ".off", ".xyz", ".txt", ".pts"), TEXT_LIMIT),
    **dict.fromkeys((".stl", ".ply", ".pcd", ".glb", ".gltf"), WHOLE_LIMIT),
}
"""Bytes of the largest file that is read, where it is not `LIMIT`."""
LARGEST = 1e15
"""Coordinates beyond which a file is damaged or of another kind than it says: in millimetres, the distance of the sun
is 1.5e14."""


FAR = 1024.0
"""Shapes farther from the origin than so many times their extent are centred before they become float32, which has
seven digits: of a chair in metres on a map's grid, it would leave none."""


def read_cloud(
    path: Path, points: int, key: int, channels: tuple[str, ...] = ("xyz",), columns: Sequence[str] = ()
) -> Float[Tensor, "points C"]:
    """Points of a file, float32 [points, 3 x channels], in the file's own units and axes; about the middle of its box
    where that is farther from the origin than `FAR` times its extent (`read_centred` tells).

    A mesh is sampled uniformly by area, over all its parts and with their transforms; textures and materials are not
    looked at. A mesh without faces is a cloud of its vertices. Of a cloud comes a random subset in random order; when
    the file has fewer points, all of them and then repeats. Equal on every machine for equal keys.

    Args:
        path: A file with one of `EXTENSIONS`.
        points: How many.
        key: Signed 64-bit integer that all draws come from.
        channels: In this order: "xyz"; "normals", of unit length, from faces or as a cloud's file has them; "rgb",
            from 0 to 1, where the vertices or points have colours.
        columns: What the columns of text and arrays are that do not say it: x y z, nx ny nz, r g b, and any other
            name for what is not looked at.

    Raises:
        BadSample: Missing, empty, cut off, longer than it says, not parsable, too large, without points, without area,
            with NaN, infinities or coordinates beyond `LARGEST`, or without a channel.
        MimError: Unknown channel or extension, or fewer than one point asked.
    """
    return read_centred(path, points, key, channels, columns)[0]


def read_centred(
    path: Path, points: int, key: int, channels: tuple[str, ...] = ("xyz",), columns: Sequence[str] = ()
) -> tuple[Float[Tensor, "points C"], tuple[float, float, float]]:
    """As `read_cloud`, and what was subtracted from the coordinates, 0 0 0 for shapes that are near the origin.

    Raises:
        MimError: A channel is unknown, or no point or no channel is asked for.
        BadSample: The file cannot be read, lacks a channel, or has numbers that are too large for float32.
    """
    for channel in channels:
        if channel not in CHANNELS:
            raise unknown("channel", channel, CHANNELS)
    if points < 1 or not channels:
        raise MimError(f"Asked for {points} points with channels {channels}: at least one of each is needed.")
    with _named(path):
        shape = _read(path, columns)
        centre = _far_centre(shape)
        unclear = shape.unclear
        shape = shape._replace(vertices=shape.vertices - centre) if centre.any() else shape
        taken = _take(shape, points, (key + 2**63) % 2**64 - 2**63)
    arrays = {"xyz": taken.vertices, "normals": taken.normals, "rgb": taken.rgb}
    missing = [channel for channel in channels if arrays[channel] is None]
    if missing:
        has = ", ".join(name for name, values in arrays.items() if values is not None)
        none = f"it has no {' and no '.join(missing)}; it has {has}"
        raise BadSample(str(path), next((unclear[channel] for channel in missing if channel in unclear), none))
    with np.errstate(all="ignore"):
        values = np.concatenate([arrays[channel] for channel in channels], axis=1).astype(np.float32)
    if not np.isfinite(values).all():
        raise BadSample(str(path), "its numbers are too large for float32")
    return torch.from_numpy(values), (float(centre[0]), float(centre[1]), float(centre[2]))


def read_shape(path: Path, columns: Sequence[str] = ()) -> Shape:
    """All that a file holds.

    Raises:
        BadSample: As `read_cloud`.
        MimError: Unknown extension.
    """
    with _named(path):
        shape = _read(path, columns)
        check_values(shape)
        return shape


def _read(path: Path, columns: Sequence[str]) -> Shape:
    ending = path.suffix.lower()
    if ending not in EXTENSIONS:
        raise unknown("extension of a shape's file", path.suffix, EXTENSIONS)
    check_file(path, LIMITS.get(ending, LIMIT))
    return UNNAMED[ending](path, columns) if ending in UNNAMED else READERS[ending](path)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Whatever a reader or a library raises on a file that is not what it claims, as a bad file."""
    try:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (BadSample, MimError):
        raise
    except Exception as error:
        raise BadSample(str(path), reason_of(error)) from error


def _far_centre(shape: Shape) -> NDArray[np.float64]:
    """The middle of a shape's box where `FAR` says so, else 0."""
    low, high = (end(shape.vertices, axis=0, initial=start) for end, start in ((np.min, np.inf), (np.max, -np.inf)))
    extent, largest = (high - low).max(), np.maximum(np.abs(low), np.abs(high)).max()
    if not len(shape.vertices) or not np.isfinite(largest) or largest <= FAR * extent or not extent > 0:
        return np.zeros(3)
    return np.asarray(low + (high - low) / 2)


def is_list(path: Path) -> bool:
    """Whether a .txt is a list of names or a note, as data sets bring along, and no cloud: no first line of three
    numbers. What cannot be read is no list: it is named when it is read as a shape."""
    if path.suffix.lower() != ".txt":
        return False
    try:
        return path.is_file() and path.stat().st_size > 0 and files_cloud.is_words(path)
    except OSError:
        return False


def _take(shape: Shape, points: int, key: int) -> Shape:
    check_values(shape)
    return on_surface(shape, points, key) if len(shape.faces) else of_cloud(shape, points, key)


def check_values(shape: Shape) -> None:
    """Raises ValueError for a shape without points, with values that are not finite, or with coordinates beyond
    `LARGEST`."""
    if not len(shape.vertices):
        raise ValueError("it has no points and no faces")
    for name, values in (("points", shape.vertices), ("normals", shape.normals), ("colours", shape.rgb)):
        wrong = 0 if values is None else int((~np.isfinite(values)).any(1).sum())
        if wrong:
            raise ValueError(f"{wrong} of {len(shape.vertices)} {name} are NaN or infinite")
    largest = max(float(shape.vertices.max()), -float(shape.vertices.min()))
    if LARGEST < largest < np.finfo(np.float32).max:
        raise ValueError(
            f"its coordinates go up to {largest:.2g}: it is damaged, or of another kind than its ending says"
        )


def reason_of(error: Exception) -> str:
    """Why a file cannot be read, in at most 160 characters of one line."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, MemoryError):
        return "it needs more memory than there is"
    text = " ".join(str(getattr(error, "strerror", None) or error).split())
    named = text if isinstance(error, (ValueError, OSError)) and text else f"it is damaged ({one_line(error)})"
    return named if len(named) <= 160 else named[:157] + "..."
