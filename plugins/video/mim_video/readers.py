"""Readers of video files: one protocol, several libraries behind it, chosen by name."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float64, UInt8
from mim_core import BadSample, MimError, unknown
from torch import Tensor

from mim_video.reader_frames import RATE, FrameFolder


@runtime_checkable
class Reader(Protocol):
    """An open video file.

    Open it in the process that reads it: no library's reader may be carried over a fork or be pickled. Use it in a
    ``with`` block, or close it.

    Attributes:
        times: When each frame is shown, in seconds, strictly rising, as the file's own timestamps say. A stream that
            starts late keeps its offset.
        size: Height and width of a frame as it is shown, that is after rotation, and with square pixels.
    """

    times: Float64[Tensor, " n"]
    size: tuple[int, int]

    def __len__(self) -> int:
        """Frames that can be shown."""
        ...

    def frames_at(self, indices: Sequence[int], size: tuple[int, int] | None = None) -> UInt8[Tensor, "n H W 3"]:
        """RGB frames, upright, in the order asked for.

        Args:
            indices: Frames in the order of presentation, from 0. Any order; repeats are allowed.
            size: Height and width to scale to; the file's own by default.

        Raises:
            BadSample: One of them does not decode.
            IndexError: There is no such frame.
        """
        ...

    def close(self) -> None:
        """Let go of the file and of the decoder's memory. A second call does nothing."""
        ...

    def __enter__(self) -> Reader: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


@dataclass(frozen=True)
class Library:
    """A library that reads videos.

    Attributes:
        opener: ``module:class`` of its reader; the class takes a path.
        module: What is imported.
        packages: Names on the package index, of which any one will do.
        install: The command that brings it.
    """

    opener: str
    module: str
    packages: tuple[str, ...]
    install: str


LIBRARIES = {
    "pyav": Library("mim_video.reader_pyav:PyavReader", "av", ("av",), "pip install av"),
    "torchcodec": Library(
        "mim_video.reader_torchcodec:TorchcodecReader",
        "torchcodec",
        ("torchcodec",),
        'pip install "mim-video[torchcodec]" (it also needs FFmpeg: apt-get install ffmpeg)',
    ),
    "decord": Library(
        "mim_video.reader_decord:DecordReader",
        "decord",
        ("decord", "decord2", "eva-decord"),
        'pip install "mim-video[decord]"',
    ),
}
"""Readers by name."""


def open_reader(path: Path, name: str = "auto", rate: float | None = None) -> Reader:
    """Open a video file, or a folder of frames, which needs no library.

    Args:
        path: The file or folder.
        name: auto, pyav, torchcodec or decord. ``auto`` is PyAV; docs/video-readers.md says why.
        rate: Frames per second of a folder of frames.

    Raises:
        BadSample: The file cannot be used: no regular file, empty, no video in it, no frame decodes.
        MimError: There is no such reader, or its library is missing; says what to install.
    """
    name = chosen(name)
    if path.is_dir():
        return FrameFolder(path, rate or RATE)
    check_file(path)
    reader: Reader = load_reader(name)(path)
    return reader


def check_file(path: Path) -> None:
    """Refuses what is no file with something in it: opening a pipe or a device would wait or never end.

    Raises:
        BadSample: Says what it is.
    """
    if not path.is_file():
        raise BadSample(str(path), "it is no regular file" if path.exists() else "there is no such file")
    if path.stat().st_size == 0:
        raise BadSample(str(path), "the file is empty")


def load_reader(name: str) -> Any:
    """The class that opens a file with a library, which is imported.

    Args:
        name: pyav, torchcodec or decord, see `chosen`.

    Raises:
        MimError: The library is missing or does not load; says what to install.
    """
    module, _, cls = LIBRARIES[name].opener.partition(":")
    try:
        importlib.import_module(LIBRARIES[name].module)
        return getattr(importlib.import_module(module), cls)
    except (ImportError, RuntimeError, OSError) as error:
        raise missing(name, error) from error


def chosen(name: str) -> str:
    """The reader that a name means: ``auto`` is pyav.

    Raises:
        MimError: There is no such reader.
    """
    name = "pyav" if name == "auto" else name
    if name not in LIBRARIES:
        raise unknown("reader", name, ["auto", *LIBRARIES])
    return name


def missing(name: str, error: Exception) -> MimError:
    """The error for a library that does not load: which, why, and what to type."""
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return MimError(
        f"The reader {name!r} does not load: {reason}\nTo install it: {LIBRARIES[name].install}\n"
        f"Or take another: --data.reader pyav."
    )


def known_readers() -> dict[str, str | None]:
    """Version of each reader's library; None when it is not installed. Nothing is imported, so an installed library
    may still fail to load (torchcodec without FFmpeg does)."""
    return {name: _version(library) for name, library in LIBRARIES.items()}


def _version(library: Library) -> str | None:
    if importlib.util.find_spec(library.module) is None:
        return None
    for package in library.packages:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "unknown"
