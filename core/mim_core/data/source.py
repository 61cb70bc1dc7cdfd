"""Data: map-style sources over files as users have them, read in an order and with draws that follow from keys alone.

Sample number s of a run is item ``order(epoch)[s mod n]`` of epoch ``s // n``; its key is hash(seed, epoch, index). So
batches may straddle epochs, nothing is dropped, and a run can go on from any sample with any number of workers.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from mim_core.data.time_limits import ITEM_SECONDS
from mim_core.data.views import View
from mim_core.errors import MimError


@dataclass(frozen=True)
class Picture:
    """One picture for a report.

    Attributes:
        media_type: Such as "image/png".
        content: The file.
        drawn: A drawing instead of the data's own pixels: shown larger, and scaled smoothly.
    """

    media_type: str
    content: bytes
    drawn: bool = False


@dataclass(frozen=True)
class Labelled:
    """A split with labels, for evaluation.

    Attributes:
        name: "train" or "test".
        labels: int64 [n], one for each sample; or [n, classes] of 0 and 1, where each may have several.
        classes: Names of the classes.
        items: Read by index, without augmentation.
        note: What a reader of the scores should know about the split.
        views: How many consecutive items are views of one sample, which is judged by their mean: the items of sample
            i are number i * views and those that follow.
        names: Of the samples, as `DataSource.name_of` has them; empty where the source does not tell.
    """

    name: str
    labels: Tensor
    classes: tuple[str, ...]
    items: Dataset[Any]
    note: str = ""
    views: int = 1
    names: tuple[str, ...] = ()

    def items_of(self, samples: Tensor) -> Tensor:
        """Numbers of the items that show these samples (int64 [k]), int64 [k * views]."""
        return (samples[:, None] * self.views + torch.arange(self.views)).flatten()

    def middle(self, sample: int) -> int:
        """Number of the item that shows the middle view of a sample."""
        return sample * self.views + self.views // 2


class Shown(NamedTuple):
    """The part of a picture that an item shows, in pixels of the whole picture, upright as its EXIF says."""

    left: float
    top: float
    width: float
    height: float


@dataclass(frozen=True)
class PlainItems:
    """Items that are read as they are, without augmentation and without labels, see `DataSource.plain`.

    Attributes:
        items: Read by index.
        names: Of the samples, as `DataSource.name_of` has them.
        views: How many consecutive items are views of one sample, see `Labelled.views`.
        boxes: Number of an item -> the part of its picture that it shows; none where items show no part of a picture.
    """

    items: Dataset[Any]
    names: tuple[str, ...]
    views: int = 1
    boxes: Callable[[int], Shown] | None = None


class DataSource:
    """Base class of data sources.

    Built from its options and the tokenizer's ``shapes``: modality -> shape without the batch, so that sizes are
    stated once.

    Attributes:
        samples_per_item: How many samples `finish` makes of each item that was read, such as several cuts of a file.
            A batch size counts items; speed and operations count samples.
        shows_whole: Every reading of an item shows all of it, and none is mirrored.
        item_seconds: The longest that reading an item may take; 0 is no limit.
        judges_anomalies: Class 0 of its test split is normal and all others abnormal; items of it may hold ``truth``,
            uint8 of the last axes of the modality: where they are abnormal; or int8, with -1 where nobody knows. It
            gives a `heat_map`.
    """

    samples_per_item: int = 1
    shows_whole: bool = False
    item_seconds: float = ITEM_SECONDS
    judges_anomalies: bool = False
    Config: ClassVar[type[Any]]
    ids: Mapping[str, int] = {}

    def __init__(self, config: Any, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.config, self.shapes = config, dict(shapes)

    def take_ids(self, ids: Mapping[str, int]) -> None:
        """How many ids each modality has whose values are ids, as the tokenizer says; called once, before anything is
        read. A source that learns something of its files first, such as a vocabulary, does so here. It keeps that in
        the option ``learned`` of its ``config``, a text that is written into the run's recipe, and is "" where nothing
        was learned yet.

        Raises:
            MimError: The files have other ids.
        """
        self.ids = ids

    @classmethod
    def suits(cls, options: Any, parts: Mapping[str, Any]) -> tuple[Mapping[str, Mapping[str, Any]], str]:
        """What a run should have on these data whose recipe was made for others: the options of its parts that follow
        from the files, such as the number of channels, and why, in words. Asked where the user names the data; what
        the user states is left as it is. As it stands here, nothing.

        Args:
            options: Of this source.
            parts: Role -> every part of the run, with its ``name`` and ``options``.

        Returns:
            (role -> option -> value, why).
        """
        return {}, ""

    def __len__(self) -> int:
        """Items for pre-training."""
        raise NotImplementedError

    def read(self, index: int, key: int) -> dict[str, Tensor]:
        """One augmented item, all draws from ``key``. Runs in a worker.

        Raises:
            BadSample: The file cannot be used.
        """
        raise NotImplementedError

    def name_of(self, index: int) -> str:
        """The item as the user knows it, such as its path."""
        return str(index)

    def items_named(self, names: Collection[str]) -> dict[str, int]:
        """Where the items are whose files have these names, such as those that ``skipped.jsonl`` lists: name -> number
        of the item. Names that no item has are left out. A source whose bad files may have other names than its items
        overrides it."""
        return {name: index for index in range(len(self)) if (name := self.name_of(index)) in names}

    def files_of(self, split: str = "pretrain") -> Iterator[tuple[str, ...]]:
        """The files that each item is read from, as paths, in the order of the items: those for pre-training, or of the
        labelled split "train" or "test". Their sizes and times tell whether kept features, and a run that goes on, are
        still of these files. As it stands here, an item's name is taken for its path below ``config.root``."""
        root = getattr(self.config, "root", None)
        names = map(self.name_of, range(len(self))) if split == "pretrain" else iter(self.labelled(split).names)
        return ((os.path.join(root, name),) if root else () for name in names)

    def give_views(self, views: tuple[View, ...]) -> bool:
        """Asks for other views of every sample beside the plain one; called once, before anything is read. True where
        the source gives them itself; otherwise each is another reading of the item by a key of its own, see
        `mim_core.data.viewed.Viewed`.

        Raises:
            ValueError: This source gives no such view.
        """
        return False

    def presence(self) -> Mapping[frozenset[str], tuple[int, str]]:
        """Which modalities items have, where some lack one (``MODALITY.present``): each set of modalities that occurs
        among the items for pre-training -> how many have it, and the name of one. Empty where every item has all."""
        return {}

    def advice(self) -> list[str]:
        """What is allowed and rarely meant in these data; said once when a run starts."""
        return []

    def contents(self) -> dict[str, str]:
        """What the files hold, said when a run starts and in the plan: label -> text. Which folders were taken for
        splits ("splits"), the classes ("classes"), files that were left out ("left out"), and what the others hold
        ("files hold"): bits, channels, pages, range, sizes, as far as a look at a few of them tells."""
        return {}

    def how_read(self) -> dict[str, Any]:
        """How evaluation makes inputs of files, beyond mean and deviation, for whoever runs an export elsewhere: text,
        numbers and lists, under timm's names where it has one (``crop_pct``, ``crop_mode``, ``interpolation``)."""
        return {}

    def finish(self, sample: Sample) -> Sample:
        """The rest of the work on a whole batch, on the device: conversion and normalisation. Pure."""
        return sample

    def labelled(self, split: str) -> Labelled:
        """The split "train" or "test" with labels.

        Raises:
            MimError: There are no labels; says what was looked for.
        """
        raise NotImplementedError

    def read_labelled(self, index: int, key: int) -> dict[str, Tensor]:
        """One item of the labelled training split with its ``label`` (int64), for training on labels; augmented like
        `read`, all draws from ``key``. Runs in a worker. As it stands here, there is no augmentation.

        Raises:
            BadSample: The file cannot be used.
        """
        split = self.labelled("train")
        return {**split.items[split.middle(index)], "label": split.labels[index]}

    def plain(self) -> PlainItems:
        """Every item for pre-training as evaluation would read it: without augmentation, and without labels. What the
        commands embed and predict read.

        Raises:
            MimError: This source reads its items only as training does.
        """
        raise MimError(
            f"{type(self).__name__} reads its items only as training does, augmented, so their features would be of "
            "random parts. A data source says how else by its method `plain` (docs/plugins.md)."
        )

    def file(self, modality: str, values: Tensor) -> tuple[str, bytes]:
        """One item of a modality, as `finish` left it or as a method predicts it, as a file: its ending and its
        content. As it stands here, its `picture`."""
        picture = self.picture(modality, values)
        return "." + picture.media_type.rpartition("/")[2], picture.content

    def held_out(self) -> Dataset[Any] | None:
        """Items that training never sees, by number and without augmentation, for pictures of data without labels."""
        return None

    def raw(self, sample: Sample) -> Tensor:
        """The input itself as one vector per sample [B, D], for the raw-input row of a table of scores. The sample may
        hold some of the modalities only."""
        first = next(name for name in self.shapes if name in sample)
        return sample[first].flatten(1)

    def picture(self, modality: str, values: Tensor) -> Picture:
        """One item of a modality, as `finish` left it, as a picture."""
        raise NotImplementedError

    def masked_picture(self, modality: str, values: Tensor, hidden: Tensor) -> Picture:
        """The same item as the tokenizer's `blank` left it; ``hidden``, bool of the shape of the values, is what the
        encoder did not see, for sources that can show it as nothing that a value looks like."""
        return self.picture(modality, values)

    def heat_map(self, modality: str, values: Tensor, scores: Tensor, highest: float) -> Picture:
        """The same item with scores of its places laid over it: nothing where one is 0, and the strongest colour from
        ``highest`` on.

        Raises:
            MimError: This source draws none.
        """
        raise MimError(f"{type(self).__name__} draws no heat maps.")

    def unit_picture(self, modality: str, values: Tensor, colours: Tensor, positions: Tensor) -> Picture | None:
        """The same item with a colour for each of its units, for sources whose units lie on no grid; those on one are
        drawn by the core. None: such units are not shown.

        Args:
            modality: Which one.
            values: The item, as `finish` left it.
            colours: [N, 3] of the units, in [0, 1].
            positions: [N, d], where they lie.
        """
        return None

    def animation(self, modality: str, values: Tensor) -> Picture | None:
        """The same item moving, such as a GIF, where it has a time; shown below the pictures."""
        return None

    def page(self, modality: str, rows: Mapping[str, Tensor], names: Sequence[str] = ()) -> str | None:
        """A self-contained HTML page to turn the samples by hand, where a still picture says too little. It should
        link back to ``report.html``, beside which it lies.

        Args:
            modality: Which one.
            rows: "input", "masked" and "rebuilt", each [B, ...] in the modality's own shape; "masked" is what the
                tokenizer's `blank` left.
            names: Of the samples; empty where they have none.
        """
        return None

    def controls(self) -> Mapping[str, Callable[[Sample], Sample]]:
        """Samples with something taken from them, by what it is, such as the order of frames: evaluation shows the
        pre-trained encoder on these too. They come as `finish` left them, with their ``index``."""
        return {}

    def plan(self) -> dict[str, str]:
        """What ``--dry-run`` says about the data: label -> text."""
        return {}


Sample = dict[str, Tensor]
"""A batch: modality name -> tensor, besides ``index`` int64 [B] (which file) and ``key`` int64 [B] (drives its
draws)."""
