"""Aligned files: colour, depth, normals, class ids and captions of one scene, cut alike; or the bundled sample."""

from __future__ import annotations

import io
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from mim_core import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    BadSample,
    DataSource,
    Labelled,
    MimError,
    Normalisation,
    Picture,
    PlainItems,
    SaidOnce,
    Sample,
    Shown,
    one_line,
    randomness,
    unknown,
)
from torch import Tensor
from torch.utils.data import Dataset

from mim_multimodal import captions, checks, crops, data_facts, files, maps, normals, pictures, predicted_files
from mim_multimodal.depth import standardise
from mim_multimodal.evaluated_items import Fixed
from mim_multimodal.items import Items
from mim_multimodal.labels import Labels, find_labels
from mim_multimodal.layouts import EXPECTED, MODALITIES, ItemSplits, find_items
from mim_multimodal.own_vocabulary import OwnVocabulary, trained
from mim_multimodal.raw_vectors import side_by_side
from mim_multimodal.tables import class_names
from mim_multimodal.token_store import Crops, TokenStore, check_read, one_kind_of_crops

SAMPLE = Path(__file__).parent / "sample"
VALUES = {
    "depth": (
        "depth_values",
        "by the nearest pixel; less the mean, by the deviation, of a map's measured values from the 10th to the 90th "
        "percentile; 0 where nothing was measured",
    ),
    "normal": ("normals", "x, y, z from -1 to 1"),
    "semseg": ("class_ids", "by the nearest pixel"),
    "caption": ("caption_ids", "of the run's vocabulary"),
}
"""What is told of the values of a modality, and under which name."""
STRIDE = 4
"""Class ids of dense evaluation are this much coarser than the pictures, where no tokenizer says otherwise."""


