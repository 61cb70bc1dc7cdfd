"""Pictures of which some are abnormal: training sees normal ones alone, evaluation is told which and where."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mim_core import DataSource, Labelled, MimError, PlainItems, Shown, counted
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from mim_image.anomaly_layouts import (
    AnomalySplits,
    Box,
    mixed,
    of_classes,
    of_defects,
    of_table,
    refuse,
    table_of,
    with_folder,
)
from mim_image.data import Images
from mim_image.files import ImageStore, Splits
from mim_image.formats import open_image
from mim_image.pixels import bands_of, upright_size


class Anomalies(Images):
    """Collections with normal and abnormal pictures, as they lie on disk. Training sees normal ones alone; class 0 of
    the test split is normal and class 1 abnormal. Whole pictures are resized to the input's size, so that no defect is
    cut away, and training crops lie in them.

    Read are MVTec AD and BTAD (one object at a time), VisA (with its ``split_csv/1cls.csv``), NIH ChestX-ray14 and RSNA
    (with their csv files and boxes; pictures as PNG, JPEG or DICOM), and any folder of classes of which ``normal``
    names one.
    """

    judges_anomalies = True

    @dataclass(frozen=True)
    class Config(Images.Config):
        """Options of data with anomalies."""

        normal: str = ""
        """Of a folder of classes: the one that is normal; all others are abnormal."""
        object: str = ""
        """Of VisA: which object."""
        table: Path | None = None
        """A table of labels with VisA's, NIH's or RSNA's columns; those of the usual names are found by themselves."""

        mix: float | None = None
        """Make an unlabelled set of the collection itself, for methods that learn from one too: every second normal
        training picture, and abnormal ones that are in no test, which are this share of it."""
        unlabelled: Path | None = None
        """Or a folder of pictures that may be normal or abnormal."""

    def _open(self) -> Splits:
        self.found: AnomalySplits | None = None
        if not self.config.splits or self.config.root is None:
            return super()._open()
        self.found = self._arranged(self.config.root)
        if self.config.mix is not None and self.config.unlabelled is not None:
            raise MimError("Say --data.mix or --data.unlabelled, not both.")
        if self.config.mix is not None:
            self.found = mixed(self.found, self.config.mix, self.config.root)
        if self.config.unlabelled is not None:
            self.found = with_folder(self.found, self.config.unlabelled)
        return self.found.splits()

    def _arranged(self, root: Path) -> AnomalySplits:
        """The first of the layouts that this is."""
        config = self.config
        if config.normal:
            return of_classes(super()._open(), config.normal, root)
        if self.bundled:
            raise MimError("The bundled sample has ten classes; name the normal one, such as: --data.normal bag")
        if not root.is_dir():
            super()._open()  # raises where there is nothing to open
            raise MimError(f"{root} says nothing of what is abnormal; of a file with classes: --data.normal CLASS")
        table = table_of(root, config.table)
        if table is not None:
            return of_table(root, table, config.object)
        splits = of_defects(root)
        if splits is None:
            raise refuse(root)
        return splits

    def labelled(self, split: str) -> Labelled:
        """Pictures with 0 for normal and 1 for abnormal; those of the test split with ``truth``, where the
        collection has masks, uint8 [H, W], or boxes, int8: -1 where a picture is abnormal and has no box.

        Raises:
            MimError: Some masks are missing while others are there; or the source reads all files as one collection.
        """
        if self.found is None:
            raise MimError("All files were read as one collection, of which nothing says what is abnormal.")
        store = self.splits.train if split == "train" else self.splits.test
        judged = split == "test"
        if judged and self.found.lacking:
            raise MimError(f"{self.found.lacking} to judge whole pictures alone.")
        labels = torch.tensor(store.labels, dtype=torch.int64)
        items = Whole(self, store, self.found.masks if judged else (), self.found.boxes if judged else ())
        assert store.classes is not None
        return Labelled(split, labels, store.classes, items, names=store.names())

    def how_read(self) -> dict[str, Any]:
        """Whole pictures, so that no defect is cut off."""
        return {"crop": "none: whole pictures are resized to the input's size", "interpolation": "bicubic"}

    def read(self, index: int, key: int) -> dict[str, Tensor]:
        """As other images; where some are unlabelled with ``unlabelled``, int64: 1 for these."""
        item = super().read(index, key)
        if self.found is not None and self.found.unlabelled is not None:
            item["unlabelled"] = torch.tensor(int(index >= len(self.found.train)))
        return item

    def plain(self) -> PlainItems:
        """Whole pictures as evaluation reads them."""
        items = Whole(self, self.splits.pretrain)
        return PlainItems(items, self.splits.pretrain.names(), boxes=items.box)

    def _before_crop(self, store: ImageStore, index: int) -> Image.Image:
        """The whole picture, resized first as evaluation does."""
        return self.whole(store, index)

    def whole(self, store: ImageStore, index: int) -> Image.Image:
        """The whole picture at the input's size."""
        image = self._load(store, index, 1.0)
        height, width = self.size
        return image if image.size == (width, height) else image.resize((width, height), Image.Resampling.BICUBIC)

    def plan(self) -> dict[str, str]:
        """What images have, and what is judged."""
        rows = super().plan()
        if self.found is None:
            return rows
        abnormal = sum(self.found.test.labels)
        masks = sum(bool(mask) for mask in self.found.masks or self.found.boxes)
        marked = "boxes" if self.found.boxes else "masks"
        other = 0 if self.found.unlabelled is None else len(self.found.unlabelled)
        also = f", and {other:,} unlabelled" if other else ""
        judged = f"{len(self.found.test):,} to be judged, {abnormal:,} of them abnormal"
        return {
            **rows,
            "data": f"{self.config.root}: {counted(len(self.found.train), 'normal picture')} for training{also}",
            "held out": f"{judged}, {masks:,} with {marked}",
        }


