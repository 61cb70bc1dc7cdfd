"""Which images there are: folders of files, and tar files of them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mim_core import LabelTable, MimError, arranged, collections, counted, walk_folders
from PIL import Image

from mim_image.formats import EXTENSIONS, open_image
from mim_image.shards import Shards, packed, read_index, refuse_packed


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
        splits: Which folders were taken for splits.
        left_out: Files with other endings.
    """

    root: Path
    files: tuple[str, ...] = ()
    array: Any = None
    labels: Sequence[int] = ()
    classes: tuple[str, ...] | None = None
    note: str = ""
    shards: Shards | None = None
    advice: tuple[str, ...] = ()
    splits: str = ""
    left_out: str = ""

    def __len__(self) -> int:
        return len(self.files) if self.array is None else len(self.array)

    def name(self, index: int) -> str:
        """The file below the root, or the number within an idx file."""
        return self.files[index] if self.array is None else f"{self.root.name}[{index}]"

    def names(self) -> tuple[str, ...]:
        """All of them."""
        return self.files if self.array is None else tuple(map(self.name, range(len(self))))

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
        return open_image(self.root / self.files[index])


@dataclass(frozen=True)
class Splits:
    """What pre-training sees, and what probes are trained and tested on."""

    pretrain: ImageStore
    train: ImageStore
    test: ImageStore


def folder_splits(root: Path, splits: bool = True, table: LabelTable | None = None, column: str = "") -> Splits:
    """A folder's own splits if it has them, as folders or in the names of its tar files; or one collection, a fifth of
    each class held out from the probes. Without ``splits`` it is one collection, without classes. With a table the
    classes are its; in shards, those of this key of JSON members.

    Raises:
        MimError: No images; says what was looked for and what is there.
    """
    tree = replace(_walk(root), column=column)
    if table is not None and not tree.images:
        raise MimError(f"{table.path} labels loose images, and {root} holds none.")
    if not tree.images:
        return _tar_folder_splits(root, tree) if splits else _fifths(_tar_store(root, tree, False))
    advice, (other, data) = list[str](), collections.left_out(tree.others)
    if tree.tars or tree.packed:
        tars = counted(len(tree.tars) + len(tree.packed), "tar file")
        first = (*tree.tars, *tree.packed)[0]
        advice.append(f"{root} holds loose images, which are used, and {tars} left out ({first}).")
    if data:
        advice.append(f"{root}: left out are {data}.")
    about = collections.arrange(tree.images, root, "image", splits)
    if table is not None:
        about = arranged(about, table, tree.images, root, "image")
    store = ImageStore(root, tuple(tree.images), None, about.labels, about.classes, left_out=other)
    store = replace(store, advice=(*about.advice, *advice), splits=about.splits)
    if about.test is None:
        return _fifths(_subset(store, about.pretrain), about.train)
    pretrain, train, test = (_subset(store, keep) for keep in (about.pretrain, about.train, about.test))
    return Splits(pretrain, pretrain if about.train == about.pretrain else train, test)


def tar_splits(path: Path, column: str = "") -> Splits:
    """One tar file, as a collection.

    Raises:
        MimError: The file is compressed.
    """
    if packed(path.name):
        raise refuse_packed(path, [path.name])
    return _within(_tar_store(path.parent, _Found(tars=[path.name], column=column)))


