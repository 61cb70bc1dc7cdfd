"""Pictures whose objects are known by boxes and masks: COCO's json beside a folder of pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mim_core import (
    BadSample,
    DataSource,
    Labelled,
    MimError,
    PlainItems,
    WrappedSource,
    counted,
    share_of,
)
from torch import Tensor
from torch.utils.data import Dataset

from mim_image import scenes
from mim_image.boxes import Jitter, check_scale, fitted, objects_of
from mim_image.coco_files import Instances, Pictured
from mim_image.coco_layouts import CocoSplits, coco_splits
from mim_image.data import SAMPLE, Images
from mim_image.files import ImageStore, Splits
from mim_image.pixels import bands_of

TINY = 1e-9
"""Share of a picture that is asked for where all of its pixels are wanted."""


class CocoImages(Images):
    """Pictures and their objects, as COCO's json says (arXiv 1405.0312). Read are COCO's own folder, Roboflow's, and
    any folder with a json of images, annotations and categories; the classes are its categories. Without a held-out
    json every fifth picture is held out. Pre-training reads the pictures as `Images` does. Evaluation and the
    commands embed and predict see the whole picture, as large as fits, in the upper left corner.

    A picture is turned upright as its EXIF says, and its size must be what the json says.
    """

    @dataclass(frozen=True)
    class Config(Images.Config):
        """Options of pictures with objects."""

        annotations: Path | None = None
        """The json for training; looked for in the root where it is not named. For predict: one that lists the files,
        whose ids of images the answers then have."""
        test_annotations: Path | None = None
        """The json of held-out pictures."""
        scale: tuple[float, float] = (0.5, 1.5)
        """Training on boxes shows a picture at a drawn scale between these, where 1 is the whole one as large as
        fits; ViTDet's is 0.1 to 2."""

    coco: CocoSplits | None

    def __init__(self, config: Config, shapes: Mapping[str, tuple[int, ...]]) -> None:
        check_scale(config.scale)
        for name, idle in (("labels_from", None), ("rand_augment", ""), ("erase", 0.0)):
            if getattr(config, name) != idle:
                raise MimError(
                    f"--data.{name.replace('_', '-')} is for classes of whole pictures; image:coco has boxes."
                )
        super().__init__(config, shapes)
        fill = (255 * torch.as_tensor(self.mean).flatten().float()).tolist()
        self.fill = fill * self.channels if len(fill) == 1 else fill
        self.jitter = Jitter(self.size, config.scale, config.flip, self.fill)

    def _open(self) -> Splits:
        self.coco = None
        root = self.config.root
        if not self.config.splits or root is None or not (self.bundled or root.is_dir()):
            return super()._open()  # one collection; or says what is wrong
        self.coco = (
            _scenes() if self.bundled else coco_splits(root, self.config.annotations, self.config.test_annotations)
        )
        return self.coco.splits()

    @property
    def categories(self) -> Mapping[int, str]:
        """Id -> name of the categories, rising; empty where pictures were read as one collection."""
        return {} if self.coco is None else self.coco.instances["train"].categories

    def how_read(self) -> dict[str, Any]:
        """The whole picture, in the corner of the input."""
        crop = "none: the whole picture, as large as fits, in the upper left corner"
        return {"crop": crop, "interpolation": "bilinear, antialiased"}

    def whole(self, store: ImageStore, index: int) -> Tensor:
        """All pixels of a picture [C, H, W], of 0 to 255."""
        return torch.from_numpy(bands_of(self._load(store, index, TINY), self.channels))

    def plain(self) -> PlainItems:
        """Whole pictures, with "picture": their size, and how large they are shown."""
        store = self.splits.pretrain
        return PlainItems(WholePictures(self, store), store.names())

    def labelled(self, split: str) -> Labelled:
        """Raises MimError: there are no classes of whole pictures."""
        raise MimError(
            "image:coco has boxes and no classes of whole pictures. To learn from boxes: mim-image finetune RUN "
            "--use method=image:detector --use data=image:coco --data.root FOLDER."
        )

    def contents(self) -> dict[str, str]:
        """The source's, with the categories and how many objects there are."""
        rows = super().contents()
        if self.coco is not None:
            names = list(self.categories.values())
            rows["classes"] = f"{len(names):,}: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
            rows["objects"] = "; ".join(f"{split} {_objects_in(truth)}" for split, truth in self.coco.instances.items())
        return rows

    def plan(self) -> dict[str, str]:
        """The source's, with what is in the pictures."""
        rows = super().plan()
        if self.coco is None:
            return rows
        root = "scenes made of the bundled sample" if self.bundled else str(self.config.root)
        train = self.coco.instances["train"]
        rows["data"] = f"{root}: {counted(len(train.pictures), 'picture')} for training, {_objects_in(train)}"
        rows["held out"] = f"{counted(len(self.splits.test), 'picture')}, {_objects_in(self.coco.instances['test'])}"
        return rows


def _scenes() -> CocoSplits:
    """Scenes of the bundled pictures."""
    stores, instances = {}, {}
    for split, count in scenes.COUNTS.items():
        array, instances[split] = scenes.compose(SAMPLE, split, count)
        stores[split] = ImageStore(SAMPLE / f"scenes-{split}", array=array)
    return CocoSplits(stores, instances)


