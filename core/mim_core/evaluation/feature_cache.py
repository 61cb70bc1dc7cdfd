"""Features kept in ``RUN/features`` once they are made. A file's name has two codes, ``ROW-OPTIONS-MADE_OF``: how the
features were asked for, and what they were made of. Where the second is another, the file is replaced."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from mim_core.evaluation.study import SplitFeatures
from mim_core.tensor_files import write_tensors


def code_of(*facts: Any) -> str:
    """Twelve digits that follow from facts, as JSON has them."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Store:
    """A folder of kept features.

    Attributes:
        folder: Where they are.
        options: How they are asked for: options of data, shapes and pooling.
        data: What the data are made of: files, labels, and versions of the code.
        untrained: What the untrained encoder depends on beside these.
        trained: What the trained encoder depends on beside these.
        step: The checkpoint's name.
    """

    folder: Path
    options: Any
    data: Any
    untrained: Any
    trained: Any
    step: str

    def raw(self, make: Callable[[], SplitFeatures], rows: tuple[int, int]) -> SplitFeatures:
        """Of the raw input."""
        return self._get("raw", "raw", self.data, make, rows)

    def fresh(self, make: Callable[[], SplitFeatures], rows: tuple[int, int]) -> SplitFeatures:
        """Of the untrained encoder."""
        return self._get("untrained", "untrained", [self.data, self.untrained], make, rows)

    def own(self, make: Callable[[], SplitFeatures], rows: tuple[int, int], control: str = "") -> SplitFeatures:
        """Of the trained encoder; with a control, of samples that were changed by it."""
        behind = f"-{re.sub('[^0-9A-Za-z_.]+', '-', control)}" if control else ""
        return self._get(f"{self.step}{behind}", f"step-[0-9]*{behind}", [self.data, self.trained], make, rows)

    def _get(
        self, row: str, replaced: str, made_of: Any, make: Callable[[], SplitFeatures], rows: tuple[int, int]
    ) -> SplitFeatures:
        """Features from disk, or made and written there in the place of those that are out of date.

        Args:
            row: What the file's name starts with.
            replaced: Pattern of what those that are out of date start with.
            made_of: What they depend on.
            make: Makes them.
            rows: How many there are of both splits.
        """
        options = code_of(self.options)
        path = self.folder / f"{row}-{options}-{code_of(made_of)}.safetensors"
        cached = _read(path, rows)
        if cached is not None:
            return cached
        made = make()
        self.folder.mkdir(parents=True, exist_ok=True)
        write_tensors(path, {name: value.contiguous() for name, value in vars(made).items()})
        code = "[0-9a-f]" * 12
        start = re.escape(row) if replaced == row else replaced.replace("*", "+")
        ours = re.compile(rf"{start}-({options}-)?[0-9a-f]{{12}}\.safetensors")
        for old in self.folder.glob(f"{replaced}-*{code}.safetensors"):  # one code: of an older mim-core
            if old != path and ours.fullmatch(old.name):
                with suppress(OSError):
                    old.unlink()
        return made


def _read(path: Path, rows: tuple[int, int]) -> SplitFeatures | None:
    """Whole features of so many rows; None where there are none."""
    try:
        if not path.is_file():
            return None
        features = SplitFeatures(**load_file(path))
    except (OSError, SafetensorError, TypeError):
        return None
    whole = (len(features.train), len(features.test)) == rows and features.train.ndim == features.test.ndim == 2
    return features if whole else None
