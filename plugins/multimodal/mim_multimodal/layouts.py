"""Which aligned items there are: folders of modalities, with a file of the same name in each.

``ROOT/{train,test}/MODALITY/CLASS/.../name.ext``; val and validation stand for test. Without these folders it is
``ROOT/MODALITY/...``, and a fifth of the items, drawn by their names, is held out. Captions may also be the rows of one
table, ``ROOT/captions.csv``.
"""

from __future__ import annotations

import csv
import os
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from mim_core import walking
from mim_core.errors import MimError, nearest
from mim_core.randomness import name_code

MODALITIES = ("rgb", "depth", "semseg", "caption")
ENDINGS: Mapping[str, tuple[str, ...]] = {
    "rgb": (".jpg", ".jpeg", ".png", ".webp"),
    "depth": (".png", ".npy", ".tif", ".tiff"),
    "semseg": (".png",),
    "caption": (".txt",),
}
CAPTIONS = "captions.csv"
HELD_OUT = ("test", "val", "validation")
EXPECTED = (
    "It should hold train/MODALITY/CLASS/NAME and test/MODALITY/CLASS/NAME, or MODALITY/CLASS/NAME; modalities are "
    + ", ".join(f"{name} ({' '.join(endings)})" for name, endings in ENDINGS.items())
    + ", and CLASS may be left out."
)
Missing = Literal["refuse", "skip", "mask"]


@dataclass(frozen=True)
class Items:
    """One split: items, and their file in each modality.

    Attributes:
        root: What paths are relative to.
        split: Folder of the split below the root; empty where there is none.
        folders: Modality -> its folder.
        stems: Each item's path below a modality's folder, without the ending; with "/" on every system.
        endings: Modality -> the ending of each item's file; empty where the item has none.
        captions: Stem -> caption, where captions are the rows of a table.
    """

    root: Path
    split: str
    folders: Mapping[str, str]
    stems: tuple[str, ...]
    endings: Mapping[str, tuple[str, ...]]
    captions: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.stems)

    def has(self, modality: str, index: int) -> bool:
        """Whether an item has a file of a modality."""
        return modality in self.endings and bool(self.endings[modality][index])

    def file(self, modality: str, index: int) -> str:
        """An item's file below the root, with the first usual ending where it is missing."""
        if modality == "caption" and self.captions:
            return f"{CAPTIONS}: {self.stems[index]}"
        ending = self.endings[modality][index] or ENDINGS[modality][0]
        parts = (self.split, self.folders[modality], self.stems[index] + ending)
        return "/".join(part for part in parts if part)

    def paths(self, index: int) -> tuple[str, ...]:
        """The files of an item in all modalities, and the table where its caption is a row of one."""
        there = [modality for modality in self.folders if self.has(modality, index)]
        table = {"caption": CAPTIONS} if self.captions else {}
        return tuple(os.path.join(self.root, table.get(name) or self.file(name, index)) for name in there)

    def name(self, index: int) -> str:
        """The item as the user knows it: its first file."""
        there = [modality for modality in self.folders if self.has(modality, index)]
        return self.file(there[0], index) if there else self.stems[index]

    def subset(self, keep: Sequence[int]) -> Items:
        """Some of the items."""
        endings = {name: tuple(values[i] for i in keep) for name, values in self.endings.items()}
        return replace(self, stems=tuple(self.stems[i] for i in keep), endings=endings)


@dataclass(frozen=True)
class Found:
    """The splits of a folder.

    Attributes:
        train: For pre-training and for training probes.
        test: Held out from both.
        note: What a reader of scores should know about the split.
        missing: Modality -> the missing files, of items with a file of another wanted modality.
        left_out: How many items were left out because of that.
    """

    train: Items
    test: Items
    note: str = ""
    missing: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    left_out: int = 0


