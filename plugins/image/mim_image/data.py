"""Images on disk: a folder of files or of tar files, MNIST's idx files, or the bundled sample. Read with Pillow,
cropped with torchvision, drawn by key."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from mim_core import (
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
    Strong,
    View,
    counted,
    one_line,
    randomness,
    read_label_table,
    unpaired,
    usual_statistics,
    with_table_beside,
)
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from mim_image import suiting
from mim_image.dicom import ENDINGS, require
from mim_image.files import ImageStore, Splits, folder_splits, tar_splits
from mim_image.formats import EXTENSIONS, UnsupportedKind, refuse_large
from mim_image.idx import idx_files, idx_splits
from mim_image.looking import Look, look, notice, pages_of
from mim_image.pixels import bands_of, convert_mode, upright_size
from mim_image.shards import packed
from mim_image.tokenizer import ImagePatchTokenizer
from mim_image.views import ImageViews

SAMPLE = Path(__file__).parent / "sample"
STRONG_PIXELS = (
    "Raw pixels are strong on these small centred pictures: 100 epochs pass them in every column, 20 do not "
    "(docs/results/fashion-mnist.md)."
)


class Images(DataSource):
    """Images for pre-training, and with their classes for evaluation. Any size will do, one pixel or very wide ones
    too; what cannot be decoded is bad.

    Folders that are named like splits (``train``, ``val``, ``test`` and their like, see `mim_core.collections`) are
    read as these; any other root is one collection, nested as it likes. Classes are the names of the first folder level
    that is no split. Without a held-out split a fifth of each class is held out by its position.

    Grey of more than 8 bits keeps its levels. Of four channels each is resized on its own. Of a file of several pages
    the first is read. What the files hold is looked at before a run, and what is left out of them is said.

    A root without loose images is read from its tar files, named as webdataset names them: a sample is the members of
    one key, which is the path up to the first dot of its name, and its class is ``KEY.cls``, or a key of ``KEY.json``.
    Splits are the same folders, or words in the names of the tar files. Of several images of a key that with the
    shortest ending is read; links are not followed.
    """

    @dataclass(frozen=True)
    class Config:
        """Options of the image data."""

        root: Path | None = None
        """Folder of images, of .tar shards of them (or one such file), or of MNIST's idx files; "sample" is the bundled
        one, 10,000 + 2,000 images of Fashion-MNIST."""
        splits: bool = True
        """Whether folders named like splits are read as these, and others as classes. Without, all files are one
        collection, as the commands embed and predict read them."""
        crop: tuple[float, float] = (0.2, 1.0)
        """Random resized crop: smallest and largest share of the image's area."""
        flip: float = 0.5
        """Chance of a horizontal flip."""
        evaluate_crop: float = 1.0
        """Evaluation takes the centre: this share of the shorter side. ImageNet's habit is 0.875."""
        mean: tuple[float, ...] | None = None
        """Per channel, of values in [0, 1]. None: ImageNet's for colour, 0.5 otherwise."""
        std: tuple[float, ...] | None = None
        """The same for the standard deviation."""
        range: tuple[float, float] | None = None
        """Values of grey files with more than 8 bits that become 0 and 1, such as 0 4095 for a camera of 12 bits; what
        lies beyond is cut. None: the whole range of 16 bits; floats and 32-bit files need it."""
        view_shift: int = 31
        """Where a method asks for a second view, it lies up to so many pixels to the right and below of the first,
        in a crop that is larger by one pixel more (CMAE)."""
        view_place: Literal["shift", "own"] = "shift"
        """Where it lies: so near the first, or in a random crop of its own (MoCo, DINO)."""
        view_changes: Literal["second", "all"] = "second"
        """Which views are changed in colour as the next options say, where a method asks for several: the second, or
        the first too. Local views always are."""
        view_colour: float = 0.4
        """The second view's brightness, contrast and saturation change by up to so much, and its hue by a quarter of
        that, in four of five images; grey images have the first two."""
        view_grey: float = 0.2
        """Chance that a second view in colour loses it."""
        view_blur: float = 0.5
        """Chance that it is blurred, with a deviation of 0.1 to 2 pixels."""
        view_solarize: float = 0.0
        """Chance that values of its upper half are turned around."""
        local_crop: tuple[float, float] = (0.05, 0.4)
        """Where a method asks for local views: smallest and largest share of the image's area that one shows (DINO)."""
        labels_from: Path | None = None
        """Table of labels: a csv or tsv file whose first line names a column of files and one of labels (and perhaps
        one of splits), or a list of a path and a label in each line. None: ROOT/labels.csv, where no folders are
        classes."""
        labels_column: str = ""
        """Its column of labels, or in shards the key of KEY.json; empty: label, class, category or target."""
        rand_augment: str = ""
        """Training on labels: timm's RandAugment, such as rand-m9-mstd0.5-inc1; empty: none."""
        erase: float = 0.0
        """Training on labels: chance that a box is filled with noise."""
        labels: float = 0.0
        """Training on labels uses so many labelled samples, each class by its share; below 1 it is that share of
        each; 0: all. Which ones follows from their names."""
        max_bad: float = 0.5
        """Largest share of unreadable files; beyond it the run stops. Each is named in skipped.jsonl."""

    def __init__(self, config: Config, shapes: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__(config, shapes)
        if set(shapes) != {"image"} or len(shapes["image"]) != 3:
            raise ValueError(
                f"image data gives 'image' [C, H, W]; the tokenizer wants "
                f"{', '.join(f'{k} {v}' for k, v in shapes.items())}"
            )
        self.channels, *size = shapes["image"]
        self.size = (size[0], size[1])
        if self.channels not in (1, 3, 4):
            raise ValueError(
                f"image files have 1 (grey), 3 (colour) or 4 (colour and opacity, or four bands) channels, not "
                f"{self.channels}; for files of other numbers of bands, write a data source (docs/plugins.md)"
            )
        low, high = config.crop
        if not 0 < low <= high <= 1:
            raise ValueError(f"crop must be two rising shares in (0, 1], got {config.crop}")
        for name, value in (("flip", config.flip), ("max_bad", config.max_bad)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {value}")
        if not 0 < config.evaluate_crop <= 1:
            raise ValueError(f"evaluate_crop must lie in (0, 1], got {config.evaluate_crop}")
        if config.range is not None and not config.range[0] < config.range[1] < float("inf"):
            raise ValueError(f"range must be two rising numbers, got {config.range}")
        self.normalisation = self._normalisation()
        self.mean, self.std = self.normalisation.mean, self.normalisation.std
        self.bundled = config.root == Path("sample") and not Path("sample").exists()
        self.no_table = ""
        self.splits = self._open()
        for store in (self.splits.pretrain, self.splits.train, self.splits.test):
            if (file := next((name for name in store.files if name.lower().endswith(ENDINGS)), None)) is not None:
                require(file)  # here, so that it is told before a run begins
        self._look: Look | None = None
        self._warnings: SaidOnce | None = None
        shape = self.size[1] / self.size[0]  # a crop is about as wide as the input is, so that nothing is stretched
        crop = v2.RandomResizedCrop(
            self.size,
            scale=config.crop,
            ratio=(3 / 4 * shape, 4 / 3 * shape),
            interpolation=v2.InterpolationMode.BICUBIC,
            antialias=True,
        )
        self.augment = v2.Compose([crop, v2.RandomHorizontalFlip(config.flip)])
        self.views: ImageViews | None = None
        fill = [round(255 * value) for value in torch.as_tensor(self.mean).flatten().tolist()] * (
            3 if self.channels == 1 else 1
        )
        self.strong = Strong(config.rand_augment, config.erase, self.size, fill[:3])

    @classmethod
    def suits(cls, options: Any, parts: Mapping[str, Any]) -> tuple[Mapping[str, Mapping[str, Any]], str]:
        """The channels of the pictures, and a size of at most 64 pixels, for a recipe made for smaller or grey ones;
        mean and deviation are then the usual ones."""
        tokenizer = parts["tokenizer"].options if "tokenizer" in parts else None
        if not isinstance(tokenizer, ImagePatchTokenizer.Config) or not suiting.is_small(tokenizer):
            return {}, ""
        try:
            source = cls(replace(options, mean=None, std=None), {"image": (1, *tokenizer.size)})
            seen = look(source.splits.pretrain, 1, options.range)
        except (MimError, ValueError):  # told when the run is built
            return {}, ""
        kinds = ", ".join(f"{number} of {kind}" for kind, number in seen.kinds.most_common(3))
        why = f"the recipe was made for other pictures ({options.root}: {kinds})"
        return suiting.changes(seen, parts), why

    def _normalisation(self) -> Normalisation:
        mean, std = usual_statistics(self.config.mean, self.config.std, self.channels)
        return Normalisation(mean, std, self.channels, axes=2)

    def _open(self) -> Splits:
        root = self.config.root
        if root is None:
            raise MimError(
                "Which images? Name a folder with --data.root FOLDER, or the bundled sample with --data.root sample."
            )
        if self.bundled:
            return idx_splits(SAMPLE)
        if root.is_file() and (packed(root.name) or root.suffix.lower() == ".tar"):
            return tar_splits(root, self.config.labels_column)
        if not root.is_dir():
            kind = "is not a folder" if root.exists() else "does not exist"
            raise MimError(
                f"--data.root {root} {kind}. It should be a folder of images ({', '.join(EXTENSIONS)}), or of .tar "
                "files of them, nested or not."
            )
        if idx_files(root):
            return idx_splits(root)
        named = self.config.labels_from
        if named is not None and self.config.splits:
            return folder_splits(root, table=read_label_table(named, self.config.labels_column))
        column = self.config.labels_column
        splits = folder_splits(root, self.config.splits, None, column)
        if not self.config.splits:
            return splits
        classes, shards = splits.train.classes is not None, splits.train.shards is not None
        splits, self.no_table = with_table_beside(
            splits, lambda table: folder_splits(root, table=table), root, column, classes, shards
        )
        return splits

    def __len__(self) -> int:
        return len(self.splits.pretrain)

    def name_of(self, index: int) -> str:
        """The file's path; of an image in a shard, that of the shard and its name there."""
        return self.splits.pretrain.name(index)

    def files_of(self, split: str = "pretrain") -> Iterator[tuple[str, ...]]:
        """The file of each image of a split."""
        stores = {"pretrain": self.splits.pretrain, "train": self.splits.train, "test": self.splits.test}
        return stores[split].paths()

    def advice(self) -> list[str]:
        """Files and members that are there and not used, and what the others hold that is not.

        Raises:
            MimError: Most of the files are of a kind that cannot be read.
        """
        notes = (self.no_table,) if self.no_table else ()
        stores = (*self.splits.pretrain.advice, *self.splits.test.advice)
        lines = (*stores, *notes, *self._seen().advice(self.config.range))
        return [_shown(line) for line in dict.fromkeys(lines)]

    def _seen(self) -> Look:
        if self._look is None:
            self._look = look(self.splits.pretrain, self.channels, self.config.range)
            if self._look.looked < len(self):
                self._warnings = SaidOnce((*self._look.kinds, *self._look.unused))
        self._look.refuse(self.config.max_bad)
        return self._look

    def contents(self) -> dict[str, str]:
        """Splits, classes, what was left out, and what some of the files hold."""
        store, classes = self.splits.pretrain, self.splits.train.classes or ()
        named = ", ".join(classes[:5]) + (", ..." if len(classes) > 5 else "")
        texts = {
            "splits": store.splits or self._without_splits(),
            "classes": f"{len(classes):,}: {named}" if classes else "",
            "left out": store.left_out,
            "files hold": self._seen().holds(),
        }
        return {label: _shown(text) for label, text in texts.items() if text}

    def _without_splits(self) -> str:
        """What stands for splits where no folder is one."""
        if self.splits.train is self.splits.pretrain:
            return f"as the files have them: {len(self):,} for training, {len(self.splits.test):,} held out"
        held = len(self.splits.test)
        probes = f", {held:,} of them are held out from the probes alone" if held else ""
        return f"none: all images are for pre-training{probes}"

    def _load(self, store: ImageStore, index: int, smallest: float) -> Image.Image:
        """The image in the wanted mode. Large JPEGs are decoded at a reduced size that still covers the smallest
        crop."""
        try:
            # a large picture is no attack: one that is too large to decode raises an error of its own
            large = warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning)
            with large, store.open(index) as image:
                pages = pages_of(image, self.channels)
                if self._warnings is not None and self._look is not None:
                    notice(self._warnings, image, store.name(index), pages, self.channels, self._look.looked)
                side = max(self.size) / smallest**0.5
                full = image.width * image.height
                image.draft(None, (int(side) + 1, int(side) + 1))
                refuse_large(image, full)
                return convert_mode(image, self.channels, self.config.range)
        except UnidentifiedImageError as error:
            raise BadSample(store.name(index), "not an image of a kind that is read") from error
        except UnsupportedKind as error:
            raise BadSample(store.name(index), str(error)) from error
        except Exception as error:  # Pillow raises many kinds; whatever it is, the file is named and replaced
            raise BadSample(store.name(index), one_line(error)) from error

    def read(self, index: int, key: int) -> dict[str, Tensor]:
        """A random crop, perhaps flipped, as uint8 [C, H, W]; as float32 in the same units, where the file has more
        bits."""
        if self.views is not None:
            return self.views(self._load(self.splits.pretrain, index, self.config.crop[0]), key)
        return {"image": self._cropped(self.splits.pretrain, index, key)}

    def give_views(self, views: tuple[View, ...]) -> bool:
        """All kinds, see `mim_image.views`."""
        self.views = ImageViews(self.config, self.size, self.channels, views)
        self.samples_per_item = 2 if self.views.pair else 1
        return True

    def read_labelled(self, index: int, key: int) -> dict[str, Tensor]:
        """The same of an image of the training split, augmented more where the options say so, with its class as int64
        ``label``."""
        store = self.splits.train
        image = self._cropped(store, index, key, self.strong)
        return {"image": self.strong.erased(image, key), "label": torch.tensor(store.labels[index])}

    def _cropped(self, store: ImageStore, index: int, key: int, strong: Strong | None = None) -> Tensor:
        image = self._before_crop(store, index)
        with torch.random.fork_rng(devices=[]):  # torchvision draws from the global generator
            torch.default_generator.manual_seed(randomness.torch_seed(key, "augment"))
            image = self.augment(image)
        if strong is not None and strong.transform is not None:
            if image.mode not in ("L", "RGB"):
                raise BadSample(store.name(index), f"RandAugment takes grey or RGB of 8 bits, not {image.mode}")
            image = strong.pictures([image.convert("RGB")], key)[0].convert(image.mode)
        return torch.from_numpy(bands_of(image, self.channels))

    def _before_crop(self, store: ImageStore, index: int) -> Image.Image:
        return self._load(store, index, self.config.crop[0])

    def how_read(self) -> dict[str, Any]:
        """The shorter side is resized to the size by ``crop_pct`` and the other in proportion, both rounded; then the
        centre is taken."""
        return {"crop_pct": self.config.evaluate_crop, "crop_mode": "center", "interpolation": "bicubic"}

    def finish(self, sample: Sample) -> Sample:
        """Values from 0 to 255 to float32, with mean 0 and deviation 1 over the data."""
        if sample["image"].ndim > 4:  # two samples of each item
            sample = unpaired(sample)
        views = {name: sample[name] for name in ("image", "image_target") if name in sample}
        done: Sample = {name: self.normalisation.of_bytes(value) for name, value in views.items()}
        if (local := sample.get("image_local")) is not None:
            flat = self.normalisation.of_bytes(local.flatten(0, 1))
            done["image_local"] = flat.unflatten(0, local.shape[:2])
        return {**sample, **done}

    def labelled(self, split: str) -> Labelled:
        """Images with their class; the classes of both splits are the same.

        Raises:
            MimError: There are no classes.
        """
        store = self.splits.train if split == "train" else self.splits.test
        if store.classes is None and store.shards is not None:
            raise MimError(
                f"{self.config.root} has no classes to evaluate with: looked in its shards for a .cls beside each "
                "image, such as 000.jpg and 000.cls, which holds the class as text, or for a .json with a key label or "
                "class; at least two classes."
                + (" A .json was seen: name its key with --data.labels-column." if ".json" in store.left_out else "")
            )
        if store.classes is None:
            raise MimError(
                f"{self.config.root} has no classes to evaluate with: images should lie in one folder per class, at "
                f"least two, such as "
                f"{self.config.root}/cat/1.jpg and {self.config.root}/dog/1.jpg; or in train/CLASS and test/CLASS."
                + (f" {self.no_table}" if self.no_table else _tables(store.root))
            )
        labels = torch.tensor(store.labels, dtype=torch.int64)
        note = STRONG_PIXELS if self.bundled else store.note
        return Labelled(split, labels, store.classes, CenterCrops(self, store), note, names=store.names())

    def plain(self) -> PlainItems:
        """Images as evaluation reads them: the centre of each."""
        items = CenterCrops(self, self.splits.pretrain)
        return PlainItems(items, self.splits.pretrain.names(), boxes=items.box)

    def raw(self, sample: Sample) -> Tensor:
        """The pixels in [0, 1], not centred; of images above 32 x 32, the means of a 32 x 32 grid."""
        x = self.normalisation.undone(sample["image"])
        if max(self.size) > 32:
            x = torch.nn.functional.adaptive_avg_pool2d(x, 32)
        return x.flatten(1)

    def picture(self, modality: str, values: Tensor) -> Picture:
        """[C, H, W] as PNG, without a fourth channel, at least 112 pixels wide so that small images can be seen."""
        pixels = self.normalisation.to_bytes(values)
        pixels = pixels[:3] if len(pixels) == 4 else pixels  # where the fourth is 0, it would hide the others
        image = v2.functional.to_pil_image(pixels)
        factor = max(1, -(-112 // image.width))
        image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
        content = io.BytesIO()
        image.save(content, "png")
        return Picture("image/png", content.getvalue())

    def heat_map(self, modality: str, values: Tensor, scores: Tensor, highest: float) -> Picture:
        """Grey pixels under red to yellow scores [H, W]."""
        grey = self.normalisation.undone(values[None])[0][:3].mean(dim=0).clamp(0, 1)
        share = (scores.float() / max(highest, 1e-12)).clamp(0, 1)
        hot = torch.stack([torch.ones_like(share), (2 * share - 1).clamp(0, 1), torch.zeros_like(share)])
        mixed = grey * (1 - share) + hot * share
        image = v2.functional.to_pil_image((mixed * 255).round().to(torch.uint8).cpu())
        factor = max(1, -(-112 // image.width))
        image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
        content = io.BytesIO()
        image.save(content, "png")
        return Picture("image/png", content.getvalue())

    def plan(self) -> dict[str, str]:
        """Where images come from, how many, their classes, and how they are normalised."""
        root = "the bundled sample (Fashion-MNIST, MIT licence)" if self.bundled else str(self.config.root)
        classes = counted(len(self.splits.train.classes or ()), "class", "classes")
        shards = self.splits.pretrain.shards
        where = "" if shards is None else f" in {counted(len(shards.tars), 'shard')}"
        mean, std = (", ".join(f"{v:.3f}" for v in t.flatten().tolist()) for t in (self.mean, self.std))
        own = self.splits.train is self.splits.pretrain
        return {
            "data": f"{root}: {counted(len(self), 'image')}{where} for training, {classes}",
            "held out": f"{counted(len(self.splits.test), 'image')}, "
            + ("a split of their own" if own else "a fifth, from the probes alone; training sees them without labels"),
            "normalised by": f"mean {mean}, deviation {std}",
        }


def _shown(text: str) -> str:
    """Text with names of files, in characters that can be printed."""
    text = text.encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _tables(root: Path) -> str:
    """Says that a table was seen, which may hold the classes."""
    tables = sorted(path.name for path in root.iterdir() if path.suffix.lower() in (".csv", ".tsv", ".json", ".jsonl"))
    if not tables:
        return ""
    seen = f"{', '.join(tables[:3])} {'was' if len(tables) == 1 else 'were'} seen"
    return f" {seen}; a table of files and classes is named with --data.labels-from."


class CenterCrops(Dataset[Any]):
    """Images without augmentation: the shorter side resized, the centre taken."""

    def __init__(self, source: Images, store: ImageStore) -> None:
        self.source, self.store = source, store

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        image = self.source._load(self.store, index, self.source.config.evaluate_crop**2)
        height, width = self.source.size
        if image.size != (width, height):
            covered = self._covered(*image.size)
            image = v2.functional.resize(image, covered, interpolation=v2.InterpolationMode.BICUBIC, antialias=True)
            image = v2.functional.center_crop(image, [height, width])
        return {"image": torch.from_numpy(bands_of(image, self.source.channels))}

    def _covered(self, width: int, height: int) -> list[int]:
        """Height and width that an image of this size is brought to before its centre is taken."""
        size = self.source.size
        scale = max(size[0] / height, size[1] / width) / self.source.config.evaluate_crop
        return [max(size[0], round(height * scale)), max(size[1], round(width * scale))]

    def box(self, index: int) -> Shown:
        """The part of an image that is shown."""
        with self.store.open(index) as image:
            width, height = upright_size(image)
        size = self.source.size
        if (height, width) == size:
            return Shown(0, 0, width, height)
        covered = self._covered(width, height)
        y, x = height / covered[0], width / covered[1]
        top, left = (round((whole - own) / 2) for whole, own in zip(covered, size, strict=True))
        return Shown(left * x, top * y, size[1] * x, size[0] * y)
