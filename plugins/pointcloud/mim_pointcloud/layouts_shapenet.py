"""ShapeNet as it is handed out: ShapeNet55 of Point-BERT and Point-MAE, ShapeNetCore, and ShapeNetPart."""

from __future__ import annotations

import csv
import json
import os
from itertools import pairwise
from pathlib import Path

from mim_core import MimError

from mim_pointcloud.layouts_store import Listed, Shapes, ShapeStore, absent, drawn, from_lists, lines, place_of
from mim_pointcloud.part_files import from_training_files, official

SYNSETS = {
    "02691156": "airplane",
    "02747177": "trash bin",
    "02773838": "bag",
    "02801938": "basket",
    "02808440": "bathtub",
    "02818832": "bed",
    "02828884": "bench",
    "02843684": "birdhouse",
    "02871439": "bookshelf",
    "02876657": "bottle",
    "02880940": "bowl",
    "02924116": "bus",
    "02933112": "cabinet",
    "02942699": "camera",
    "02946921": "can",
    "02954340": "cap",
    "02958343": "car",
    "02992529": "cellphone",
    "03001627": "chair",
    "03046257": "clock",
    "03085013": "keyboard",
    "03207941": "dishwasher",
    "03211117": "display",
    "03261776": "earphone",
    "03325088": "faucet",
    "03337140": "file cabinet",
    "03467517": "guitar",
    "03513137": "helmet",
    "03593526": "jar",
    "03624134": "knife",
    "03636649": "lamp",
    "03642806": "laptop",
    "03691459": "loudspeaker",
    "03710193": "mailbox",
    "03759954": "microphone",
    "03761084": "microwave",
    "03790512": "motorbike",
    "03797390": "mug",
    "03928116": "piano",
    "03938244": "pillow",
    "03948459": "pistol",
    "03991062": "flowerpot",
    "04004475": "printer",
    "04074963": "remote control",
    "04090263": "rifle",
    "04099429": "rocket",
    "04225987": "skateboard",
    "04256520": "sofa",
    "04330267": "stove",
    "04379243": "table",
    "04401088": "telephone",
    "04460130": "tower",
    "04468005": "train",
    "04530566": "watercraft",
    "04554684": "washer",
}
"""The 55 synsets of ShapeNetCore (ShapeNet, arXiv 1512.03012) by readable names."""

PART_COUNTS = {
    "Airplane": 4,
    "Bag": 2,
    "Cap": 2,
    "Car": 4,
    "Chair": 4,
    "Earphone": 3,
    "Guitar": 3,
    "Knife": 2,
    "Lamp": 4,
    "Laptop": 2,
    "Motorbike": 6,
    "Mug": 2,
    "Pistol": 3,
    "Rocket": 3,
    "Skateboard": 3,
    "Table": 3,
}
"""Parts of each ShapeNetPart category; their numbers run on through the table, from 0 to 49."""
_STARTS = [sum(list(PART_COUNTS.values())[:i]) for i in range(len(PART_COUNTS) + 1)]
PARTS = {name: tuple(range(*ends)) for name, ends in zip(PART_COUNTS, pairwise(_STARTS), strict=True)}
"""Category -> its part numbers."""


def is_synset(name: str) -> bool:
    """Whether a name is that of a synset: eight digits."""
    return len(name) == 8 and name.isdigit()


def _synset_names(synsets: set[str]) -> dict[str, str]:
    """Synset -> class name, in the synsets' order; the number itself where no name is known."""
    return {synset: SYNSETS.get(synset, synset) for synset in sorted(synsets)}


# ---- ShapeNet55 ------------------------------------------------------------------------------------------------------

SHAPENET55 = "ShapeNet-55/train.txt and test.txt with lines SYNSET-MODEL.npy, and shapenet_pc/SYNSET-MODEL.npy"


def shapenet55_lists(root: Path) -> Path | None:
    """The folder with ShapeNet55's train.txt and test.txt: ShapeNet-55 below the root, or the root itself."""
    place = place_of(root, ("ShapeNet-55/train.txt",))
    if place is not None:
        return place / "ShapeNet-55"
    if (root / "train.txt").is_file() and _clouds_of(root) is not None:
        return root
    return None


