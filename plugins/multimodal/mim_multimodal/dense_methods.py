"""Fine-tuning for an answer at every pixel: classes and depth (MultiMAE, arXiv 2204.01678, section 4)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float
from mim_core import (
    FINE_TUNED,
    MAJORITY,
    DataSource,
    Encoder,
    JoinedTokenizer,
    Labelled,
    MimError,
    Outcome,
    Picture,
    Record,
    Sample,
    Score,
    Supervised,
    Table,
    Taught,
    Tokenizer,
    WrappedSource,
    init_transformer,
    pixel_loss,
    share_of,
    standard_errors,
)
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from mim_multimodal import account, maps, written
from mim_multimodal.dense_heads import (
    ConvNextHead,
    DenseHead,
    DptHead,
    HeadKind,
    LinearHead,
    UperHead,
    as_maps,
    quarters,
)
from mim_multimodal.dense_scores import SMALLEST, ClassCounts, GroupedCounts, berhu, depth_errors, depth_scores

if TYPE_CHECKING:
    from mim_core import Parts

IGNORE = 255
"""The id that is no class."""
ANSWER = "answer"
"""The entry of a sample that holds the map to learn from, in the file's own values."""
LOOKED_AT = 32
"""Maps that are looked at before a run."""
STEPS_OF_TEST = 16
"""Most pictures per forward pass of a test."""


# ---- data ------------------------------------------------------------------------------------------------------------


class MapItems(Dataset[Any]):
    """Items of a split under evaluation's crop, with the map to compare with under the name "answer".

    Args:
        source: Aligned data.
        items: Of a split.
        numbers: Of those that have all files.
        shapes: What to read.
        label: The modality that is the answer.
        keep: Whether it is an input too.
    """

    def __init__(self, source: Any, items: Any, numbers: list[int], shapes: Mapping[str, Any], label: str) -> None:
        self.source, self.items, self.numbers, self.shapes, self.label = source, items, numbers, dict(shapes), label

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.read(index, None)

    def read(self, index: int, key: int | None) -> dict[str, Tensor]:
        """One item, under the crop that a key draws."""
        sample: dict[str, Tensor] = self.source.take(self.items, self.numbers[index], self.shapes, key)
        sample.pop("depth_raw", None)
        sample[ANSWER] = sample.pop(self.label)
        return sample

    def name(self, index: int) -> str:
        """The path of an item's first file."""
        return str(self.items.name(self.numbers[index]))


