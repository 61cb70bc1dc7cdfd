"""Several data sources as one: the same item of each, read under the same key."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from mim_core import BadSample, DataSource, Labelled, MimError, Picture, PlainItems, Sample, counted
from torch import Tensor
from torch.utils.data import Dataset

from mim_multimodal.inner_sources import Option, open_inner, options_of

SAMPLE = Path(__file__).parent / "sample" / "clips"
SAMPLE_SPLIT = "train"
"""The bundled clips have no classes; those of the maps for training are used."""
SAMPLE_OPTIONS: Mapping[str, Option] = {"stride": 2}
"""Its clips have 16 frames; given unless the options say otherwise."""
SOURCE = "video:clips"
FOLDERS = {"video": "rgb"}
"""Where a modality's files are sought when there is no folder of its name."""
ENTRIES = {"video:clips": "video", "image:images": "image", "pointcloud:clouds": "points"}
"""What sources of other plugins call the modality that they give."""


class Paired(DataSource):
    """Clips and their depth, or whatever else: a modality from each of several sources of any plugins.

    Files belong together when their names below their folders are equal but for the ending: ``rgb/run/1.mp4`` and
    ``depth/run/1.avi``. Every source reads its file of an item under the same key. Sources of one kind with equal
    options then take the same frames, crop and flip, as long as the two files have equally many frames and the same
    aspect ratio. Depth as a film is grey in [0, 255] and normalised as its source does (mpeg has no more); its values
    have no unit.

    Attributes:
        inner: Modality -> its source.
        items: Modality -> the number in its source of each item.
        lacking: Modality -> names of the items that it lacks and another has.
    """

    @dataclass(frozen=True)
    class Config:
        """Options of paired data."""

        root: Path | None = None
        """Folder that holds a folder for each modality; "sample" is the bundled one, clips of a game."""
        folders: dict[str, str] = field(default_factory=dict)
        """Modality -> its folder: --data.folders video clips depth clips_depth. By default of the modality's name; rgb
        for video where there is no folder video."""
        suffixes: dict[str, str] = field(default_factory=dict)
        """Modality -> what the names of its files end in before the ending: --data.suffixes video _rgb depth _depth."""
        sources: dict[str, str] = field(default_factory=dict)
        """Modality -> data source that reads it. By default video:clips."""
        entries: dict[str, str] = field(default_factory=dict)
        """Modality -> what its source calls it. Known for the sources of mim-video, mim-image and mim-pointcloud."""
        options: dict[str, bool | int | float | str] = field(default_factory=dict)
        """Options of the sources: stride 2 is given to all that have it, depth.stride 2 to one. Lists are written as
        text: "[0.5, 1.0]"."""
        missing: Literal["refuse", "skip"] = "refuse"
        """An item that a modality lacks is an error, or left out."""
        labels: float = 0.0
        """Training on labels uses so many labelled samples, each class by its share; below 1 it is that share of
        each; 0: all. Which ones follows from their names."""
        max_bad: float = 0.5
        """Largest share of unusable files; beyond it the run stops. Each is named in skipped.jsonl."""

    def __init__(self, config: Config, shapes: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__(config, shapes)
        names = {modality: config.sources.get(modality, SOURCE) for modality in shapes}
        self._check(names)
        self.bundled = config.root == Path("sample") and not Path("sample").exists()
        self.folders = {modality: self._folder(modality) for modality in shapes}
        self.entries = {m: config.entries.get(m, ENTRIES.get(name, m)) for m, name in names.items()}
        short: Mapping[str, Option] = SAMPLE_OPTIONS if self.bundled and SOURCE in names.values() else {}
        options = options_of(names, {**short, **config.options})
        self.inner: dict[str, DataSource] = {}
        for m, name in names.items():
            self.inner[m] = open_inner(
                name, self.folders[m], options[m], {self.entries[m]: shapes[m]}, f"the source of {m}"
            )
        counts = {source.samples_per_item for source in self.inner.values()}
        if len(counts) > 1:
            raise ValueError("all sources must make equally many samples of an item: give them the same repeat")
        self.samples_per_item = counts.pop()
        names_of = {m: [source.name_of(i) for i in range(len(source))] for m, source in self.inner.items()}
        self.items, self.lacking = match(names_of, config.suffixes)
        self._known: dict[str, tuple[dict[str, Labelled], dict[str, list[int]]]] = {}
        self._complain(self.items, self.lacking, "training")

    def _check(self, names: Mapping[str, str]) -> None:
        """Raises ValueError for options that make no sense."""
        for option in ("folders", "suffixes", "sources", "entries"):
            strange = sorted(set(getattr(self.config, option)) - set(self.shapes))
            if strange:
                raise ValueError(f"{option} names {', '.join(strange)}; the modalities are {', '.join(self.shapes)}")
        if len(self.shapes) < 2:
            raise ValueError(f"paired data are of two modalities or more, and the tokenizers want {list(self.shapes)}")
        for name in set(names.values()):
            sizes = {m: self.shapes[m][1:] for m in names if names[m] == name}
            if len(set(sizes.values())) > 1:
                text = ", ".join(f"{m} {' x '.join(map(str, size))}" for m, size in sizes.items())
                raise ValueError(f"modalities of {name} must have one size, so that they are cut alike; got {text}")
        if not 0 <= self.config.max_bad <= 1:
            raise ValueError(f"max_bad must lie in [0, 1], got {self.config.max_bad}")

    def _folder(self, modality: str) -> Path:
        root = SAMPLE if self.bundled else self.config.root
        if root is None:
            raise MimError(
                "Which files? Name a folder that holds one for each modality with --data.root FOLDER, or the bundled "
                "sample with --data.root sample."
            )
        other = FOLDERS.get(modality, modality)
        named = self.config.folders.get(modality) or (modality if (root / modality).is_dir() else other)
        if not (root / named).is_dir():
            folders = sorted(path.name for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
            raise MimError(
                f"{root} has no folder {named!r} for the modality {modality}. Folders there: "
                f"{', '.join(folders[:12]) or 'none'}. Name it: --data.folders {modality} FOLDER"
            )
        return root / named / SAMPLE_SPLIT if self.bundled else root / named

    def _complain(self, items: Mapping[str, Sequence[int]], lacking: Mapping[str, Sequence[str]], what: str) -> None:
        """Raises MimError where nothing is matched, or something lacks and may not."""
        absent = {m: names for m, names in lacking.items() if names}
        text = "; ".join(f"{self.folders[m]} lacks {len(names):,}, such as {names[0]}" for m, names in absent.items())
        if absent and not len(next(iter(items.values()))):
            raise MimError(
                f"No item for {what} has a file of each of {', '.join(self.shapes)}: {text}.\nFiles belong together "
                "when their names below their folders are equal but for the ending. Rename them; or, where they end "
                "in a word of their own, say it: --data.suffixes video _rgb depth _depth"
            )
        if absent and self.config.missing == "refuse":
            raise MimError(
                f"Not every item for {what} has a file of each modality: {text}.\nLeave such items out with "
                "--data.missing skip."
            )

    def __len__(self) -> int:
        return len(next(iter(self.items.values())))

    def name_of(self, index: int) -> str:
        """The path of the item's first file, below the root."""
        first = next(iter(self.inner))
        return f"{self.folders[first].name}/{self.inner[first].name_of(self.items[first][index])}"

    def items_named(self, names: Collection[str]) -> dict[str, int]:
        """The items that have these files, of whatever source; they are named with its folder."""
        indices: dict[str, int] = {}
        for m, source in self.inner.items():
            start = f"{self.folders[m].name}/"
            inside = source.items_named({name[len(start) :] for name in names if name.startswith(start)})
            places = {number: index for index, number in enumerate(self.items[m])}
            indices.update({start + name: places[number] for name, number in inside.items() if number in places})
        return indices

    def files_of(self, split: str = "pretrain") -> Iterator[tuple[str, ...]]:
        """The files of each item in all sources."""
        rows = self.items if split == "pretrain" else self._splits(split)[1]
        every = {m: list(source.files_of(split)) for m, source in self.inner.items()}
        known = {m: files for m, files in every.items() if files}  # a source may not tell
        for i in range(len(next(iter(rows.values())))):
            yield tuple(path for m, files in known.items() for path in files[rows[m][i]])

    def read(self, index: int, key: int) -> dict[str, Tensor]:
        """Each source's item, read under the same key, by modality.

        Raises:
            BadSample: A file cannot be used; it is named with its folder.
        """
        return self.joined({m: partial(each.read, self.items[m][index], key) for m, each in self.inner.items()})

    def joined(self, readers: Mapping[str, Callable[[], dict[str, Tensor]]]) -> dict[str, Tensor]:
        """What the sources read, each entry under its modality's name.

        Raises:
            BadSample: A file cannot be used; it is named with its folder.
        """
        sample: dict[str, Tensor] = {}
        for m, read in readers.items():
            try:
                values = read()
            except BadSample as error:
                raise BadSample(f"{self.folders[m].name}/{error.path}", error.reason) from error
            sample[m] = values[self.entries[m]]
            if "label" in values:
                sample.setdefault("label", values["label"])
        return sample

    def _part(self, modality: str, sample: Sample) -> Sample:
        """The part of a sample that one source knows, as it calls it."""
        part = {name: sample[name] for name in sample if name in ("index", "key")}
        part[self.entries[modality]] = sample[modality]
        return part

    def finish(self, sample: Sample) -> Sample:
        """Each source's own work on its modality; where an item becomes several samples, all do so alike."""
        done = dict(sample)
        for m, source in self.inner.items():
            if m in sample:
                values = source.finish(self._part(m, sample))
                done[m] = values[self.entries[m]]
                for name in ("index", "key"):
                    if name in values:
                        done[name] = values[name]
        return done

    def labelled(self, split: str) -> Labelled:
        """The first source's labels of the items that all have.

        Raises:
            MimError: A source has no labels, or does not name its labelled items; the bundled clips have none.
        """
        if self.bundled:
            raise MimError(
                "The bundled clips have no classes: those for training and those held out are of other maps of the "
                "game, and share no class, so k-NN and linear probes have nothing to be right about. Judge the run on "
                "clips of your own, in folders of classes: --data-root FOLDER"
            )
        splits, items = self._splits(split)
        leading = next(iter(splits))
        first, rows = splits[leading], torch.tensor(items[leading], dtype=torch.int64)
        names = tuple(f"{self.folders[leading].name}/{first.names[row]}" for row in rows.tolist())
        pairs = Pairs(self, splits, items)
        return Labelled(split, first.labels[rows], first.classes, pairs, first.note, first.views, names)

    def _splits(self, split: str) -> tuple[dict[str, Labelled], dict[str, list[int]]]:
        """The sources' splits, and the numbers in them of the items that all have; found once."""
        if split in self._known:
            return self._known[split]
        splits = {m: source.labelled(split) for m, source in self.inner.items()}
        if len({labelled.views for labelled in splits.values()}) > 1:
            raise MimError("All paired sources must show equally many views: give them the same data.options views.")
        for m, labelled in splits.items():
            if len(labelled.names) != len(labelled.labels):
                raise MimError(f"The source of {m} does not name its labelled items, so they cannot be paired.")
        items, lacking = match({m: labelled.names for m, labelled in splits.items()}, self.config.suffixes)
        self._complain(items, lacking, f"the labelled {split} split")
        self._known[split] = splits, items
        return splits, items

    def read_labelled(self, index: int, key: int) -> dict[str, Tensor]:
        """An augmented item of the labelled training split with the first source's label, under the same key."""
        _, items = self._splits("train")
        return self.joined({m: partial(each.read_labelled, items[m][index], key) for m, each in self.inner.items()})

    def plain(self) -> PlainItems:
        """Each source's, of the items that all have.

        Raises:
            MimError: The sources show different numbers of views.
        """
        parts = {m: source.plain() for m, source in self.inner.items()}
        views = {each.views for each in parts.values()}
        if len(views) > 1:
            raise MimError("All paired sources must show equally many views: give them the same data.options views.")
        names = tuple(map(self.name_of, range(len(self))))
        return PlainItems(Pairs(self, parts, self.items), names, views.pop())

    def file(self, modality: str, values: Tensor) -> tuple[str, bytes]:
        """As the modality's source writes it."""
        return self.inner[modality].file(self.entries[modality], values)

    def raw(self, sample: Sample) -> Tensor:
        """Each source's own description, side by side."""
        return torch.cat([source.raw(self._part(m, sample)) for m, source in self.inner.items() if m in sample], dim=1)

    def picture(self, modality: str, values: Tensor) -> Picture:
        """As the modality's source draws it."""
        return self.inner[modality].picture(self.entries[modality], values)

    def unit_picture(self, modality: str, values: Tensor, colours: Tensor, positions: Tensor) -> Picture | None:
        """As the modality's source draws it."""
        return self.inner[modality].unit_picture(self.entries[modality], values, colours, positions)

    def animation(self, modality: str, values: Tensor) -> Picture | None:
        """As the modality's source draws it."""
        return self.inner[modality].animation(self.entries[modality], values)

    def page(self, modality: str, rows: Mapping[str, Tensor], names: Sequence[str] = ()) -> str | None:
        """As the modality's source makes it."""
        return self.inner[modality].page(self.entries[modality], rows, names)

    def controls(self) -> Mapping[str, Callable[[Sample], Sample]]:
        """Those that all sources have, done to every modality."""
        every = {m: source.controls() for m, source in self.inner.items()}
        first = next(iter(every.values()))
        return {label: self._control(label, every) for label in first if all(label in each for each in every.values())}

    def _control(self, label: str, every: Mapping[str, Mapping[str, Callable[[Sample], Sample]]]) -> Any:
        def change(sample: Sample) -> Sample:
            changed = dict(sample)
            for m in (m for m in self.inner if m in sample):
                changed[m] = every[m][label](self._part(m, sample))[self.entries[m]]
            return changed

        return change

    def plan(self) -> dict[str, str]:
        """Each source's plan, how many items all have, and what is left out."""
        root = "the bundled sample (Freedoom, BSD licence)" if self.bundled else str(self.config.root)
        text = f"{root}: {counted(len(self), 'item')} with {', '.join(self.shapes)}, read under the same key"
        rows = {"data": text + ("; no classes" if self.bundled else "")}
        for m, names in self.lacking.items():
            if names:
                shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
                rows[f"without {m}"] = f"{len(names):,} items are left out: {shown}"
        for m, source in self.inner.items():
            own = source.plan()
            if self.bundled:  # where it is installed says nothing, and its maps are no classes
                own.pop("data", None)
            rows.update({f"{m}: {label}": text for label, text in own.items()})
        return rows

    def advice(self) -> list[str]:
        """Each source's, with its modality."""
        return [f"{m}: {line}" for m, source in self.inner.items() for line in source.advice()]

    def contents(self) -> dict[str, str]:
        """Each source's, with its modality; where items of the sources are left out, of all their files."""
        rows = {m: source.contents() for m, source in self.inner.items()}
        return {f"{m}: {label}": text for m, texts in rows.items() for label, text in texts.items()}


class Pairs(Dataset[Any]):
    """Items of the sources that belong together, view by view."""

    def __init__(
        self, source: Paired, splits: Mapping[str, Labelled | PlainItems], items: Mapping[str, Sequence[int]]
    ) -> None:
        self.source, self.splits, self.items = source, splits, items
        self.views = next(iter(splits.values())).views

    def __len__(self) -> int:
        return self.views * len(next(iter(self.items.values())))

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        row, view = divmod(index, self.views)
        numbers = {m: self.items[m][row] * self.views + view for m in self.splits}
        return self.source.joined({m: partial(each.items.__getitem__, numbers[m]) for m, each in self.splits.items()})


def stem_of(name: str) -> str:
    """A file's name without its ending, but with the part of the file that counts: ``a/1.mp4 (0 to 2 s)``."""
    return re.sub(r"\.\w+(?=( \([^()]*\))?$)", "", name).replace(os.sep, "/")


def _without(stem: str, suffix: str) -> str:
    """A stem without what its name ends in, before the part of the file that counts."""
    return re.sub(re.escape(suffix) + r"(?=( \([^()]*\))?$)", "", stem, count=1) if suffix else stem


def match(
    names: Mapping[str, Sequence[str]], suffixes: Mapping[str, str] | None = None
) -> tuple[dict[str, list[int]], dict[str, list[str]]]:
    """Numbers of the items that every modality has, in the order of the first; and what each lacks of the others'.

    Args:
        names: Modality -> names of its files.
        suffixes: Modality -> what they end in before the ending.

    Raises:
        MimError: Two files of one modality have the same name but for the ending.
    """
    where: dict[str, dict[str, int]] = {}
    for m, files in names.items():
        where[m] = {}
        for number, name in enumerate(files):
            other = where[m].setdefault(_without(stem_of(name), (suffixes or {}).get(m, "")), number)
            if other != number:
                raise MimError(f"Two files of {m} are for one item: {files[other]} and {name}; remove one of them.")
    every = dict.fromkeys(stem for files in where.values() for stem in files)
    whole = [stem for stem in every if all(stem in files for files in where.values())]
    lacking = {m: [stem for stem in every if stem not in files] for m, files in where.items()}
    return {m: [files[stem] for stem in whole] for m, files in where.items()}, lacking
