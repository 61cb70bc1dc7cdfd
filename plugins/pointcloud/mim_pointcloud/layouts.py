"""Which shapes there are: a folder of meshes or clouds, ShapeNet, ModelNet, ScanObjectNN, ShapeNetPart, the sample;
each as it lies on disk."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path, PurePath

from mim_core import LabelTable, MimError, arrange, arranged, unknown, walk_folders

from mim_pointcloud.files import EXTENSIONS, is_list
from mim_pointcloud.files_array import mapped
from mim_pointcloud.layouts_hdf5 import modelnet_hdf5_root
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

VARIED: dict[str, Callable[[Path, str | None], Shapes]] = {"modelnet40": modelnet, "scanobjectnn": scanobjectnn}
"""Layouts that come in variants."""
SCANS = (".las", ".laz", ".e57")


def find_shapes(
    root: Path, layout: str = "auto", variant: str | None = None, whole: bool = False, table: LabelTable | None = None
) -> Shapes:
    """The shapes below a folder.

    Args:
        root: The folder.
        layout: auto or a name of `LAYOUTS`.
        variant: Of ScanObjectNN or ModelNet.
        whole: Whether pre-training also takes the test split.
        table: Labels of the shapes of a folder.

    Raises:
        MimError: Nothing there; says what was looked for and what is there.
    """
    if layout == "auto":
        layout = recognise(root) if table is None else "folder"
    if layout not in LAYOUTS:
        raise unknown("layout", layout, ["auto", *LAYOUTS])
    if variant is not None and layout not in VARIED:
        raise MimError(f"--data.variant {variant}: the layout {layout} has no variants; {' and '.join(VARIED)} have.")
    if table is not None and layout != "folder":
        raise MimError(f"--data.labels-from goes with --data.layout folder; the layout {layout} has labels of its own.")
    if layout == "folder":
        shapes = folder(root, table)
    else:
        shapes = VARIED[layout](root, variant) if layout in VARIED else LAYOUTS[layout](root)
    prepared = _prepared(root)
    if prepared is not None and prepared.layout == shapes.kind:
        shapes = replace(shapes, up=prepared.up, channels=prepared.channels or shapes.channels)
    return _with_test(shapes) if whole else shapes


def every_shape(root: Path, layout: str = "auto", variant: str | None = None) -> Shapes:
    """All shapes below a folder as one collection; of a layout that has lists, those of all its splits.

    Raises:
        MimError: There are none.
    """
    layout = recognise(root) if layout == "auto" else layout
    if layout != "folder":
        return find_shapes(root, layout, variant, whole=True)
    files, others = walk(root)
    if not files:
        raise _no_shapes(root, others)
    every = ShapeStore(root, tuple(files))
    return Shapes("folder", every, every, every.subset([]), others=others)


def _prepared(root: Path) -> Prepared | None:
    """How a folder was prepared, or one above it, of which it is a part."""
    places = [root, *root.absolute().parents[:3]]
    return next((prepared for place in places if (prepared := read_prepared(place)) is not None), None)


def _with_test(shapes: Shapes) -> Shapes:
    """Pre-training on the test split too, which its note then says."""
    note = f"{shapes.test.note} Pre-training has seen these shapes, without labels.".strip()
    together = shapes.pretrain.joined(shapes.test)
    return replace(shapes, pretrain=together, test=replace(shapes.test, note=note))


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
        ("modelnet40", modelnet_hdf5_root),
        ("modelnet40", lambda path: modelnet_meshes(path, prepared=meshes)),
        ("shapenetcore", shapenetcore_root),
    )
    return next((name for name, test in tests if test(root) is not None), "folder")


def walk(root: Path) -> tuple[list[str], Counter[str]]:
    """Shapes below the root, sorted, and the endings of other files."""
    files: list[str] = []
    others: Counter[str] = Counter()
    for folder, names, _ in walk_folders(root):
        for name in names:
            ending = os.path.splitext(name)[1].lower()
            if name.startswith("."):
                continue
            if ending not in EXTENSIONS:
                others[ending or "no ending"] += 1
            elif is_list(Path(folder, name)):
                others[f"{ending} of no points"] += 1
            else:
                files.append(os.path.relpath(os.path.join(folder, name), root))
    return sorted(files), others


# ---- a folder of meshes or clouds ------------------------------------------------------------------------------------


def folder(root: Path, table: LabelTable | None = None) -> Shapes:
    """A folder's own splits and classes, as `mim_core.data.collections` has them, or those of a table. Where it has
    classes and nothing held out, a fifth of each is held out, drawn by a hash of the name; without classes all shapes
    are for pre-training.

    Raises:
        MimError: No shapes, or splits that contradict each other.
    """
    files, others = walk(root)
    if not files:
        raise _no_shapes(root, others)
    names = [PurePath(file).as_posix() for file in files]
    arrangement = arrange(names, root, "shape")
    if table is not None:
        arrangement = arranged(arrangement, table, names, root, "shape")
    labels = arrangement.labels if arrangement.classes else ()
    everything = ShapeStore(root, tuple(files), labels, arrangement.classes)
    rest = {"splits": arrangement.splits, "others": others, "advice": arrangement.advice}
    if arrangement.test is not None:
        pretrain, train = everything.subset(arrangement.pretrain), everything.subset(arrangement.train)
        return Shapes("folder", pretrain, train, everything.subset(arrangement.test), **rest)  # type: ignore[arg-type]
    if arrangement.classes is None:
        pretrain = everything.subset(arrangement.pretrain)
        return Shapes("folder", pretrain, pretrain, everything.subset([]), **rest)  # type: ignore[arg-type]
    shapes = drawn("folder", everything.subset(arrangement.train), **rest)
    unlabelled = everything.subset(sorted(set(arrangement.pretrain) - set(arrangement.train)))
    return replace(shapes, pretrain=shapes.pretrain.joined(unlabelled)) if unlabelled else shapes


def _no_shapes(root: Path, others: Counter[str]) -> MimError:
    listing = ", ".join(f"{n} x {ending}" for ending, n in others.most_common(5)) or "nothing"
    more = ""
    if any(ending in others for ending in (".h5", ".hdf5")):
        more = (
            " Of HDF5, ScanObjectNN's files and ModelNet40's of 2,048 points (ply_data_train0.h5) are read, with their "
            "names. Of others store each cloud as .npy [points, 3], in train/CLASS and test/CLASS."
        )
    if any(ending in others for ending in SCANS):
        more += " Laser scans are not read: write them as .ply, .pcd or text, such as with CloudCompare or PDAL."
    return MimError(f"No shapes in {root}. Looked for {', '.join(EXTENSIONS)} in it and below; found {listing}.{more}")


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
    try:
        count = len(mapped(root / "points.npy"))
    except (ValueError, TypeError, OSError) as error:
        raise MimError(f"{root / 'points.npy'}: {error}. It should be an array [n, points, 3].") from error
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