class MapSource(WrappedSource):
    """Aligned data whose items have a map as their answer, at the size of the pictures; of those for training the share
    that ``labels`` says.

    Raises:
        MimError: The data have no such maps.
    """

    def __init__(self, source: DataSource, label: str, size: tuple[int, int]) -> None:
        super().__init__(source)
        inner: Any = source
        if not hasattr(inner, "collection"):
            raise MimError(
                f"This method learns from a map of {label} for every picture, as multimodal:aligned reads them; "
                f"{type(source).__name__} has none."
            )
        if label in source.shapes:
            raise MimError(
                f"{label} is what is predicted, so it cannot be an input too. Take it out: --use {label}.tokenizer=none"
            )
        shape = size if label == "semseg" else (1, *size)
        self.label, self.wanted = label, {**source.shapes, label: shape}
        self.train, self.test = (self._items(inner, split) for split in ("train", "test"))
        self.every = len(self.train)
        _, chosen = share_of(self.labelled("train"), float(getattr(inner.config, "labels", 0.0)))
        self.train.numbers = [self.train.numbers[number] for number in chosen.tolist()]
        self.samples_per_item = 1
        self._looked: account.Looked | None = None

    def looked_at_maps(self) -> account.Looked:
        """What some of the maps that are learned from hold; they are looked at once."""
        if self._looked is None:
            items = self.train.items.subset(self.train.numbers)
            self._looked = account.look(self.source, items, (self.label,))
        return self._looked

    def contents(self) -> dict[str, str]:
        """The source's; the files hold also the maps that are learned from."""
        rows, looked = self.source.contents(), self.looked_at_maps()
        seen = f"{looked.items:,} of {len(self):,} looked at"
        told = f"learned from: {self.label} {looked.texts.get(self.label, '')}, {seen}"
        return {**rows, "files hold": "; ".join([*filter(None, [rows.get("files hold")]), told])}

    def _items(self, source: Any, split: str) -> MapItems:
        items = source.collection.train if split == "train" else source.collection.test
        if self.label not in items.endings:
            raise MimError(f"{source.root} has no {self.label} in its {split} split, only: {', '.join(items.endings)}.")
        numbers = [i for i in range(len(items)) if all(items.has(name, i) for name in self.wanted)]
        if not numbers:
            raise MimError(f"No {split} item of {source.root} has a file of each of {', '.join(self.wanted)}.")
        return MapItems(source, items, numbers, self.wanted, self.label)

    def __len__(self) -> int:
        return len(self.train)

    def read(self, index: int, key: int) -> dict[str, Tensor]:
        """An item of the training split under a drawn crop and flip."""
        return self.train.read(index, key)

    def name_of(self, index: int) -> str:
        """The path of the item's first file."""
        return self.train.name(index)

    def files_of(self, split: str = "pretrain") -> Iterator[tuple[str, ...]]:
        """The files of each item."""
        held = self.test if split == "test" else self.train
        return (tuple(held.items.paths(number)) for number in held.numbers)

    def presence(self) -> Mapping[frozenset[str], tuple[int, str]]:
        """Not looked up: items that lack a file are left out."""
        return {}

    def labelled(self, split: str) -> Labelled:
        """Items with their map; the classes are none, since each pixel has its own."""
        items = self.train if split == "train" else self.test
        names = tuple(map(items.name, range(len(items))))
        return Labelled(split, torch.zeros(len(items), dtype=torch.int64), ("",), items, names=names)

    def finish(self, sample: Sample) -> Sample:
        """The source's; class ids become int64."""
        done = self.source.finish(sample)
        if self.label == "semseg" and ANSWER in done:
            done[ANSWER] = done[ANSWER].long()
        return done

    def plan(self) -> dict[str, str]:
        """The source's, and what is learned from."""
        of = f" of {self.every:,}" if len(self.train) < self.every else ""
        told = f"{len(self.train):,}{of} training items with a map of {self.label}"
        void = getattr(self.source, "config", None) and self.source.config.void
        if self.label == "semseg" and void is not None:
            told += f"; {void} in them is no class, and the ids above it count one less (--data.void)"
        return {**self.source.plan(), "labels": told}

    def advice(self) -> list[str]:
        """The source's, what in the maps is rarely meant, and where an id is taken out as no class (``void``) of maps
        that seem to start at 0."""
        lines: list[str] = [*self.source.advice(), *self.looked_at_maps().advice]
        config: Any = getattr(self.source, "config", None)
        count = getattr(self.source, "class_count", None)
        if self.label != "semseg" or not count or getattr(config, "void", None) is None:
            return lines
        seen = {value for number in range(min(LOOKED_AT, len(self.train))) for value in self._ids(number)}
        if seen != set(range(count)):
            return lines
        return [
            *lines,
            f"The class maps looked at hold all ids from 0 to {count - 1}, as {count} classes that start at 0 do, and "
            f"{config.void} is taken out as no class. If it is one: --data.void None",
        ]

    def _ids(self, number: int) -> set[int]:
        """The ids of a training map, as the file has them; none where it cannot be read."""
        items = self.train.items
        try:
            ids = maps.id_values(items.root / items.file(self.label, self.train.numbers[number]))
        except (OSError, ValueError):  # said when it is read
            return set()
        return set(np.unique(ids).tolist()) - {IGNORE}


# ---- methods ---------------------------------------------------------------------------------------------------------


ERRORS = f"In brackets: standard errors over the test items, by the jackknife with {standard_errors.GROUPS} groups."
"""What is said below a table."""


