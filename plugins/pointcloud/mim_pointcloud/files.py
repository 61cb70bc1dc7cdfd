"""Points of one file: sampled from the surface of a mesh, or taken from a cloud; all draws come from a key."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from mim_core.errors import BadSample, MimError, unknown
from numpy.typing import NDArray
from torch import Tensor

from mim_pointcloud import files_cloud, files_mesh, files_ply, files_vrml
from mim_pointcloud.files_shape import Shape, of_cloud, on_surface

READERS: dict[str, Callable[[Path], Shape]] = {
    ".obj": files_mesh.read_obj,
    ".off": files_mesh.read_off,
    ".stl": files_mesh.read_stl,
    ".glb": files_mesh.read_gltf,
    ".gltf": files_mesh.read_gltf,
    ".ply": files_ply.read_ply,
    ".wrl": files_vrml.read_wrl,
    ".npy": files_cloud.read_npy,
    ".npz": files_cloud.read_npz,
    ".xyz": files_cloud.read_text,
    ".txt": files_cloud.read_text,
    ".pts": files_cloud.read_text,
    ".pcd": files_cloud.read_pcd,
}
"""Extension in lower case -> what reads it. Readers may raise anything; `read_cloud` says it as a bad file."""
EXTENSIONS: tuple[str, ...] = tuple(READERS)
CHANNELS = ("xyz", "normals", "rgb")
"""What may be asked of a file, three numbers each."""
LIMIT = 2 * 2**30
"""Bytes of the largest file that is read."""


FAR = 1024.0
"""Shapes farther from the origin than so many times their extent are centred before they become float32, which has
seven digits: of a chair in metres on a map's grid, it would leave none."""


def read_cloud(path: Path, points: int, key: int, channels: tuple[str, ...] = ("xyz",)) -> Float[Tensor, "points C"]:
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

    Raises:
        BadSample: Missing, empty, cut off, not parsable, larger than `LIMIT`, without points, without area, with NaN
            or infinities, or without a channel.
        MimError: Unknown channel or extension, or fewer than one point asked.
    """
    return read_centred(path, points, key, channels)[0]


def read_centred(
    path: Path, points: int, key: int, channels: tuple[str, ...] = ("xyz",)
) -> tuple[Float[Tensor, "points C"], tuple[float, float, float]]:
    """As `read_cloud`, and what was subtracted from the coordinates, 0 0 0 for shapes that are near the origin."""
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise unknown("extension of a shape's file", path.suffix, EXTENSIONS)
    for channel in channels:
        if channel not in CHANNELS:
            raise unknown("channel", channel, CHANNELS)
    if points < 1 or not channels:
        raise MimError(f"Asked for {points} points with channels {channels}: at least one of each is needed.")
    _check_file(path)
    centre = np.zeros(3)
    try:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            shape = reader(path)
            centre = _far_centre(shape)
            shape = shape._replace(vertices=shape.vertices - centre) if centre.any() else shape
            taken = _take(shape, points, (key + 2**63) % 2**64 - 2**63)
    except BadSample:
        raise
    except Exception as error:  # libraries raise anything on files that are not what they claim
        raise BadSample(str(path), _reason(error)) from error
    columns = {"xyz": taken.vertices, "normals": taken.normals, "rgb": taken.rgb}
    missing = [channel for channel in channels if columns[channel] is None]
    if missing:
        has = ", ".join(name for name, values in columns.items() if values is not None)
        raise BadSample(str(path), f"it has no {' and no '.join(missing)}; it has {has}")
    with np.errstate(all="ignore"):
        found = np.concatenate([columns[channel] for channel in channels], axis=1).astype(np.float32)
    if not np.isfinite(found).all():
        raise BadSample(str(path), "its numbers are too large for float32")
    return torch.from_numpy(found), (float(centre[0]), float(centre[1]), float(centre[2]))


def _far_centre(shape: Shape) -> NDArray[np.float64]:
    """The middle of a shape's box where `FAR` says so, else 0."""
    low, high = (end(shape.vertices, axis=0, initial=start) for end, start in ((np.min, np.inf), (np.max, -np.inf)))
    extent, largest = (high - low).max(), np.maximum(np.abs(low), np.abs(high)).max()
    if not len(shape.vertices) or not np.isfinite(largest) or largest <= FAR * extent or not extent > 0:
        return np.zeros(3)
    return np.asarray(low + (high - low) / 2)


def is_list(path: Path) -> bool:
    """Whether a .txt is a list of names, as data sets bring along, and no cloud: no first line of three numbers."""
    return path.suffix.lower() == ".txt" and path.is_file() and path.stat().st_size > 0 and files_cloud.is_words(path)


def _check_file(path: Path) -> None:
    try:
        if not path.is_file():
            reason = "it is a folder" if path.is_dir() else "no regular file" if path.exists() else "no such file"
            raise BadSample(str(path), reason)
        size = path.stat().st_size
    except OSError as error:
        raise BadSample(str(path), error.strerror or "cannot be looked at") from error
    if size == 0:
        raise BadSample(str(path), "the file is empty")
    if size > LIMIT:
        asked = f"{size / 2**30:.1f} GiB is over the limit of {LIMIT / 2**30:g} GiB"
        raise BadSample(str(path), f"{asked}; thin it out, or cut it into several files")


def _take(shape: Shape, points: int, key: int) -> Shape:
    if not len(shape.vertices):
        raise ValueError("it has no points and no faces")
    for name, values in (("points", shape.vertices), ("normals", shape.normals), ("colours", shape.rgb)):
        wrong = 0 if values is None else int((~np.isfinite(values)).any(1).sum())
        if wrong:
            raise ValueError(f"{wrong} of {len(shape.vertices)} {name} are NaN or infinite")
    return on_surface(shape, points, key) if len(shape.faces) else of_cloud(shape, points, key)


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, MemoryError):
        return "it needs more memory than there is"
    text = " ".join(str(getattr(error, "strerror", None) or error).split())
    if isinstance(error, FileNotFoundError):  # not the file itself, which was looked at before
        return f"it needs {error.filename or text or 'another file'}, which is not there"
    named = text if isinstance(error, (ValueError, OSError)) and text else f"{type(error).__name__}: {text}".strip(": ")
    return named if len(named) <= 160 else named[:157] + "..."