def _tar_folder_splits(root: Path, tree: _Found) -> Splits:
    """Splits of tar files, by their folders or else by words in their names."""
    if not tree.tars:
        _tar_store(root, tree)  # raises
    folders = [Path(tar).parts[:-1] for tar in tree.tars]
    named = collections.split_names(folders)
    parts = [[name for name in each if name in named] for each in folders]
    if any(parts):
        paths = [str(Path(*each, Path(tar).name)) for each, tar in zip(parts, tree.tars, strict=True)]
    else:
        alike = collections.alike(Path(tar).stem for tar in tree.tars)
        words = [alike.get(Path(tar).stem) or collections.split_in(Path(tar).name) for tar in tree.tars]
        held = next((word for word in collections.HELD_OUT if word in words), None)
        if held is None or all(word in collections.HELD_OUT for word in words):
            words = [None] * len(words)
        elif "train" in words:  # what says nothing is for training too
            words = [word or "train" for word in words]
        paths = [
            f"{word}/{Path(tar).name}" if word else Path(tar).name for word, tar in zip(words, tree.tars, strict=True)
        ]
    about = collections.arrange(paths, root, "shard")
    stores: dict[tuple[int, ...], ImageStore] = {}
    for keep in (about.train, about.test, about.pretrain):
        if keep is not None and keep not in stores:
            some = replace(tree, tars=[tree.tars[i] for i in keep])
            stores[keep] = replace(
                _tar_store(root, some, keep == about.train or keep == about.test), splits=about.splits
            )
    pretrain, train = stores[about.pretrain], stores[about.train]
    pretrain = replace(pretrain, advice=(*pretrain.advice, *about.advice, *_unused(root, tree.tars, about)))
    train = pretrain if about.train == about.pretrain else train
    if about.test is None:
        return _within(train) if train is pretrain else replace(_within(train), pretrain=_without_held(pretrain))
    same, train, pretrain = train is pretrain, _without_held(train), _without_held(pretrain)
    train = pretrain if same else train
    test = stores[about.test]
    _same_classes(root, train, _split_of_tar(tree.tars[about.test[0]]), test)
    return Splits(pretrain, train, test)


def _kinds(store: ImageStore) -> list[str | None]:
    """The split of each image that its folders within a shard say, or else its JSON member."""
    assert store.shards is not None
    tars = [f"{tar}/" for tar in store.shards.tars]
    places = store.shards.places[:, 0].tolist()
    names = zip(store.files, places, strict=True)
    folders = collections.splits_of([tuple(name.removeprefix(tars[place]).split("/")[:-1]) for name, place in names])
    noted = store.shards.splits or (None,) * len(folders)
    return [folder or split for folder, split in zip(folders, noted, strict=True)]


def _within(store: ImageStore) -> Splits:
    """The splits that folders within shards say; or one collection."""
    kinds = _kinds(store)
    held = next((word for word in collections.HELD_OUT if word in kinds), None)
    train = [i for i, kind in enumerate(kinds) if kind not in collections.HELD_OUT]
    if held is None or not train:
        return _fifths(store)
    test = [i for i, kind in enumerate(kinds) if kind == held]
    noted = store.shards is not None and any(store.shards.splits)
    where = f"as .json members say: {held}" if noted else f"within the shards: {held}/"
    summary = f"{where} held out ({len(test):,}), all others for training ({len(train):,})"
    unused = len(kinds) - len(train) - len(test)
    summary += f", not used {unused:,} of another held-out folder" if unused else ""
    pretrain = replace(_subset(store, train), splits=summary)
    return Splits(pretrain, pretrain, _subset(store, test))


def _without_held(store: ImageStore) -> ImageStore:
    """A store for training without the images that their folder within a shard, or their JSON member, holds out."""
    held = [kind in collections.HELD_OUT for kind in _kinds(store)]
    if not any(held) or all(held):
        return store
    noted = store.shards is not None and any(store.shards.splits)
    where = "their .json members hold them out" if noted else "they lie in held-out folders"
    lost = f"{store.root}: {counted(sum(held), 'image')} left out: in shards for training {where}"
    note = f"{lost} ({store.files[held.index(True)]})."
    return replace(_subset(store, [i for i, out in enumerate(held) if not out]), advice=(*store.advice, note))


def _unused(root: Path, tars: Sequence[str], about: collections.Arrangement) -> tuple[str, ...]:
    """A warning where there are two splits that are held out, of which one is used."""
    used = {*about.pretrain, *about.train, *(about.test or ())}
    unused = [tar for i, tar in enumerate(tars) if i not in used]
    if not unused or about.advice or about.test is None:
        return ()
    held = _split_of_tar(tars[about.test[0]])
    return (f"{counted(len(unused), 'shard')} of {root} not used: {held} is what is held out ({unused[0]}).",)


