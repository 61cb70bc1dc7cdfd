"""Which clips there are: a folder of files, UCF101, Kinetics, Something-Something v2, each as it lies on disk."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mim_core import walking
from mim_core.errors import MimError, unknown

from mim_video import listings
from mim_video.listings import Entry

EXTENSIONS = (".mp4", ".avi", ".webm", ".mkv", ".mov", ".m4v", ".mpg", ".mpeg", ".ts", ".wmv", ".flv", ".3gp", ".ogv")
HELD_OUT = ("test", "val", "validation", "validate")
SSV2_LABELS = ("labels.json", "something-something-v2-labels.json")


@dataclass(frozen=True)
class ClipStore:
    """One split: video files, the part of each that counts, and their classes if there are any.

    Attributes:
        root: What names are relative to.
        files: Paths below the root.
        labels: Class of each file.
        classes: Their names; None when there are fewer than two.
        windows: Start and end in seconds, for files of which only a part counts; empty when all of all files do.
        note: What a reader of scores should know about the split.
    """

    root: Path
    files: tuple[str, ...]
    labels: Sequence[int] = ()
    classes: tuple[str, ...] | None = None
    windows: tuple[tuple[float, float] | None, ...] = ()
    note: str = ""

    def __len__(self) -> int:
        return len(self.files)

    def window(self, index: int) -> tuple[float, float] | None:
        """The part of a file that counts, in seconds; None for all of it."""
        return self.windows[index] if self.windows else None

    def name(self, index: int) -> str:
        """The file below the root, and its part."""
        part = self.window(index)
        return self.files[index] + (f" ({part[0]:g} to {part[1]:g} s)" if part else "")

    def subset(self, keep: Sequence[int], note: str = "") -> ClipStore:
        """Some of the files."""
        return ClipStore(
            self.root,
            tuple(self.files[i] for i in keep),
            [self.labels[i] for i in keep] if self.labels else (),
            self.classes,
            tuple(self.windows[i] for i in keep) if self.windows else (),
            note or self.note,
        )


@dataclass(frozen=True)
class Clipping:
    """What pre-training sees, and what probes are trained and tested on.

    Attributes:
        kind: The layout's name.
        pretrain: For training without labels.
        train: For the probes.
        test: Held out; empty when the lists have none.
        missing: What the lists name and the disk lacks.
    """

    kind: str
    pretrain: ClipStore
    train: ClipStore
    test: ClipStore
    missing: tuple[str, ...] = ()


def find_clips(root: Path, layout: str = "auto", split: int = 1) -> Clipping:
    """The clips below a folder.

    Args:
        root: The folder.
        layout: auto, folder, ucf101, kinetics or ssv2.
        split: Which of UCF101's three.

    Raises:
        MimError: Nothing there; says what was looked for and what is there.
    """
    if layout == "auto":
        layout = recognise(root)
    if layout not in LAYOUTS:
        raise unknown("layout", layout, ["auto", *LAYOUTS])
    return ucf101(root, split) if layout == "ucf101" else LAYOUTS[layout](root)


def recognise(root: Path) -> str:
    """The layout that a folder has: by UCF101's lists, Something-Something's json, Kinetics' csv; else a folder."""
    if _below(root, ("classInd.txt",)):
        return "ucf101"
    if _below(root, SSV2_LABELS):
        return "ssv2"
    return "kinetics" if _kinetics_lists(root) else "folder"


def _below(root: Path, names: Iterable[str]) -> Path | None:
    """A file of one of these names in the folder or in one below it; UCF101's lists may also lie beside its videos."""
    for name in names:
        beside = sorted(root.parent.glob(f"ucfTrain*/{name}")) if root.name.lower().startswith("ucf") else []
        for found in (root / name, *sorted(root.glob(f"*/{name}")), *beside):
            if found.is_file():
                return found
    return None


def walk(root: Path) -> tuple[list[str], Counter[str]]:
    """Videos below the root, sorted, and the endings of other files."""
    found: list[str] = []
    others: Counter[str] = Counter()
    for folder, names, _ in walking.walk(root):
        for name in names:
            ending = os.path.splitext(name)[1].lower()
            if name.startswith("."):
                continue
            if ending in EXTENSIONS:
                found.append(os.path.relpath(os.path.join(folder, name), root))
            else:
                others[ending or "no ending"] += 1
    return sorted(found), others