def find_items(
    root: Path, wanted: Sequence[str], folders: Mapping[str, str] | None = None, missing: Missing = "refuse"
) -> Found:
    """The items below a folder. Files of modalities that are not wanted are found too, where their folder exists.

    Args:
        root: The folder.
        wanted: Modalities that every item should have.
        folders: Modality -> folder, where it is named otherwise.
        missing: What becomes of an item that lacks a wanted modality.

    Raises:
        MimError: No such folders, no items, two files for one item, or a missing file that is refused.
    """
    named = {name: (folders or {}).get(name, name) for name in MODALITIES}
    held_out = [name for name in HELD_OUT if (root / name).is_dir()]
    whole = (root / "train").is_dir()
    if held_out and not whole:
        raise MimError(f"{root} has {held_out[0]}/ but no train/. {EXPECTED}")
    note = ""
    if whole and held_out:
        train = _scan(root, "train", named, wanted)
        test = _scan(root, held_out[0], named, wanted, may_lack=missing == "mask")
    else:
        train, test, note = _drawn(_scan(root, "train" if whole else "", named, wanted))
    absent: dict[str, list[str]] = {}
    kept = []
    for items in (train, test):
        lacking = {i: [name for name in wanted if not items.has(name, i)] for i in range(len(items))}
        for i, names in lacking.items():
            for name in names:
                absent.setdefault(name, []).append(items.file(name, i))
        kept.append([i for i, names in lacking.items() if missing == "mask" or not names])
    if absent and missing == "refuse":
        raise _incomplete(root, absent)
    left_out = len(train) + len(test) - sum(map(len, kept))
    if not kept[0]:
        raise MimError(
            f"None of the {len(train):,} items of {root} has a file of each of {', '.join(wanted)}: "
            f"{'; '.join(f'{len(files):,} lack {name}' for name, files in absent.items())}."
        )
    found = {name: tuple(absent[name]) for name in MODALITIES if name in absent}
    return Found(train.subset(kept[0]), test.subset(kept[1]), note, found, left_out)


def _incomplete(root: Path, absent: Mapping[str, Sequence[str]]) -> MimError:
    count = sum(map(len, absent.values()))
    shown = "\n  ".join([file for files in absent.values() for file in files][:5])
    return MimError(
        f"{count:,} file(s) are missing in {root}, of items with a file of another modality:\n  {shown}\n"
        "Leave these items out with --data.missing skip, or keep them with --data.missing mask, which hides the "
        "modality that an item lacks."
    )


def _drawn(items: Items) -> tuple[Items, Items, str]:
    """A split by the names of the items, so that further items move none of the others."""
    codes = [name_code(stem) for stem in items.stems]
    test = [i for i, code in enumerate(codes) if code % 5 == 0]
    if len(codes) > 1 and len(test) in (0, len(codes)):  # too few items for a fifth
        test = [codes.index(min(codes))]
    held = set(test)
    train = [i for i in range(len(codes)) if i not in held]
    where = f"{items.root / items.split}"
    note = (
        f"{where} has no held-out split: {len(test):,} of its {len(codes):,} items, drawn by their names, are held out "
        "from pre-training and from the probes' training."
    )
    return items.subset(train), items.subset(test), note


def _scan(root: Path, split: str, named: Mapping[str, str], wanted: Sequence[str], may_lack: bool = False) -> Items:
    """All items with a file in a wanted modality, in the order of their names."""
    base = root / split
    files: dict[str, dict[str, str]] = {}
    others: Counter[str] = Counter()
    captions: dict[str, str] = {}
    for name in MODALITIES:
        folder = base / named[name]
        if name == "caption" and not folder.is_dir() and (root / CAPTIONS).is_file():
            captions = _captions(root / CAPTIONS, split, named)
            files[name] = dict.fromkeys(captions, ".csv")
        elif folder.is_dir():
            files[name], strange = _walk(folder, name)
            others.update(strange if name in wanted else {})
        elif name in wanted and not may_lack:
            raise _no_folder(base, name, named[name])
    stems = sorted({stem for name in wanted for stem in files.get(name, ())})
    if not stems:
        there = ", ".join(f"{n} x {ending}" for ending, n in others.most_common(5)) or "nothing"
        looked = "; ".join(f"{named[name]}: {' '.join(ENDINGS[name])}" for name in wanted)
        raise MimError(f"No items in {base}. Looked for {looked}; found {there}.")
    endings = {name: tuple(files.get(name, {}).get(stem, "") for stem in stems) for name in {*files, *wanted}}
    return Items(root, split, {n: f for n, f in named.items() if n in endings}, tuple(stems), endings, captions)


def _captions(table: Path, split: str, named: Mapping[str, str]) -> dict[str, str]:
    """Stem -> caption of a split, from a table (columns path and caption; an empty caption is none). Its paths may name
    the split, the modality and the ending, or leave them out; without a split they hold for every one."""
    found: dict[str, str] = {}
    splits, folders = ("train", *HELD_OUT), set(named.values())
    for path, text in _rows(table, "caption"):
        parts = path.split("/")
        if split and parts[0] in splits:
            if parts[0] != split:
                continue
            parts = parts[1:]
        parts = parts[1:] if parts[0] in folders and len(parts) > 1 else parts
        stem, ending = os.path.splitext("/".join(parts))
        known = any(ending.lower() in endings for endings in ENDINGS.values())
        if text:
            found[stem if known else stem + ending] = " ".join(text.split())
    return found