class Aligned(DataSource):
    """Aligned pictures and captions for pre-training, and for evaluation. Which modalities there are follows from the
    tokenizers; all pictures of an item show the same part of it.

    ``ROOT/{train,test}/MODALITY/CLASS/NAME``, a file of the same name in every modality. Colour is turned upright by
    its EXIF entry; other pictures are taken as they are. Depth: whole numbers or floats. Normals: x to the right, y, z
    in three channels of 8 bits, -1 to 1; a flip negates x. Class ids: 1, 8 or 16 bits, or the entries of a palette, 255
    for none. Maps may be smaller or larger than colour by a whole factor.
    Names of the classes: ``ROOT/classes.txt``. Labels of whole items: ``ROOT/labels.csv``, or CLASS; splits: its column
    split, or folders.
    Captions may be the rows of ``ROOT/captions.csv`` (path, caption) in place of files; of several for one item, one is
    drawn at each reading, and evaluation takes the first.

    `read` gives rgb and normals as uint8, depth as float32 in the file's unit with NaN where nothing was measured,
    class ids as uint8; `finish` makes of them what the method sees.
    """

    @dataclass(frozen=True)
    class Config:
        """Options of the aligned data."""

        root: Path | None = None
        """Folder of aligned files; "sample" is the bundled one, frames of a game."""
        splits: bool = True
        """Whether folders named like splits are read as these, and others as classes. Without, all files are one
        collection, as the commands embed and predict read them."""
        folders: dict[str, str] = field(default_factory=dict)
        """Modality -> folder, where it is named otherwise: --data.folders semseg semseg_coco depth depth_dpt."""
        suffixes: dict[str, str] = field(default_factory=dict)
        """Modality -> what the names of its files end in before the ending, and those of others do not:
        --data.suffixes rgb _rgb depth _depth. Files without it are left out."""
        missing: Literal["refuse", "skip", "mask"] = "refuse"
        """An item without a file in a wanted modality is an error, left out, or kept with that modality hidden."""
        area: tuple[float, float] = (0.2, 1.0)
        """Random resized crop: smallest and largest share of the picture's area."""
        ratio: tuple[float, float] = (3 / 4, 4 / 3)
        """Random resized crop: smallest and largest ratio of width to height, relative to the output's."""
        flip: float = 0.5
        """Chance of a horizontal flip. Not for captions that tell left from right."""
        evaluate_crop: float = 1.0
        """Evaluation takes the centre: this share of the sides of the largest crop."""
        classes: int | None = None
        """Number of classes; larger ids are errors. None: as many as classes.txt names, or else as the tokenizer
        has."""
        values: tuple[int, ...] = ()
        """What class maps hold for each class, in the order of classes: --data.values 0 255 for masks of 0 and 255.
        Other values are errors, but for 255. Without it maps hold the ids."""
        void: int | None = None
        """An id of class maps that is no class, as 255 is; the ids above it then count one less. 0 in ADE20K and NYUv2,
        whose classes start at 1."""
        depth_bits: int | None = None
        """8 or 16: a depth map of another bit depth is bad. None: as the file says."""
        depth_limit: float | None = None
        """Standardised depth is cut off at this absolute value. None as in MultiMAE; where most of a picture is one
        flat surface, the rest then has values in the tens, which rule the loss."""
        depth_invalid: float | None = None
        """Value in depth maps that means no measurement. None: in files of whole numbers of 16 bits or more 0, and
        65,535 where no other value is above 32,767; no value in others; -1 for no value in any. NaN, infinity, and
        1e10 and beyond mean it always."""
        depth_signed: bool = False
        """Negative depths are measured, as in maps of height. Without it they mean no measurement."""
        mean: tuple[float, ...] = IMAGENET_MEAN
        """Of colours in [0, 1], per channel."""
        std: tuple[float, ...] = IMAGENET_STD
        """The same for the standard deviation."""
        vocabulary: Literal["clip", "own"] = "clip"
        """Of captions: CLIP's 49,408 byte pairs (open_clip), or as many as the caption's tokenizer has, trained on the
        captions of this collection (tokenizers)."""
        learned: str = ""
        """The vocabulary that was trained, as text. Written into the run's recipe when it starts."""
        tokens: dict[str, str] = field(default_factory=dict)
        """Modality -> folder of its ids, which mim-multimodal tokenize made: --data.tokens rgb_ids ids/rgb. The crops
        are those of the ids."""
        labels: float = 0.0
        """Training on labels uses so many labelled samples, each class by its share; below 1 it is that share of
        each; 0: all. Which ones follows from their names."""
        max_bad: float = 0.5
        """Largest share of unusable files; beyond it the run stops. Each is named in skipped.jsonl."""

    def __init__(self, config: Config, shapes: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__(config, shapes)
        checks.check_options(config)
        stores = {name: Path(folder) for name, folder in config.tokens.items()}
        if any(name not in MODALITIES and name not in stores for name in shapes):
            check_read(stores, shapes)
        self.tokens = {name: TokenStore(folder) for name, folder in stores.items() if name in shapes}
        self.size = crops.largest_size({name: shape for name, shape in shapes.items() if name not in self.tokens})
        self.crops = one_kind_of_crops(self.tokens, shapes, self.size)
        self.vocabulary: OwnVocabulary | None = None
        checks.check_caption(shapes.get("caption", ()))
        if "caption" in shapes and config.vocabulary == "clip":
            captions.check_installed()
            captions.load_tokenizer()  # here, so that workers need not
        self.normalisation = Normalisation(config.mean, config.std, 3, axes=2)
        self.mean, self.std = self.normalisation.mean, self.normalisation.std
        self.bundled = config.root == Path("sample") and not Path("sample").exists()
        self.root = self._root()
        wanted = [name for name in MODALITIES if name in shapes and name not in self.tokens]
        self.collection: ItemSplits = find_items(
            self.root, wanted, config.folders, config.missing, config.suffixes, config.splits
        )
        self.without_ids = {name: self._without_ids(store) for name, store in self.tokens.items()}
        self.copied = [*filter(None, (store.check_files(self.root) for store in self.tokens.values()))]
        absent = (*self.collection.missing, *(name for name, count in self.without_ids.items() if count))
        self.masked = absent if config.missing == "mask" else ()
        self.classes = class_names(self.root)
        if self.classes and config.classes not in (None, len(self.classes)):
            raise MimError(
                f"--data.classes is {config.classes}, but {self.root / 'classes.txt'} names {len(self.classes)} classes"
            )
        self.class_count = config.classes or len(self.classes) or len(config.values) or None
        if config.values and self.class_count != len(config.values):
            raise MimError(
                f"--data.values lists {len(config.values)} values, and there are {self.class_count} classes."
            )
        if (self.class_count or 0) > maps.IGNORE:
            raise MimError(f"{self.class_count} classes: ids above 254 cannot be used, because 255 means no class.")
        self.labels: Labels = find_labels(self.collection)
        if "caption" in shapes and config.vocabulary == "own" and config.learned:
            self.vocabulary = OwnVocabulary(config.learned)
        self._looked: data_facts.Looked | None = None
        self._kinds: dict[str, str] | None = None
        self._warnings: SaidOnce | None = None

    def take_ids(self, ids: Mapping[str, int]) -> None:
        """How many ids each modality has; trains the captions' own vocabulary of that size, where there is none yet.

        Raises:
            MimError: CLIP's vocabulary has more ids than the tokenizer, or the captions' own none at all.
        """
        super().take_ids(ids)
        for name, store in self.tokens.items():
            if ids.get(name) != store.codes:
                own = f"--{name}.tokenizer"
                raise MimError(
                    f"{store.folder} has {store.codes:,} ids, and the tokenizer of {name} {ids.get(name, 'none')}: "
                    f"--use {name}.tokenizer=core:ids {own}.modality {name} {own}.names {store.codes}"
                )
        count = ids.get("caption")
        if "caption" not in self.shapes or count is None:
            return
        if self.config.vocabulary == "own" and self.vocabulary is None:
            text = trained(captions.of_items(self.collection.pretrain), count)
            self.vocabulary = OwnVocabulary(text)
            self.config = replace(self.config, learned=text)
        least = captions.CLIP if self.vocabulary is None else self.vocabulary.size
        if least > count:
            raise MimError(
                f"The captions' vocabulary has {least:,} ids and the tokenizer {count:,}: "
                f"--caption.tokenizer.vocabulary {least}"
                + (", or one of the captions' own: --data.vocabulary own" if self.vocabulary is None else "")
            )

    def _root(self) -> Path:
        root = self.config.root
        if root is None:
            raise MimError(
                "Which files? Name a folder with --data.root FOLDER, or the bundled sample with --data.root sample. "
                + EXPECTED
            )
        if self.bundled:
            return SAMPLE
        if not root.is_dir():
            kind = "is not a folder" if root.exists() else "does not exist"
            raise MimError(f"--data.root {root} {kind}. {EXPECTED}")
        return Path(root)

    @classmethod
    def suits(cls, options: Any, parts: Mapping[str, Any]) -> tuple[Mapping[str, Mapping[str, Any]], str]:
        """The number of classes of maps, as classes.txt or the options have it."""
        part = parts.get("semseg.tokenizer")
        if part is None or not hasattr(part.options, "classes") or options.root is None:
            return {}, ""
        count = options.classes or len(class_names(options.root)) or len(options.values)
        if not count:
            return {}, ""
        return {"semseg.tokenizer": {"classes": count}}, f"{options.root} has {count} classes of maps"

    def _without_ids(self, store: TokenStore) -> int:
        """How many items have none, where they are kept nevertheless.

        Raises:
            MimError: Some have none, and what is missing is not masked; or all have none.
        """
        names = [every.identity(i) for every in self._every() for i in range(len(every))]
        lost = sum(name not in store.places for name in names)
        if self.config.missing != "mask" or lost == len(names):
            store.check(names)
        return lost

    def _has(self, items: Items, modality: str, index: int) -> bool:
        """Whether an item has a file of a modality, or ids of it."""
        if modality in self.tokens:
            return items.identity(index) in self.tokens[modality].places
        return items.has(modality, index)

    def _every(self) -> tuple[Items, Items]:
        """The items of all splits."""
        return self.collection.pretrain, self.collection.test

    def __len__(self) -> int:
        return len(self.collection.pretrain)

    def name_of(self, index: int) -> str:
        """The path of the item's first file, below the root."""
        return self.collection.pretrain.name(index)

    def files_of(self, split: str = "pretrain") -> Iterator[tuple[str, ...]]:
        """The files of each item of a split, whether it has labels or not."""
        items = self.collection.pretrain if split == "pretrain" else self._split(split)
        return map(items.paths, range(len(items)))

    def items_named(self, names: Collection[str]) -> dict[str, int]:
        """The items that have these files, of whatever modality."""
        items = self.collection.pretrain
        every = ((items.file(m, i), i) for i in range(len(items)) for m in items.folders)
        return {name: index for name, index in every if name in names}

    def presence(self) -> Mapping[frozenset[str], tuple[int, str]]:
        """Where some items lack a modality and are kept: which have which."""
        items, counts = self.collection.pretrain, dict[frozenset[str], tuple[int, str]]()
        for i in range(len(items) if self.masked else 0):
            present = frozenset(name for name in self.shapes if self._has(items, name, i))
            count, name = counts.get(present, (0, items.name(i)))
            counts[present] = (count + 1, name)
        return counts

    def read(self, index: int, key: int) -> dict[str, Tensor]:
        """An item's modalities under one random crop and flip: rgb and normal uint8 [3, H, W], depth float32 [1, H, W]
        (NaN: not measured), semseg uint8 [h, w], caption int64 [L]. Where some items lack a modality,
        ``MODALITY.present`` is a bool []; without it, values are zeros, NaN or 255."""
        return self.take(self.collection.pretrain, index, self.shapes, key)

    def read_labelled(self, index: int, key: int) -> dict[str, Tensor]:
        """The same of a labelled item of the training split, with its class as int64 ``label``."""
        item, label = self.labels.train[index]
        return {**self.take(self.collection.train, item, self.shapes, key), "label": torch.tensor(label)}

    def take(
        self, items: Items, index: int, shapes: Mapping[str, tuple[int, ...]], key: int | None = None
    ) -> dict[str, Tensor]:
        """The modalities ``shapes`` of an item, under the crop that a key draws; without a key under the fixed one of
        evaluation, where depth has a copy ``depth_raw`` that `finish` leaves alone.

        Raises:
            BadSample: A file cannot be used, or the sizes of two do not agree.
        """
        number = None if self.crops is None else self.crops.number(key)
        sample = self._taken(items, index, shapes, key, self.crops, number)
        if key is None and "depth" in sample and "depth" not in self.tokens:
            sample["depth_raw"] = sample["depth"].clone()
        return sample

    def take_crop(
        self, items: Items, index: int, shapes: Mapping[str, tuple[int, ...]], plan: Crops, number: int
    ) -> dict[str, Tensor]:
        """The same under one of the crops that ids are made of.

        Raises:
            BadSample: A file cannot be used, or the sizes of two do not agree.
        """
        return self._taken(items, index, shapes, None, plan, number)

    def _taken(
        self,
        items: Items,
        index: int,
        shapes: Mapping[str, tuple[int, ...]],
        key: int | None,
        plan: Crops | None,
        number: int | None,
    ) -> dict[str, Tensor]:
        opened = self._open(items, index, [name for name in shapes if name not in self.tokens], key)
        frame, name = self._frame(items, index, opened), items.identity(index)
        cut = self._cut(frame, key) if plan is None or number is None else plan.cut(frame, name, number)
        sample: dict[str, Tensor] = {}
        for modality, shape in shapes.items():
            exists = self._has(items, modality, index)
            if modality not in self.tokens:
                sample[modality] = _output(modality, opened.get(modality), cut, shape)
            elif exists:
                sample[modality] = self.tokens[modality].ids(name, number or 0)
            else:
                sample[modality] = torch.zeros(shape, dtype=torch.int64)
            if modality in self.masked:
                sample[f"{modality}.present"] = torch.tensor(exists)
        return sample

    def _open(self, items: Items, index: int, names: Sequence[str], key: int | None) -> dict[str, Any]:
        """What the item's files hold, of those modalities that it has."""
        config = self.config
        opened: dict[str, Any] = {}
        share = config.evaluate_crop if key is None else config.area[0] ** 0.5
        if self.crops is not None:
            share = min(self.crops.evaluate, self.crops.area[0] ** 0.5)
        for name in names:
            if not items.has(name, index):
                continue
            path = items.root / items.file(name, index)
            try:
                if name == "rgb":
                    opened[name] = files.read_rgb(path, int(max(self.size) / share) + 1)
                elif name == "depth":
                    values = maps.depth_values(path)
                    opened[name] = maps.measured(values, config.depth_bits, config.depth_invalid, config.depth_signed)
                    self._note_kind(items.file(name, index), maps.kind_of(values))
                elif name == "normal":
                    opened[name] = normals.read_normal(path)
                elif name == "semseg":
                    opened[name] = maps.read_ids(
                        path, self.class_count or self.ids.get("semseg"), config.values, config.void
                    )
                else:
                    listed = items.captions[index] if items.captions else ()
                    text = files.check_caption(captions.one_of(listed, key)) if listed else files.read_text(path)
                    opened[name] = captions.encode_caption(text, self.shapes[name][0], self.vocabulary)
            except MimError:
                raise
            except ValueError as error:
                raise BadSample(items.file(name, index), str(error)) from error
            except Exception as error:  # libraries raise many kinds; whatever it is, the file is named and replaced
                raise BadSample(items.file(name, index), one_line(error)) from error
        return opened

    def _note_kind(self, file: str, kind: str) -> None:
        """Says of a depth map that its kind is none of those that were looked at before the run."""
        if self._warnings is not None:
            self._warnings.say(
                kind,
                f"{file} holds depth of {kind}, as none of the depth maps looked at before the run does. To refuse all "
                "but one kind: --data.depth-bits 8 (or 16).",
            )

    def _frame(self, items: Items, index: int, opened: Mapping[str, Any]) -> tuple[int, int]:
        """Height and width that all pictures of an item share; maps may be coarser or finer by a whole factor."""
        sizes = {name: _shape(opened[name]) for name in crops.PICTURES if name in opened}
        if not sizes:
            return self.size
        first, frame = next(iter(sizes.items()))
        odd = [name for name, size in sizes.items() if not crops.whole_factor(frame, size)]
        if odd:
            against = first
            if len(odd) > 1 and len({sizes[name] for name in odd}) == 1:  # two agree: the first is the odd one
                odd, against = [first], odd[0]
            turned = {"rgb": " after its EXIF turn"} if "rgb" in opened and opened["rgb"].turned else {}
            own, other = (f"{sizes[n][1]} x {sizes[n][0]} pixels{turned.get(n, '')}" for n in (odd[0], against))
            raise BadSample(
                items.file(odd[0], index),
                f"it is {own}, and {items.file(against, index)} is {other}; they must be equal, or smaller or larger "
                "by a whole factor",
            )
        return frame

    def _cut(self, frame: tuple[int, int], key: int | None) -> crops.Cut:
        config = self.config
        if key is None:
            return crops.Cut(frame, crops.centred(frame, self.size, config.evaluate_crop))
        draws = randomness.uniform(torch.tensor([key]), "aligned", crops.DRAWS)[0].tolist()
        box = crops.random_resized(frame, self.size, config.area, config.ratio, draws)
        return crops.Cut(frame, box, draws[-1] < config.flip)

    def how_read(self) -> dict[str, Any]:
        """How colour is cropped, which the other modalities follow, and what their values are."""
        share = f"{self.config.evaluate_crop:g} of the largest centred box of the input's shape, then scaled"
        given = [name for name in self.shapes if name in VALUES and name not in self.tokens]
        values = dict(VALUES[name] for name in given)
        return {"crop": share, "interpolation": "bicubic, antialiased", **values}

    def finish(self, sample: Sample) -> Sample:
        """rgb with mean 0 and deviation 1 over the data; depth standardised, see `depth.standardise`; normals -1 to 1;
        class ids int64.
        ``depth_raw`` stays as it is: the file's unit, NaN where nothing was measured."""
        done = dict(sample)
        if "rgb" in sample and "rgb" not in self.tokens:
            done["rgb"] = self.normalisation.of_bytes(sample["rgb"])
        if "depth" in sample and "depth" not in self.tokens:
            depth, limit = standardise(sample["depth"]), self.config.depth_limit
            done["depth"] = depth if limit is None else depth.clamp(-limit, limit)
        if "normal" in sample and "normal" not in self.tokens:
            done["normal"] = normals.vectors(sample["normal"])
        if "semseg" in sample and "semseg" not in self.tokens:
            done["semseg"] = sample["semseg"].long()
        return done

    def labelled(self, split: str) -> Labelled:
        """Items with their class, under the fixed crop; with the tokenizers' modalities and ``depth_raw``.

        Raises:
            MimError: The items have no classes.
        """
        labels = self.labels
        if not labels.classes:
            raise MimError(
                f"{self.root} has no classes of items to evaluate with. Looked for labels.csv (path,label), and for "
                f"at least two CLASS folders that both splits have, such as {self.root}/train/rgb/cat/1.jpg and "
                f"{self.root}/test/rgb/cat/2.jpg. Dense evaluations need no such classes: multimodal:segmentation and "
                "multimodal:depth."
            )
        rows = labels.train if split == "train" else labels.test
        items = Fixed(self, self._split(split), [item for item, _ in rows], self.shapes)
        names = tuple(self._split(split).name(item) for item, _ in rows)
        note = " ".join(text for text in (self.collection.note, labels.note) if text)
        return Labelled(split, torch.tensor([label for _, label in rows]), labels.classes, items, note, names=names)

    def plain(self) -> PlainItems:
        """Items under the fixed crop of evaluation."""
        items = self.collection.pretrain
        names = tuple(map(items.name, range(len(items))))
        return PlainItems(Fixed(self, items, range(len(items)), self.shapes), names, boxes=self._shown)

    def _shown(self, index: int) -> Shown:
        """What the fixed crop shows of an item's first picture: of rgb where it is given, else of a map."""
        items = self.collection.pretrain
        pictures = (name for name in crops.PICTURES if name in self.shapes and name not in self.tokens)
        first = next((name for name in pictures if items.has(name, index)), None)
        frame = self._frame(items, index, self._open(items, index, [first] if first else [], None))
        top, left, height, width = self._cut(frame, None).box
        return Shown(left, top, width, height)

    def _split(self, split: str) -> Items:
        if split not in ("train", "test"):
            raise unknown("split", split, ("train", "test"))
        return self.collection.train if split == "train" else self.collection.test

    def held_out(self) -> Dataset[Any] | None:
        """All items of the test split under the fixed crop, labelled or not."""
        count = len(self.collection.test)
        return Fixed(self, self.collection.test, range(count), self.shapes) if count else None

    def dense(self, split: str) -> Fixed:
        """Items under the fixed crop, whether they have labels or not: the tokenizers' modalities, and depth,
        ``depth_raw`` and semseg where their folders exist, all to be handed to `finish`. A modality that no item has is
        left out; then items that lack one of these files are. Both are said in the `Fixed.note`. Class ids that no
        tokenizer wants come a quarter as large as the pictures.

        Args:
            split: "train" or "test".

        Raises:
            MimError: There is neither depth nor semseg, or no item has all files.
        """
        items = self._split(split)
        height, width = self.size
        whole = height % STRIDE == 0 and width % STRIDE == 0
        coarse = (height // STRIDE, width // STRIDE) if whole else self.size
        more = {"depth": (1, height, width), "semseg": coarse}
        available = {name: shape for name, shape in more.items() if name in items.endings}
        if not available:
            known = ", ".join(items.endings)
            raise MimError(f"{self.root / items.split} has no depth and no semseg to evaluate with, only: {known}.")
        wanted = {**available, **self.shapes}
        shapes = {n: shape for n, shape in wanted.items() if n in self.tokens or any(items.endings.get(n, ()))}
        files_of = [name for name in shapes if name not in self.tokens]
        kept = [i for i in range(len(items)) if all(items.has(name, i) for name in files_of)]
        if not kept:
            raise MimError(f"No item of the {split} split of {self.root} has a file of each of {', '.join(shapes)}.")
        absent = [f"No {split} item has {name}." for name in wanted if name not in shapes]
        if len(kept) < len(items):
            lost = f"{len(items) - len(kept):,} of {len(items):,} {split} items"
            absent.append(f"{lost} lack a file of {', '.join(shapes)} and are left out.")
        return Fixed(self, items, kept, shapes, " ".join(absent))

    def raw(self, sample: Sample) -> Tensor:
        """What the sample has, side by side: pixels, depth, shares of classes, counts of tokens; see
        `raw.side_by_side`."""
        done = {name: sample[name] for name in MODALITIES if name in sample and name not in self.tokens}
        if "rgb" in done:
            done["rgb"] = self.normalisation.undone(done["rgb"])
        return side_by_side(done, self.class_count or self.ids.get("semseg") or maps.IGNORE)

    def picture(self, modality: str, values: Tensor) -> Picture:
        """An item as PNG: rgb; depth with near bright; normals as their files have them; class ids by a fixed palette,
        and so ids; the text of a caption."""
        if modality in self.config.tokens:
            return pictures.class_map(values % maps.IGNORE)
        if modality == "depth":
            return pictures.depth_map(values)
        if modality == "normal":
            return pictures.colour(normals.pixels_of(values))
        if modality == "semseg":
            return pictures.class_map(values)
        if modality == "caption":
            return pictures.text(captions.decode_caption(values.tolist(), own=self.vocabulary))
        return pictures.colour(self.normalisation.to_bytes(values))

    def file(self, modality: str, values: Tensor) -> tuple[str, bytes]:
        """A modality as `finish` left it: rgb as PNG, standardised depth as PNG of 16 bits (see
        `predicted_files.depth`), class ids as PNG of 8 bits, a caption as text, ids that were made of another modality
        as npy."""
        if modality in self.config.tokens:  # also where its ids were made here, and none are read
            content = io.BytesIO()
            np.save(content, values.round().to(torch.int64).cpu().numpy())
            return ".npy", content.getvalue()
        if modality == "depth":
            return ".png", predicted_files.depth(values)
        if modality == "normal":
            return ".png", predicted_files.colour(normals.pixels_of(values))
        if modality == "semseg":
            return ".png", predicted_files.class_map(values.round().long())
        if modality == "caption":
            return ".txt", captions.decode_caption(values.round().long().tolist(), own=self.vocabulary).encode()
        return ".png", predicted_files.colour(self.normalisation.to_bytes(values))

    def masked_picture(self, modality: str, values: Tensor, hidden: Tensor) -> Picture:
        """The same, where hidden depths and class ids are of a grey that no value has."""
        if modality in ("depth", "semseg") and modality not in self.config.tokens:
            return (pictures.depth_map if modality == "depth" else pictures.class_map)(values, hidden)
        return self.picture(modality, values)

    def plan(self) -> dict[str, str]:
        """Where items come from, how many, which modalities, what is missing, classes and bit depth."""
        return data_facts.plan(self)

    def advice(self) -> list[str]:
        """What is missing or left out, and what in the files is rarely meant."""
        lines = data_facts.advice(self)
        if "depth" in self.shapes and self.config.depth_bits is None and self._warnings is None:
            self._warnings = SaidOnce((*self.depth_kinds(), *self.looked().kinds))
        return lines

    def depth_kinds(self) -> dict[str, str]:
        """Kinds of depth maps among some of the items, see `checks.depth_kinds`; they are looked at once."""
        if self._kinds is None:
            self._kinds = checks.depth_kinds(self.collection.pretrain)
        return self._kinds

    def contents(self) -> dict[str, str]:
        """Splits, classes, what is left out, and what some of the files hold."""
        return data_facts.contents(self)

    def looked(self) -> data_facts.Looked:
        """What some of the files for training hold; they are looked at once."""
        if self._looked is None:
            self._looked = data_facts.look(self)
        return self._looked


def _shape(opened: Any) -> tuple[int, int]:
    height, width = opened.size if isinstance(opened, files.Colour) else opened.shape
    return height, width


def _output(name: str, opened: Any, cut: crops.Cut, shape: tuple[int, ...]) -> Tensor:
    """A modality as `Aligned.read` gives it; what stands for a missing one where nothing was opened."""
    if name == "caption":
        return torch.zeros(shape, dtype=torch.int64) if opened is None else opened
    size = (shape[-2], shape[-1])
    if name == "rgb":
        return torch.zeros(shape, dtype=torch.uint8) if opened is None else crops.smooth(opened.image, cut, size)
    if name == "normal":
        return torch.zeros(shape, dtype=torch.uint8) if opened is None else normals.cut_out(opened, cut, size)
    if opened is None:
        fill, kind = (np.nan, torch.float32) if name == "depth" else (maps.IGNORE, torch.uint8)
        return torch.full(shape, fill, dtype=kind)
    part = crops.nearest(opened, cut, size)
    return part[None] if name == "depth" else part
