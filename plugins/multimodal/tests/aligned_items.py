"""Aligned files whose pictures tell the coordinates of their pixels."""

import numpy as np
import torch
from mim_multimodal.data import Aligned
from PIL import Image

SIDE = 64
SHAPES = {"rgb": (3, 64, 64), "depth": (1, 64, 64), "semseg": (16, 16)}
Y, X = np.mgrid[:SIDE, :SIDE]
RGB = np.stack([4 * X, 4 * Y, 0 * X], axis=2).astype(np.uint8)
DEPTH = (Y * SIDE + X + 1).astype(np.uint16)
IDS = (Y // 8 * 8 + X // 8).astype(np.uint8)


def save(root, stem, rgb=RGB, depth=DEPTH, semseg=IDS, split="train"):
    """An item whose pictures all tell the coordinates of their pixels."""
    for name, values, ending in (("rgb", rgb, "jpg"), ("depth", depth, "png"), ("semseg", semseg, "png")):
        if values is None:
            continue
        path = root / split / name / f"{stem}.{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = values if isinstance(values, Image.Image) else Image.fromarray(values)
        image.save(path, **({"quality": 95, "subsampling": 0} if ending == "jpg" else {}))


def items(root):
    """Three items of each split below a folder, which is returned."""
    for split in ("train", "test"):
        for stem in ("a/1", "a/2", "b/1"):
            save(root, stem, split=split)
    return root


def source(root, shapes=None, **options):
    return Aligned(Aligned.Config(root=root, **options), SHAPES if shapes is None else shapes)


def batch(items):
    return {name: torch.stack([item[name] for item in items]) for name in items[0]}
