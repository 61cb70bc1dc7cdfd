"""Folders of pictures with COCO's json, as people have them: which file is of which split, and where pictures lie."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mim_core import HELD_OUT, MimError, collections, counted, one_line, walk_folders

from mim_image.coco_files import KEYS, Instances, read_instances
from mim_image.files import ImageStore, Splits

ROBOFLOW = "_annotations.coco.json"
LOOKED_AT = 50
"""Pictures by which a folder of them is recognised."""
HEAD = 1 << 16
"""Bytes of a json by which one of instances is recognised."""
FIFTH = "Every fifth picture by its name is held out; a run that was pre-trained on this folder has seen them."


@dataclass(frozen=True)
class CocoSplits:
    """Pictures and their objects, number by number.

    Attributes:
        stores: The pictures of "train" and "test".
        instances: What is in them.
    """

    stores: dict[str, ImageStore]
    instances: dict[str, Instances]

    def splits(self) -> Splits:
        """As other sources of pictures have them: those for training are for pre-training too."""
        train, test = self.stores["train"], self.stores["test"]
        return Splits(train, train, test)


def coco_splits(root: Path, annotations: Path | None = None, held: Path | None = None) -> CocoSplits:
    """The splits of a folder: those that its json files say, or every fifth picture held out.

    Args:
        root: The folder.
        annotations: The json for training, where it is not to be looked for.
        held: The json of held-out pictures.

    Raises:
        MimError: No such file, several that could be meant, or pictures that are not there.
    """
    named = {"train": annotations, "test": held}
    if annotations is None:
        named = {**_json_files(root), **({"test": held} if held is not None else {})}
    read = {split: read_instances(path) for split, path in named.items() if path is not None}
    stores = {split: _store(root, instances, split) for split, instances in read.items()}
    if "test" in read:
        read["test"] = _with_ids_of(read["train"], read["test"])
        return CocoSplits(stores, read)
    names = stores["train"].files
    order = sorted(range(len(names)), key=names.__getitem__)
    numbers = {"test": order[4::5], "train": [i for place, i in enumerate(order) if place % 5 != 4]}
    if not numbers["test"]:
        raise MimError(
            f"{read['train'].path} lists {counted(len(names), 'picture')}; at least 5 are needed to hold out one."
        )
    whole, store = read["train"], stores["train"]
    parts = {split: replace(store, files=tuple(names[i] for i in some), note=FIFTH) for split, some in numbers.items()}
    return CocoSplits(parts, {split: whole.take(some) for split, some in numbers.items()})


def _json_files(root: Path) -> dict[str, Path | None]:
    """The json files of a folder by split.

    Raises:
        MimError: There is none, or there are several of one split.
    """
    every = [Path(folder) / name for folder, names, _ in walk_folders(root) for name in names if name.endswith(".json")]
    every.sort()
    alike = [path for path in every if path.name.startswith("instances")]
    alike = alike or [path for path in every if path.name == ROBOFLOW] or [path for path in every if _has_keys(path)]
    if not alike:
        seen = f" Seen, and not of that kind: {', '.join(path.name for path in every[:5])}." if every else ""
        raise MimError(
            f"{root} has no json of instances as COCO has it ({', '.join(KEYS)}). Put one in it, such as "
            f"annotations/instances_train.json, or name it: --data.annotations FILE.{seen}"
        )
    by_split: dict[str, list[Path]] = {}
    for path in alike:
        folders = reversed(path.relative_to(root).parts[:-1])
        split_name = collections.split_in(path.stem) or next(filter(None, map(collections.split_of, folders)), None)
        by_split.setdefault(split_name or "train", []).append(path)
    held = next((split for split in HELD_OUT if split in by_split), None)
    if "train" not in by_split and held is not None:
        by_split, held = {"train": by_split[held]}, None
    chosen = {"train": by_split.get("train", []), "test": by_split[held] if held is not None else []}
    for split, paths in chosen.items():
        if len(paths) > 1:
            option = "--data.annotations" if split == "train" else "--data.test-annotations"
            listed = ", ".join(str(path.relative_to(root)) for path in paths[:5])
            raise MimError(
                f"{root} has several json files that could be the {split} split: {listed}. Name one: {option}"
            )
    return {split: paths[0] for split, paths in chosen.items() if paths}


def _has_keys(path: Path) -> bool:
    """Whether a file looks as one of instances does; large ones are told by their beginning and end."""
    try:
        with open(path, "rb") as file:
            start = file.read(HEAD)
            file.seek(max(0, os.path.getsize(path) - HEAD))
            text = start + file.read()
    except OSError as error:
        raise MimError(f"{path} cannot be read: {one_line(error)}.") from error
    return sum(f'"{key}"'.encode() in text for key in KEYS) >= 2 or b'"annotations"' in text


def _with_ids_of(train: Instances, test: Instances) -> Instances:
    """The held-out instances with the training file's ids of categories, which are told apart by name.

    Raises:
        MimError: A category of an object is not among those for training.
    """
    if test.categories == train.categories:
        return test
    id_of = {name: id_ for id_, name in train.categories.items()}
    used = {each.category for each in test.objects()}
    strange = [test.categories[id_] for id_ in sorted(used) if test.categories[id_] not in id_of]
    if strange:
        known = ", ".join(list(id_of)[:8])
        raise MimError(f"{test.path} has objects of {strange[0]}, which {train.path} does not list. It lists: {known}.")
    pictures = tuple(
        replace(p, objects=tuple(replace(each, category=id_of[test.categories[each.category]]) for each in p.objects))
        for p in test.pictures
    )
    return replace(test, pictures=pictures, categories=train.categories)


def _store(root: Path, instances: Instances, split: str) -> ImageStore:
    """The pictures of a json. Those that are not there stay listed: reading names them.

    Raises:
        MimError: None is there; says where was looked.
    """
    names = [picture.file for picture in instances.pictures]
    some = names[:LOOKED_AT]
    places = _places(root, instances.path)
    counts = [sum((place / name).is_file() for name in some) for place in places]
    if not max(counts):
        looked = ", ".join(map(str, places))
        raise MimError(
            f"None of the first {len(some)} pictures that {instances.path} names, such as {names[0]}, is there. "
            f"Looked in: {looked}."
        )
    base = places[counts.index(max(counts))]
    files = tuple(os.path.relpath(base / name, root) for name in names)
    gone = [name for name, file in zip(names, files, strict=True) if not (root / file).is_file()]
    lost = (
        f"{instances.path}: {counted(len(gone), 'picture')} of {len(names):,} not on disk ({base / gone[0]})."
        if gone
        else ""
    )
    return ImageStore(
        root,
        files,
        splits=f"{split}: {instances.path.name}",
        advice=(*instances.advice, *([lost] if lost else [])),
    )


def _places(root: Path, path: Path) -> Sequence[Path]:
    """Folders where the pictures of a json may lie."""
    stem = path.stem.removeprefix("instances").strip("_-.")
    split = collections.split_in(path.stem) or ""
    words = [word for word in dict.fromkeys((stem, split)) if word]
    folders = [path.parent, path.parent / "images", root, root / "images"]
    for base in (root, root / "images", path.parent, path.parent.parent):
        for word in words:
            folders += [base / word, base / word / "images"]
    return list(dict.fromkeys(place for place in folders if place.is_dir()))
