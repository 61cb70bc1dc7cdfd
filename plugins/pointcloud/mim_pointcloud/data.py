"""Clouds from shapes on disk: a folder of meshes or clouds, ShapeNet, ModelNet, ScanObjectNN, ShapeNetPart, or the
bundled sample. Points are drawn from the file, put into the unit sphere and augmented; all draws come from the sample's
key."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import torch
from mim_core import (
    BadSample,
    DataSource,
    Labelled,
    MimError,
    Picture,
    PlainItems,
    Sample,
    counted,
    did_you_mean,
    left_out,
    randomness,
    read_label_table,
    with_table_beside,
)
from torch import Tensor
from torch.utils.data import Dataset

from mim_pointcloud import written
from mim_pointcloud.augmentation import Axis, choose_points, rotate, scale_and_shift, to_unit_sphere
from mim_pointcloud.columns import check_names
from mim_pointcloud.description import describe
from mim_pointcloud.files import EXTENSIONS, LARGEST, read_cloud, reason_of
from mim_pointcloud.files_array import mapped
from mim_pointcloud.files_gltf import buffers_beside
from mim_pointcloud.layouts import Shapes, ShapeStore, every_shape, find_shapes
from mim_pointcloud.layouts_hdf5 import row_of
from mim_pointcloud.layouts_store import DRAWN, shown
from mim_pointcloud.limits import check_file
from mim_pointcloud.looking import TEXTURES, Looks, check_columns, files_hold, looks_at, rarely_meant
from mim_pointcloud.part_files import part_rows

SAMPLE = Path(__file__).parent / "sample"
RAW_NOTE = "The raw input is 45 histogram features of a cloud, because its points have no order."
DRAWS = "an item without augmentation"
"""Stream of the points that evaluation takes: one for all shapes, so that neither names nor the other files count."""


class Clouds(DataSource):
    """Clouds for pre-training, and with their classes for evaluation and fine-tuning.

    Where every point has a part (ShapeNetPart and what is laid out like it), labelled items also hold ``"parts"`` int64
    [P], numbered as in ``parts``.

    Attributes:
        found: The shapes on disk.
        parts: Class name -> numbers of its parts; empty without parts.
        up: The axis that points up.
    """

    @dataclass(frozen=True)
    class Config:
        """Options of the point cloud data."""

        root: Path | None = None
        """Folder of meshes or clouds, or of ShapeNet, ModelNet, ScanObjectNN or ShapeNetPart as unpacked; "sample" is
        the bundled one, 820 pieces of furniture and other things of a house."""
        layout: Literal[
            "auto", "folder", "shapenet55", "shapenetcore", "modelnet40", "scanobjectnn", "shapenetpart", "sample"
        ] = "auto"
        """How files and classes lie in the folder; auto recognises each."""
        splits: bool = True
        """Whether folders named like splits are read as these, and others as classes. Without, all files are one
        collection, as the commands embed and predict read them."""
        labels_from: Path | None = None
        """Table of labels: a csv or tsv file whose first line names a column of shapes and one of labels (and perhaps
        one of splits), or a list of a path and a label in each line. None: ROOT/labels.csv, where no folders are
        classes."""
        labels_column: str = ""
        """Its column of labels; empty: label, class, category or target."""
        variant: str | None = None
        """ScanObjectNN's obj_bg, obj_only or pb_t50_rs; modelnet40 or modelnet10 where there are lists of both."""
        whole: bool = False
        """Pre-train on the test split too, without labels."""
        choose: Literal["random", "farthest"] = "random"
        """How points are chosen: at random, or the farthest ones of `candidates` random ones."""
        candidates: int = 8192
        """Points read or sampled from a file when the farthest are chosen. At random, those wanted are drawn at
        once."""
        channels: tuple[Literal["xyz", "normals", "rgb"], ...] = ("xyz",)
        """What a point holds, in this order; xyz is first. The tokenizer states how many values that makes."""
        columns: tuple[str, ...] = ()
        """What the columns of text and arrays are, where the files do not say it, such as x y z intensity r g b: of the
        names x y z, nx ny nz and r g b, and any other for a column that is not looked at. Where it is empty, values
        decide, if they are certain."""
        normalise: bool = True
        """Centre each cloud and scale it into the unit sphere, after its points are chosen."""
        augment: bool = True
        """Whether clouds are scaled, shifted and rotated in training, as the next options say."""
        scale: tuple[float, float] = (2 / 3, 3 / 2)
        """Smallest and largest factor, drawn for each axis. 1 1: none."""
        shift: float = 0.2
        """Largest shift either way, drawn for each axis."""
        rotate: bool = False
        """Turn clouds about the upright axis by any angle."""
        up: Literal["auto", "x", "y", "z"] = "auto"
        """The axis that points up. auto: as the layout has it, else y."""
        labels: float = 0.0
        """Training on labels uses so many labelled samples, each class by its share; below 1 it is that share of
        each; 0: all. Which ones follows from their names."""
        max_bad: float = 0.5
        """Largest share of unreadable files; beyond it the run stops. Each is named in skipped.jsonl."""

    def __init__(self, config: Config, shapes: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__(config, shapes)
        if set(shapes) != {"points"} or len(shapes["points"]) != 2:
            raise ValueError(
                f"point cloud data gives 'points' [P, C]; the tokenizer wants "
                f"{', '.join(f'{k} {v}' for k, v in shapes.items())}"
            )
        self.count = shapes["points"][0]
        _check(config, *shapes["points"])
        self.normals = 3 * config.channels.index("normals") if "normals" in config.channels else None
        self.bundled = config.root == Path("sample") and not Path("sample").exists()
        self.no_table = ""
        self.collection = self._find()
        lacking = [name for name in config.channels if name not in (self.collection.channels or config.channels)]
        if lacking:
            raise MimError(
                f"--data.channels asks for {', '.join(lacking)}; files of the layout {self.collection.kind} have "
                f"{', '.join(self.collection.channels or ())} only."
            )
        if len(config.channels) > 1 and self.collection.kind == "folder":
            check_columns(self.collection.pretrain, config.channels, config.columns)
        self.parts = self.collection.parts
        self.up = cast(Axis, self.collection.up if config.up == "auto" else config.up)

    def _find(self) -> Shapes:
        config = self.config
        if config.root is None:
            raise MimError(
                "Which shapes? Name a folder with --data.root FOLDER, or the bundled sample with --data.root sample."
            )
        if self.bundled:
            return find_shapes(SAMPLE, "sample", config.variant, config.whole)
        if not config.root.is_dir():
            beside = [path.name for path in config.root.parent.glob("*") if path.is_dir()]
            guess = did_you_mean(config.root.name, beside, shown=lambda near: str(config.root.parent / near))
            raise MimError(
                f"--data.root {config.root} {'is not a folder' if config.root.exists() else 'does not exist'}. It "
                f"should be a folder of shapes ({', '.join(EXTENSIONS)}), nested or not, or of ShapeNet, ModelNet, "
                f"ScanObjectNN or ShapeNetPart.{guess}"
            )
        if not config.splits:
            return every_shape(config.root, config.layout, config.variant)
        asked = (config.root, config.layout, config.variant, config.whole)
        if config.labels_from is not None:
            return find_shapes(*asked, read_label_table(config.labels_from, config.labels_column))
        shapes = find_shapes(*asked)
        if shapes.kind == "folder":
            shapes, self.no_table = with_table_beside(
                shapes,
                lambda table: find_shapes(*asked, table),
                config.root,
                config.labels_column,
                shapes.train.classes is not None,
            )
        return shapes

    def __len__(self) -> int:
        return len(self.collection.pretrain)

    def name_of(self, index: int) -> str:
        """The shape's file, and its row where a file holds many."""
        return self.collection.pretrain.name(index)

    def files_of(self, split: str = "pretrain") -> Iterator[tuple[str, ...]]:
        """The file of each shape of a split, which may hold many; and the buffers of a .gltf, which lie beside it."""
        store = {"pretrain": self.collection.pretrain, "train": self.collection.train, "test": self.collection.test}[
            split
        ]
        for file in store.files:
            path = store.root / file
            yield (str(path), *(buffers_beside(path) if path.suffix.lower() == ".gltf" else ()))

    def read(self, index: int, key: int) -> dict[str, Tensor]:
        """An augmented cloud, float32 [P, C]."""
        return {"points": self._augment(self.take(self.collection.pretrain, index, key)["points"], key)}

    def read_labelled(self, index: int, key: int) -> dict[str, Tensor]:
        """An augmented cloud of the labelled training split with its "label" and, where there are any, its points'
        "parts" int64 [P]."""
        store = self._with_classes("train")
        item = self.take(store, index, key)
        return {**item, "points": self._augment(item["points"], key), "label": torch.tensor(store.labels[index])}

    def _augment(self, points: Tensor, key: int) -> Tensor:
        config = self.config
        if not config.augment:
            return points
        if config.rotate:
            points = rotate(points, self.up, key, self.normals)
        return scale_and_shift(points, config.scale, config.shift, key, self.normals)

    def take(self, store: ShapeStore, index: int, key: int) -> dict[str, Tensor]:
        """The chosen points of a shape, float32 [P, C], in the unit sphere; with its parts where there are any.

        Raises:
            BadSample: The file cannot be used.
        """
        try:
            values = self._chosen(self._values(store, index, key), key)
            width = self.shapes["points"][1]
            _check_values(values)
            points = to_unit_sphere(values[:, :width]) if self.config.normalise else values[:, :width]
            item = {"points": points.float()}
            if self.parts:
                item["parts"] = values[:, width].long()
            return item
        except MimError:
            raise
        except BadSample as error:
            raise BadSample(store.name(index), error.reason) from error
        except Exception as error:  # libraries raise many kinds; whatever it is, the file is named and replaced
            raise BadSample(store.name(index), reason_of(error)) from error

    def _values(self, store: ShapeStore, index: int, key: int) -> Tensor:
        """[candidates or P, C], and one more channel for parts."""
        path, row, config = store.root / store.files[index], store.row(index), self.config
        count = self.count if config.choose == "random" else max(self.count, config.candidates)
        if row is None and not self.parts:
            return read_cloud(path, count, key, config.channels, config.columns)
        check_file(path)
        if self.parts:
            values = self._part_values(store, index)
        elif path.suffix == ".h5":
            values = row_of(path, cast(int, row), "normals" in config.channels)
        else:
            values = mapped(path)[row]
        points = torch.from_numpy(np.array(values, np.float32))
        return points[choose_points(len(points), count, key)]

    def _chosen(self, values: Tensor, key: int) -> Tensor:
        """P of the candidates."""
        if self.config.choose == "random" or len(values) == self.count:
            return values
        from mim_pointcloud.geometry import farthest_points

        return values[farthest_points(values[None, :, :3], self.count)[0]]

    def _part_values(self, store: ShapeStore, index: int) -> npt.NDArray[np.float32]:
        """All points of a file: x y z, normals if they are asked for, and the part number."""
        table = self.collection.table
        values = part_rows(store.root / store.files[index], table.width)
        name = cast(tuple[str, ...], store.classes)[store.labels[index]]
        numbers = table.numbers(name, values[:, -1])
        return np.concatenate([values[:, : 3 if self.normals is None else 6], numbers[:, None]], axis=1)

    def _with_classes(self, split: str) -> ShapeStore:
        store = self.collection.train if split == "train" else self.collection.test
        if store.classes is None:
            raise MimError(
                f"{self.config.root} has no classes to evaluate with: shapes should lie in one folder per class, at "
                f"least two, such as {self.config.root}/chair/1.obj and {self.config.root}/table/1.obj; or in "
                f"train/CLASS and test/CLASS; or in a table, --data.labels-from."
                + (f" {self.no_table}" if self.no_table else "")
            )
        if not store:
            raise MimError(
                f"{self.config.root} ({self.collection.kind}) has no shapes in its {split} split. {store.note}"
            )
        return store

    def labelled(self, split: str) -> Labelled:
        """Clouds with their class, without augmentation; the classes of both splits are the same."""
        store = self._with_classes(split)
        labels = torch.tensor(store.labels, dtype=torch.int64)
        note, names = f"{store.note} {RAW_NOTE}".strip(), tuple(map(store.name, range(len(store))))
        return Labelled(split, labels, store.classes or (), Plain(self, store), note, names=names)

    def plain(self) -> PlainItems:
        """Clouds as evaluation reads them: the same points of each."""
        store = self.collection.pretrain
        return PlainItems(Plain(self, store), tuple(map(store.name, range(len(store)))))

    def how_read(self) -> dict[str, Any]:
        """How points are drawn and brought into the unit sphere."""
        config = self.config
        few = "; where there are fewer, some twice"
        how = "at random" if config.choose == "random" else f"the farthest of {config.candidates} random ones"
        facts = {"channels": list(config.channels), "drawn": f"{self.count} points, {how}; of a mesh by area{few}"}
        sphere = "xyz of the drawn points less their mean, then divided by the largest distance from it"
        return {**facts, "unit_sphere": sphere if config.normalise else "no: coordinates as in the files"}

    def raw(self, sample: Sample) -> Tensor:
        """45 histogram features by hand [B, 45], because points have no order: box, radii, distances, heights."""
        return describe(sample["points"], self.up)

    def picture(self, modality: str, values: Tensor) -> Picture:
        """[P, C] as a PNG, seen from one side."""
        from mim_pointcloud import pictures

        channels = self.config.channels
        rgb = 3 * channels.index("rgb") if "rgb" in channels else None
        return pictures.cloud_picture(values, rgb=rgb, up=self.up)

    def unit_picture(self, modality: str, values: Tensor, colours: Tensor, positions: Tensor) -> Picture | None:
        """[P, C] as a PNG, every point in the colour of the nearest group's centre."""
        from mim_pointcloud import pictures

        nearest = torch.cdist(values[None, :, :3].float(), positions[None].float())[0].argmin(dim=1)
        painted = torch.cat([values[:, :3].float(), colours.float()[nearest]], dim=1)
        return pictures.cloud_picture(painted, rgb=3, up=self.up)

    def file(self, modality: str, values: Tensor) -> tuple[str, bytes]:
        """[P, C] as PLY."""
        return ".ply", written.ply(values)

    def page(self, modality: str, rows: Mapping[str, Tensor], names: Sequence[str] = ()) -> str | None:
        """Shapes to turn by hand: visible, hidden and rebuilt points."""
        from mim_pointcloud import pictures

        return pictures.page(rows, up=self.up, names=names)

    def plan(self) -> dict[str, str]:
        """Where shapes come from, how many, their classes, how points are drawn, and what is missing."""
        config, shapes = self.config, self.collection
        root = "the bundled sample (furniture, CC0 and CC-BY)" if self.bundled else f"{config.root} ({shapes.kind})"
        classes = counted(len(shapes.train.classes or ()), "class", "classes")
        probes = f", {len(shapes.train):,} + {len(shapes.test):,} labelled" if shapes.train.classes else ""
        how = "at random" if config.choose == "random" else f"the farthest of {config.candidates:,}"
        scale = f"scaled by {config.scale[0]:.3g} to {config.scale[1]:.3g} per axis, shifted by up to {config.shift:g}"
        changed = scale + (f", turned about {self.up}" if config.rotate else "") if config.augment else "none"
        rows = {
            "data": f"{root}: {counted(len(self), 'shape')} for training, {classes}{probes}",
            "points": f"{self.count:,} per cloud, {how}; {' '.join(config.channels)}; {self.up} is up",
            "augmentation": changed,
        }
        if shapes.missing:
            listed = ", ".join(shapes.missing[:5]) + (", ..." if len(shapes.missing) > 5 else "")
            rows["missing shapes"] = f"{len(shapes.missing):,} that the lists name: {listed}"
        return rows

    def contents(self) -> dict[str, str]:
        """Splits, classes and parts that were found, files that were left out, and what some of the others hold."""
        shapes = self.collection
        rows = {"splits": shapes.splits or self._splits()}
        classes = shapes.train.classes or ()
        if classes:
            shown_classes = ", ".join(map(shown, classes[:8])) + (", ..." if len(classes) > 8 else "")
            rows["classes"] = f"{len(classes)}: {shown_classes}"
        if self.parts:
            rows["parts"] = shown(shapes.table.told())
        left, _ = left_out(shapes.others)
        if left:
            rows["left out"] = left
        return {
            **rows,
            "files hold": files_hold(shapes.pretrain, self.looks, self.config.channels, bool(self.parts)),
        }

    @cached_property
    def looks(self) -> Looks:
        """A look at some of the files."""
        return looks_at(self.collection.pretrain, self.config.columns)

    def _splits(self) -> str:
        shapes = self.collection
        if not shapes.test:
            return "none: all shapes are for pre-training"
        if shapes.test.note.startswith(DRAWN):
            return f"none; of each class a fifth is held out, drawn by a hash of the name ({len(shapes.test):,})"
        return f"as {shapes.kind} has them: {len(shapes.train):,} for training, {len(shapes.test):,} held out"

    def advice(self) -> list[str]:
        """Files that look like data and are not read, what the splits left out, and what in clouds is rarely meant."""
        beside = {ending: many for ending, many in self.collection.others.items() if ending not in TEXTURES}
        if any(file.lower().endswith(".gltf") for file in self.collection.pretrain.files):
            beside.pop(".bin", None)
        _, data = left_out(beside)
        notes = [f"{self.config.root}: {data}. Read are {' '.join(EXTENSIONS)}."] if data else []
        notes += [self.no_table] if self.no_table else []
        return [*self.collection.advice, *notes, *rarely_meant(self.looks, self.count)]


class Plain(Dataset[Any]):
    """Clouds without augmentation. All are drawn with one key, so that a shape's points follow from its file alone,
    whatever lies beside it."""

    def __init__(self, source: Clouds, store: ShapeStore) -> None:
        self.source, self.store = source, store

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.source.take(self.store, index, randomness.torch_seed(0, DRAWS))


def _check_values(values: Tensor) -> None:
    """Raises BadSample for what is no shape."""
    if not values.isfinite().all():
        raise BadSample("", "it has coordinates or values that are not finite")
    places = values[:, :3]
    if float(places.abs().max()) > LARGEST:
        raise BadSample("", f"its coordinates go up to {float(places.abs().max()):.2g}: it is damaged")
    if bool((places == places[0]).all()):
        raise BadSample("", "all its points lie at one place")


def _check(config: Clouds.Config, points: int, width: int) -> None:
    """Raises ValueError for options that make no sense."""
    if not config.channels or config.channels[0] != "xyz" or len(set(config.channels)) < len(config.channels):
        raise ValueError(f"channels start with xyz and name each kind once, got {' '.join(config.channels)}")
    if 3 * len(config.channels) != width:
        raise ValueError(
            f"the channels {' '.join(config.channels)} make {3 * len(config.channels)} values a point and the "
            f"tokenizer wants {width}: --tokenizer.channels {3 * len(config.channels)}"
        )
    wrong = check_names(config.columns) if config.columns else ""
    if wrong:
        raise ValueError(f"columns are {' '.join(config.columns)}: {wrong}")
    if config.choose == "farthest" and config.candidates < points:
        raise ValueError(f"candidates must be at least the {points} points of a cloud, got {config.candidates}")
    if not 0 < config.scale[0] <= config.scale[1]:
        raise ValueError(f"scale must be two rising positive factors, got {config.scale}")
    if config.shift < 0:
        raise ValueError(f"shift must not be negative, got {config.shift}")
    if not 0 <= config.max_bad <= 1:
        raise ValueError(f"max_bad must lie in [0, 1], got {config.max_bad}")
