"""What ``prepare`` leaves beside a prepared collection, so that it is read as its source was."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

PREPARED = "prepared.json"
"""In OUT of ``prepare``."""
WHOLE = ("shapenetpart", "sample")
"""Layouts whose files hold more than points, part numbers or many shapes; they are copied as they are."""


@dataclass(frozen=True)
class Prepared:
    """The source of a prepared collection.

    Attributes:
        layout: Its layout's name.
        up: The axis that points up in it.
        channels: What every file holds; None where files are copied.
    """

    layout: str
    up: str = "y"
    channels: tuple[str, ...] | None = None


def read_prepared(root: Path) -> Prepared | None:
    """What stands in a folder's `PREPARED`; None without one, or where it is no such file."""
    if not (root / PREPARED).is_file():
        return None
    try:
        content = json.loads((root / PREPARED).read_text())
        layout, up, channels = content["layout"], content["up"], content["channels"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    known = isinstance(layout, str) and up in ("x", "y", "z")
    named = channels is None or (isinstance(channels, list) and all(isinstance(name, str) for name in channels))
    return Prepared(layout, up, None if channels is None else tuple(channels)) if known and named else None


def write_prepared(root: Path, prepared: Prepared) -> None:
    """Write `PREPARED`, whole or not at all."""
    partial = root / f"{PREPARED}.partial"
    partial.write_text(json.dumps(asdict(prepared), indent=1) + "\n")
    partial.replace(root / PREPARED)
