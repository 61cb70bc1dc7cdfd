"""Results in parts, kept in a folder until all are there: a command that was stopped goes on where it was."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mim_core.disk import write_whole
from mim_core.tensor_files import write_tensors

ABOUT = "about.json"


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
        if folder.is_symlink() or folder.is_file():  # another's
            folder.unlink()
        if folder.is_dir() and _text(folder / ABOUT) != self.about:
            shutil.rmtree(folder)
        done = [some for some in self._parts() if self._read(some) is not None]
        self.resumed = sum(map(len, done))

    def _parts(self) -> Iterator[range]:
        for first in range(0, self.samples, self.size):
            yield range(first, min(first + self.size, self.samples))

    def _path(self, some: range) -> Path:
        return self.folder / f"{some.start:010}.safetensors"

    def _read(self, some: range) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The tensors and the facts of a part; None where it is not there, or damaged."""
        try:
            with safe_open(self._path(some), "pt") as file:
                facts = json.loads(file.metadata()["facts"])
                return {name: file.get_tensor(name) for name in list(file.keys())}, facts
        except (OSError, SafetensorError, KeyError, TypeError, ValueError):
            return None

    def fill(
        self,
        make: Callable[[range], tuple[Mapping[str, Tensor], Mapping[str, Any]]],
        told: Callable[[int], None] = lambda done: None,
    ) -> Iterator[tuple[range, dict[str, Tensor], dict[str, Any]]]:
        """All parts in their order, made where they are not there; ``told`` hears how many samples are done.

        Args:
            make: Some samples -> tensors, and facts that JSON has.
            told: Called after each part.
        """
        for some in self._parts():
            found = self._read(some)
            if found is None:
                tensors, facts = make(some)
                self.folder.mkdir(parents=True, exist_ok=True)
                if not (self.folder / ABOUT).exists():
                    write_whole(self.folder / ABOUT, self.about)
                kept = {name: value.contiguous() for name, value in tensors.items()} or {"none": torch.empty(0)}
                write_tensors(self._path(some), kept, {"facts": json.dumps(facts)})
                found = kept, json.loads(json.dumps(facts))
            told(some.stop)
            yield some, *found

    def remove(self) -> None:
        """Called when the results are where they belong."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