def _videos(root: Path, looked_for: str) -> list[str]:
    files, others = walk(root)
    if files:
        return files
    there = ", ".join(f"{n} x {ending}" for ending, n in others.most_common(5)) or "nothing"
    raise MimError(f"No videos in {root}. Looked for {looked_for} in it and below; found {there}.")


# ---- a folder of clips -----------------------------------------------------------------------------------------------


def folder(root: Path) -> Clipping:
    """A folder's own splits if it has them; or one collection, a fifth of each class held out from the probes. Classes
    are the names of the first folder level."""
    held_out = [name for name in HELD_OUT if (root / name).is_dir()]
    if (root / "train").is_dir() and held_out:
        train, test = _collection(root / "train"), _collection(root / held_out[0])
        if train.classes is not None and train.classes != test.classes:
            different = sorted(set(train.classes) ^ set(test.classes or ()))
            raise MimError(f"{root}: the classes of train and {held_out[0]} differ, in: {', '.join(different[:10])}.")
        return Clipping("folder", train, train, test)
    both = _collection(root)
    seen: Counter[int] = Counter()
    parts: dict[bool, list[int]] = {False: [], True: []}
    for index, label in enumerate(both.labels):  # every fifth of each class, in the order of names
        parts[seen[label] % 5 == 4].append(index)
        seen[label] += 1
    note = (
        "Every fifth clip of a class is held out from the probes; a run that was pre-trained on this folder has seen "
        "them, without labels."
    )
    return Clipping("folder", both, both.subset(parts[False], note), both.subset(parts[True], note))


def _collection(root: Path) -> ClipStore:
    files = _videos(root, ", ".join(EXTENSIONS))
    tops = [file.split(os.sep)[0] if os.sep in file else "" for file in files]
    names = sorted(set(tops))
    if "" in names or len(names) < 2:
        return ClipStore(root, tuple(files))
    number = {name: i for i, name in enumerate(names)}
    return ClipStore(root, tuple(files), [number[top] for top in tops], tuple(names))


# ---- official lists --------------------------------------------------------------------------------------------------


def _listed(
    kind: str, root: Path, train: Sequence[Entry], test: Sequence[Entry], classes: tuple[str, ...], looked_for: str
) -> Clipping:
    """The files that lists name, wherever below the root they lie; what is missing is counted and named."""
    by_stem: dict[str, list[str]] = {}
    for file in _videos(root, looked_for):
        by_stem.setdefault(os.path.splitext(os.path.basename(file))[0], []).append(file)
    missing: list[str] = []
    number = {name: i for i, name in enumerate(classes)}
    stores = []
    for split, entries in (("train", train), ("test", test)):
        places = [(entry, _place(by_stem, entry, split)) for entry in entries]
        found = [(entry, place) for entry, place in places if place]
        absent = [entry.stem for entry, place in places if not place]
        missing += absent
        note = f"{len(absent):,} of {len(entries):,} listed {split} clips are missing." if absent else ""
        files = tuple(file for _, (file, _) in found)
        labels = [number[entry.label] for entry, _ in found]
        windows = tuple(part for _, (_, part) in found)
        stores.append(ClipStore(root, files, labels, classes, windows if any(windows) else (), note))
    if not stores[0]:
        names = ", ".join(missing[:3])
        raise MimError(f"None of the {len(train):,} listed training clips is in {root}: {names}, ... {looked_for}.")
    return Clipping(kind, stores[0], stores[0], stores[1], tuple(missing))


def _place(by_stem: dict[str, list[str]], entry: Entry, split: str) -> tuple[str, tuple[float, float] | None] | None:
    """The file of an entry, and the part of it that counts: all of a trimmed file, whose name says its part."""
    choices = [(f"{entry.stem}_{entry.window[0]:06.0f}_{entry.window[1]:06.0f}", None)] if entry.window else []
    for stem, part in (*choices, (entry.stem, entry.window)):
        files = by_stem.get(stem, [])
        if files:  # the same clip may lie in several folders: the one of its class, then of its split
            parts = [set(os.path.dirname(file).replace("_", " ").split(os.sep)) for file in files]
            ranks = [(entry.label.replace("_", " ") in p, split in p) for p in parts]
            return files[ranks.index(max(ranks))], part
    return None