def _objects_in(instances: Instances) -> str:
    """How many objects, and what is worth knowing of them."""
    objects = list(instances.objects())
    crowds, empty = sum(each.crowd for each in objects), sum(not picture.objects for picture in instances.pictures)
    more = [f"{crowds:,} of them crowds"] if crowds else []
    more += [f"{empty:,} pictures without any"] if empty else []
    return ", ".join([counted(len(objects), "object"), *more])


# ---- items -----------------------------------------------------------------------------------------------------------


class WholePictures(Dataset[Any]):
    """Whole pictures as large as fits, without augmentation."""

    def __init__(self, source: CocoImages, store: ImageStore, pictures: Sequence[Pictured] = ()) -> None:
        self.source, self.store, self.pictures = source, store, pictures

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        image = self.source.whole(self.store, index)
        if self.pictures:
            check_size(self.pictures[index], image)
        shown, sides = fitted(image, self.source.size, self.source.fill)
        return {"image": shown, "picture": sides}


def check_size(picture: Pictured, image: Tensor) -> None:
    """Raises BadSample where a picture has another size than its json says."""
    height, width = image.shape[-2:]
    if picture.size is not None and picture.size != (width, height):
        raise BadSample(
            picture.file, f"it is {width} x {height}, and its json says {picture.size[0]} x {picture.size[1]}"
        )


class BoxSource(WrappedSource):
    """Pictures with their boxes, and masks where they are asked for. Every item has as many rows as the fullest
    training picture has objects.

    Args:
        source: Has them.
        masks: Whether masks are read too.

    Raises:
        MimError: The source has no boxes, none for training, or masks are asked for and some objects have none.
    """

    def __init__(self, source: DataSource, masks: bool) -> None:
        super().__init__(source)
        inner: Any = source
        if not isinstance(source, CocoImages):
            raise MimError(
                "This method learns from boxes, as image:coco reads them. Say where they are: --use data=image:coco "
                "--data.root FOLDER."
            )
        if source.coco is None:
            raise MimError("All pictures were read as one collection, of which nothing says what is in them.")
        self.inner, self.masks, self.samples_per_item = source, masks, 1
        self.known: dict[str, tuple[Pictured, ...]] = {n: i.pictures for n, i in source.coco.instances.items()}
        self.split, self.chosen = share_of(self.pictures("train"), float(inner.config.labels))
        learned = [each for i in self.chosen.tolist() for each in self.known["train"][i].objects if not each.crowd]
        if not learned:
            raise MimError(f"{source.coco.instances['train'].path} has no object to learn from.")
        lacking = [each for each in learned if each.segmentation is None] if masks else []
        if lacking:
            raise MimError(
                f"{len(lacking):,} of {counted(len(learned), 'object')} have no segmentation (annotation "
                f"{lacking[0].id}), and mask-rcnn learns from masks. Learn from boxes alone: --method.head faster-rcnn."
            )
        self.rows = max(sum(not each.crowd for each in picture.objects) for picture in self.known["train"])

    def pictures(self, split: str) -> Labelled:
        """Whole pictures of "train" or "test"; the classes are none, since each object has its own."""
        store = self.inner.splits.train if split == "train" else self.inner.splits.test
        items = WholePictures(self.inner, store, self.known[split])
        labels = torch.zeros(len(store), dtype=torch.int64)
        return Labelled(split, labels, ("",), items, store.note, names=store.names())

    def __len__(self) -> int:
        return len(self.chosen)

    def name_of(self, index: int) -> str:
        """The picture's file."""
        return self.inner.splits.train.name(int(self.chosen[index]))

    def files_of(self, split: str = "pretrain") -> Iterator[tuple[str, ...]]:
        """The file of each picture, and the json that says what is in it."""
        kind, coco = "test" if split == "test" else "train", self.inner.coco
        json = () if coco is None or self.inner.bundled else (str(coco.instances[kind].path),)
        files = list(self.inner.files_of(kind))
        chosen = range(len(files)) if kind == "test" else self.chosen.tolist()
        return ((*files[index], *json) for index in chosen)

    def read(self, index: int, key: int) -> dict[str, Tensor]:
        """A training picture at a drawn scale, perhaps mirrored, with "boxes", "classes" and perhaps "masks", see
        `Objects.padded`.

        Raises:
            BadSample: The objects of the picture cannot be used.
        """
        number, inner = int(self.chosen[index]), self.inner
        picture = self.known["train"][number]
        image = inner.whole(inner.splits.train, number)
        check_size(picture, image)
        size = (image.shape[-1], image.shape[-2])
        try:
            objects = objects_of(picture.objects, tuple(inner.categories), size, self.masks)
        except ValueError as error:
            raise BadSample(picture.file, str(error)) from error
        image, jittered = inner.jitter(image, objects, key)
        return {"image": image, **jittered.padded(self.rows)}

    def plan(self) -> dict[str, str]:
        """The source's, and how many pictures are learned from."""
        share = f" of {len(self.known['train']):,}" if float(self.inner.config.labels) else ""
        return {**self.inner.plan(), "labels": f"{len(self):,} pictures{share} with boxes"}
