"""Results in parts, kept in a folder until all are there: a command that was stopped goes on where it was."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mim_core.disk import write_whole
from mim_core.locks import only_writer
from mim_core.tensor_files import write_tensors

ABOUT = "about.json"
LOCK = ".lock"


class Chunks:
    """A folder of results, one file for so many samples.

    Args:
        folder: Where they are kept; made when the first is.
        about: What they depend on: files, weights, options. Results of anything else are removed.
        samples: How many there are in all.
        size: How many each file holds.

    Attributes:
        resumed: How many samples were done before.
    """

    def __init__(self, folder: Path, about: Any, samples: int, size: int) -> None:
        self.folder, self.samples, self.size = folder, samples, size
        self.about = json.dumps([about, samples, size], sort_keys=True, default=str)
        if folder.is_dir() and _text(folder / ABOUT) != self.about:
            _clear(folder)
        done = [some for some in self._parts() if self._read(some) is not None]
        self.resumed = sum(map(len, done))

    @classmethod
    @contextmanager
    def alone(cls, folder: Path, about: Any, samples: int, size: int, out: Path) -> Iterator[Chunks]:
        """The same, while no other command fills the folder: what another one puts there would be taken for ours.

        Args:
            folder: Where they are kept.
            about: What they depend on.
            samples: How many there are in all.
            size: How many each file holds.
            out: What is made of them, for people.

        Raises:
            MimError: Another command is at it.
            OSError: It cannot be written there.
        """
        if folder.is_symlink() or folder.is_file():  # another's
            folder.unlink()
        folder.mkdir(parents=True, exist_ok=True)
        remedy = "Wait for it, stop it, or name another with --out."
        try:
            with only_writer(folder / LOCK, f"Another command writes {out}", remedy):
                yield cls(folder, about, samples, size)
        finally:
            with suppress(OSError):  # it stays where there is something to go on from
                folder.rmdir()

    def _parts(self) -> Iterator[range]:
        for first in range(0, self.samples, self.size):
            yield range(first, min(first + self.size, self.samples))

    def _code(self) -> str:
        return hashlib.sha256(self.about.encode("utf-8", "surrogateescape")).hexdigest()

    def _path(self, some: range) -> Path:
        return self.folder / f"{some.start:010}.safetensors"

    def _read(self, some: range) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The tensors and the facts of a part; None where it is not there, or damaged."""
        try:
            with safe_open(self._path(some), "pt") as file:
                if file.metadata()["about"] != self._code():
                    return None
                facts = json.loads(file.metadata()["facts"])
                return {name: file.get_tensor(name) for name in list(file.keys())}, facts
        except (OSError, SafetensorError, KeyError, TypeError, ValueError):
            return None

    def fill(
        self,
        make: Callable[[range], tuple[Mapping[str, Tensor], Mapping[str, Any]]],
        report: Callable[[int], None] = lambda done: None,
    ) -> Iterator[tuple[range, dict[str, Tensor], dict[str, Any]]]:
        """All parts in their order, made where they are not there; ``report`` hears how many samples are done.

        Args:
            make: Some samples -> tensors, and facts that JSON has.
            report: Called after each part.
        """
        for some in self._parts():
            chunk = self._read(some)
            if chunk is None:
                tensors, facts = make(some)
                self.folder.mkdir(parents=True, exist_ok=True)
                if not (self.folder / ABOUT).exists():
                    write_whole(self.folder / ABOUT, self.about)
                kept = {name: value.contiguous() for name, value in tensors.items()} or {"none": torch.empty(0)}
                write_tensors(self._path(some), kept, {"facts": json.dumps(facts), "about": self._code()})
                chunk = kept, json.loads(json.dumps(facts))
            report(some.stop)
            yield some, *chunk

    def remove(self) -> None:
        """Called when the results are where they belong."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _clear(folder: Path) -> None:
    """Removes what a folder holds, but for the lock."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