def _clouds_of(folder: Path) -> Path | None:
    """The folder of clouds that lists in this folder mean: in it, or beside it."""
    for place in (folder, folder.parent):
        if (place / "shapenet_pc").is_dir():
            return place / "shapenet_pc"
    return None


def shapenet55(root: Path) -> Shapes:
    """ShapeNet55 as Point-BERT and Point-MAE hand it out: clouds [8192, 3]; Point-MAE pre-trains on train.txt.

    Raises:
        MimError: Lists or clouds are missing.
    """
    lists = shapenet55_lists(root)
    clouds = None if lists is None else _clouds_of(lists)
    if lists is None or clouds is None:
        raise absent("ShapeNet55", root, SHAPENET55)
    splits = {}
    for split in ("train", "test"):
        splits[split] = [
            Listed(line, _synset_of(lists / f"{split}.txt", line), line) for line in lines(lists / f"{split}.txt")
        ]
    names = _synset_names({entry.label for entries in splits.values() for entry in entries})
    named = {split: [Listed(e.file, names[e.label], e.name) for e in entries] for split, entries in splits.items()}
    files = set(os.listdir(clouds))
    train, test, missing, advice = from_lists("ShapeNet55", clouds, named, files, tuple(names.values()), SHAPENET55)
    return Shapes("shapenet55", train, train, test, missing, channels=("xyz",), advice=advice)


def _synset_of(path: Path, line: str) -> str:
    synset = line.split("-")[0]
    if not is_synset(synset) or not line.endswith(".npy"):
        raise MimError(f"{path}: the line {line!r} is not SYNSET-MODEL.npy, such as 02691156-1a04e3ea.npy.")
    return synset


# ---- ShapeNetCore ----------------------------------------------------------------------------------------------------

SHAPENETCORE = "SYNSET/MODEL/models/model_normalized.obj (v2) or SYNSET/MODEL/model.obj (v1), and all.csv if there"
MESHES = ("models/model_normalized.obj", "model.obj", "models/model_normalized.npy", "model.npy")
"""What a model's file may be called; the last two are what prepare makes of the first."""


def shapenetcore_root(root: Path) -> Path | None:
    """The folder that holds ShapeNetCore's synsets: the root, or one below it."""
    for place in (root, *sorted(path for path in root.iterdir() if path.is_dir())):
        for synset in sorted(path for path in place.iterdir() if is_synset(path.name) and path.is_dir()):
            first = next((path for path in sorted(synset.iterdir()) if path.is_dir()), None)
            if first is not None and any((first / mesh).is_file() for mesh in MESHES):
                return place
    return None


def shapenetcore(root: Path) -> Shapes:
    """ShapeNetCore: a mesh per model; its train and val are for training where all.csv lists them, else a split is
    drawn.

    Raises:
        MimError: There are no such meshes.
    """
    place = shapenetcore_root(root)
    if place is None:
        raise absent("ShapeNetCore", root, SHAPENETCORE)
    paths: dict[tuple[str, str], str] = {}
    for synset in sorted(name for name in os.listdir(place) if is_synset(name)):
        for model in sorted(os.listdir(place / synset)):
            mesh = next((m for m in MESHES if (place / synset / model / m).is_file()), None)
            if mesh is not None:
                paths[synset, model] = f"{synset}/{model}/{mesh}"
    names = _synset_names({synset for synset, _ in paths})
    classes = tuple(names.values())
    table = place / "all.csv"
    if not table.is_file():
        labels = [list(names).index(synset) for synset, _ in paths]
        return drawn("shapenetcore", ShapeStore(place, tuple(paths.values()), labels, classes))
    splits: dict[str, list[Listed]] = {"train": [], "test": []}
    for row in _rows_of(table):
        synset, model = row["synsetId"].zfill(8), row["modelId"]
        if synset in names:
            entry = Listed(paths.get((synset, model), ""), names[synset], f"{synset}/{model}")
            splits["test" if row["split"] == "test" else "train"].append(entry)
    train, test, missing, advice = from_lists("ShapeNetCore", place, splits, set(paths.values()), classes, SHAPENETCORE)
    return Shapes("shapenetcore", train, train, test, missing, advice=advice)


