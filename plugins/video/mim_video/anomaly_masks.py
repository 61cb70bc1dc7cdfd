"""Where frames of surveillance footage are abnormal: masks as pictures, Avenue's mat files, ShanghaiTech's arrays."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from mim_core import MimError
from PIL import Image


def read_masks(masks: Sequence[Path], wanted: Sequence[int]) -> list[Any]:
    """Masks of some frames, bool [H, W] each.

    Args:
        masks: A picture for each frame; or one .mat or .npy file of all.
        wanted: Numbers of frames, from 0.

    Raises:
        MimError: A file cannot be read.
    """
    if masks[0].suffix == ".mat":
        whole = mat_masks(masks[0])
        return [np.asarray(whole[number]) > 0 for number in wanted]
    if masks[0].suffix == ".npy":
        whole = array_masks(masks[0])
        return [np.asarray(whole[number]) > 0 for number in wanted]
    return [picture_mask(masks[number]) for number in wanted]


def picture_mask(path: Path) -> Any:
    """A mask that is a picture, bool [H, W]: any value that is not 0.

    Raises:
        MimError: It cannot be read.
    """
    try:
        with Image.open(path) as image:
            values = np.asarray(image)
    except (OSError, ValueError) as error:
        raise MimError(f"The mask {path} cannot be read: {error}.") from error
    return (values if values.ndim == 2 else values[..., :3].max(axis=-1)) > 0


@lru_cache(maxsize=1)  # clips of one video come one after the other
def mat_masks(path: Path) -> list[Any]:
    """The masks in ``volLabel`` of a file of Avenue, [H, W] each. Needs scipy.

    Raises:
        MimError: The file cannot be read, or scipy is missing.
    """
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise MimError('The .mat files of Avenue need scipy: pip install "mim-video[anomaly]"') from error
    try:
        content = loadmat(path)
    except Exception as error:  # scipy has errors of its own for what is no such file, and zlib's
        raise MimError(f"{path} cannot be read as a file of Matlab: {error}.") from error
    masks = content.get("volLabel")
    if masks is None or masks.dtype != object:
        raise MimError(f"{path} is not as Avenue's answers are: a cell of masks, one for each frame, named volLabel.")
    return list(masks.ravel())


def array_masks(path: Path) -> Any:
    """An array [frames, H, W], left on the disk.

    Raises:
        MimError: It is none.
    """
    try:
        masks = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise MimError(f"{path} cannot be read as masks of frames: {error}.") from error
    if masks.ndim != 3:
        raise MimError(f"{path} has the shape {masks.shape}; masks of frames are [frames, height, width].")
    return masks