def ucf101(root: Path, split: int = 1) -> Clipping:
    """UCF101: ``UCF-101/Class/v_*.avi`` and ``ucfTrainTestlist/`` with classInd, trainlist and testlist."""
    if split not in (1, 2, 3):
        raise MimError(f"UCF101 has splits 1, 2 and 3, not {split}.")
    names = _below(root, ("classInd.txt",))
    looked_for = "UCF-101/CLASS/v_*.avi and ucfTrainTestlist/ with classInd.txt, trainlist01.txt and testlist01.txt"
    if names is None:
        raise MimError(f"No lists of UCF101 in {root}. Looked for {looked_for}.")
    classes = listings.ucf101_classes(names)
    lists = []
    for name in (f"trainlist{split:02}.txt", f"testlist{split:02}.txt"):
        path = names.with_name(name)
        if not path.is_file():
            raise MimError(f"{path} is missing. Looked for {looked_for}.")
        lists.append(listings.ucf101_entries(path))
        strange = {entry.label for entry in lists[-1]} - set(classes)
        if strange:
            raise MimError(f"{path} has classes that {names.name} lacks: {', '.join(sorted(strange)[:5])}.")
    return _listed("ucf101", root, lists[0], lists[1], classes, looked_for)


def _kinetics_lists(root: Path) -> list[Path]:
    """Kinetics' csv files: in the folder or one below it, with the columns of the official ones."""
    return [path for path in _tables(root) if set(listings.TIMED) <= set(listings.header(path))]


def _tables(root: Path) -> list[Path]:
    return sorted({*root.glob("*.csv"), *root.glob("*/*.csv")})


def kinetics(root: Path) -> Clipping:
    """Kinetics-400, 600 or 700: csv files with label, youtube_id, time_start, time_end and split; clips anywhere
    below, trimmed (``ID_000010_000020.mp4``) or whole (``ID.mp4``, of which the csv's part is used).

    Raises:
        MimError: No such csv files or no such videos, a training list without labels, or a cell that is no time.
    """
    looked_for = (
        "csv files with the columns label, youtube_id, time_start, time_end, split, and videos named "
        "ID_000010_000020.mp4 or ID.mp4"
    )
    lists = _kinetics_lists(root)
    if not lists:
        tables = [f"{path.name} with {', '.join(listings.header(path))}" for path in _tables(root)[:3]]
        raise MimError(
            f"No lists of Kinetics in {root}. Looked for {looked_for}, in it or a folder below; "
            f"found {'; '.join(tables) or 'no csv files'}. Without lists, take "
            "--data.layout folder: its classes are the names of folders."
        )
    named: dict[str, dict[Entry, None]] = {}
    for path in lists:  # the same list may lie in two places: a clip of it counts once
        for name, entry in listings.kinetics_rows(path):
            named.setdefault(name, {})[entry] = None
    splits = {name: list(entries) for name, entries in named.items()}
    held_out = next((name for name in ("val", "validate", "validation", "test") if _labelled(splits, name)), "")
    train, test = splits.get("train", []), splits.get(held_out, [])
    if not train:
        raise MimError(f"{root}: the csv files list no split 'train', only: {', '.join(sorted(splits))}.")
    classes = tuple(sorted({entry.label for entry in (*train, *test)}))
    return _listed("kinetics", root, train, test, classes, looked_for)


def _labelled(splits: dict[str, list[Entry]], name: str) -> bool:
    return name in splits and all(entry.label for entry in splits[name])


def ssv2(root: Path) -> Clipping:
    """Something-Something v2: json lists of labels, training and validation, and ``ID.webm`` files anywhere below."""
    looked_for = "labels.json, train.json, validation.json (or something-something-v2-*.json) and ID.webm files"
    labels = _below(root, SSV2_LABELS)
    if labels is None:
        raise MimError(f"No lists of Something-Something v2 in {root}. Looked for {looked_for}.")
    prefix = labels.name.removesuffix("labels.json")
    numbers = listings.ssv2_labels(labels)
    classes = tuple(sorted(numbers, key=lambda label: numbers[label]))
    lists = []
    for name in ("train", "validation"):
        path = labels.with_name(f"{prefix}{name}.json")
        if not path.is_file():
            raise MimError(f"{path} is missing. Looked for {looked_for}.")
        lists.append(listings.ssv2_entries(path, numbers))
    return _listed("ssv2", root, lists[0], lists[1], classes, looked_for)


LAYOUTS: dict[str, Callable[[Path], Clipping]] = {
    "folder": folder,
    "ucf101": ucf101,
    "kinetics": kinetics,
    "ssv2": ssv2,
}
"""Layouts by name."""
