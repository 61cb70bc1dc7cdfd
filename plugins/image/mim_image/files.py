"""Which images there are: folders of files, tar files of them, and MNIST's idx files."""

from __future__ import annotations

import gzip
import os
import struct
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from mim_core import walking
from mim_core.errors import MimError
from mim_core.words import counted
from PIL import Image

from mim_image.shards import Shards, by_split, packed, read_index, refuse_packed

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
HELD_OUT = ("test", "val", "validation", "valid")
FASHION = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")


@dataclass(frozen=True)
class ImageStore:
    """One split: images to open by index, their classes if there are any.

    Attributes:
        root: What names are relative to.
        files: Paths below the root, of members too (shard.tar/1.jpg); empty when the images are an array.
        array: uint8 [n, H, W] or [n, H, W, C].
        labels: Class of each image.
        classes: Their names; None when there are fewer than two.
        note: What a reader of scores should know about the split.
        shards: The images, where they lie in tar files.
        advice: What is there and not used.
    """

    root: Path
    files: tuple[str, ...] = ()
    array: Any = None
    labels: Sequence[int] = ()
    classes: tuple[str, ...] | None = None
    note: str = ""
    shards: Shards | None = None
    advice: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.files) if self.array is None else len(self.array)

    def name(self, index: int) -> str:
        """The file below the root, or the number within an idx file."""
        return self.files[index] if self.array is None else f"{self.root.name}[{index}]"

    def paths(self) -> Iterator[tuple[str, ...]]:
        """The file that each image is read from: its own, its tar file, or the array's."""
        if self.array is not None:
            return iter([(str(self.root),)] * len(self.array))
        if self.shards is not None:
            tars = [(os.path.join(self.shards.root, tar),) for tar in self.shards.tars]
            return (tars[number] for number in self.shards.places[:, 0].tolist())
        return ((os.path.join(self.root, file),) for file in self.files)

    def open(self, index: int) -> Image.Image:
        """The image, not yet decoded."""
        if self.array is not None:
            return Image.fromarray(self.array[index])
        if self.shards is not None:
            return self.shards.open(index)
        path = self.root / self.files[index]
        if not path.is_file():  # opening a pipe would wait for ever
            raise OSError("it is no regular file")
        return Image.open(path)


@dataclass(frozen=True)
class Splits:
    """What pre-training sees, and what probes are trained and tested on."""

    pretrain: ImageStore
    train: ImageStore
    test: ImageStore


def folder_splits(root: Path) -> Splits:
    """A folder's own splits if it has them, as folders or in the names of its tar files; or one collection, a fifth of
    each class held out from the probes.

    Raises:
        MimError: No images; says what was looked for and what is there.
    """
    folders = {path.name.lower(): path for path in sorted(root.iterdir()) if path.is_dir()}
    held_out = [name for name in HELD_OUT if name in folders]
    if "train" in folders and held_out:
        test = folders[held_out[0]]
        return _own_splits(root, _store(folders["train"]), test.name, _store(test))
    found = _walk(root)
    named = {} if found.images else by_split(found.tars, ("train", *HELD_OUT))
    held_out = [name for name in HELD_OUT if name in named]
    if "train" not in named or not held_out:
        return _fifths(_store(root, found))
    train = [tar for tar in found.tars if not any(tar in named[name] for name in held_out)]
    unused = [tar for name in held_out[1:] for tar in named[name]]
    store = _store(root, replace(found, tars=train))
    if unused:
        text = f"{counted(len(unused), 'shard')} of {root} not used: {held_out[0]} is what is held out ({unused[0]})."
        store = replace(store, advice=(*store.advice, text))
    return _own_splits(root, store, held_out[0], _store(root, replace(found, tars=named[held_out[0]])))


def tar_splits(path: Path) -> Splits:
    """One tar file, as a collection."""
    if packed(path.name):
        raise refuse_packed(path, [path.name])
    return _fifths(_store(path.parent, _Found(tars=[path.name])))


def _own_splits(root: Path, train: ImageStore, name: str, test: ImageStore) -> Splits:
    if train.classes is not None and train.classes != test.classes:
        if test.classes is None:
            raise MimError(
                f"{root}: the classes of train and {name} differ: train has {len(train.classes)}, and {name} none. "
                "Give both their classes; or, to train without them, name the folder or the shards of train alone."
            )
        different = sorted(set(train.classes) ^ set(test.classes))
        raise MimError(f"{root}: the classes of train and {name} differ, in: {', '.join(different[:10])}.")
    return Splits(train, train, test)


def _fifths(both: ImageStore) -> Splits:
    seen: Counter[int] = Counter()
    parts: dict[bool, list[int]] = {False: [], True: []}
    for index, label in enumerate(both.labels):  # every fifth of each class, in the order of names
        parts[seen[label] % 5 == 4].append(index)
        seen[label] += 1
    note = (
        "Every fifth image of a class is held out from the probes; a run that was pre-trained on this folder has seen "
        "them, without "
        "labels."
    )
    return Splits(both, _subset(both, parts[False], note), _subset(both, parts[True], note))


