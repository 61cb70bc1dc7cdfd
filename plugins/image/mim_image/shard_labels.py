"""Classes and splits of samples in shards that stand in a JSON member beside the image."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mim_core import LABELS, SPLITS, MimError, split_of

LARGEST_JSON = 1 << 20
"""Bytes of a JSON member."""
TRIALS = 16
"""Members that are looked at for keys of the usual names; where none has one, the others are not read."""


class JsonLabels:
    """Reads the class out of JSON members.

    Args:
        root: Where the shards lie, for messages.
        column: The key that holds the class; empty: one of the usual names.
    """

    def __init__(self, root: Path, column: str = "") -> None:
        self.root, self.column = root, column
        self.tried = self.found = self.splits = 0
        self.strange: set[str] = set()

    @property
    def wanted(self) -> bool:
        """Whether further members should be read."""
        return bool(self.column) or self.found > 0 or self.splits > 0 or self.tried < TRIALS

    def of(self, content: bytes, name: str) -> tuple[str | None, str | None]:
        """The class and the split that a member says. The class is None where it says none, and no key was named; the
        split is "train", "test", "val" or "unlabelled", or None.

        Raises:
            MimError: It is no JSON object, or lacks the key that was named, or that holds no name or number.
        """
        self.tried += 1
        try:
            values = json.loads(content.decode("utf-8-sig"))
        except (ValueError, RecursionError):
            values = None
        if not isinstance(values, dict):
            if not self.column:
                return None, None
            raise MimError(
                f"{self.root}: {name} is no JSON object, so it has no {self.column!r} (--data.labels-column)."
            )
        return self._class(values, name), self._split(values)

    def _class(self, values: dict[str, Any], name: str) -> str | None:
        key = self.column or next((key for key in LABELS if key in values), "")
        if key not in values:
            if not self.column:
                return None
            available = ", ".join(map(str, list(values)[:8])) or "nothing"
            raise MimError(f"{self.root}: {name} has no {key!r} (--data.labels-column); it has {available}.")
        text = _text(values[key])
        if text is None:
            if not self.column:
                return None
            shown = json.dumps(values[key])[:60]
            raise MimError(f"{self.root}: {key!r} of {name} should be one name or number and is {shown}.")
        self.found += 1
        return text

    def _split(self, values: dict[str, Any]) -> str | None:
        """By the first key that is called like a column of splits; words that name none are noted as strange."""
        word = next((values[key] for key in SPLITS if key in values and key != self.column), None)
        if not isinstance(word, str) or not word.strip():
            return None
        split = split_of(word)
        if split is None:
            self.strange.add(word.strip())
        self.splits += split is not None
        return split


def _text(value: Any) -> str | None:
    """A name or a whole number as text; None for anything else."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, str | int):
        return str(value).strip() or None
    return None
