"""ModelNet40 and ModelNet10 as meshes, as clouds with normals or as HDF5, and ScanObjectNN."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from mim_core import MimError, unknown

from mim_pointcloud.layouts_hdf5 import FILES, labels_of, modelnet_hdf5, modelnet_hdf5_root
from mim_pointcloud.layouts_store import Listed, Shapes, ShapeStore, absent, from_lists, lines, place_of

MESHES = "CLASS/train/CLASS_0001.off and CLASS/test/CLASS_0002.off"
CLOUDS = (
    "modelnet40_shape_names.txt, modelnet40_train.txt, modelnet40_test.txt and CLASS/CLASS_0001.txt (or the same lists "
    "of modelnet10)"
)
SIZES = ("modelnet40", "modelnet10")


def modelnet_clouds(root: Path) -> Path | None:
    """The folder with the lists of modelnet40_normal_resampled."""
    return place_of(root, tuple(f"{size}_shape_names.txt" for size in SIZES))


def modelnet_meshes(root: Path, prepared: bool = False) -> Path | None:
    """The folder of ModelNet's classes: the root or one below it, whose folders have train and test with .off files,
    or, where those may have been prepared, with what is made of them."""
    for place in (root, *sorted(path for path in root.iterdir() if path.is_dir())):
        for folder in sorted(path for path in place.iterdir() if path.is_dir()):
            splits = [folder / "train", folder / "test"]
            if all(split.is_dir() for split in splits) and any(_off(name, prepared) for name in os.listdir(splits[0])):
                return place
    return None


def _off(name: str, prepared: bool = True) -> bool:
    return name.lower().endswith((".off", ".npy") if prepared else ".off") and not name.startswith(".")


def modelnet(root: Path, variant: str | None = None) -> Shapes:
    """ModelNet40 or 10: by the lists of modelnet40_normal_resampled or as HDF5 (y is up), else as .off meshes (z is
    up).

    Args:
        root: The folder.
        variant: modelnet40 or modelnet10, where the lists of both are there; None for the larger.

    Raises:
        MimError: None of them is there.
    """
    place = modelnet_clouds(root)
    if place is not None:
        return _listed_clouds(place, variant)
    place = modelnet_hdf5_root(root)
    if place is not None and variant is None:
        return modelnet_hdf5(place)
    place = modelnet_meshes(root, prepared=True)
    if place is None:
        raise absent("ModelNet40", root, f"{MESHES}; or {CLOUDS}; or {FILES}")
    if variant is not None:
        raise MimError(f"--data.variant {variant} chooses between lists; {place} has .off meshes and no lists.")
    folders = [name for name in sorted(os.listdir(place)) if (place / name / "train").is_dir()]
    stores = []
    for split in ("train", "test"):
        pairs = [(f"{name}/{split}/{file}", i) for i, name in enumerate(folders) for file in _offs(place, name, split)]
        files, labels = tuple(file for file, _ in pairs), [label for _, label in pairs]
        stores.append(ShapeStore(place, files, labels, tuple(folders)))
    return Shapes("modelnet40", stores[0], stores[0], stores[1], up="z")


def _offs(place: Path, name: str, split: str) -> Iterable[str]:
    folder = place / name / split
    files = sorted(file for file in os.listdir(folder) if _off(file)) if folder.is_dir() else []
    return [file for file in files if _off(file, prepared=False)] or files


def _listed_clouds(place: Path, variant: str | None) -> Shapes:
    sizes = [size for size in SIZES if (place / f"{size}_shape_names.txt").is_file()]
    size = variant or sizes[0]
    if size not in sizes:
        raise unknown("variant of ModelNet", size, sizes)
    classes = tuple(lines(place / f"{size}_shape_names.txt"))
    splits = {}
    for split in ("train", "test"):
        names = lines(place / f"{size}_{split}.txt")
        splits[split] = [Listed(f"{_class_of(name)}/{name}.txt", _class_of(name), name) for name in names]
    folders = [name for name in classes if (place / name).is_dir()]
    present = {f"{name}/{file}" for name in folders for file in os.listdir(place / name)}
    train, test, missing, advice = from_lists(size, place, splits, present, classes, CLOUDS)
    return Shapes("modelnet40", train, train, test, missing, channels=("xyz", "normals"), advice=advice)


def _class_of(name: str) -> str:
    """``night_stand_0001`` -> ``night_stand``."""
    return name.rsplit("_", 1)[0]


# ---- ScanObjectNN ----------------------------------------------------------------------------------------------------

SCAN_CLASSES = (
    "bag",
    "bin",
    "box",
    "cabinet",
    "chair",
    "desk",
    "display",
    "door",
    "shelf",
    "table",
    "bed",
    "pillow",
    "sink",
    "sofa",
    "toilet",
)
"""ScanObjectNN's 15 classes by label (arXiv 1908.04616)."""
SCAN_VARIANTS = {
    "obj_bg": ("main_split", "objectdataset.h5"),
    "obj_only": ("main_split_nobg", "objectdataset.h5"),
    "pb_t50_rs": ("main_split", "objectdataset_augmentedrot_scale75.h5"),
}
"""Variant -> folder and the files' common ending, before which stands training_ or test_."""
SCAN = (
    "main_split/training_objectdataset.h5 and test_objectdataset.h5 (obj_bg), the same in main_split_nobg (obj_only), "
    "or main_split/training_objectdataset_augmentedrot_scale75.h5 and its test file (pb_t50_rs)"
)


def scan_root(root: Path) -> Path | None:
    """The folder that holds ScanObjectNN's splits; the root may be a split itself."""
    if root.name in ("main_split", "main_split_nobg") and (root / "training_objectdataset.h5").is_file():
        return root.parent
    files = {f"{folder}/training_{ending}" for folder, ending in SCAN_VARIANTS.values()}
    return place_of(root, sorted(files))


def scanobjectnn(root: Path, variant: str | None = None) -> Shapes:
    """ScanObjectNN: a row of an h5 file per shape. Here labels alone are read, and the file is closed at once:
    a worker opens it anew for every shape, because an open h5 file does not survive a fork.

    Args:
        root: The folder.
        variant: obj_bg, obj_only or pb_t50_rs; None for the hardest that is there, which is the last.

    Raises:
        MimError: The files are missing or not such files.
    """
    place = scan_root(root)
    if place is None:
        raise absent("ScanObjectNN", root, SCAN)
    names = [
        name
        for name, (folder, ending) in SCAN_VARIANTS.items()
        if all((place / folder / f"{split}_{ending}").is_file() for split in ("training", "test"))
    ]
    if not names:
        raise absent("complete split of ScanObjectNN", place, SCAN)
    chosen = variant or names[-1]
    if chosen not in SCAN_VARIANTS:
        raise unknown("variant of ScanObjectNN", chosen, SCAN_VARIANTS)
    folder, ending = SCAN_VARIANTS[chosen]
    stores = []
    for split in ("training", "test"):
        file = f"{folder}/{split}_{ending}"
        if chosen not in names:
            raise MimError(
                f"The variant {chosen} needs both {folder}/training_{ending} and {folder}/test_{ending} in {place}. "
                f"Complete are: {', '.join(names)}; choose one with --data.variant."
            )
        labels = labels_of(place / file, "ScanObjectNN", len(SCAN_CLASSES))
        note = f"ScanObjectNN {chosen}."
        stores.append(ShapeStore(place, (file,) * len(labels), labels, SCAN_CLASSES, range(len(labels)), note=note))
    return Shapes("scanobjectnn", stores[0], stores[0], stores[1], channels=("xyz",))
