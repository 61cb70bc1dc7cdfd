"""What a layout gives: shapes by file and row, their classes and splits; and what all layouts share."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from mim_core import MimError, listed_once, nearest

from mim_pointcloud.files import EXTENSIONS
from mim_pointcloud.part_table import PartTable


@dataclass(frozen=True)
class ShapeStore:
    """One split: the files of its shapes, and their classes if there are any.

    Attributes:
        root: What names are relative to.
        files: Paths below the root, one per shape.
        labels: Class of each shape.
        classes: Their names; None when there are fewer than two.
        rows: Row of each shape in its file, for files that hold many; empty when each holds one.
        names: What users know the shapes by; empty when those are the files.
        note: What a reader of scores should know about the split.
    """

    root: Path
    files: tuple[str, ...]
    labels: Sequence[int] = ()
    classes: tuple[str, ...] | None = None
    rows: Sequence[int] = ()
    names: Sequence[str] = ()
    note: str = ""

    def __len__(self) -> int:
        return len(self.files)

    def row(self, index: int) -> int | None:
        """Which of a file's shapes; None for a file that holds one."""
        return self.rows[index] if self.rows else None

    def name(self, index: int) -> str:
        """The shape as the user knows it; bytes that are no UTF-8 are written out, because every report shows it."""
        if self.names:
            return shown(self.names[index])
        row = self.row(index)
        return shown(self.files[index]) + ("" if row is None else f" (row {row})")

    def subset(self, keep: Sequence[int], note: str = "") -> ShapeStore:
        """Some of the shapes."""
        return ShapeStore(
            self.root,
            tuple(self.files[i] for i in keep),
            [self.labels[i] for i in keep] if self.labels else (),
            self.classes,
            [self.rows[i] for i in keep] if self.rows else (),
            [self.names[i] for i in keep] if self.names else (),
            note or self.note,
        )

    def joined(self, other: ShapeStore) -> ShapeStore:
        """The shapes of both, which lie below the same root and have the same classes."""
        return ShapeStore(
            self.root,
            self.files + other.files,
            [*self.labels, *other.labels] if self.labels and other.labels else (),
            self.classes,
            [*self.rows, *other.rows],
            [*self.names, *other.names],
            self.note,
        )


@dataclass(frozen=True)
class Shapes:
    """What pre-training sees, and what probes are trained and tested on.

    Attributes:
        kind: The layout's name.
        pretrain: For training without labels.
        train: For probes and fine-tuning.
        test: Held out; empty when there is no such split.
        missing: What the lists name and the disk lacks.
        up: The axis that points up in these files, as far as is known.
        table: The parts of each class, where every point has one.
        channels: The channels that the files have; None when that depends on the file.
        splits: Which folders were taken for splits, for people; empty where there are none.
        others: Ending -> how many files were left out, because they are not read; those of a folder alone.
        advice: What was left out of the splits, and why.
    """

    kind: str
    pretrain: ShapeStore
    train: ShapeStore
    test: ShapeStore
    missing: tuple[str, ...] = ()
    up: str = "y"
    table: PartTable = field(default_factory=PartTable)
    channels: tuple[str, ...] | None = None
    splits: str = ""
    others: Mapping[str, int] = field(default_factory=dict)
    advice: tuple[str, ...] = ()

    @property
    def parts(self) -> Mapping[str, tuple[int, ...]]:
        """Class name -> numbers of its parts; empty where points have none."""
        return self.table.parts


def absent(kind: str, root: Path, looked_for: str) -> MimError:
    """The error for a folder that lacks a layout's files: what was looked for, and what is there."""
    existing = sorted(os.listdir(root)) if root.is_dir() else []
    near = nearest(looked_for.split()[0].split("/")[0], existing)
    some = ", ".join(map(shown, existing[:8])) + (", ..." if len(existing) > 8 else "") if existing else "nothing"
    guess = f" The nearest name is {near!r}." if near else ""
    return MimError(f"No {kind} in {root}. Looked for {looked_for}; found {some}.{guess}")


def place_of(root: Path, names: Sequence[str]) -> Path | None:
    """The folder that holds a file or folder of one of these names: the root, or one up to two levels below it."""
    for name in names:
        for pattern in (name, f"*/{name}", f"*/*/{name}"):
            matches = sorted(root.glob(pattern))
            if matches:
                return root.joinpath(*matches[0].relative_to(root).parts[: pattern.count("*")])
    return None


