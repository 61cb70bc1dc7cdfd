"""Boxes and masks of objects under what is done to their picture, with torchvision's transforms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from mim_core import MimError, torch_seed
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from mim_image.coco_files import Object

NOTHING = -1
"""Class of a row that holds no object."""


@dataclass(frozen=True)
class Objects:
    """The objects of one picture.

    Attributes:
        boxes: float32 [n, 4]: left, top, right, bottom, in pixels.
        classes: int64 [n].
        masks: uint8 [n, H, W] of 0 and 1; None where masks are not asked for.
    """

    boxes: Float[Tensor, "n 4"]
    classes: Int[Tensor, " n"]
    masks: UInt8[Tensor, "n H W"] | None = None

    def padded(self, rows: int) -> dict[str, Tensor]:
        """Entries of a sample, which all have so many rows: "boxes" [rows, 4], "classes" [rows], `NOTHING` where there
        is none, and "masks", uint8 [rows, H, W / 8], eight pixels a byte."""
        lacking = rows - len(self.boxes)
        entries = {
            "boxes": torch.cat([self.boxes, torch.zeros(lacking, 4)]),
            "classes": torch.cat([self.classes, torch.full((lacking,), NOTHING)]),
        }
        if self.masks is not None:
            packed = torch.from_numpy(np.packbits(self.masks.numpy(), axis=-1))
            entries["masks"] = torch.cat([packed, packed.new_zeros(lacking, *packed.shape[1:])])
        return entries


def unpacked(masks: UInt8[Tensor, "n H P"], width: int) -> UInt8[Tensor, "n H W"]:
    """Masks of 0 and 1 out of eight pixels a byte."""
    shifts = torch.arange(7, -1, -1, device=masks.device, dtype=torch.uint8)
    bits = (masks[..., None] >> shifts) & 1
    return bits.flatten(-2)[..., :width]


def objects_of(objects: Sequence[Object], classes: Sequence[int], size: tuple[int, int], masks: bool) -> Objects:
    """Those that are learned from: all but crowds.

    Args:
        objects: The objects of a picture.
        classes: Ids of the categories, in the order of the classes.
        size: (width, height) of the picture.
        masks: Whether their masks are wanted too.
    """
    own = [each for each in objects if not each.crowd]
    number = {id_: place for place, id_ in enumerate(classes)}
    boxes = torch.tensor([each.box for each in own], dtype=torch.float32).reshape(-1, 4)
    boxes = boxes.minimum(torch.tensor([*size, *size], dtype=torch.float32))  # the json may not have said the size
    labels = torch.tensor([number[each.category] for each in own], dtype=torch.int64)
    if not masks:
        return Objects(boxes, labels)
    drawn = [mask_of(each.segmentation, size) for each in own]
    stacked = torch.stack(drawn) if drawn else torch.zeros(0, size[1], size[0], dtype=torch.uint8)
    return Objects(boxes, labels, stacked)


def mask_of(segmentation: Any, size: tuple[int, int]) -> UInt8[Tensor, "H W"]:
    """Polygons or run lengths, drawn by pycocotools.

    Args:
        segmentation: As COCO's json has it.
        size: (width, height) of the picture.

    Raises:
        ValueError: Run lengths of another size.
    """
    codes = coco_masks()
    width, height = size
    if isinstance(segmentation, dict) and list(segmentation["size"]) != [height, width]:
        shape = segmentation["size"]
        raise ValueError(f"a segmentation is of {shape[1]} x {shape[0]} pixels, the picture of {width} x {height}")
    if isinstance(segmentation, dict) and not isinstance(segmentation["counts"], list):
        return torch.from_numpy(codes.decode(segmentation))
    code = codes.frPyObjects(segmentation, height, width)
    return torch.from_numpy(codes.decode(codes.merge(code) if isinstance(code, list) else code))


def coco_masks() -> Any:
    """pycocotools' module of masks.

    Raises:
        MimError: It is not installed.
    """
    try:
        from pycocotools import mask
    except ImportError as error:
        raise lacks_pycocotools() from error
    return mask


def lacks_pycocotools() -> MimError:
    """What is said where pycocotools is not installed."""
    return MimError('Detection needs pycocotools: pip install "mim-core[detection]".')


# ---- what is done to pictures ----------------------------------------------------------------------------------------


def fitted(image: Tensor, size: tuple[int, int], fill: Sequence[float]) -> tuple[Tensor, Float[Tensor, " 4"]]:
    """A whole picture as large as fits, in the upper left corner, and filled up to the size.

    Args:
        image: [C, H, W], of 0 to 255.
        size: (height, width) of what is given.
        fill: Value of each channel beside the picture.

    Returns:
        (the picture; float32: height and width of the whole one, and those that it has now).
    """
    height, width = image.shape[-2:]
    share = min(size[0] / height, size[1] / width)
    now = (max(1, round(height * share)), max(1, round(width * share)))
    image = F.resize(image, list(now), antialias=True)
    image = F.pad(image, [0, 0, size[1] - now[1], size[0] - now[0]], fill=list(fill))
    return image, torch.tensor([height, width, *now], dtype=torch.float32)


def back(boxes: Float[Tensor, "n 4"], picture: Float[Tensor, " 4"]) -> Float[Tensor, "n 4"]:
    """Boxes on a picture that was `fitted`, in pixels of the whole one and within it."""
    height, width, now_height, now_width = picture.unbind()
    across = torch.stack([width / now_width, height / now_height]).repeat(2)
    limits = torch.stack([width, height]).repeat(2)
    return (boxes * across).clamp(min=0).minimum(limits)


def _classes(sample: dict[str, Any]) -> Tensor:
    """What goes with a box that is left out; a function with a name can be sent to a process that reads."""
    classes: Tensor = sample["classes"]
    return classes


class Jitter:
    """Training's changes: the picture at a drawn scale, a part of the wanted size or filled up to it, perhaps mirrored
    (large-scale jitter, arXiv 2012.07177, section 3; ViTDet).

    Args:
        size: (height, width) of what is given.
        scale: Smallest and largest scale, where 1 is the whole picture as large as fits.
        flip: Chance that it is mirrored.
        fill: Value of each channel beside the picture.
    """

    def __init__(self, size: tuple[int, int], scale: tuple[float, float], flip: float, fill: Sequence[float]) -> None:
        self.changes = v2.Compose(
            [
                v2.ScaleJitter(size, scale_range=scale, antialias=True),
                v2.RandomCrop(size, pad_if_needed=True, fill={tv_tensors.Image: list(fill), "others": 0}),
                v2.RandomHorizontalFlip(flip),
                v2.SanitizeBoundingBoxes(min_size=1, labels_getter=_classes),
            ]
        )

    def __call__(self, image: Tensor, objects: Objects, key: int) -> tuple[Tensor, Objects]:
        """The picture and what can still be seen in it, all draws from the key.

        Args:
            image: [C, H, W], of 0 to 255.
            objects: Of the whole picture.
            key: Of the draws.
        """
        height, width = image.shape[-2:]
        sample: dict[str, Any] = {
            "image": tv_tensors.Image(image),
            "boxes": tv_tensors.BoundingBoxes(objects.boxes, format="XYXY", canvas_size=(height, width)),
            "classes": objects.classes,
        }
        if objects.masks is not None:
            sample["masks"] = tv_tensors.Mask(objects.masks)
        with torch.random.fork_rng(devices=[]):  # torchvision draws from the global generator
            torch.default_generator.manual_seed(torch_seed(key, "augment"))
            done = self.changes(sample)
        plain = {name: value.as_subclass(Tensor) for name, value in done.items()}
        return plain["image"], Objects(plain["boxes"].float(), plain["classes"], plain.get("masks"))


def check_scale(scale: tuple[float, float]) -> None:
    """Raises ValueError for scales that cannot be drawn from."""
    if not 0 < scale[0] <= scale[1] < math.inf:
        raise ValueError(f"scale must be two rising, positive numbers, got {scale}")