def _rows(table: Path, column: str) -> list[tuple[str, str]]:
    """The rows of a table with the columns path and another, without the first line."""
    try:
        with open(table, newline="", encoding="utf-8-sig") as file:
            return [(row[0].strip(), row[1].strip()) for row in [row for row in csv.reader(file) if row][1:]]
    except (IndexError, UnicodeDecodeError, csv.Error) as error:
        raise MimError(f"{table} cannot be read: it needs a first line 'path,{column}' and two columns.") from error


def _no_folder(base: Path, modality: str, folder: str) -> MimError:
    there = sorted(path.name for path in base.iterdir() if path.is_dir()) if base.is_dir() else []
    near = nearest(folder, there)
    guess = f" Is it {near!r}? Say so: --data.folders {modality} {near}." if near else ""
    return MimError(
        f"{base} has no folder {folder!r} for the modality {modality}, which the tokenizers want.{guess}\n"
        f"Folders there: {', '.join(there[:12]) or 'none'}. {EXPECTED}"
    )


def _walk(folder: Path, modality: str) -> tuple[dict[str, str], Counter[str]]:
    """Stem -> ending of a modality's files, and the endings of other files."""
    found: dict[str, str] = {}
    others: Counter[str] = Counter()
    for parent, names, _ in walking.walk(folder):
        inside = parent.relative_to(folder).as_posix()
        for name in names:
            stem, ending = os.path.splitext(name)
            if name.startswith("."):
                continue
            if ending.lower() not in ENDINGS[modality]:
                others[ending.lower() or "no ending"] += 1
                continue
            stem = stem if inside == "." else f"{inside}/{stem}"
            if stem in found:
                raise MimError(
                    f"{folder} has two files for the item {stem!r}, {stem}{found[stem]} and {stem}{ending}; "
                    "remove one of them."
                )
            found[stem] = sys.intern(ending)
    return found, others


# ---- labels of whole items -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Labels:
    """Labels of whole items.

    Attributes:
        classes: Names of the classes that occur in both splits, at least two; empty where there are fewer.
        train: (item, class) of each labelled item of the training split.
        test: The same of the test split.
        note: How many items have none of these classes.
    """

    classes: tuple[str, ...] = ()
    train: tuple[tuple[int, int], ...] = ()
    test: tuple[tuple[int, int], ...] = ()
    note: str = ""


def find_labels(found: Found) -> Labels:
    """Labels by ``ROOT/labels.csv`` (columns path and label; an empty label is none), or else by CLASS folders.

    Raises:
        MimError: labels.csv cannot be read, or names none of the items.
    """
    table = found.train.root / "labels.csv"
    both = (found.train, found.test)
    texts = _listed(table, both) if table.is_file() else [[_folder_of(stem) for stem in i.stems] for i in both]
    common = sorted({text for text in texts[0] if text} & {text for text in texts[1] if text})
    if len(common) < 2:
        return Labels()
    number = {name: i for i, name in enumerate(common)}
    splits = [tuple((i, number[text]) for i, text in enumerate(part) if text in number) for part in texts]
    without = sum(map(len, texts)) - sum(map(len, splits))
    note = f"{without:,} items have no label that occurs in both splits; they are left out." if without else ""
    return Labels(tuple(common), splits[0], splits[1], note)


def _folder_of(stem: str) -> str:
    return stem.split("/")[0] if "/" in stem else ""


def _listed(table: Path, both: Iterable[Items]) -> list[list[str]]:
    """The label of every item, empty where the table has none. Its paths may name the split, the modality and the
    ending, or leave them out."""
    labels: dict[str, str] = {}
    for path, label in _rows(table, "label"):
        labels[path] = labels[os.path.splitext(path)[0]] = label
    found = []
    for items in both:
        folders = ["", *(f"{folder}/" for folder in items.folders.values())]
        splits = ["", f"{items.split}/"] if items.split else [""]
        heads = [split + folder for split in splits for folder in folders]
        found.append([next((labels[h + stem] for h in heads if h + stem in labels), "") for stem in items.stems])
    if not any(map(any, found)):
        raise MimError(f"{table} labels none of the items. Its paths should be such as {next(iter(both)).name(0)}.")
    return found


def class_names(root: Path) -> tuple[str, ...]:
    """Names of the classes of maps, from ``ROOT/classes.txt``: one a line, the id is the number of the line, from 0.
    Empty without that file.

    Raises:
        MimError: The file is empty or not UTF-8.
    """
    path = root / "classes.txt"
    if not path.is_file():
        return ()
    try:
        names = tuple(line.strip() for line in path.read_text(encoding="utf-8-sig").rstrip().splitlines())
    except UnicodeDecodeError as error:
        raise MimError(f"{path} cannot be read: it is not UTF-8.") from error
    if not names:
        raise MimError(f"{path} is empty; it should hold the name of a class in each line.")
    return names
