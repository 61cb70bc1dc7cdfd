"""MNIST's idx files, and those of its kin."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from mim_core import MimError

from mim_image.files import ImageStore, Splits

FASHION = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
LARGEST = 2**32
"""Bytes of one idx file, unpacked; all are held in memory."""
RATIO = 1032
"""gzip makes at most so many bytes of one."""


def idx_files(root: Path) -> dict[str, Path]:
    """The four files of MNIST and its kin that a folder holds, zipped or not; empty unless all are there."""
    names = {
        "train": "train-images-idx3-ubyte",
        "train labels": "train-labels-idx1-ubyte",
        "test": "t10k-images-idx3-ubyte",
        "test labels": "t10k-labels-idx1-ubyte",
    }
    paths = {}
    for what, name in names.items():
        for path in (root / f"{name}.gz", root / name):
            if path.is_file():
                paths[what] = path
                break
    return paths if len(paths) == len(names) else {}


def read_idx(path: Path, axes: tuple[int, ...]) -> Any:
    """An idx file of unsigned bytes as an array. No more is unpacked than its header says.

    Args:
        path: The file.
        axes: How many it may have.

    Raises:
        MimError: The file is cut short, holds more than its header says, or is none.
    """
    try:
        with open(path, "rb") if path.suffix != ".gz" else gzip.open(path, "rb") as file:
            return _array(file, axes, path.stat().st_size * (RATIO if path.suffix == ".gz" else 1))
    except (OSError, EOFError, ValueError, struct.error, zlib.error) as error:
        raise MimError(f"{path} cannot be read: {error}. Copy or download it again.") from error


def _array(file: Any, axes: tuple[int, ...], longest: int) -> Any:
    zero, kind, count = struct.unpack(">HBB", file.read(4))
    if zero or kind != 8:
        raise ValueError("it does not start as an idx file of bytes")
    shape = struct.unpack(f">{count}I", file.read(4 * count))
    size = math.prod(shape)
    text = " x ".join(f"{side:,}" for side in shape) or "a single value"
    if count not in axes or size == 0 or (count == 4 and shape[3] not in (1, 3, 4)):
        wanted = "labels, one axis" if axes == (1,) else "images, [n, height, width], none of them 0"
        raise ValueError(f"its header says {text}, which are no {wanted}")
    if size > LARGEST:
        raise ValueError(f"its header says {text}, {size / 1e9:.0f} GB; up to {LARGEST / 1e9:.0f} GB are read")
    content = file.read(size) if size <= longest else b""
    if len(content) < size:
        raise ValueError(f"its header says {text}, and it has fewer bytes")
    if file.read(1):
        raise ValueError(f"its header says {text}, and it has more bytes")
    array = np.frombuffer(content, np.uint8).reshape(shape)
    return array[..., 0] if count == 4 and shape[3] == 1 else array


def idx_splits(root: Path) -> Splits:
    """MNIST's own splits.

    Raises:
        MimError: A file is missing, or a split has more images than labels, or fewer.
    """
    files = idx_files(root)
    if not files:
        raise MimError(f"{root} lacks some of MNIST's four idx files: images and labels of train and t10k.")
    arrays = {split: read_idx(files[split], (3, 4)) for split in ("train", "test")}
    labels = {split: read_idx(files[f"{split} labels"], (1,)).tolist() for split in arrays}
    for split, array in arrays.items():
        if len(array) != len(labels[split]):
            raise MimError(f"{files[split]} holds {len(array)} images and its labels are {len(labels[split])}.")
    classes = tuple(str(i) for i in range(max(map(max, labels.values())) + 1))
    named = FASHION if "fashion" in str(root).lower() or root.name == "sample" else classes
    classes = named if len(classes) == 10 else classes
    train, test = (ImageStore(files[split], (), arrays[split], labels[split], classes) for split in arrays)
    return Splits(train, train, test)
