"""Clips of video files: a folder of them, UCF101, Kinetics, Something-Something v2, or the bundled sample. Frames are
chosen by the file's timestamps, decoded at the size needed, and cut; all draws come from the sample's key."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from mim_core import (
    BadSample,
    DataSource,
    Labelled,
    MimError,
    Normalisation,
    Picture,
    PlainItems,
    Sample,
    Strong,
    counted,
    one_line,
    randomness,
    read_label_table,
    usual_statistics,
    with_table_beside,
)
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from mim_video import account, crops, pictures, sampling
from mim_video.layouts import EXTENSIONS, Clipping, ClipStore, every_clip, find_clips
from mim_video.looking import Look
from mim_video.readers import Reader, chosen, known_readers, load_reader, open_reader

LUMA = torch.tensor((0.299, 0.587, 0.114))
"""Red, green and blue in grey (ITU-R BT.601)."""
SAMPLE = Path(__file__).parent / "sample"


class Shot(NamedTuple):
    """One clip of an open file: its frames int64 [T], the part of them, and whether it is mirrored."""

    frames: Tensor
    box: crops.Box
    flip: bool


Choose = Callable[[Tensor, tuple[int, int]], list[Shot]]
"""(times of the frames that count, their height and width) -> clips to take."""


class Clips(DataSource):
    """Clips for pre-training, and with their classes for evaluation. Any container, codec, size and frame rate that
    the reader knows; what it cannot decode is bad.

    With ``repeat`` a file is opened and decoded once for several clips, each with its own crop and key: `read` gives
    [R, C, T, H, W] and `finish` makes R samples of it. The recipe's batch size then counts files.
    """

    @dataclass(frozen=True)
    class Config:
        """Options of the video data."""

        root: Path | None = None
        """Folder of clips, or of UCF101, Kinetics or Something-Something v2 as they are handed out; "sample" is the
        bundled one, 480 clips of 12 simulated robot tasks. A clip is a video file, or, where there are none, a folder
        of numbered pictures."""
        splits: bool = True
        """Whether folders named like splits are read as these, and others as classes. Without, all files are one
        collection, as the commands embed and predict read them."""
        layout: Literal["auto", "folder", "ucf101", "kinetics", "ssv2", "lists"] = "auto"
        """How files and classes lie in the folder; auto recognises the official lists. lists: train.csv, and val.csv or
        test.csv, with a path and a label in each line, as VideoMAE's code has them."""
        split: int = 1
        """Which of UCF101's three splits."""
        reader: Literal["auto", "pyav", "torchcodec", "decord"] = "auto"
        """Which library decodes."""
        labels_from: Path | None = None
        """Table of labels: a csv or tsv file whose first line names a column of clips and one of labels (and perhaps
        one of splits), or a list of a path and a label in each line. None: ROOT/labels.csv, where no folders are
        classes."""
        labels_column: str = ""
        """Its column of labels; empty: label, class, category or target."""
        frame_rate: float | None = None
        """Of clips that are folders of frames: frames per second that these were taken with; fps needs it."""
        stride: int = 4
        """Every which frame a clip takes."""
        fps: float | None = None
        """Instead of a stride: frames per second, by the file's own timestamps."""
        segments: bool = False
        """Instead of a stride: one frame from each of T equal parts of the file."""
        short: Literal["last", "loop", "refuse"] = "last"
        """What fills a clip when its file is too short: the last frame, or the file again; or such a file is refused:
        named in skipped.jsonl and replaced, as unreadable ones are."""
        crop: Literal["multi-scale", "resized", "centre"] = "multi-scale"
        """multi-scale is VideoMAE's, of `scales`; resized is the random resized crop, of `area`; centre is fixed."""
        scales: tuple[float, ...] = (1.0, 0.875, 0.75, 0.66)
        """Falling shares of the largest crop, of which the sides of a multi-scale crop are."""
        area: tuple[float, float] = (0.5, 1.0)
        """Random resized crop: smallest and largest share of the frame's area."""
        flip: float = 0.0
        """Chance of a horizontal flip. Not for classes that tell left from right."""
        repeat: int = 1
        """Clips per file that is read, decoded once. A batch counts files and holds this many clips of each; so do
        memory and operations."""
        repeat_start: Literal["own", "same"] = "own"
        """Whether each of the repeated clips draws its own place in the file, or all show the same frames under other
        crops, which costs less decoding."""
        views: tuple[int, int] = (1, 1)
        """Evaluation: places in time x places along the longer side, over which a clip's features are averaged.
        Kinetics' habit is 5 3, Something-Something's 2 3."""
        evaluate_crop: float = 1.0
        """Evaluation takes this share of the largest crop."""
        mean: tuple[float, ...] | None = None
        """Per channel, of values in [0, 1]. None: ImageNet's for colour, 0.5 for grey."""
        std: tuple[float, ...] | None = None
        """The same for the standard deviation."""
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
        if set(shapes) != {"video"} or len(shapes["video"]) != 4 or shapes["video"][0] not in (1, 3):
            raise ValueError(
                f"video data gives 'video' [C, T, H, W], C 1 (grey) or 3 (colour); the tokenizer wants "
                f"{', '.join(f'{k} {v}' for k, v in shapes.items())}"
            )
        self.channels, self.frames, *size = shapes["video"]
        self.size = (size[0], size[1])
        _check(config)
        load_reader(chosen(config.reader))  # here, so that one that is missing is told before a run begins
        self.samples_per_item = config.repeat
        mean, _ = usual_statistics(config.mean, config.std, self.channels)
        fill = ([round(255 * value) for value in mean] * 3)[:3]
        self.strong = Strong(config.rand_augment, config.erase, self.size, fill)
        self.normalisation = self._normalisation()
        self.mean, self.std = self.normalisation.mean, self.normalisation.std
        self.bundled = config.root == Path("sample") and not Path("sample").exists()
        self.no_table = ""
        self.clips = self._find()
        self._check_rate()
        self.look = Look(self.clips.pretrain, config.frame_rate)

    def _find(self) -> Clipping:
        root = self.config.root
        if root is None:
            raise MimError(
                "Which clips? Name a folder with --data.root FOLDER, or the bundled sample with --data.root sample."
            )
        if self.bundled:
            return find_clips(SAMPLE, "folder")
        if not root.is_dir():
            kind = "is not a folder" if root.exists() else "does not exist"
            raise MimError(
                f"--data.root {root} {kind}. It should be a folder of clips ({', '.join(EXTENSIONS)}), nested or not, "
                f"or of UCF101, Kinetics or Something-Something v2."
            )
        if not self.config.splits:
            return every_clip(root)
        named, column = self.config.labels_from, self.config.labels_column
        layout, split = self.config.layout, self.config.split
        if named is not None:
            return find_clips(root, layout, split, read_label_table(named, column))
        clips = find_clips(root, layout, split)
        if clips.kind == "folder":
            clips, self.no_table = with_table_beside(
                clips,
                lambda table: find_clips(root, "folder", split, table),
                root,
                column,
                clips.train.classes is not None,
            )
        return clips

    def _check_rate(self) -> None:
        """Raises MimError where times count and clips are folders of frames whose rate nobody has stated."""
        timed = self.config.fps is not None or any(self.clips.pretrain.windows)
        if self.clips.framed and self.config.frame_rate is None and timed:
            raise MimError(
                f"{self.config.root}: clips are folders of frames, which do not say how fast they were taken, and "
                "times count here. Say it in frames per second: --data.frame-rate 25"
            )

    def _normalisation(self) -> Normalisation:
        mean, std = usual_statistics(self.config.mean, self.config.std, self.channels)
        return Normalisation(mean, std, self.channels, axes=3)

    def __len__(self) -> int:
        return len(self.clips.pretrain)

    def name_of(self, index: int) -> str:
        """The file's path, and its part if only one counts."""
        return self.clips.pretrain.name(index)

    def files_of(self, split: str = "pretrain") -> Iterator[tuple[str, ...]]:
        """The file of each clip of a split."""
        stores = {"pretrain": self.clips.pretrain, "train": self.clips.train, "test": self.clips.test}
        for file in stores[split].files:
            path = os.path.join(stores[split].root, file)
            yield (
                (path, *(os.path.join(path, name) for name in sorted(os.listdir(path))))
                if self.clips.framed
                else (path,)
            )

    def read(self, index: int, key: int) -> dict[str, Tensor]:
        """A clip at a drawn place, uint8 [C, T, H, W]; with ``repeat`` several, [R, C, T, H, W]."""
        clips = self._drawn(self.clips.pretrain, index, key, self.config.repeat)
        return {"video": clips[0] if self.config.repeat == 1 else torch.stack(clips)}

    def read_labelled(self, index: int, key: int) -> dict[str, Tensor]:
        """One such clip of the training split, all its frames augmented alike where the options say so, with its class
        as int64 ``label``."""
        store = self.clips.train
        clip = self._drawn(store, index, key, 1)[0]
        if self.strong.transform is not None:
            grey = clip.shape[0] == 1
            frames = [Image.fromarray(f) for f in clip.expand(3, -1, -1, -1).permute(1, 2, 3, 0).numpy()]
            done = [frame.convert("L") if grey else frame for frame in self.strong.pictures(frames, key)]
            arrays = torch.from_numpy(np.stack([np.atleast_3d(np.asarray(frame)) for frame in done]))
            clip = arrays.permute(3, 0, 1, 2).contiguous()
        return {"video": self.strong.erased(clip, key), "label": torch.tensor(store.labels[index])}

    def _drawn(self, store: ClipStore, index: int, key: int, count: int) -> list[Tensor]:
        draws = randomness.uniform(torch.tensor([key]), "clips", count * (self.frames + 8))
        rows = draws.reshape(count, -1).tolist()

        def choose(times: Tensor, frame: tuple[int, int]) -> list[Shot]:
            shots = []
            for row in rows:
                moments = row if self.config.repeat_start == "own" else rows[0]
                chosen = self.choose_frames(times, moments[5], torch.tensor(moments[8:], dtype=torch.float64))
                shots.append(Shot(chosen, self._crop(frame, row), row[4] < self.config.flip))
            return shots

        return self.take(store, index, choose)

    def choose_frames(self, times: Tensor, place: float, places: Tensor) -> Tensor:
        """The frames of a clip by stride, rate or segments; ``place`` is its place, ``places`` those within
        segments.

        Raises:
            BadSample: The file is shorter than a clip, and such files are refused.
        """
        config, short = self.config, self.config.short
        if short == "refuse":
            if why := sampling.too_short(times, self.frames, config.stride, config.fps, config.segments):
                raise BadSample("", why)
            short = "last"
        if config.segments:
            return sampling.by_segments(len(times), places)
        if config.fps is not None:
            return sampling.by_fps(times, self.frames, config.fps, place, short)
        return sampling.by_stride(len(times), self.frames, config.stride, place, short)

    def _crop(self, frame: tuple[int, int], draws: list[float]) -> crops.Box:
        if self.config.crop == "multi-scale":
            return crops.multi_scale(frame, self.size, self.config.scales, draws)
        if self.config.crop == "resized":
            return crops.random_resized(frame, self.size, self.config.area, draws)
        return crops.placed(frame, self.size)

    def take(self, store: ClipStore, index: int, choose: Choose) -> list[Tensor]:
        """Opens a file, decodes the frames of the clips that are chosen, each once, and cuts them out.

        Raises:
            BadSample: The file cannot be used.
        """
        try:
            with open_reader(store.root / store.files[index], self.config.reader, self.config.frame_rate) as reader:
                first, last = _counting(reader, store.window(index))
                shots = choose(reader.times[first:last], reader.size)
                wanted, where = torch.cat([shot.frames for shot in shots]).unique(return_inverse=True)
                size = crops.decode_size(reader.size, self.size, [shot.box for shot in shots])
                frames = reader.frames_at((wanted + first).tolist(), size)
                if self.channels == 1:
                    frames = (frames.float() @ LUMA).round().to(torch.uint8)[..., None]
                parts = where.split([len(shot.frames) for shot in shots])
                return [
                    crops.cut(frames[part], reader.size, shot.box, self.size, shot.flip)
                    for shot, part in zip(shots, parts, strict=True)
                ]
        except MimError:
            raise
        except BadSample as error:
            raise BadSample(store.name(index), error.reason) from error
        except Exception as error:  # libraries raise many kinds; whatever it is, the file is named and replaced
            raise BadSample(store.name(index), one_line(error)) from error

    def how_read(self) -> dict[str, Any]:
        """Which frames of a file a clip has, and how its box is scaled."""
        config, span = self.config, (self.frames - 1) * self.config.stride
        start = f"the first one is frame (n - {span}) // 2 of n, counted from 0"
        if config.segments:
            frames = f"{self.frames}: the middle one of as many equal parts of the file"
        elif config.fps is not None:
            frames = f"{self.frames}: {config.fps:g} a second by the file's own times, from its middle"
        else:
            frames = f"{self.frames}: every {config.stride}th, {start}"
        short = {"last": "the last frame again", "loop": "the file from its start", "refuse": "refused"}[config.short]
        views = f"the mean over {config.views[0]} places in time and {config.views[1]} along the longer side"
        return {
            "frames": frames,
            "short": short,
            "views": "one, in the middle" if config.views == (1, 1) else views,
            "crop": f"{config.evaluate_crop:g} of the largest centred box of the input's shape, then scaled",
            "interpolation": "bilinear, antialiased, on values of 8 bits",
        }

    def finish(self, sample: Sample) -> Sample:
        """uint8 to float32, with mean 0 and deviation 1 over the data. Repeated clips become samples, each with its
        own key."""
        x = sample["video"]
        more: dict[str, Tensor] = {}
        if x.dim() == 6:
            repeat, x = x.shape[1], x.flatten(0, 1)
            more = {name: sample[name].repeat_interleave(repeat) for name in ("index",) if name in sample}
            if "key" in sample:
                more["key"] = randomness.bits(sample["key"], "repeat", repeat).flatten()
        return {**sample, **more, "video": self.normalisation.of_bytes(x)}

    def labelled(self, split: str) -> Labelled:
        """Clips with their class; the classes of both splits are the same.

        Raises:
            MimError: There are no classes, or the split has no clips.
        """
        store = self.clips.train if split == "train" else self.clips.test
        if store.classes is None:
            raise MimError(
                f"{self.config.root} has no classes to evaluate with: clips should lie in one folder per class, at "
                f"least two, such as {self.config.root}/run/1.mp4 and {self.config.root}/jump/1.mp4; or in train/CLASS "
                f"and test/CLASS; or in a table, --data.labels-from." + (f" {self.no_table}" if self.no_table else "")
            )
        if not len(store):
            raise MimError(f"{self.config.root} ({self.clips.kind}) has no {split} clips with a class. {store.note}")
        views = math.prod(self.config.views)
        notes = [store.note] if store.note else []
        notes += [f"Each clip's features are the mean over {views} views."] if views > 1 else []
        labels = torch.tensor(store.labels, dtype=torch.int64)
        names = tuple(map(store.name, range(len(store))))
        return Labelled(split, labels, store.classes, Views(self, store), " ".join(notes), views, names)

    def plain(self) -> PlainItems:
        """Clips as evaluation reads them: ``views`` of each file."""
        store = self.clips.pretrain
        return PlainItems(Views(self, store), tuple(map(store.name, range(len(store)))), math.prod(self.config.views))

    def raw(self, sample: Sample) -> Tensor:
        """The pixels in [0, 1], not centred; of larger clips, the means of a grid of 8 x 16 x 16."""
        x = sample["video"]
        grid = (min(x.shape[2], 8), min(x.shape[3], 16), min(x.shape[4], 16))
        return F.adaptive_avg_pool3d(self.normalisation.undone(x), grid).flatten(1)

    def controls(self) -> Mapping[str, Callable[[Sample], Sample]]:
        """The first frame in place of all, and frames in an order drawn by the sample's index."""
        return {"first frame only": first_frame, "shuffled frames": shuffle} if self.frames > 1 else {}

    def _pixels(self, values: Tensor) -> Tensor:
        """uint8 [T, H, W, C] of a clip as `finish` left it."""
        return self.normalisation.to_bytes(values).permute(1, 2, 3, 0)

    def picture(self, modality: str, values: Tensor) -> Picture:
        """[C, T, H, W] as a film strip of up to 8 frames."""
        return pictures.film_strip(self._pixels(values))

    def file(self, modality: str, values: Tensor) -> tuple[str, bytes]:
        """[C, T, H, W] as a GIF; of one frame as PNG."""
        picture = self.animation(modality, values) or self.picture(modality, values)
        return "." + picture.media_type.rpartition("/")[2], picture.content

    def animation(self, modality: str, values: Tensor) -> Picture | None:
        """[C, T, H, W] as a GIF."""
        return pictures.moving(self._pixels(values)) if self.frames > 1 else None

    def plan(self) -> dict[str, str]:
        """Where clips come from, how many, their classes, how they are sampled, and what is missing."""
        config, clips = self.config, self.clips
        root = "the bundled sample (MetaWorld, MIT licence)" if self.bundled else f"{config.root} ({clips.kind})"
        classes = counted(len(clips.train.classes or ()), "class", "classes")
        how = f"one of every {config.stride} frames" if config.fps is None else f"{config.fps:g} frames per second"
        how = "one from each equal part" if config.segments else how
        reader = chosen(config.reader)
        rows = {
            "data": f"{root}: {counted(len(self), 'clip')} for training, {classes}",
            "frames": f"{self.frames}, {how}",
            "reader": f"{reader} {known_readers()[reader]}" + (" (auto)" if config.reader == "auto" else ""),
        }
        if config.repeat > 1:
            rows["repeats"] = f"{config.repeat} clips per file, so that a batch is that many times as large"
        if clips.framed:
            rate = "their rate is not stated" if config.frame_rate is None else f"{config.frame_rate:g} per second"
            rows["reader"] = f"folders of frames, {rate} (--data.frame-rate)"
        if clips.missing:
            shown = ", ".join(clips.missing[:5]) + (", ..." if len(clips.missing) > 5 else "")
            rows["missing clips"] = f"{len(clips.missing):,} that the lists name: {shown}"
        return rows

    def contents(self) -> dict[str, str]:
        """Splits, classes, what was left out, what the files hold, and what an epoch sees of them."""
        return account.contents(self)

    def advice(self) -> list[str]:
        """What was left out and looks like data, and long files of which an epoch sees little."""
        return [*([self.no_table] if self.no_table else []), *account.advice(self)]