def lines(path: Path) -> list[str]:
    """The lines of a list that are not empty.

    Raises:
        MimError: The file is missing; names the nearest one beside it.
    """
    if not path.is_file():
        beside = sorted(os.listdir(path.parent)) if path.parent.is_dir() else []
        near = nearest(path.name, beside)
        raise MimError(f"{path} is missing." + (f" The nearest name beside it is {near!r}." if near else ""))
    return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]


def shown(name: str) -> str:
    """A file's name as it can be printed: bytes that are no UTF-8 as ``\\udcXX``."""
    return name.encode(errors="backslashreplace").decode()


def stable_order(name: str) -> int:
    """A number that follows from a name alone, on every machine; splits are drawn in its order."""
    return int.from_bytes(hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=8).digest(), "little")


def stem_of(name: str) -> str:
    """A shape's path without its endings, the same before and after ``prepare``: ``a/b.obj`` and ``a/b.obj.npy`` are
    ``a/b``."""
    stem, ending = os.path.splitext(name)
    while ending.lower() in EXTENSIONS:
        name, (stem, ending) = stem, os.path.splitext(stem)
    return name


def as_stored(file: str, existing: Container[str]) -> str:
    """A file as it lies on disk: itself, or what ``prepare`` makes of it where that alone is there."""
    made = os.path.splitext(file)[0] + ".npy"
    return made if file not in existing and made in existing else file


def held_out(names: Sequence[str], labels: Sequence[int]) -> tuple[list[int], list[int]]:
    """(train, test): of each class a fifth, at least one of two, those whose names come first in the stable order."""
    test: set[int] = set()
    members: dict[int, list[int]] = {}
    for index, label in enumerate(labels):
        members.setdefault(label, []).append(index)
    for indices in members.values():
        indices.sort(key=lambda i: (stable_order(names[i]), names[i]))
        test.update(indices[: max(len(indices) // 5, min(1, len(indices) - 1))])
    return [i for i in range(len(names)) if i not in test], sorted(test)


DRAWN = (
    "The files have no split of their own: of each class a fifth is held out from pre-training and probes, drawn by a "
    "hash of the name."
)


def drawn(kind: str, store: ShapeStore, **more: object) -> Shapes:
    """Splits for files that have none."""
    train, test = held_out([stem_of(file) for file in store.files], store.labels)
    seen = store.subset(train, DRAWN)
    return Shapes(kind, seen, seen, store.subset(test, DRAWN), **more)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Listed:
    """One line of a list: the shape's file below the root, its class, and what the list calls it."""

    file: str
    label: str
    name: str


def from_lists(
    kind: str,
    root: Path,
    splits: Mapping[str, Sequence[Listed]],
    existing: set[str],
    classes: Sequence[str],
    looked_for: str,
) -> tuple[ShapeStore, ShapeStore, tuple[str, ...], tuple[str, ...]]:
    """(train, test, missing, advice) of lists; ``existing`` are the files that exist.

    Raises:
        MimError: None of the training files is there, or a list has a class of its own.
    """
    stores, missing, notes, rows = [], [], list[str](), dict[str, list[Listed]]()
    number = {name: i for i, name in enumerate(classes)}
    for split in ("train", "test"):
        entries: Sequence[Listed] = [replace(entry, file=as_stored(entry.file, existing)) for entry in splits[split]]
        strange = sorted({entry.label for entry in entries} - set(number))
        if strange:
            raise MimError(f"{root}: the {split} list has classes that are not known: {', '.join(strange[:5])}.")
        rows[split] = [entry for entry in entries if entry.file in existing]
        gone = [entry.name for entry in entries if entry.file not in existing]
        missing += gone
        notes.append(f"{len(gone):,} of {len(entries):,} listed {split} shapes are missing." if gone else "")
    kept, advice = listed_once(
        {f"the {split} list": [(e.file, e.label) for e in listing] for split, listing in rows.items()}, root, "shape"
    )
    for listing, keep, note in zip(rows.values(), kept, notes, strict=True):
        labels = [number[listing[row].label] for row in keep]
        stores.append(ShapeStore(root, tuple(listing[row].file for row in keep), labels, tuple(classes), note=note))
    if not stores[0]:
        entries = splits["train"]
        wanted = ", ".join(entry.file for entry in entries[:3])
        near = nearest(entries[0].file, sorted(existing)[:5000]) if entries else None
        guess = f" The nearest that exists is {near}." if near else ""
        raise MimError(
            f"None of the {len(entries):,} listed training shapes of {kind} is in {root}: {wanted}, ... Looked for "
            f"{looked_for}.{guess}"
        )
    return stores[0], stores[1], tuple(missing), advice
