"""Writes captions for the game frames that mim-multimodal ships: which groups of objects are in view, and where.

Nobody described the pictures: a sentence is made from a frame's map of classes and its depth alone, so it says nothing
that these do not. A group counts with at least 16 of the 4,096 pixels, as in labels.csv; the three largest are named,
the largest first. Left, middle and right are thirds of the picture, by the median column of all pixels of the group,
near and far its median depth, below and from 48 of 255, some 145 map units. Without any such group the sentence says
so, and whether there is sky.

Output: captions.csv, a row (path, caption) for each frame; a path is SPLIT/MAP/NNN, a frame's without modality and
ending.

Run: python tools/samples/doom_captions.py [FOLDER]   (seconds; needs numpy and pillow)
Licence: as the frames', whose labels the sentences put into words.
"""

from __future__ import annotations

import csv
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

HERE = Path(__file__).parents[2]
SURFACES = ("wall", "floor", "ceiling", "sky")
LEAST, NAMED, NEAR = 16, 3, 48
"""Pixels from which a group counts, groups in a sentence, and the depth where far begins."""
UNCOUNTED = ("gore", "ammunition", "health or armour")
"""Names that take no article."""
SIDES = ("left", "middle", "right")


def phrase(name: str, columns: Any, depths: Any, width: int) -> str:
    """One group: "near left a barrel"."""
    side = SIDES[min(int(3 * (float(np.median(columns)) + 0.5) / width), 2)]
    distance = "near" if float(np.median(depths)) < NEAR else "far"
    article = "" if name in UNCOUNTED else "a "
    return f"{distance} {side} {article}{name}"


def caption(classes: Any, depth: Any, names: list[str]) -> str:
    """The sentence of a frame, from its class ids and depths [H, W]."""
    counts = np.bincount(classes.ravel(), minlength=len(names))
    groups = [i for i in range(len(names)) if names[i] not in SURFACES and counts[i] >= LEAST]
    groups.sort(key=lambda i: (-counts[i], i))
    if not groups:
        sky = counts[names.index("sky")] >= LEAST
        return "No objects, under the sky." if sky else "No objects."
    parts = []
    for group in groups[:NAMED]:
        rows, columns = np.nonzero(classes == group)
        parts.append(phrase(names[group], columns, depth[rows, columns], classes.shape[1]))
    text = ", ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


def main() -> None:
    """All frames of a sample; prints what the sentences say most often."""
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "plugins/multimodal/mim_multimodal/sample"
    names = (target / "classes.txt").read_text().split("\n")[:-1]
    rows = []
    for split in ("train", "test"):
        folder = target / split / "semseg"
        for path in sorted(folder.rglob("*.png")):
            item = path.relative_to(folder)
            classes = np.asarray(Image.open(path))
            depth = np.asarray(Image.open(target / split / "depth" / item))
            rows.append((f"{split}/{item.with_suffix('').as_posix()}", caption(classes, depth, names)))
    with (target / "captions.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([("path", "caption"), *rows])
    texts = Counter(text for _, text in rows)
    print(f"{len(rows)} captions, {len(texts)} different; most often: {texts.most_common(3)}")


if __name__ == "__main__":
    main()