def refuse_unlabelled(source: DataSource) -> None:
    """For methods that take every training picture for normal.

    Raises:
        MimError: Some of the data's are unlabelled.
    """
    splits = getattr(source, "found", None)
    if isinstance(splits, AnomalySplits) and splits.unlabelled is not None:
        raise MimError(
            "This method takes every training picture for normal, and some of these are unlabelled: leave --data.mix "
            "and --data.unlabelled out. AMAE's second step (amae-2) learns from unlabelled ones."
        )


class Whole(Dataset[Any]):
    """Whole pictures without augmentation, and where they are abnormal."""

    def __init__(
        self,
        source: Anomalies,
        store: ImageStore,
        masks: tuple[str, ...] = (),
        boxes: tuple[tuple[Box, ...] | None, ...] = (),
    ) -> None:
        self.source, self.store, self.masks, self.boxes = source, store, masks, boxes

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, index: int) -> Mapping[str, Tensor]:
        image = self.source.whole(self.store, index)
        sample = {"image": torch.from_numpy(bands_of(image, self.source.channels))}
        if self.masks:
            sample["truth"] = self._truth(index)
        elif self.boxes:
            sample["truth"] = self._boxes(index)
        return sample

    def box(self, index: int) -> Shown:
        """The whole picture."""
        with self.store.open(index) as image:
            return Shown(0, 0, *upright_size(image))

    def _boxes(self, index: int) -> Tensor:
        """1 within a picture's boxes, int8 [H, W]; all -1 where they are not known."""
        height, width = self.source.size
        boxes = self.boxes[index]
        if boxes is None:
            return torch.full((height, width), -1, dtype=torch.int8)
        truth = torch.zeros(height, width, dtype=torch.int8)
        for left, top, wide, high in boxes:
            x, y = round(left * width), round(top * height)
            truth[y : max(y + 1, round((top + high) * height)), x : max(x + 1, round((left + wide) * width))] = 1
        return truth

    def _truth(self, index: int) -> Tensor:
        """Where a picture is abnormal, uint8 [H, W]: any value of its mask that is not 0.

        Raises:
            MimError: The mask is missing, cannot be read, or is of another size than its picture.
        """
        height, width = self.source.size
        if not self.masks[index]:
            return torch.zeros(height, width, dtype=torch.uint8)
        path = self.store.root / self.masks[index]
        try:
            with open_image(path) as mask, self.store.open(index) as picture:
                if mask.size != picture.size:
                    raise MimError(
                        f"{path} is {mask.width} x {mask.height}, and its picture {self.store.name(index)} "
                        f"{picture.width} x {picture.height}: a mask must be of its picture's size."
                    )
                flags = np.asarray(mask)
        except (OSError, ValueError) as error:
            raise MimError(f"The mask {path} of {self.store.name(index)} cannot be read: {error}.") from error
        flags = (flags if flags.ndim == 2 else flags[..., :3].max(axis=-1)) > 0
        small = Image.fromarray(flags.astype(np.uint8)).resize((width, height), Image.Resampling.NEAREST)
        return torch.from_numpy(np.array(small))
