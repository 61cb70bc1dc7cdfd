"""Collections in which some pictures are abnormal, as they lie on disk: folders of defects with masks (MVTec AD, BTAD),
tables (VisA, NIH ChestX-ray14, RSNA), and folders of classes of which one is normal."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from mim_core import MimError, counted, did_you_mean, walk_folders

from mim_image.files import ImageStore, Splits
from mim_image.formats import EXTENSIONS

CLASSES = ("normal", "abnormal")
GOOD = ("good", "ok", "normal")
"""Folders of normal pictures: MVTec AD's, BTAD's, and others'."""

TRUTH = "ground_truth"
VISA, NIH = ("object", "split", "label", "image", "mask"), ("Image Index", "Finding Labels")
RSNA, RSNA_CLASSES = ("patientId", "Target"), ("patientId", "class")
TABLES = (
    *("split_csv/1cls.csv", "1cls.csv", "Data_Entry_2017.csv", "Data_Entry_2017_v2020.csv"),
    *("stage_2_detailed_class_info.csv", "stage_2_train_labels.csv"),
)
"""Where tables lie below the root."""


Box = tuple[float, float, float, float]
"""Left, top, width and height, as shares of the picture's."""

SIDE = 1024
"""Pixels of a side of RSNA's and NIH's pictures, in which their boxes count."""

NIH_BOXES = "BBox_List_2017.csv"
RSNA_BOXES = "stage_2_train_labels.csv"


@dataclass(frozen=True)
class AnomalySplits:
    """What training sees, and what is judged.

    Attributes:
        train: Normal pictures.
        test: Pictures with their labels, 0 normal and 1 abnormal.
        masks: Of each test picture, the file below the root that shows where it is abnormal; "" where it is normal.
            Empty where the collection has no masks.
        pool: Abnormal pictures that are in no test, for methods that also learn from unlabelled ones.
        lacking: Which masks of abnormal pictures are missing, where others have theirs, and what to do.
        unlabelled: Pictures that may be normal or abnormal, for methods that learn from such too.
        boxes: Of each test picture, the boxes around what is abnormal; None where it is abnormal and nobody drew any.
            Empty where the collection has no boxes.
    """

    train: ImageStore
    test: ImageStore
    masks: tuple[str, ...] = ()
    pool: ImageStore | None = None
    lacking: str = ""
    unlabelled: ImageStore | None = None
    boxes: tuple[tuple[Box, ...] | None, ...] = ()

    def splits(self) -> Splits:
        """As other image data have them; unlabelled pictures come behind the normal ones."""
        both = self.train if self.unlabelled is None else joined(self.train, self.unlabelled)
        return Splits(both, self.train, self.test)


def _store(root: Path, files: Sequence[str], labels: Sequence[int], splits: str, **more: object) -> ImageStore:
    return replace(ImageStore(root, tuple(files), None, tuple(labels), CLASSES, splits=splits), **more)  # type: ignore[arg-type]


def _pictures(folder: Path, root: Path) -> list[str]:
    """Pictures in and below a folder, as paths below the root."""
    return sorted(
        os.path.relpath(os.path.join(place, name), root)
        for place, names, _ in walk_folders(folder)
        for name in names
        if os.path.splitext(name)[1].lower() in EXTENSIONS and not name.startswith(".")
    )


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _good(folder: Path) -> Path | None:
    """The folder of normal pictures within one."""
    folders = [path for path in _folders(folder) if path.name.lower() in GOOD] if folder.is_dir() else []
    return folders[0] if folders else None


# ---- folders of defects ----------------------------------------------------------------------------------------------


