"""Where a run is from: the weights that it started from, and the command, the day and the device that made it. Kept in
``state.json`` of every checkpoint, and handed on to runs that start from it."""

from __future__ import annotations

import datetime
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from mim_core.runs.state import ORIGINS, StateError, read_state

RUN, EXPORT = "run", "export"
"""Formats of what is not another code base's: a run, and a file that ``export`` wrote."""

Origin = dict[str, str]
"""``file`` and ``format``; the first of a chain is the oldest."""


def kept_in(state: Mapping[str, Any]) -> list[Origin]:
    """The chain of weights behind a checkpoint whose state this is; of one that was imported, the file."""
    imported = state.get("imported")
    first = [] if imported is None else [{name: imported[name] for name in ("file", "format")}]
    return first or [dict(each) for each in state.get(ORIGINS, [])]


def behind(path: Path, form: str | None) -> list[Origin]:
    """The chain behind what a run starts from, with that itself at its end.

    Args:
        path: A checkpoint, a file or a folder of weights.
        form: Of another code base's weights, their format.
    """
    if form is not None:
        return [{"file": str(path), "format": form}]
    if path.is_file():
        return [*_of_export(path), {"file": str(path), "format": EXPORT}]
    try:
        before = kept_in(read_state(path))
    except StateError:  # read by the one that loads the weights, which says so
        before = []
    return [*before, {"file": str(path), "format": RUN}]


def _of_export(path: Path) -> list[Origin]:
    """What an exported file says of its run."""
    try:
        with safe_open(path, "pt") as file:
            return [dict(each) for each in json.loads((file.metadata() or {}).get(ORIGINS, "[]"))]
    except (OSError, SafetensorError, ValueError, TypeError):
        return []


def command_of(program: str, name: str, arguments: Sequence[str]) -> str:
    """A command as it can be given again."""
    return shlex.join([*program.split(), name, *arguments])


def made_now(command: str, device: str) -> dict[str, str]:
    """What a checkpoint's state says of how it was made."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"command": command, "device": device, "date": now}