def _split_of_tar(tar: str) -> str:
    """The split that the path of a tar file says."""
    folders = [split for name in Path(tar).parts[:-1] if (split := collections.split_of(name))]
    held = next((split for split in folders if split in collections.HELD_OUT), None)
    return held or next(iter(folders), None) or collections.split_in(Path(tar).name) or "test"


def _same_classes(root: Path, train: ImageStore, name: str, test: ImageStore) -> None:
    if train.classes is not None and train.classes != test.classes:
        if test.classes is None:
            raise MimError(
                f"{root}: the classes of train and {name} differ: train has {len(train.classes)}, and {name} none. "
                "Give both their classes; or, to train without them, name the folder or the shards of train alone."
            )
        different = sorted(set(train.classes) ^ set(test.classes))
        raise MimError(f"{root}: the classes of train and {name} differ, in: {', '.join(different[:10])}.")


def _fifths(both: ImageStore, train: Sequence[int] | None = None) -> Splits:
    labels = both.labels or (-1,) * len(both)
    kept, held = collections.every_fifth(labels, range(len(both)) if train is None else train)
    note = (
        "Every fifth image of a class is held out from the probes; a run that was pre-trained on this folder has seen "
        "them, without "
        "labels."
    )
    return Splits(both, _subset(both, kept, note), _subset(both, held, note))


def _subset(store: ImageStore, keep: Sequence[int], note: str = "") -> ImageStore:
    if note == "" and len(keep) == len(store):
        return store
    shards = None if store.shards is None else store.shards.take(keep)
    files, labels = tuple(store.files[i] for i in keep), [store.labels[i] for i in keep] if store.labels else []
    return replace(store, files=files, labels=labels, note=note, shards=shards)


@dataclass(frozen=True)
class _Found:
    """What lies below a folder, sorted: images, tar files, compressed ones, and the endings of other files; and the key
    of JSON members in tar files that holds a class."""

    images: list[str] = field(default_factory=list)
    tars: list[str] = field(default_factory=list)
    packed: list[str] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    column: str = ""


def _walk(root: Path) -> _Found:
    tree = _Found()
    for folder, names, _ in walk_folders(root):
        for name in names:
            ending = os.path.splitext(name)[1].lower()
            if name.startswith("."):
                continue
            path = os.path.relpath(os.path.join(folder, name), root)
            if ending in EXTENSIONS:
                tree.images.append(path)
            elif ending == ".tar":
                tree.tars.append(path)
            elif packed(name):
                tree.packed.append(path)
            else:
                tree.others[ending or "no ending"] += 1
    for kind in (tree.images, tree.tars, tree.packed):
        kind.sort()
    return tree


def _tar_store(root: Path, tree: _Found, with_classes: bool = True) -> ImageStore:
    if not tree.tars and tree.packed:
        raise refuse_packed(root, tree.packed)
    if not tree.tars:
        present = ", ".join(f"{n} x {ending}" for ending, n in tree.others.most_common(5)) or "nothing"
        raise MimError(
            f"No images in {root}. Looked for {', '.join(EXTENSIONS)}, and for .tar files of them, in it and below; "
            f"found {present}."
        )
    index = read_index(root, tree.tars, EXTENSIONS, with_classes, tree.column)
    advice, (other, data) = index.advice, collections.left_out(tree.others + index.others)
    if data:
        advice = (*advice, f"{root}: left out are {data}.")
    if tree.packed:
        files = counted(len(tree.packed), "compressed shard")
        advice = (*advice, f"{files} of {root} left out ({tree.packed[0]}): only .tar files can be read.")
    store = ImageStore(root, index.names, None, index.labels, index.classes, shards=index.shards, left_out=other)
    return replace(store, advice=advice)
