"""Collections in HDF5, with a row per shape: their labels, and ModelNet40 of 2,048 points."""

from __future__ import annotations

import math
from pathlib import Path, PurePosixPath
from typing import Any

import h5py
import numpy as np
from mim_core import BadSample, MimError, one_line
from numpy.typing import NDArray

from mim_pointcloud.layouts_store import Shapes, ShapeStore, lines, place_of
from mim_pointcloud.limits import LIMIT, check_end, check_file, check_numbers

NORMALS = "normal"
"""What the normals of points are called in a file."""
LARGEST_H5 = 10_000_000
"""Rows of an .h5."""
FILES = "ply_data_train0.h5, train_files.txt, test_files.txt and shape_names.txt"
"""What modelnet40_ply_hdf5_2048 has."""


def modelnet_hdf5_root(root: Path) -> Path | None:
    """The folder of modelnet40_ply_hdf5_2048."""
    return place_of(root, ("ply_data_train0.h5",))


def modelnet_hdf5(place: Path) -> Shapes:
    """ModelNet40 as 2,048 points of each mesh in the unit sphere (PointNet, arXiv 1612.00593); y is up. Files, splits
    and names are those of its lists.

    Raises:
        MimError: A list or a file that it names is missing, or a file is no such file.
    """
    classes, normals = tuple(lines(place / "shape_names.txt")), True
    stores = []
    for split in ("train", "test"):
        listed = place / f"{split}_files.txt"
        files, labels, rows = list[str](), list[int](), list[int]()
        for name in (PurePosixPath(line).name for line in lines(listed)):  # they have the folders of their makers
            if not (place / name).is_file():
                raise MimError(f"{listed} names {name}, which is not in {place}. Copy it there, or take its line out.")
            ids = labels_of(place / name, "ModelNet40", len(classes))
            normals = normals and has_normals(place / name)
            files, labels, rows = [*files, *[name] * len(ids)], [*labels, *ids], [*rows, *range(len(ids))]
        stores.append(ShapeStore(place, tuple(files), labels, classes, rows))
    channels = ("xyz", "normals") if normals else ("xyz",)
    return Shapes("modelnet40", stores[0], stores[0], stores[1], channels=channels)


def has_normals(path: Path) -> bool:
    """Whether each point of a file that was looked at has a normal beside it."""
    with h5py.File(path, "r") as file:
        normals = file.get(NORMALS)
        return isinstance(normals, h5py.Dataset) and normals.shape == file["data"].shape and normals.dtype.kind == "f"


def row_of(path: Path, row: int, normals: bool) -> NDArray[Any]:
    """The points of a shape, [P, 3], or [P, 6] with their normals; the file is opened for it, in the worker."""
    with h5py.File(path, "r") as file:
        points = file["data"][row]
        return np.hstack([points, file[NORMALS][row]]) if normals else np.asarray(points)


def labels_of(path: Path, kind: str, classes: int) -> list[int]:
    """The labels of an .h5 with a row per shape; the file is closed at once: a worker opens it anew for every shape,
    because an open h5 file does not survive a fork.

    Args:
        path: The file.
        kind: The collection, for messages.
        classes: How many there are.

    Raises:
        MimError: It is no such file.
    """
    try:
        check_h5(path)
        with h5py.File(path, "r") as file:
            data, stored = file["data"], file["label"]
            shape = data.shape
            if len(shape) != 3 or shape[2] != 3 or stored.size != shape[0] or stored.dtype.kind not in "iuf":
                reason = f"'data' should be [n, points, 3] with n labels; it is {shape} with {stored.size}"
                raise MimError(f"{path}: {reason} of {stored.dtype}.")
            check_numbers(shape[1], 3)
            chunk = math.prod(data.chunks or (1,)) * data.dtype.itemsize
            if data.dtype.kind not in "fiu" or chunk > LIMIT // 2 or shape[0] > LARGEST_H5:
                raise MimError(
                    f"{path}: 'data' should hold numbers, in chunks of {LIMIT // 2:,} bytes at most, of "
                    f"{LARGEST_H5:,} shapes at most; it has {shape[0]:,} shapes of {data.dtype} in "
                    f"chunks of {chunk:,} bytes."
                )
            labels = [int(value) for value in stored[:].reshape(-1)]
    except MimError:
        raise
    except BadSample as error:
        raise MimError(f"{path} is not a file of {kind} with 'data' and 'label': {error.reason}") from error
    except Exception as error:  # h5py raises many kinds on files that are damaged
        raise MimError(f"{path} is not a file of {kind} with 'data' and 'label': {one_line(error)}") from error
    if labels and not 0 <= min(labels) <= max(labels) < classes:
        raise MimError(f"{path}: labels should lie in 0 to {classes - 1}, not {min(labels)} to {max(labels)}")
    return labels


def check_h5(path: Path) -> None:
    """Whether an .h5 is as long as it says: where bytes were put in, the rows behind them are garbage.

    Raises:
        BadSample: It is not, or no such file.
    """
    check_file(path)
    with path.open("rb") as raw:
        head = raw.read(64)
    if head[:8] != b"\x89HDF\r\n\x1a\n":
        raise BadSample(str(path), "it does not begin as HDF5 does")
    version = head[8]
    at = {0: 40, 1: 44, 2: 28, 3: 28}.get(version)
    size = head[13] if version < 2 else head[9]
    if at is None or size != 8:
        return  # the library says what is wrong
    try:
        check_end(path.stat().st_size, int.from_bytes(head[at : at + 8], "little"))
    except ValueError as error:
        raise BadSample(str(path), str(error)) from error