class Views(Dataset[Any]):
    """Clips without augmentation: of each file its views, one in the middle by default."""

    def __init__(self, source: Clips, store: ClipStore) -> None:
        self.source, self.store = source, store
        self.views = sampling.views(*source.config.views)

    def __len__(self) -> int:
        return len(self.store) * len(self.views)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """uint8 [C, T, H, W]. Within segments a frame is taken at the view's place, of one view in the middle."""
        source, (place, side) = self.source, self.views[index % len(self.views)]
        config, (segments, sides) = source.config, source.config.views
        segment, crop = divmod(index % len(self.views), sides)
        by_stride = segments > 1 and not config.segments and config.fps is None and config.short != "loop"

        def choose(times: Tensor, frame: tuple[int, int]) -> list[Shot]:
            places = torch.full((source.frames,), place, dtype=torch.float64)
            frames = source.choose_frames(times, place, places)
            if by_stride:
                frames = sampling.by_buffer(len(times), source.frames, config.stride, segment, segments)
            box = crops.placed(frame, source.size, config.evaluate_crop, side)
            if sides > 1:
                box = crops.placed_evenly(frame, source.size, config.evaluate_crop, crop, sides)
            return [Shot(frames, box, False)]

        return {"video": source.take(self.store, index // len(self.views), choose)[0]}


def first_frame(sample: Sample) -> Sample:
    """Every frame is the first."""
    x = sample["video"]
    return {**sample, "video": x[:, :, :1].expand_as(x)}


def shuffle(sample: Sample) -> Sample:
    """The frames in an order that follows from the sample's index."""
    x = sample["video"]
    order = randomness.permutation(sample["index"], "shuffled frames", x.shape[2])
    return {**sample, "video": torch.stack([clip[:, places] for clip, places in zip(x, order, strict=True)])}


def _counting(reader: Reader, part: tuple[float, float] | None) -> tuple[int, int]:
    """The first frame that counts, and the one after the last."""
    first, last = (0, len(reader)) if part is None else sampling.window(reader.times, *part)
    if first == last and part is not None:
        lies = f"its frames are from {float(reader.times[0]):.4g} to {float(reader.times[-1]):.4g} s"
        raise BadSample("", f"it has no frames in that part: {lies} (has it been trimmed already?)")
    if first == last:
        raise BadSample("", "it has no frames")
    return first, last


def _check(config: Clips.Config) -> None:
    """Raises ValueError for options that make no sense."""
    if config.frame_rate is not None and not 0 < config.frame_rate < math.inf:
        raise ValueError(f"frame_rate must be positive, got {config.frame_rate}")
    for name in ("stride", "repeat"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(config, name)}")
    if config.fps is not None and not config.fps > 0:
        raise ValueError(f"fps must be positive, got {config.fps}")
    if config.fps is not None and config.segments:
        raise ValueError("fps and segments exclude each other: frames are chosen by rate, or from equal parts")
    if min(config.views) < 1 or math.prod(config.views) > 1000:
        raise ValueError(f"views must be two counts of at least 1, and 1,000 views at most; got {config.views}")
    if not config.scales or not all(0 < share <= 1 for share in config.scales):
        raise ValueError(f"scales must be shares in (0, 1], got {config.scales}")
    if not 0 < config.area[0] <= config.area[1] <= 1:
        raise ValueError(f"area must be two rising shares in (0, 1], got {config.area}")
    for name in ("flip", "max_bad"):
        if not 0 <= getattr(config, name) <= 1:
            raise ValueError(f"{name} must lie in [0, 1], got {getattr(config, name)}")
    if not 0 < config.evaluate_crop <= 1:
        raise ValueError(f"evaluate_crop must lie in (0, 1], got {config.evaluate_crop}")
