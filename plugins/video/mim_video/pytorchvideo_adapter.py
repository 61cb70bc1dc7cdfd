"""Data sets of pytorchvideo: their files for mim-video's own readers, or their clips as samples.

:func:`files_of` is the better way: files are then read by index, so that a run resumes exactly and bad files are
named. :class:`ClipSamples` takes what a data set yields, transforms and all. pytorchvideo 0.1.5's own transforms
import a module that torchvision no longer has; nothing here imports them.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from mim_core import BadSample, MimError
from torch import Tensor
from torch.utils.data import IterableDataset

from mim_video.layouts import ClipStore
from mim_video.open_file import scale


def pytorchvideo_data() -> Any:
    """The module ``pytorchvideo.data``.

    Raises:
        MimError: It is not installed, or does not load; says what to type.
    """
    try:
        return importlib.import_module("pytorchvideo.data")
    except ImportError as error:
        raise MimError(
            f'pytorchvideo does not load: {error}\nTo install it: pip install "mim-video[pytorchvideo]". '
            "If it is pytorchvideo.transforms that fails: use torchvision.transforms.v2 instead."
        ) from error


def labelled_paths(dataset: Any) -> list[tuple[str, dict[str, Any]]]:
    """(path, what is known of it) of every video of a LabeledVideoDataset.

    Raises:
        MimError: It is none.
    """
    paths = getattr(dataset, "_labeled_videos", None)
    if paths is None:
        raise MimError(
            f"{type(dataset).__name__} is no LabeledVideoDataset of pytorchvideo (such as Kinetics(...), Ucf101(...)): "
            "it lists no videos."
        )
    return [(str(path), dict(known or {})) for path, known in (paths[i] for i in range(len(paths)))]


def files_of(dataset: Any, classes: Sequence[str] | None = None) -> ClipStore:
    """The files of a LabeledVideoDataset and their labels, for mim-video's own readers.

    Args:
        dataset: As pytorchvideo made it; its clip sampler, transform and decoder are not used.
        classes: Names of the classes; their numbers by default.

    Raises:
        MimError: It lists no videos, or folders of pictures, which are not read here.
    """
    videos = labelled_paths(dataset)
    folders = [path for path, _ in videos if os.path.isdir(path)]
    if not videos or folders:
        what = f"{folders[0]} is a folder of frames" if folders else "it lists no videos"
        raise MimError(f"{type(dataset).__name__} cannot be read: {what}. mim-video reads video files.")
    root = Path(os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path, _ in videos]))
    labels = [known.get("label") for _, known in videos]
    numbered = all(isinstance(label, int) for label in labels)
    if numbered and classes is None:
        classes = [str(number) for number in range(max(labels, default=0) + 1)]  # type: ignore[type-var,operator]
    return ClipStore(
        root,
        tuple(os.path.relpath(os.path.abspath(path), root) for path, _ in videos),
        [int(label) for label in labels] if numbered else (),  # type: ignore[arg-type]
        tuple(classes) if numbered and classes and len(classes) > 1 else None,
    )


class ClipSamples(IterableDataset[dict[str, Tensor]]):
    """The clips that a pytorchvideo data set yields, as samples of mim-video: ``video``, uint8 [C, T, H, W], and
    ``label`` where there is one.

    pytorchvideo passes over videos that it cannot read without a word: :meth:`unread` names them.

    Args:
        dataset: Yields dicts with ``video``, float [C, T, H, W] (or a list of them), as LabeledVideoDataset does.
        frames: Frames of a clip, evenly spaced; all by default.
        size: Height and width to scale to; as they come by default.
    """

    def __init__(self, dataset: Any, frames: int | None = None, size: tuple[int, int] | None = None) -> None:
        self.dataset, self.frames, self.size = dataset, frames, size
        self.seen: set[int] = set()

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for item in self.dataset:
            if "video_index" in item:
                self.seen.add(int(item["video_index"]))
            clips = item["video"] if isinstance(item["video"], list) else [item["video"]]
            for clip in clips:
                sample = {"video": self._clip(clip, item)}
                if isinstance(item.get("label"), int):
                    sample["label"] = torch.tensor(item["label"])
                yield sample

    def _clip(self, clip: Tensor, item: Mapping[str, Any]) -> UInt8[Tensor, "C T H W"]:
        name = str(item.get("video_name", item.get("video_index", "?")))
        if clip.dim() != 4 or clip.shape[0] not in (1, 3) or 0 in clip.shape:
            raise BadSample(name, f"its clip has the shape {list(clip.shape)}; [C, T, H, W] is needed")
        if self.frames is not None:
            places = torch.linspace(0, clip.shape[1] - 1, self.frames).round().long()
            clip = clip[:, places]
        clip = levels(clip, name)
        if self.size is not None:
            clip = scale(clip.permute(1, 2, 3, 0), self.size).permute(3, 0, 1, 2)
        return clip.contiguous()

    def unread(self) -> list[str]:
        """Videos of the data set that gave no clip so far, in this process; ask after a whole pass."""
        return [path for i, (path, _) in enumerate(labelled_paths(self.dataset)) if i not in self.seen]


def levels(clip: Tensor, name: str) -> UInt8[Tensor, "C T H W"]:
    """A clip in whole levels from 0 to 255, from those, or from 0 to 1 where a transform divided by 255.

    Raises:
        MimError: It has values outside, as after normalisation, which mim-video does itself.
    """
    if clip.dtype == torch.uint8:
        return clip
    low, high = clip.min().item(), clip.max().item()
    if low < -0.5 or high > 255.5:
        raise MimError(
            f"The clip of {name} has values from {low:.3g} to {high:.3g}: leave normalisation out of the data set's "
            "transform; mim-video normalises by --data.mean and --data.std."
        )
    divided = high <= 1 and bool((clip != clip.round()).any())
    return (clip * 255 if divided else clip).round().clamp(0, 255).to(torch.uint8)