def of_defects(root: Path) -> AnomalySplits | None:
    """``train/good``, ``test/good``, ``test/DEFECT``, and masks ``ground_truth/DEFECT/NAME_mask.png`` (MVTec AD) or
    ``ground_truth/DEFECT/NAME.png`` (BTAD, whose folders are ok and ko). None where this is no such folder.

    Raises:
        MimError: There are no test pictures, or training pictures that are not normal.
    """
    good = _good(root / "train")
    if good is None or not (root / "test").is_dir():
        return None
    others = [path.name for path in _folders(root / "train") if path != good]
    if others:
        raise MimError(
            f"{root / 'train'} holds {good.name} and also {', '.join(others[:3])}; training is on normal pictures "
            f"alone. Take those out, or name the normal class of a folder of classes: --data.normal {good.name}"
        )
    train = _pictures(good, root)
    test, labels, defects = list[str](), list[int](), list[str]()
    for folder in _folders(root / "test"):
        files = _pictures(folder, root)
        test += files
        labels += [int(folder.name.lower() not in GOOD)] * len(files)
        defects += [folder.name] * len(files)
    if not train or not test:
        raise MimError(f"No pictures in {good if not train else root / 'test'}: {', '.join(EXTENSIONS)} are read.")
    masks, lacking = _masks(root, test, labels, defects)
    names = list(dict.fromkeys(name for name, label in zip(defects, labels, strict=True) if label))
    summary = (
        f"train/{good.name} for training ({len(train):,}), test judged ({counted(labels.count(0), 'normal picture')}, "
        f"{labels.count(1):,} abnormal: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''})"
    )
    return AnomalySplits(
        _store(root, train, [0] * len(train), summary), _store(root, test, labels, summary), masks, lacking=lacking
    )


def _masks(
    root: Path, test: Sequence[str], labels: Sequence[int], defects: Sequence[str]
) -> tuple[tuple[str, ...], str]:
    """The mask of each test picture; and what is missing, where there are some."""
    if not (root / TRUTH).is_dir():
        return (), ""
    known: dict[tuple[str, str], str] = {}
    for path in _pictures(root / TRUTH, root):
        parts = Path(path).parts
        known[parts[1] if len(parts) > 2 else "", Path(path).stem.removesuffix("_mask")] = path
    masks, missing = list[str](), dict[str, list[str]]()
    for file, label, defect in zip(test, labels, defects, strict=True):
        mask = known.get((defect, Path(file).stem), "") if label else ""
        masks.append(mask)
        if label and not mask:
            missing.setdefault(defect, []).append(file)
    if not any(masks):
        return (), ""
    notes = [
        f"{root / TRUTH / name} has no mask for {counted(len(files), 'picture')} of test/{name}, such as {files[0]}"
        for name, files in missing.items()
    ]
    return tuple(masks), f"{'; '.join(notes)}. Add the masks; or take {TRUTH} away" if notes else ""


# ---- folders of classes ----------------------------------------------------------------------------------------------


def of_classes(both: Splits, normal: str, root: Path | str) -> AnomalySplits:
    """One class is normal, and all others are abnormal (the one-class protocol).

    Args:
        both: A collection with classes.
        normal: The class.
        root: Of the collection, for messages.

    Raises:
        MimError: There are no classes, or no such one.
    """
    classes = both.train.classes
    if classes is None:
        raise MimError(
            f"{root} has no classes, of which {normal!r} could be the normal one: a folder for each is read."
        )
    if normal not in classes:
        raise MimError(
            f"{root} has no class {normal!r}.{did_you_mean(normal, classes)} There are: {', '.join(classes[:20])}."
        )
    number = classes.index(normal)
    summary = f"{normal} is normal, {counted(len(classes) - 1, 'other class', 'other classes')} abnormal"

    def some(store: ImageStore, wanted: bool | None) -> ImageStore:
        keep = [i for i, label in enumerate(store.labels) if wanted is None or (label == number) == wanted]
        labels = tuple(int(store.labels[i] != number) for i in keep)
        files, array = tuple(store.files[i] for i in keep) if store.files else (), store.array
        return replace(
            store, files=files, array=None if array is None else array[keep], labels=labels, classes=CLASSES,
            shards=None if store.shards is None else store.shards.take(keep), splits=summary, note="",
        )  # fmt: skip

    train = some(both.train, True)
    if not len(train):
        raise MimError(f"{root}: no picture of the class {normal!r} is for training.")
    return AnomalySplits(train, some(both.test, None), pool=some(both.train, False))


