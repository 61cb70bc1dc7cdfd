"""Surveillance footage of which some frames are abnormal: training sees normal clips alone, evaluation judges every
frame."""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    counted,
    one_line,
    randomness,
    usual_statistics,
)
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from mim_video import pictures
from mim_video.anomaly_layouts import Footage, all_footage, find_surveillance
from mim_video.anomaly_masks import array_masks, read_masks
from mim_video.data import LUMA
from mim_video.readers import chosen, load_reader, open_reader


class SurveillanceClips(DataSource):
    """UCSD Ped1 or Ped2, Avenue or ShanghaiTech, as unpacked: folders of frames, or video files. An item is a clip of
    consecutive frames, whole frames resized to the input's size. Clips of the test split show every frame; each tells
    which frames they are and which of them are abnormal, and where, if the collection has masks.
    """

    judges_anomalies = True

    @dataclass(frozen=True)
    class Config:
        """Options of the surveillance data."""

        root: Path | None = None
        """Folder of UCSD Ped1 or Ped2, of Avenue, or of ShanghaiTech."""
        splits: bool = True
        """Whether the folder is one of these collections. Without, all footage below it is one collection, of which
        nothing is known, as the commands embed and predict read it."""
        stride: int = 1
        """Training clips take every which frame; those that are judged take all."""
        flip: float = 0.0
        """Chance of a horizontal flip."""
        mean: tuple[float, ...] | None = None
        """Per channel, of values in [0, 1]. None: ImageNet's for colour, 0.5 for grey."""
        std: tuple[float, ...] | None = None
        """The same for the standard deviation."""
        max_bad: float = 0.5
        """Largest share of unreadable clips; beyond it the run stops."""

    def __init__(self, config: Config, shapes: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__(config, shapes)
        if set(shapes) != {"video"} or len(shapes["video"]) != 4 or shapes["video"][0] not in (1, 3):
            raise ValueError(
                f"video data gives 'video' [C, T, H, W], C 1 (grey) or 3 (colour); the tokenizer wants "
                f"{', '.join(f'{k} {v}' for k, v in shapes.items())}"
            )
        if config.stride < 1 or not 0 <= config.flip <= 1:
            raise ValueError(f"stride must be at least 1 and flip lie in [0, 1], got {config.stride} and {config.flip}")
        self.channels, self.frames, *size = shapes["video"]
        self.size = (size[0], size[1])
        mean, std = usual_statistics(config.mean, config.std, self.channels)
        self.normalisation = Normalisation(mean, std, self.channels, axes=3)
        if config.root is None or not config.root.is_dir():
            raise MimError(f"--data.root {config.root}: name the folder of UCSD Ped1 or Ped2, Avenue, or ShanghaiTech.")
        self.found = find_surveillance(config.root) if config.splits else all_footage(config.root)
        if any(not each.frames for each in (*self.found.train, *self.found.test)):
            load_reader(chosen("auto"))  # here, so that one that is missing is told before a run begins
        self.train, self.test = (Windows(self, footage) for footage in (self.found.train, self.found.test))

    def __len__(self) -> int:
        return len(self.train)

    def name_of(self, index: int) -> str:
        """The footage, and the first and last frame, from 0."""
        return self.train.name(index)

    def files_of(self, split: str = "pretrain") -> Iterator[tuple[str, ...]]:
        """The file of each clip, or the frames that it may show."""
        windows = self.test if split == "test" else self.train
        for index in range(len(windows)):
            number, first = windows.place(index)
            footage = windows.footage[number]
            last = first + self.frames * self.config.stride
            names = footage.frames[max(0, first - self.frames) : last + self.frames]
            yield tuple(str(footage.path / name) for name in names) or (str(footage.path),)

    def read(self, index: int, key: int) -> dict[str, Tensor]:
        """A clip that begins at a drawn frame of the footage of this item, uint8 [C, T, H, W]."""
        number, first = self.train.place(index)
        footage, count = self.train.footage[number], self.train.counts[number]
        u = randomness.uniform(torch.tensor([key]), "surveillance", 2)[0].tolist()
        span = (self.frames - 1) * self.config.stride + 1
        start = min(max(0, first + int((u[0] - 0.5) * self.frames)), max(0, count - span))
        wanted = [min(start + i * self.config.stride, count - 1) for i in range(self.frames)]
        clip = self.clip(footage, wanted)
        return {"video": clip.flip(3) if u[1] < self.config.flip else clip}

    def clip(self, footage: Footage, wanted: list[int]) -> Tensor:
        """These frames, whole, uint8 [C, T, H, W].

        Raises:
            BadSample: One of them cannot be read.
        """
        try:
            if footage.frames:
                frames = torch.stack([self._picture(footage.path / footage.frames[number]) for number in wanted])
            else:
                with open_reader(footage.path, "auto") as reader:
                    frames = reader.frames_at(wanted, self.size)
                if self.channels == 1:
                    frames = (frames.float() @ LUMA).round().to(torch.uint8)[..., None]
        except MimError:
            raise
        except Exception as error:  # libraries raise many kinds; whatever it is, the file is named and replaced
            reason = error.reason if isinstance(error, BadSample) else one_line(error)
            raise BadSample(str(footage.path), reason) from error
        return frames.permute(3, 0, 1, 2).contiguous()

    def truth(self, footage: Footage, wanted: list[int]) -> Tensor:
        """Where these frames are abnormal, int8 [T, H, W]; -1 where the footage has no masks.

        Raises:
            MimError: A mask cannot be read, or is of another size than its frame.
        """
        height, width = self.size
        if not footage.masks:
            return torch.full((len(wanted), height, width), -1, dtype=torch.int8)
        masks, size = [], self._frame_size(footage)
        for number, mask in zip(wanted, read_masks(footage.masks, wanted), strict=True):
            if mask.shape != size:
                raise MimError(
                    f"{footage.masks[number if len(footage.masks) > 1 else 0]}: the mask of frame {number} is "
                    f"{mask.shape[1]} x {mask.shape[0]}, and the frames of {footage.path} {size[1]} x {size[0]}: a "
                    "mask must be of its frame's size."
                )
            small = Image.fromarray(mask.astype(np.uint8)).resize((width, height), Image.Resampling.NEAREST)
            masks.append(torch.from_numpy(np.array(small)).to(torch.int8))
        return torch.stack(masks)

    @staticmethod
    def _frame_size(footage: Footage) -> tuple[int, int]:
        """Height and width of frames as they lie on disk."""
        if not footage.frames:
            with open_reader(footage.path, "auto") as reader:
                return reader.size
        with Image.open(footage.path / footage.frames[0]) as image:
            return image.height, image.width

    def _picture(self, path: Path) -> Tensor:
        with Image.open(path) as image:
            mode = image.convert("L" if self.channels == 1 else "RGB")
            values = np.array(mode.resize(self.size[::-1], Image.Resampling.BILINEAR))
        return torch.from_numpy(values.reshape(*self.size, self.channels))

    def finish(self, sample: Sample) -> Sample:
        """uint8 to float32, with mean 0 and deviation 1 over the data."""
        return {**sample, "video": self.normalisation.of_bytes(sample["video"])}

    def labelled(self, split: str) -> Labelled:
        """Clips with 1 where a frame is abnormal. Items of the test split have ``footage``, int64: which one;
        ``frames``, int64 [T]; and ``abnormal``, uint8 [T]. Where some footage has masks also ``truth``, int8 [T, H,
        W]: 1 abnormal, 0 normal, -1 where there is no mask.

        Raises:
            MimError: All footage was read as one collection.
        """
        if not self.config.splits:
            raise MimError(
                "All footage was read as one collection (--data.no-splits), so nothing says what is abnormal. "
                "Leave that option out."
            )
        windows = self.train if split == "train" else self.test
        flags = [int(split == "test" and windows.abnormal(index).any()) for index in range(len(windows))]
        names = tuple(map(windows.name, range(len(windows))))
        return Labelled(split, torch.tensor(flags), ("normal", "abnormal"), windows, names=names)

    def plain(self) -> PlainItems:
        """Clips that together show every frame of the footage for training."""
        return PlainItems(self.train, tuple(map(self.train.name, range(len(self.train)))))

    def picture(self, modality: str, values: Tensor) -> Picture:
        """[C, T, H, W] as a film strip of up to 8 frames."""
        return pictures.film_strip(self.normalisation.to_bytes(values).permute(1, 2, 3, 0))

    def heat_map(self, modality: str, values: Tensor, scores: Tensor, highest: float) -> Picture:
        """A film strip, grey under red to yellow scores [T, H, W]."""
        grey = self.normalisation.to_bytes(values).float().mean(dim=0) / 255
        share = (scores.float() / max(highest, 1e-12)).clamp(0, 1)
        hot = torch.stack([torch.ones_like(share), (2 * share - 1).clamp(0, 1), torch.zeros_like(share)], dim=-1)
        mixed = (grey * (1 - share))[..., None] + hot * share[..., None]
        return pictures.film_strip((mixed * 255).round().to(torch.uint8).cpu())

    def plan(self) -> dict[str, str]:
        """Footage, clips and frames of both splits."""
        judged = sum(self.test.counts)
        abnormal = sum(sum(each.abnormal) for each in self.found.test)
        masked = sum(bool(each.masks) for each in self.found.test)
        train, test = (counted(len(windows.footage), "video") for windows in (self.train, self.test))
        return {
            "data": f"{self.config.root} ({self.found.kind}): {train} for training, {counted(len(self), 'clip')} of "
            f"{self.frames} frames",
            "held out": f"{test}, {judged:,} frames, {abnormal:,} of them abnormal"
            + (f"; {masked:,} of the videos with masks" if masked else ""),
        }


class Windows(Dataset[Any]):
    """Clips of consecutive frames that together show all; the last of a video begins earlier, so that it is whole.

    Raises:
        MimError: A video has no frames, or other frames than answers.
    """

    def __init__(self, source: SurveillanceClips, footage: tuple[Footage, ...]) -> None:
        self.source, self.footage = source, footage
        self.counts = [len(each.frames) or _count(each) for each in footage]
        for each, count in zip(footage, self.counts, strict=True):
            if each.abnormal and len(each.abnormal) != count:
                raise MimError(f"{each.path} has {count} frames, and answers for {len(each.abnormal)}.")
            if each.masks and each.masks[0].suffix == ".npy" and (masks := len(array_masks(each.masks[0]))) != count:
                raise MimError(f"{each.path} has {count} frames, and {each.masks[0]} masks for {masks}.")
        self.placed = any(each.masks for each in footage)
        self.starts, total = list[int](), 0
        for count in self.counts:
            self.starts.append(total)
            total += -(-count // source.frames)
        self.total = total

    def __len__(self) -> int:
        return self.total

    def place(self, index: int) -> tuple[int, int]:
        """Which footage, and the first frame."""
        number = bisect.bisect_right(self.starts, index) - 1
        first = (index - self.starts[number]) * self.source.frames
        return number, max(0, min(first, self.counts[number] - self.source.frames))

    def frames(self, index: int) -> list[int]:
        """The frames of a clip; of a video that is shorter than a clip the last one again."""
        number, first = self.place(index)
        return [min(first + i, self.counts[number] - 1) for i in range(self.source.frames)]

    def abnormal(self, index: int) -> Tensor:
        """uint8 [T]."""
        flags = self.footage[self.place(index)[0]].abnormal
        return torch.tensor([flags[frame] for frame in self.frames(index)], dtype=torch.uint8)

    def name(self, index: int) -> str:
        """The footage, and the first and last frame, from 0."""
        root = self.source.config.root
        assert root is not None
        frames, path = self.frames(index), self.footage[self.place(index)[0]].path
        return f"{path.relative_to(root) if path != root else root.name} ({frames[0]}-{frames[-1]})"

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        number, frames = self.place(index)[0], self.frames(index)
        sample = {"video": self.source.clip(self.footage[number], frames)}
        if self.footage[number].abnormal:
            about = {"footage": torch.tensor(number), "frames": torch.tensor(frames)}
            sample |= {**about, "abnormal": self.abnormal(index)}
        if self.placed:
            sample["truth"] = self.source.truth(self.footage[number], frames)
        return sample


def _count(footage: Footage) -> int:
    """Frames of a video file."""
    try:
        with open_reader(footage.path, "auto") as reader:
            count = len(reader)
    except BadSample as error:
        raise MimError(f"{footage.path} cannot be read: {error.reason}.") from error
    if count == 0:
        raise MimError(f"{footage.path} has no frames.")
    return count
