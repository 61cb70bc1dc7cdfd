"""Which shapes there are: a folder of meshes or clouds, ShapeNet, ModelNet, ScanObjectNN, ShapeNetPart, the sample;
each as it lies on disk."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from mim_core import walking
from mim_core.errors import MimError, unknown

from mim_pointcloud.files import EXTENSIONS, is_list
from mim_pointcloud.layouts_modelnet import modelnet, modelnet_clouds, modelnet_meshes, scan_root, scanobjectnn
from mim_pointcloud.layouts_shapenet import (
    shapenet55,
    shapenet55_lists,
    shapenetcore,
    shapenetcore_root,
    shapenetpart,
)
from mim_pointcloud.layouts_store import Shapes, ShapeStore, absent, drawn, place_of
from mim_pointcloud.prepared import Prepared, read_prepared

HELD_OUT = ("test", "val", "validation", "validate")
VARIED: dict[str, Callable[[Path, str | None], Shapes]] = {"modelnet40": modelnet, "scanobjectnn": scanobjectnn}
"""Layouts that come in variants."""


def find_shapes(root: Path, layout: str = "auto", variant: str | None = None, whole: bool = False) -> Shapes:
    """The shapes below a folder.

    Args:
        root: The folder.
        layout: auto or a name of `LAYOUTS`.
        variant: Of ScanObjectNN or ModelNet.
        whole: Whether pre-training also takes the test split.

    Raises:
        MimError: Nothing there; says what was looked for and what is there.
    """
    if layout == "auto":
        layout = recognise(root)
    if layout not in LAYOUTS:
        raise unknown("layout", layout, ["auto", *LAYOUTS])
    if variant is not None and layout not in VARIED:
        raise MimError(f"--data.variant {variant}: the layout {layout} has no variants; {' and '.join(VARIED)} have.")
    found = VARIED[layout](root, variant) if layout in VARIED else LAYOUTS[layout](root)
    prepared = _prepared(root)
    if prepared is not None and prepared.layout == found.kind:
        found = replace(found, up=prepared.up, channels=prepared.channels or found.channels)
    return _with_test(found) if whole else found


def _prepared(root: Path) -> Prepared | None:
    """How a folder was prepared, or one above it, of which it is a part."""
    places = [root, *root.absolute().parents[:3]]
    return next((found for place in places if (found := read_prepared(place)) is not None), None)


def _with_test(found: Shapes) -> Shapes:
    """Pre-training on the test split too, which its note then says."""
    note = f"{found.test.note} Pre-training has seen these shapes, without labels.".strip()
    together = found.pretrain.joined(found.test)
    return replace(found, pretrain=together, test=replace(found.test, note=note))


def recognise(root: Path) -> str:
    """The layout that a folder has: what its source had, if it was prepared; or by the lists or file names that the
    layout alone has; else a folder."""
    whole, part = read_prepared(root), _prepared(root)
    if whole is not None and whole.layout in LAYOUTS:
        return whole.layout
    meshes = part is not None and part.layout == "modelnet40"
    tests: tuple[tuple[str, Callable[[Path], Path | None]], ...] = (
        ("sample", _sample_root),
        ("shapenetpart", lambda path: place_of(path, ("synsetoffset2category.txt",))),
        ("scanobjectnn", scan_root),
        ("shapenet55", shapenet55_lists),
        ("modelnet40", modelnet_clouds),
        ("modelnet40", lambda path: modelnet_meshes(path, prepared=meshes)),
        ("shapenetcore", shapenetcore_root),
    )
    return next((name for name, test in tests if test(root) is not None), "folder")


def walk(root: Path) -> tuple[list[str], Counter[str]]:
    """Shapes below the root, sorted, and the endings of other files."""
    found: list[str] = []
    others: Counter[str] = Counter()
    for folder, names, _ in walking.walk(root):
        for name in names:
            ending = os.path.splitext(name)[1].lower()
            if name.startswith("."):
                continue
            if ending in EXTENSIONS and not is_list(Path(folder, name)):
                found.append(os.path.relpath(os.path.join(folder, name), root))
            else:
                others[ending or "no ending"] += 1
    return sorted(found), others


# ---- a folder of meshes or clouds ------------------------------------------------------------------------------------


def folder(root: Path) -> Shapes:
    """A folder's own splits if it has them, else one collection: of each class a fifth is held out, drawn by a hash of
    the name. Classes are the names of the first folder level; without them all shapes are for pre-training.

    Raises:
        MimError: No shapes, or the splits' classes differ.
    """
    held = [name for name in HELD_OUT if (root / name).is_dir()]
    if (root / "train").is_dir() and held:
        train, test = _collection(root / "train"), _collection(root / held[0])
        if train.classes is not None and train.classes != test.classes:
            different = sorted(set(train.classes) ^ set(test.classes or ()))
            raise MimError(f"{root}: the classes of train and {held[0]} differ, in: {', '.join(different[:10])}.")
        below = [tuple(f"{name}/{file}" for file in store.files) for name, store in (("train", train), (held[0], test))]
        train, test = replace(train, root=root, files=below[0]), replace(test, root=root, files=below[1])
        return Shapes("folder", train, train, test)
    both = _collection(root)
    if both.classes is None:
        return Shapes("folder", both, both, both.subset([]))
    return drawn("folder", both)


def _collection(root: Path) -> ShapeStore:
    files, others = walk(root)
    if not files:
        there = ", ".join(f"{n} x {ending}" for ending, n in others.most_common(5)) or "nothing"
        raise MimError(f"No shapes in {root}. Looked for {', '.join(EXTENSIONS)} in it and below; found {there}.")
    tops = [file.split(os.sep)[0] if os.sep in file else "" for file in files]
    names = sorted(set(tops))
    if "" in names or len(names) < 2:
        return ShapeStore(root, tuple(files))
    number = {name: i for i, name in enumerate(names)}
    return ShapeStore(root, tuple(files), [number[top] for top in tops], tuple(names))


# ---- the bundled sample ----------------------------------------------------------------------------------------------

SAMPLE_FILES = "points.npy [n, points, 3] and shapes.csv with a row per shape and the columns name, class, split"


def _sample_root(root: Path) -> Path | None:
    return root if (root / "points.npy").is_file() and (root / "shapes.csv").is_file() else None


def sample(root: Path) -> Shapes:
    """Many clouds in one array, with a table: the bundled sample, or anything laid out like it. Rows are of the split
    train or test, or pretrain for shapes without class; pre-training takes train and pretrain.

    Raises:
        MimError: The files are missing, or do not fit each other.
    """
    if _sample_root(root) is None:
        raise absent("sample", root, SAMPLE_FILES)
    with open(root / "shapes.csv", newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    count = len(np.load(root / "points.npy", mmap_mode="r"))
    if not rows or count != len(rows) or not {"name", "class", "split"} <= set(rows[0]):
        raise MimError(f"{root}: {count} clouds and {len(rows)} rows do not fit. It should hold {SAMPLE_FILES}.")
    classes = tuple(sorted({row["class"] for row in rows} - {""}))
    number = {name: i for i, name in enumerate(classes)}
    note = "Classes come from the models' names, by the rule in the sample's README."
    names = [row["name"] for row in rows]
    labels = [number.get(row["class"], -1) for row in rows]
    everything = ShapeStore(root, ("points.npy",) * count, labels, classes, range(count), names, note)
    of = {split: [i for i, row in enumerate(rows) if row["split"] == split] for split in ("train", "test", "pretrain")}
    seen = everything.subset(sorted(of["train"] + of["pretrain"]))
    unlabelled = replace(seen, labels=(), classes=None)
    train, test = everything.subset(of["train"]), everything.subset(of["test"])
    return Shapes("sample", unlabelled, train, test, channels=("xyz",))


LAYOUTS: dict[str, Callable[[Path], Shapes]] = {
    "folder": folder,
    "shapenet55": shapenet55,
    "shapenetcore": shapenetcore,
    "modelnet40": modelnet,
    "scanobjectnn": scanobjectnn,
    "shapenetpart": shapenetpart,
    "sample": sample,
}
"""Layouts by name."""
__all__ = ["LAYOUTS", "ShapeStore", "Shapes", "find_shapes", "recognise"]