@dataclass(frozen=True)
class DenseOptions:
    """Options that methods with an answer at every pixel share."""

    init: Path | None = None
    """Checkpoint that the weights of tokenizer and encoder are taken from; none: as drawn. finetune fills it in."""
    head: HeadKind = "convnext"
    """linear: one layer on normalised features; convnext: MultiMAE's for classes; dpt: MultiMAE's for depth, from four
    blocks; upernet: UPerNet on BEiT's neck, from four blocks."""
    inputs: tuple[str, ...] = ()
    """Inputs whose tokens the head sees, side by side; none: all."""
    levels: tuple[int, ...] = ()
    """Blocks, from 1, whose outputs dpt and upernet take; none: those that end the quarters."""
    inner: int = 6144
    """convnext: the width that a token has before it becomes its places."""
    places: int = 16
    """convnext: places of a token, a square number."""
    blocks: int = 4
    """convnext: blocks."""
    widths: tuple[int, ...] = (96, 192, 384, 768)
    """dpt: of the four levels."""
    channels: int = 256
    """dpt and upernet: of what the levels are put together to."""
    dropout: float = 0.1
    """upernet: share of channels left out in front of the classes."""

    def __post_init__(self) -> None:
        if min((*self.widths, self.inner, self.channels, self.places)) < 1 or len(self.widths) != 4 or self.blocks < 0:
            raise MimError("method: widths must be four, and they, inner, channels and places at least 1.")
        if not 0 <= self.dropout < 1:
            raise MimError(f"method: dropout must lie in [0, 1), got {self.dropout}.")