def _rows_of(table: Path) -> list[dict[str, str]]:
    wanted = ("synsetId", "modelId", "split")
    try:
        with open(table, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (csv.Error, UnicodeDecodeError) as error:
        raise MimError(f"{table} cannot be read: {error}.") from error
    lacking = next((number for number, row in enumerate(rows, 2) if not all(row.get(name) for name in wanted)), None)
    if lacking is not None:
        raise MimError(f"{table}, line {lacking}: each row needs {', '.join(wanted)}.")
    return rows


# ---- ShapeNetPart ----------------------------------------------------------------------------------------------------

SHAPENETPART = (
    "synsetoffset2category.txt, train_test_split/shuffled_{train,val,test}_file_list.json and SYNSET/MODEL.txt with x "
    "y z nx ny nz part, or x y z part"
)


def shapenetpart(root: Path) -> Shapes:
    """ShapeNetPart, or own shapes laid out like it: a part number for every point. Training is on train and val, as in
    Point-MAE. The parts of categories that are not ShapeNetPart's are those of their training files.

    Raises:
        MimError: Lists are missing, or ShapeNetPart's categories and own ones are mixed.
    """
    place = place_of(root, ("synsetoffset2category.txt",))
    if place is None:
        raise absent("ShapeNetPart", root, SHAPENETPART)
    rows = [line.split() for line in lines(place / "synsetoffset2category.txt")]
    names = {row[-1]: row[0] for row in rows}
    theirs = set(names.values()) & set(PARTS)
    _check_categories(place, list(names.values()), theirs)
    splits: dict[str, list[Listed]] = {"train": [], "test": []}
    for split, part in (("train", "train"), ("train", "val"), ("test", "test")):
        for entry in _json_list(place / "train_test_split" / f"shuffled_{part}_file_list.json"):
            synset, model = entry.split("/")[-2:]
            splits[split].append(Listed(f"{synset}/{model}.txt", names.get(synset, synset), f"{synset}/{model}"))
    folders = [synset for synset in names if (place / synset).is_dir()]
    files = {f"{synset}/{name}" for synset in folders for name in os.listdir(place / synset)}
    train, test, missing, advice = from_lists("ShapeNetPart", place, splits, files, tuple(names.values()), SHAPENETPART)
    given = {name: PARTS[name] for name in names.values() if name in theirs}
    table = official(given, train) if given else from_training_files(train)
    channels = ("xyz", "normals") if table.width == 7 else ("xyz",)
    return Shapes("shapenetpart", train, train, test, missing, table=table, channels=channels, advice=advice)


def _check_categories(place: Path, names: list[str], theirs: set[str]) -> None:
    """Refuses categories of which some alone are ShapeNetPart's, and names that stand for two folders."""
    own, table = sorted(set(names) - theirs), place / "synsetoffset2category.txt"
    if theirs and own:
        raise MimError(
            f"{table} mixes categories of ShapeNetPart, whose numbers are given ({', '.join(sorted(theirs)[:5])}), "
            f"with own ones, whose ids come from the training files ({', '.join(own[:5])}). Call the first by other "
            "names in that file, such as my-chair for Chair: then the ids of all come from the training files."
        )
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise MimError(f"{table} names two folders of the category {twice[0]}. Give each category one folder.")


def _json_list(path: Path) -> list[str]:
    try:
        entries = json.loads("\n".join(lines(path)))
    except ValueError as error:
        raise MimError(f"{path} cannot be read: {error}") from error
    if not isinstance(entries, list) or not all(isinstance(e, str) and e.count("/") >= 1 for e in entries):
        raise MimError(f"{path} should be a list of shape_data/SYNSET/MODEL.")
    return entries
