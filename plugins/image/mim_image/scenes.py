"""Small scenes of several bundled pictures with their boxes and masks, made when they are asked for: something to try
detection on without a data set. Which scenes follows from their number alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mim_image.coco_files import Instances, Object, Pictured
from mim_image.idx import FASHION, idx_splits

COUNTS = {"train": 1000, "test": 200}
"""Scenes of each split."""
SIZE = 64
"""Pixels along a side of a scene."""
MOST = 4
"""Objects that are put into a scene, at most."""
INK = 16
"""Values from here on belong to the thing in a bundled picture, whose ground is 0."""
VISIBLE = 0.5
"""Share of an object that must be seen for it to count."""


def compose(sample: Path, split: str, count: int, size: int = SIZE) -> tuple[Any, Instances]:
    """Scenes: on a dim ground with noise none to four things, each of 0.6 to 1.2 times its size, mirrored or not, the
    later ones in front. What is hidden by more than half is taken out again.

    Args:
        sample: Folder of the bundled pictures.
        split: "train" or "test": the pictures that things are taken from.
        count: Scenes.
        size: Pixels along a side.

    Returns:
        (uint8 [count, size, size], what is in them, with masks in run lengths).
    """
    splits = idx_splits(sample)
    store = splits.train if split == "train" else splits.test
    scenes, pictures, next_id = np.zeros((count, size, size), np.uint8), list[Pictured](), 1
    for number in range(count):
        draw = np.random.default_rng([number, len(store)])
        scene, masks, labels = _scene(store, draw, size)
        objects = []
        for mask, label in zip(masks, labels, strict=True):
            rows, columns = np.nonzero(mask)
            box = (float(columns.min()), float(rows.min()), float(columns.max() + 1), float(rows.max() + 1))
            objects.append(Object(next_id, box, label + 1, False, run_lengths(mask), float(mask.sum())))
            next_id += 1
        scenes[number] = scene
        pictures.append(Pictured(number + 1, f"{split}/{number:05}.png", (size, size), tuple(objects)))
    categories = {label + 1: name for label, name in enumerate(FASHION)}
    return scenes, Instances(sample / f"scenes-{split}.json", tuple(pictures), categories)


def _scene(store: Any, draw: np.random.Generator, size: int) -> tuple[Any, list[Any], list[int]]:
    """(a scene, a mask for each object in it, their classes)."""
    scene = draw.integers(0, 40) + draw.normal(0, 8, (size, size))
    masks, labels = list[Any](), list[int]()
    for _ in range(int(draw.integers(0, MOST + 1))):
        which = int(draw.integers(len(store)))
        side = round(draw.uniform(0.6, 1.2) * store.array.shape[1] * size / SIZE)
        thing = np.asarray(Image.fromarray(store.array[which]).resize((side, side), Image.Resampling.BILINEAR))
        thing = thing[:, ::-1] if draw.random() < 0.5 else thing
        ink = thing >= INK
        top, left = (int(draw.integers(0, size - side + 1)) for _ in range(2))
        place = (slice(top, top + side), slice(left, left + side))
        whole = np.zeros((size, size), bool)
        whole[place] = ink
        if any((mask & ~whole).sum() < VISIBLE * full for mask, full in masks) or not ink.any():
            continue  # it would hide another
        masks = [(mask & ~whole, full) for mask, full in masks] + [(whole, int(ink.sum()))]
        labels.append(int(store.labels[which]))
        scene[place] = np.where(ink, thing, scene[place])
    return scene.clip(0, 255).astype(np.uint8), [mask for mask, _ in masks], labels


def run_lengths(mask: Any) -> dict[str, Any]:
    """A mask [H, W] as COCO's run lengths: down the columns, first of 0, then of 1, and so on."""
    flat = np.concatenate([[0], mask.T.reshape(-1).astype(np.int8), [-1]])
    ends = np.nonzero(flat[1:] != flat[:-1])[0]
    counts = np.diff(np.concatenate([[0], ends]))
    return {"counts": [int(count) for count in counts], "size": [int(side) for side in mask.shape]}