class DenseMethod(Supervised):
    """An answer at every pixel, from the tokens of inputs that share a grid.

    Attributes:
        label: The modality that is the answer.
    """

    label: ClassVar[str]
    config: Any
    head: DenseHead

    @classmethod
    def build(cls, config: Any, parts: Parts) -> DenseMethod:
        """Roles: tokenizer and encoder."""
        tokenizer = parts.tokenizer()
        made: DenseMethod = cls(tokenizer, parts.encoder(tokenizer), config)  # type: ignore[call-arg]
        return made

    def __init__(self, tokenizer: Tokenizer, encoder: Encoder, config: Any, outputs: int) -> None:
        super().__init__(tokenizer, encoder)
        self.config = config
        names, self.grids, self.size, self.patch = _places(tokenizer)
        self.names, used = names, config.inputs or names
        unknown = [name for name in used if name not in names]
        if unknown:
            raise ValueError(f"inputs {', '.join(unknown)} are not among the tokenizers': {', '.join(names)}")
        self.used = tuple(names.index(name) for name in used)
        if len({self.grids[number] for number in self.used}) > 1:
            raise ValueError(f"the inputs {', '.join(used)} lie on different grids; name those of one: --method.inputs")
        self.head = self._head(encoder.width * len(used), outputs)
        init_transformer(self.head)
        if self.head.levels > 1:
            levels = config.levels or quarters(self.depth())
            if len(levels) != self.head.levels:
                raise ValueError(f"{config.head} takes {self.head.levels} levels, got {levels}")
            encoder.give_levels(levels, normed=False)

    def _head(self, width: int, outputs: int) -> DenseHead:
        config, size = self.config, self.size
        if config.head == "linear":
            return LinearHead(width, outputs, size)
        if config.head == "convnext":
            return ConvNextHead(width, outputs, size, config.inner, config.places, config.blocks)
        if config.head == "dpt":
            return DptHead(width, outputs, size, config.widths, config.channels)
        return UperHead(width, outputs, size, self.patch, config.channels, config.dropout)

    def training_source(self, source: DataSource) -> DataSource:
        """Items with a map."""
        return MapSource(source, self.label, self.size)

    def answers(self, sample: Sample) -> Tensor:
        """The map."""
        if ANSWER in sample:
            return sample[ANSWER]
        first = next(iter(sample.values()))
        if first.is_meta:
            return self._empty(first.shape[0], first.device)
        raise ValueError(f"the sample has no {self.label} to learn from; it has {', '.join(sample)}")

    def blank(self, sample: Sample) -> Sample:
        """A map without anything to learn."""
        first = next(iter(sample.values()))
        return {ANSWER: self._empty(first.shape[0], first.device)}

    def _empty(self, rows: int, device: torch.device) -> Tensor:
        raise NotImplementedError

    def compared(self, sample: Sample, predictions: Mapping[str, Tensor], source: DataSource) -> dict[str, Picture]:
        """The inputs, the right map, the answer, and of the answer what is wrong, the rest grey."""
        inputs = {name: source.picture(name, sample[name]) for name in self.names if name in sample}
        right, found, well = self._maps(sample, predictions)
        rows = {"truth": source.picture(self.label, right), "answer": source.picture(self.label, found)}
        return {**inputs, **rows, "wrong": source.masked_picture(self.label, found, well)}

    def _maps(self, sample: Sample, predictions: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """The right map and the answer, as the data source draws them, and where the answer is right or nothing is
        known."""
        raise NotImplementedError

    def answered(self, prepared: Taught) -> tuple[Tensor, Tensor]:
        """(the head's answers [B, K, H, W], the encoder's output)."""
        encoded = self.encoded(prepared)
        if encoded.tokens.shape[1] != sum(map(math.prod, self.grids)):
            raise ValueError(
                f"a head of maps sees all of its inputs, {', '.join(self.names)}, so none can be left out; train it on "
                f"fewer: finetune with --use {self.names[-1]}.tokenizer=none"
            )
        levels = encoded.levels if self.head.levels > 1 else (encoded.tokens,)
        found = self.head([as_maps(level, self.grids, self.used) for level in levels])
        return found, torch.cat([encoded.prefix, encoded.tokens], dim=1)


def _places(tokenizer: Tokenizer) -> tuple[tuple[str, ...], list[tuple[int, int]], tuple[int, int], int]:
    """Inputs, their grids, the size of the largest picture, and the pixels along a patch of it.

    Raises:
        ValueError: An input does not lie on a grid of two axes.
    """
    layout = tokenizer.layout
    parts = dict(layout.segments) if isinstance(tokenizer, JoinedTokenizer) else {next(iter(tokenizer.shapes)): layout}
    for name, part in parts.items():
        if part.grid is None or len(part.grid) != 2:
            raise ValueError(
                f"an answer at every pixel needs units on a grid of two axes; those of {name} are not. Train without: "
                f"--use {name}.tokenizer=none"
            )
    sizes = [(shape[-2], shape[-1]) for shape in tokenizer.shapes.values()]
    size = max(sizes, key=math.prod)
    grids = [(part.grid[0], part.grid[1]) for part in parts.values() if part.grid is not None]
    return tuple(parts), grids, size, size[0] // max(grid[0] for grid in grids)


class Segmenter(DenseMethod):
    """A class for every pixel. Pixels of 255 do not count."""

    label = "semseg"
    train_options: ClassVar[Mapping[str, Any]] = {"base_lr": 1e-4, "batch_size": 16, "lr_batch": 16}

    @dataclass(frozen=True)
    class Config(DenseOptions):
        """Options of the segmenter."""

        classes: int = 0
        """Number of classes; 0 takes the data's."""
        names: tuple[str, ...] = ()
        """What the classes are called, in their order; none takes the data's."""
        beside: float = 0.4
        """upernet: weight of the loss of the head beside it."""

    def __init__(self, tokenizer: Tokenizer, encoder: Encoder, config: Config) -> None:
        if config.classes < 2:
            raise ValueError(
                f"classes must be at least 2, got {config.classes}; finetune takes their number from the data"
            )
        super().__init__(tokenizer, encoder, config, config.classes)
        self.classes = config.classes

    @classmethod
    def completed(cls, options: Any, source: DataSource) -> Any:
        """With the number and the names of the data's classes."""
        count = options.classes or getattr(source, "class_count", None)
        if not count:
            raise MimError(
                "How many classes do the maps have? Name them in classes.txt, one a line, or give --data.classes N."
            )
        names = tuple(getattr(source, "classes", ()) or ())
        return replace(options, classes=count, names=options.names or (names if len(names) == count else ()))

    def _empty(self, rows: int, device: torch.device) -> Tensor:
        return torch.full((rows, *self.size), IGNORE, dtype=torch.int64, device=device)

    def forward(self, prepared: Taught) -> Outcome:
        """The mean cross-entropy over the pixels that have a class; predictions "semseg" are logits [B, K, H, W]."""
        logits, latent = self.answered(prepared)
        loss = pixel_loss(logits, prepared.answers)
        beside = getattr(self.head, "beside", None)
        if beside is not None:
            loss = loss + self.config.beside * pixel_loss(beside, prepared.answers)
        return Outcome(loss, {"semseg": loss}, {"semseg": logits}, latent)

    def predict(self, sample: Sample) -> dict[str, Tensor]:
        """Probabilities "semseg" [B, K, H, W]."""
        return {"semseg": super().predict(sample)["semseg"].float().softmax(dim=1)}

    def record(self, answers: Mapping[str, Tensor], source: DataSource) -> Record:
        """The share of each class that is there, and a map of class ids as PNG."""
        ids = answers["semseg"].argmax(dim=0)
        names = self.config.names or tuple(map(str, range(self.classes)))
        shares = ids.flatten().bincount(minlength=self.classes).double() / ids.numel()
        row = {names[number]: round(float(shares[number]), 6) for number in range(self.classes) if shares[number]}
        return Record(row, {"-semseg.png": written.class_map(ids)})

    def right(self, batch: Sample, predictions: Mapping[str, Tensor]) -> Float[Tensor, " B"]:
        """The share of the pixels with a class that got it."""
        answer = batch[ANSWER]
        known = answer != IGNORE
        hits = (predictions["semseg"].argmax(dim=1) == answer) & known
        return hits.flatten(1).sum(dim=1) / known.flatten(1).sum(dim=1)

    def _maps(self, sample: Sample, predictions: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        right, found = sample[ANSWER], predictions["semseg"].argmax(dim=0)
        return right, found, (found == right) | (right == IGNORE)

    def test(
        self, source: DataSource, device: torch.device, batch_size: int = 256, notes: list[str] | None = None
    ) -> list[Score]:
        """Mean IoU, mean accuracy and the share of pixels that are right, beside the commonest class of the training
        maps."""
        train, test = source.labelled("train"), source.labelled("test")
        seen = torch.stack([_map_of(train, index) for index in range(min(len(train.labels), 200))])
        common = int(seen[seen != IGNORE].long().bincount(minlength=self.classes).argmax())
        counts = {row: GroupedCounts(self.classes, IGNORE) for row in (MAJORITY, FINE_TUNED)}
        for batch, predictions in self.predicted(source, test, device, min(batch_size, STEPS_OF_TEST)):
            right = batch[ANSWER].long()
            counts[FINE_TUNED].add(predictions["semseg"].argmax(dim=1), right, batch["sample"])
            counts[MAJORITY].add(torch.full_like(right, common), right, batch["sample"])
        own = counts[FINE_TUNED].whole()
        self.tables = self._tables(own)
        if not own.table.sum():
            raise MimError(f"No pixel of the {len(test.labels):,} test items has a class, or none can be read.")
        if notes is not None:
            notes += [*self._notes(len(train.labels), len(test.labels), own), ERRORS]
        columns = {"mIoU": "mean_iou", "mean class accuracy": "mean_accuracy", "pixels": "pixel_accuracy"}
        return [
            Score(row, column, float(found.whole().scores()[name]), error=found.errors()[name])
            for row, found in counts.items()
            for column, name in columns.items()
        ]

    def _tables(self, counts: ClassCounts) -> dict[str, Table]:
        """Scores of each class, and the pixels of each class by the class that they got."""
        names = self.config.names or tuple(f"class {number}" for number in range(self.classes))
        found = counts.scores()
        kinds = ("iou", "class_accuracy", "dice")
        each = zip(names, counts.table.sum(dim=1).tolist(), *(found[kind].tolist() for kind in kinds), strict=True)
        rows = tuple((name, n, *(round(v, 6) if v == v else "" for v in values)) for name, n, *values in each)
        pairs = tuple((name, *row) for name, row in zip(names, counts.table[:, :-1].tolist(), strict=True))
        return {
            "classes": Table(("class", "pixels", "IoU", "accuracy", "Dice"), rows),
            "confusion": Table(("true class", *names), pairs),
        }

    def _notes(self, train: int, test: int, counts: ClassCounts) -> list[str]:
        names = self.config.names or tuple(f"class {number}" for number in range(self.classes))
        each = counts.scores()["iou"]
        told = ", ".join(
            f"{name} {float(value):.3f}" for name, value in zip(names, each, strict=True) if value == value
        )
        return [f"{train:,} training items, {test:,} test items, {self.classes} classes. IoU of each: {told}."]


class DepthRegressor(DenseMethod):
    """Depth at every pixel, in the file's own unit. Pixels without a measurement do not count."""

    label = "depth"
    train_options: ClassVar[Mapping[str, Any]] = {"base_lr": 1e-4, "batch_size": 16, "lr_batch": 16}

    @dataclass(frozen=True)
    class Config(DenseOptions):
        """Options of the depth regressor."""

        head: HeadKind = "dpt"
        """linear, convnext, dpt (MultiMAE's for depth, from four blocks) or upernet."""
        mean: float = 0.0
        """Depth that the network answers 0 for; finetune takes the mean of training maps."""
        std: float = 0.0
        """Depth that one of its units is; 0: finetune takes the deviation of training maps."""
        whole: bool = False
        """Whether depths are whole numbers of at most 16 bits, as millimetres often are: predict then writes PNG, else
        .npy. finetune finds it in the training maps, with std."""
        loss: Literal["berhu", "l1", "mse"] = "berhu"
        """berhu: absolute errors, quadratic where large (MultiMAE); l1; mse."""

    def __init__(self, tokenizer: Tokenizer, encoder: Encoder, config: Config) -> None:
        if not 0 < config.std < math.inf:
            raise ValueError(f"std must be positive, got {config.std}; finetune takes it from the data")
        super().__init__(tokenizer, encoder, config, 1)

    @classmethod
    def completed(cls, options: Any, source: DataSource) -> Any:
        """With mean and deviation of some of the data's training maps."""
        if options.std:
            return options
        items = MapSource(source, cls.label, source.size).train  # type: ignore[attr-defined]
        maps = [items[index][ANSWER].double() for index in range(0, len(items), max(1, len(items) // 100))]
        known = torch.cat([values[values.isfinite()] for values in maps])
        if len(known) < 2 or not float(known.std()):
            raise MimError("The training maps have no depth, or one depth alone.")
        whole = bool((known == known.round()).all()) and float(known.min()) >= 0 and float(known.max()) < 2**16
        return replace(options, mean=float(f"{known.mean():.6g}"), std=float(f"{known.std():.6g}"), whole=whole)

    def _empty(self, rows: int, device: torch.device) -> Tensor:
        return torch.full((rows, 1, *self.size), torch.nan, device=device)

    def forward(self, prepared: Taught) -> Outcome:
        """The loss over measured pixels, of depths brought to mean 0 and deviation 1; predictions "depth" [B, 1, H, W]
        are in the file's unit."""
        found, latent = self.answered(prepared)
        valid = prepared.answers.isfinite()
        wanted = ((prepared.answers - self.config.mean) / self.config.std).masked_fill(~valid, 0.0)
        loss = self._loss(found.float(), wanted, valid)
        return Outcome(loss, {"depth": loss}, {"depth": found.float() * self.config.std + self.config.mean}, latent)

    def _loss(self, found: Float[Tensor, "B 1 H W"], wanted: Tensor, valid: Tensor) -> Tensor:
        if self.config.loss == "berhu":
            return berhu(found, wanted, valid)
        kind = F.l1_loss if self.config.loss == "l1" else F.mse_loss
        each = kind(found, wanted, reduction="none").masked_fill(~valid, 0.0)
        return each.sum() / valid.sum().clamp(min=1)

    def predict(self, sample: Sample) -> dict[str, Tensor]:
        """Depth "depth" [B, 1, H, W] in the unit of the files that were learned from."""
        return {"depth": super().predict(sample)["depth"].float()}

    def record(self, answers: Mapping[str, Tensor], source: DataSource) -> Record:
        """Least, mean and largest depth; and the map, all in the unit of the files that were learned from: as PNG of 16
        bits where these are whole numbers, else as .npy, float32."""
        depth = answers["depth"]
        row = {name: float(f"{value:.6g}") for name, value in zip(("min", "mean", "max"), _spread(depth), strict=True)}
        if self.config.whole:
            return Record(row, {"-depth.png": written.whole_depth(depth)})
        return Record(row, {"-depth.npy": written.float_depth(depth)})

    def right(self, batch: Sample, predictions: Mapping[str, Tensor]) -> Float[Tensor, " B"]:
        """The share of the measured pixels within a factor of 1.25."""
        answer, found = batch[ANSWER].float(), predictions["depth"]
        known = answer.isfinite()
        return (_within(found, answer) & known).flatten(1).sum(dim=1) / known.flatten(1).sum(dim=1)

    def _maps(self, sample: Sample, predictions: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        right, found = sample[ANSWER].float(), predictions["depth"]
        scaled = ((each - self.config.mean) / self.config.std for each in (right, found))
        return *scaled, _within(found, right) | ~right.isfinite()

    def test(
        self, source: DataSource, device: torch.device, batch_size: int = 256, notes: list[str] | None = None
    ) -> list[Score]:
        """RMSE in the file's unit, AbsRel and delta 1 over all measured pixels, beside the mean depth of the training
        maps."""
        test = source.labelled("test")
        answers, right = list[Tensor](), list[Tensor]()
        for batch, predictions in self.predicted(source, test, device, min(batch_size, STEPS_OF_TEST)):
            answers.append(predictions["depth"])
            right.append(batch[ANSWER].float())
        if not answers:
            raise MimError(f"None of the {len(test.labels):,} test items can be read.")
        depth = torch.cat(right)
        valid = depth.isfinite()
        if not valid.any():
            raise MimError("No pixel of the test items has a depth.")
        depth = depth.masked_fill(~valid, 0.0)
        rows = {"mean depth": torch.full_like(depth, self.config.mean), FINE_TUNED: torch.cat(answers)}
        if notes is not None:
            notes.append(
                f"{len(test.labels):,} test items. Errors are in the unit of the files; pixels without a measurement "
                f"do not count. delta 1: the share of pixels within a factor of 1.25. {ERRORS}"
            )
        columns = {"RMSE": ("rmse", True), "AbsRel": ("abs_rel", True), "delta 1": ("delta_1", False)}
        scores = []
        for row, answer in rows.items():
            values, errors = depth_scores(answer, depth, valid), depth_errors(answer, depth, valid)
            found = {column: (values[name], errors.get(name), lower) for column, (name, lower) in columns.items()}
            scores += [Score(row, c, v, lower_is_better=lower, error=error) for c, (v, error, lower) in found.items()]
        return scores


def _map_of(split: Labelled, index: int) -> Tensor:
    answer: Tensor = split.items[index][ANSWER]
    return answer


def _within(found: Tensor, right: Tensor) -> Tensor:
    """Where two depths are within a factor of 1.25, as delta 1 counts them."""
    safe, real = found.clamp(min=SMALLEST), right.clamp(min=SMALLEST)
    return torch.maximum(safe / real, real / safe) < 1.25


def _spread(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return values.min(), values.mean(), values.max()