# ---- tables ----------------------------------------------------------------------------------------------------------


def table_of(root: Path, table: Path | None) -> Path | None:
    """The table of a collection: the one that is named, or one of the usual names below the root.

    Raises:
        MimError: There is no such file.
    """
    if table is not None:
        path = table if table.is_absolute() or table.is_file() else root / table
        if not path.is_file():
            raise MimError(f"--data.table {table}: there is no such file, nor {root / table}.")
        return path
    return next((root / name for name in TABLES if (root / name).is_file()), None)


def of_table(root: Path, path: Path, chosen: str) -> AnomalySplits:
    """What a table says of pictures below the root. Its columns tell which it is: VisA's splits, NIH's findings or
    RSNA's targets and classes.

    Args:
        root: Folder of the pictures, at any depth; VisA's paths are below it.
        path: The table.
        chosen: Of VisA, the object.

    Raises:
        MimError: Other columns, no such object, or none of the pictures is there.
    """
    rows = _rows(path)
    named = list(rows[0]) if rows else []
    columns = set(named)
    if columns >= set(VISA):
        return _visa(root, path, rows, chosen)
    if columns >= set(NIH):
        normal = {row["Image Index"]: row["Finding Labels"].strip() == "No Finding" for row in rows}
        patients = {row["Image Index"]: row.get("Patient ID") or row["Image Index"].split("_")[0] for row in rows}
        return _boxed(_x_rays(root, path, normal, patients), path.with_name(NIH_BOXES))
    if columns >= set(RSNA_CLASSES):
        normal = {row["patientId"]: row["class"].strip() == "Normal" for row in rows}
        return _boxed(_x_rays(root, path, normal, {name: name for name in normal}), path.with_name(RSNA_BOXES))
    if columns >= set(RSNA):
        normal = {row["patientId"]: row["Target"].strip() == "0" for row in rows}
        return _boxed(_x_rays(root, path, normal, {name: name for name in normal}), path)
    known = ", ".join("+".join(names) for names in (VISA, NIH, RSNA, RSNA_CLASSES))
    raise MimError(f"{path} has the columns {', '.join(named) or 'none'}; tables of anomalies have these: {known}.")


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            return [{key: value or "" for key, value in row.items() if key} for row in csv.DictReader(file)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise MimError(f"{path} cannot be read as a table: {error}.") from error


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise MimError(f"{path} cannot be read as a list of names: {error}.") from error


def _visa(root: Path, path: Path, rows: Sequence[Mapping[str, str]], chosen: str) -> AnomalySplits:
    objects = list(dict.fromkeys(row["object"] for row in rows))
    if chosen not in objects:
        guess = did_you_mean(chosen, objects) if chosen else ""
        asked = (
            f"has no object {chosen!r}.{guess} It has" if chosen else "has several objects; name one with --data.object"
        )
        if chosen or len(objects) != 1:
            raise MimError(f"{path} {asked}: {', '.join(objects)}.")
    rows = [row for row in rows if not chosen or row["object"] == chosen]
    train = [row["image"] for row in rows if row["split"] == "train" and row["label"] == "normal"]
    pool = [row["image"] for row in rows if row["split"] == "train" and row["label"] != "normal"]
    tested = [row for row in rows if row["split"] == "test"]
    test, labels = [row["image"] for row in tested], [int(row["label"] != "normal") for row in tested]
    gone = [name for name in (*train, *test, *pool) if not (root / name).is_file()]
    if gone or not train or not test:
        what = (
            f"{counted(len(gone), 'picture')} of it missing below {root}, such as {gone[0]}" if gone else "no pictures"
        )
        raise MimError(f"{path}: {what}; paths in the table count from --data.root.")
    masks = tuple(row["mask"].strip() for row in tested)
    lacking = [row["image"] for row in tested if row["label"] != "normal" and not row["mask"].strip()]
    note = ""
    if lacking:
        note = f"{path} names no mask for {counted(len(lacking), 'picture')}, such as {lacking[0]}. Name them; or none"
    summary = f"as {path.name} says: {len(train):,} for training, {len(test):,} judged, {sum(labels):,} abnormal"
    return AnomalySplits(
        _store(root, train, [0] * len(train), summary),
        _store(root, test, labels, summary),
        masks if any(masks) else (),
        _store(root, pool, [1] * len(pool), summary) if pool else None,
        note if any(masks) else "",
    )


def _x_rays(root: Path, path: Path, normal: Mapping[str, bool], patients: Mapping[str, str]) -> AnomalySplits:
    """Pictures by name, wherever they lie; lists of names split them, or else every fifth patient is held out."""
    files = {Path(file).name: file for file in _pictures(root, root)}
    files |= {Path(file).stem: file for file in files.values()}
    known = [name for name in normal if name in files]
    if not known:
        seen = next(iter(files), "none")
        raise MimError(
            f"None of the {len(normal):,} pictures in {path} lies below {root}; names there are like {seen!r}, and in "
            f"the table like {next(iter(normal), '')!r}."
        )
    lists = {kind: root / name for kind, name in (("train", "train_val_list.txt"), ("test", "test_list.txt"))}
    if all(file.is_file() for file in lists.values()):
        held = set(_read(lists["test"]).split())
        how = "as train_val_list.txt and test_list.txt say"
    else:
        order = {patient: i for i, patient in enumerate(sorted({patients[name] for name in known}))}
        held = {name for name in known if order[patients[name]] % 5 == 4}
        how = "every fifth patient held out"
    train = [name for name in known if name not in held and normal[name]]
    pool = [name for name in known if name not in held and not normal[name]]
    test = [name for name in known if name in held]
    if not train or not test:
        raise MimError(f"{path}: {how}, {len(train):,} normal pictures are for training and {len(test):,} judged.")
    gone = len(normal) - len(known)
    summary = f"{how}: {len(train):,} normal for training, {len(test):,} judged, {len(pool):,} abnormal in neither"
    advice = (f"{counted(gone, 'picture')} of {path} not found below {root}.",) if gone else ()
    return AnomalySplits(
        _store(root, _in(files, train), [0] * len(train), summary, advice=advice),
        _store(root, _in(files, test), [int(not normal[name]) for name in test], summary),
        pool=_store(root, _in(files, pool), [1] * len(pool), summary) if pool else None,
    )


def _boxed(splits: AnomalySplits, path: Path) -> AnomalySplits:
    """With the boxes of a table, where it is there and draws any for the test pictures: RSNA's, or NIH's.

    Raises:
        MimError: A box does not lie in a picture of 1,024 x 1,024.
    """
    if not path.is_file():
        return splits
    drawn: dict[str, list[Box]] = {}
    for row in _rows(path):
        values = [row.get(name, "").strip() for name in ("x", "y", "width", "height")]
        if "Bbox [x" in row:  # the header of NIH's table is "Bbox [x,y,w,h]", which commas split
            values = [row[name].strip() for name in ("Bbox [x", "y", "w", "h]")]
        if any(values):
            name = row.get("patientId") or row.get("Image Index") or ""
            drawn.setdefault(name, []).append(_box(values, path, name))
    boxes = list[tuple[Box, ...] | None]()
    for file, label in zip(splits.test.files, splits.test.labels, strict=True):
        mine = drawn.get(Path(file).name) or drawn.get(Path(file).stem)
        boxes.append(tuple(mine) if mine and label else None if label else ())
    return replace(splits, boxes=tuple(boxes)) if any(boxes) else splits


def _box(values: Sequence[str], path: Path, name: str) -> Box:
    try:
        left, top, width, height = (float(value) / SIDE for value in values)
    except ValueError:
        left = top = width = height = -1.0
    if not (0 <= left < 1 and 0 <= top < 1 and 0 < width <= 1.001 - left and 0 < height <= 1.001 - top):
        raise MimError(
            f"{path}: the box {', '.join(values)} of {name} does not lie in a picture of {SIDE:,} x {SIDE:,}, in whose "
            "pixels boxes count."
        )
    return left, top, width, height


def _in(files: Mapping[str, str], names: Iterable[str]) -> list[str]:
    return [files[name] for name in names]


# ---- unlabelled pictures ---------------------------------------------------------------------------------------------


def mixed(splits: AnomalySplits, share: float, root: Path | str) -> AnomalySplits:
    """Every second normal training picture becomes unlabelled, with so many abnormal ones, which are in no test, that
    these are a share of the unlabelled.

    Args:
        splits: The collection.
        share: From 0 up to 1, without it.
        root: Of the collection, for messages.

    Raises:
        MimError: There are not enough abnormal pictures outside the test split, or one normal picture alone.
    """
    if not 0 <= share < 1:
        raise MimError(f"--data.mix must lie in [0, 1), got {share}.")
    count = len(splits.train)
    if count < 2:
        raise MimError(f"{root}: one normal picture cannot be known and unlabelled too; --data.mix needs two.")
    odd = list(range(1, count, 2))
    wanted, available = round(len(odd) * share / (1 - share)), len(splits.pool or ())
    if wanted > available:
        raise MimError(
            f"{root}: --data.mix {share:g} wants {wanted:,} abnormal pictures outside the test split, and there are "
            f"{available:,}. Name a smaller share, or a folder of unlabelled pictures: --data.unlabelled FOLDER"
        )
    unlabelled = _subset(splits.train, odd)
    if wanted and splits.pool is not None:
        unlabelled = joined(unlabelled, _subset(splits.pool, [i * available // wanted for i in range(wanted)]))
    return replace(splits, train=_subset(splits.train, list(range(0, count, 2))), unlabelled=unlabelled)


def with_folder(splits: AnomalySplits, folder: Path) -> AnomalySplits:
    """All pictures below a folder become the unlabelled ones.

    Raises:
        MimError: It holds none, or is not there.
    """
    files = _pictures(folder, splits.train.root) if folder.is_dir() else []
    if not files:
        raise MimError(f"--data.unlabelled {folder} holds no pictures ({', '.join(EXTENSIONS)}).")
    if splits.train.array is not None or splits.train.shards is not None:
        raise MimError(f"--data.unlabelled goes with loose files, and {splits.train.root} has none.")
    return replace(splits, unlabelled=_store(splits.train.root, files, [-1] * len(files), ""))


def _subset(store: ImageStore, keep: Sequence[int]) -> ImageStore:
    return replace(
        store, files=tuple(store.files[i] for i in keep) if store.files else (),
        array=None if store.array is None else store.array[list(keep)], labels=tuple(store.labels[i] for i in keep),
        shards=None if store.shards is None else store.shards.take(keep),
    )  # fmt: skip


def joined(first: ImageStore, second: ImageStore) -> ImageStore:
    """Two stores of one kind, one behind the other.

    Raises:
        MimError: They lie in shards, which are not joined.
    """
    if first.shards is not None or second.shards is not None:
        raise MimError("Unlabelled pictures are not read from tar files; unpack them.")
    array = None if first.array is None else np.concatenate([first.array, second.array])
    return replace(first, files=(*first.files, *second.files), array=array, labels=(*first.labels, *second.labels))


# ---- whatever it is --------------------------------------------------------------------------------------------------


def refuse(root: Path) -> MimError:
    """What was looked for in a folder that is none of these."""
    objects = [path.name for path in _folders(root) if _good(path / "train") is not None]
    if objects:
        return MimError(
            f"{root} holds {counted(len(objects), 'object')}: {', '.join(objects[:20])}. Each is trained alone: "
            f"--data.root {root / objects[0]}"
        )
    return MimError(
        f"{root} is no collection of normal and abnormal pictures. Looked for train/good (or ok, normal) beside test/, "
        f"as in MVTec AD and BTAD; for a table ({', '.join(TABLES)}; another: --data.table FILE); or name the class of "
        "a folder of classes that is normal: --data.normal CLASS"
    )
