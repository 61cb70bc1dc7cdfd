"""Aligned items: what they are called, and their file in each modality."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

ENDINGS: Mapping[str, tuple[str, ...]] = {
    "rgb": (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    "depth": (".png", ".npy", ".tif", ".tiff"),
    "normal": (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"),
    "semseg": (".png",),
    "caption": (".txt",),
}
CAPTIONS = "captions.csv"


@dataclass(frozen=True)
class Items:
    """One split: items, and their file in each modality.

    Attributes:
        root: What paths are relative to.
        split: Folder of the split below the root; empty where there is none.
        folders: Modality -> its folder.
        stems: Each item's path below a modality's folder, without the ending; with "/" on every system.
        endings: Modality -> the ending of each item's file; empty where the item has none.
        captions: Captions of each item, where they are the rows of a table; of several, one is drawn. Empty where they
            are files.
        suffixes: Modality -> what its names end in before the ending; the stems are without it.
        others: Folder -> ending -> how many files there are not read.
        beside: Folders beside those of the modalities.
        homes: Folder of each item's split, where they are of several; else all are of ``split``.
    """

    root: Path
    split: str
    folders: Mapping[str, str]
    stems: tuple[str, ...]
    endings: Mapping[str, tuple[str, ...]]
    captions: tuple[tuple[str, ...], ...] = ()
    suffixes: Mapping[str, str] = field(default_factory=dict)
    others: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    beside: tuple[str, ...] = ()
    homes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.stems)

    def home(self, index: int) -> str:
        """Folder of an item's split below the root; empty where there is none."""
        return self.homes[index] if self.homes else self.split

    def has(self, modality: str, index: int) -> bool:
        """Whether an item has a file of a modality."""
        return modality in self.endings and bool(self.endings[modality][index])

    def file(self, modality: str, index: int) -> str:
        """An item's file below the root, with the first usual ending where it is missing."""
        if modality == "caption" and self.captions:
            return f"{CAPTIONS}: {self.stems[index]}"
        ending = self.endings[modality][index] or self.suffixes.get(modality, "") + ENDINGS[modality][0]
        parts = (self.home(index), self.folders[modality], self.stems[index] + ending)
        return "/".join(part for part in parts if part)

    def paths(self, index: int) -> tuple[str, ...]:
        """The files of an item in all modalities, and the table where its caption is a row of one."""
        modalities = [modality for modality in self.folders if self.has(modality, index)]
        table = {"caption": CAPTIONS} if self.captions else {}
        return tuple(os.path.join(self.root, table.get(name) or self.file(name, index)) for name in modalities)

    def name(self, index: int) -> str:
        """The item as the user knows it: its first file."""
        modalities = [modality for modality in self.folders if self.has(modality, index)]
        return self.file(modalities[0], index) if modalities else self.stems[index]

    def identity(self, index: int) -> str:
        """The item whatever its modalities: its split and its path there, without the ending."""
        home = self.home(index)
        return f"{home}/{self.stems[index]}" if home else self.stems[index]

    def subset(self, keep: Sequence[int]) -> Items:
        """Some of the items."""
        endings = {name: tuple(values[i] for i in keep) for name, values in self.endings.items()}
        captions, homes = (tuple(each[i] for i in keep) if each else () for each in (self.captions, self.homes))
        stems = tuple(self.stems[i] for i in keep)
        return replace(self, stems=stems, endings=endings, captions=captions, homes=homes)  # type: ignore[arg-type]

    def and_those_of(self, more: Items) -> Items:
        """These items and then those of another split."""
        both = (self, more)
        names = {name: None for items in both for name in items.endings}
        endings = {name: tuple(e for items in both for e in items.endings.get(name, ("",) * len(items)))
                   for name in names}  # fmt: skip
        listed = any(items.captions for items in both)
        captions = tuple(c for items in both for c in items.captions or ((),) * len(items)) if listed else ()
        homes = tuple(items.home(i) for items in both for i in range(len(items)))
        folders, stems = {**self.folders, **more.folders}, (*self.stems, *more.stems)
        return replace(self, folders=folders, stems=stems, endings=endings, captions=captions, homes=homes)