def _subset(store: ImageStore, keep: list[int], note: str) -> ImageStore:
    shards = None if store.shards is None else store.shards.take(keep)
    files, labels = tuple(store.files[i] for i in keep), [store.labels[i] for i in keep]
    return replace(store, files=files, labels=labels, note=note, shards=shards)


@dataclass(frozen=True)
class _Found:
    """What lies below a folder, sorted: images, tar files, compressed ones, and the endings of other files."""

    images: list[str] = field(default_factory=list)
    tars: list[str] = field(default_factory=list)
    packed: list[str] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)


def _walk(root: Path) -> _Found:
    found = _Found()
    for folder, names, _ in walking.walk(root):
        for name in names:
            ending = os.path.splitext(name)[1].lower()
            if name.startswith("."):
                continue
            path = os.path.relpath(os.path.join(folder, name), root)
            if ending in EXTENSIONS:
                found.images.append(path)
            elif ending == ".tar":
                found.tars.append(path)
            elif packed(name):
                found.packed.append(path)
            else:
                found.others[ending or "no ending"] += 1
    for kind in (found.images, found.tars, found.packed):
        kind.sort()
    return found


def _store(root: Path, found: _Found | None = None) -> ImageStore:
    """The images below a folder: loose ones; or, where there are none, those in its tar files."""
    found = found or _walk(root)
    if not found.images:
        return _tar_store(root, found)
    advice: tuple[str, ...] = ()
    if found.tars:
        tars = counted(len(found.tars), "tar file")
        advice = (f"{root} holds loose images, which are used, and {tars} left out ({found.tars[0]}).",)
    tops = [file.split(os.sep)[0] if os.sep in file else "" for file in found.images]
    names = sorted(set(tops))
    if "" in names or len(names) < 2:
        return ImageStore(root, tuple(found.images), advice=advice)
    number = {name: i for i, name in enumerate(names)}
    return ImageStore(root, tuple(found.images), None, [number[top] for top in tops], tuple(names), advice=advice)


def _tar_store(root: Path, found: _Found) -> ImageStore:
    if not found.tars and found.packed:
        raise refuse_packed(root, found.packed)
    if not found.tars:
        there = ", ".join(f"{n} x {ending}" for ending, n in found.others.most_common(5)) or "nothing"
        raise MimError(
            f"No images in {root}. Looked for {', '.join(EXTENSIONS)}, and for .tar files of them, in it and below; "
            f"found {there}."
        )
    index = read_index(root, found.tars, EXTENSIONS)
    advice = index.advice
    if found.packed:
        files = counted(len(found.packed), "compressed shard")
        advice = (*advice, f"{files} of {root} left out ({found.packed[0]}): only .tar files can be read.")
    return ImageStore(root, index.names, None, index.labels, index.classes, shards=index.shards, advice=advice)


def idx_files(root: Path) -> dict[str, Path]:
    """The four files of MNIST and its kin that a folder holds, zipped or not; empty unless all are there."""
    names = {
        "train": "train-images-idx3-ubyte",
        "train labels": "train-labels-idx1-ubyte",
        "test": "t10k-images-idx3-ubyte",
        "test labels": "t10k-labels-idx1-ubyte",
    }
    found = {}
    for what, name in names.items():
        for path in (root / f"{name}.gz", root / name):
            if path.exists():
                found[what] = path
                break
    return found if len(found) == len(names) else {}


def read_idx(path: Path) -> Any:
    """An idx file of unsigned bytes as an array.

    Raises:
        MimError: The file is cut short or is none.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        zero, kind, axes = struct.unpack(">HBB", content[:4])
        if zero or kind != 8:
            raise ValueError("it does not start as an idx file of bytes")
        shape = struct.unpack(f">{axes}I", content[4 : 4 + 4 * axes])
        return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)
    except (OSError, EOFError, ValueError, struct.error, zlib.error) as error:
        raise MimError(f"{path} cannot be read: {error}") from error


def idx_splits(root: Path) -> Splits:
    """MNIST's own splits."""
    files = idx_files(root)
    if not files:
        raise MimError(f"{root} lacks some of MNIST's four idx files.")
    stores = []
    for split in ("train", "test"):
        array, labels = read_idx(files[split]), read_idx(files[f"{split} labels"]).tolist()
        if len(array) != len(labels):
            raise MimError(f"{files[split]} holds {len(array)} images and its labels are {len(labels)}.")
        classes = tuple(str(i) for i in range(max(labels) + 1))
        named = FASHION if "fashion" in str(root).lower() or root.name == "sample" else classes
        stores.append(ImageStore(files[split], (), array, labels, named if len(classes) == 10 else classes))
    return Splits(stores[0], stores[0], stores[1])
