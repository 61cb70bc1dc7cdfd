"""A checkpoint's ``state.json``: what it must hold, and whether the files beside it are those that it names. It may
come from anywhere, so nothing in it is trusted: names are those of regular files in its folder, and values are of their
kind."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FORMAT = 1


WEIGHTS, MOMENTS, AVERAGE = "weights.safetensors", "optimizer.safetensors", "average.safetensors"


STATE, RECIPE, DIGEST = "state.json", "recipe.toml", "digest"


ORIGINS, MADE = "origins", "made"
"""Entries that `mim_core.runs.origins` makes."""


NAME = re.compile(r"step-([0-9]+)")
"""What a folder of a checkpoint is called; others beside it are the user's."""


LARGEST = 1 << 26
"""Bytes of a text file that is read whole."""


MOST = 10**15
"""No run has more steps or items."""


class StateError(ValueError):
    """What is wrong with a checkpoint, in a few words."""


class TornError(StateError):
    """A file that the state names is missing, or has another size."""


def number_of(path: Path) -> int | None:
    """The step in a checkpoint folder's name; None where the name is another."""
    match = NAME.fullmatch(path.name)
    return None if match is None else int(match[1][-30:])


def regular(folder: Path, name: str) -> Path:
    """The path of a regular file that lies in a folder itself.

    Raises:
        StateError: The name leads elsewhere, or to what is no regular file, such as a pipe or a device.
    """
    plain = bool(name) and name not in (".", "..") and not {"/", "\\", "\0"} & set(name) and len(name) < 256
    if not plain:
        raise StateError(f"{name[:80]!r} is no name of a file in that folder")
    path = folder / name
    try:
        inside = not path.is_symlink() or path.resolve().parent == folder.resolve()
        if path.exists() and not (inside and path.is_file()):
            raise StateError(f"{name} is no regular file in that folder")
    except (OSError, RuntimeError, ValueError) as error:
        raise StateError(f"{name[:80]!r} cannot be read: {error}") from error
    return path


def read_text(path: Path) -> str:
    """The text of a small regular file.

    Raises:
        StateError: It is missing, no regular file, no text in UTF-8, or far too large.
    """
    try:
        if not path.is_file():
            raise StateError(f"{path.name} is no regular file" if path.exists() else f"{path.name} is missing")
        if path.stat().st_size > LARGEST:
            raise StateError(f"{path.name} is too large")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise StateError(f"{path.name} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise StateError(f"{path.name} is no text in UTF-8") from error


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        StateError: It cannot be read, or is no JSON.
    """
    try:
        return json.loads(read_text(path))
    except StateError:
        raise
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise StateError(f"{path.name} is no whole JSON: {reason}") from error


def digest_of(state: Mapping[str, Any]) -> str:
    """SHA-256 of all that a state says but its own digest."""
    text = json.dumps({name: value for name, value in state.items() if name != DIGEST}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def read_state(path: Path) -> dict[str, Any]:
    """The state of the checkpoint in a folder, its values checked, and the files that it names in their sizes. One of a
    newer format is returned as it is.

    Raises:
        StateError: Something is not as it was written, or cannot have been written so.
    """
    state = read_json(regular(path, STATE))
    if not isinstance(state, dict):
        raise StateError("state.json holds no table")
    version: Any = state.get("format")
    if not _whole(version) or version < 1:
        raise StateError("state.json: 'format' should be a whole number from 1")
    if version > FORMAT:
        return state
    _check(state)
    if DIGEST in state and state[DIGEST] != digest_of(state):
        raise StateError("state.json is not what was written")
    number = number_of(path)
    if number is not None and number != state["step"]:
        raise StateError(f"state.json is of step {state['step']}, and the folder's name is {path.name}")
    for name, size in state["sizes"].items():
        file = regular(path, name)
        if not file.exists():
            raise TornError(f"{name} is missing")
        if os.stat(file).st_size != size:
            raise TornError(f"{name} has {os.stat(file).st_size:,} bytes, and had {size:,}")
    return state


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST


def _check(state: Mapping[str, Any]) -> None:
    """Raises StateError for a value that is not of its kind."""
    sizes, sums = state.get("sizes"), state.get("sha256", {})
    faults = {
        "step": _whole(state.get("step")),
        "sizes": isinstance(sizes, dict) and all(map(_whole, sizes.values())),
        "sha256": isinstance(sums, dict) and all(isinstance(v, str) and len(v) == 64 for v in sums.values()),
        "items": "items" not in state or _whole(state["items"]),
        "imported": "imported" not in state or _origin(state["imported"]),
        ORIGINS: isinstance(state.get(ORIGINS, []), list) and all(map(_from_where, state.get(ORIGINS, []))),
        MADE: MADE not in state or _holds(state[MADE], "command", "date", "device"),
        "untouched": "untouched" not in state or _texts(state["untouched"]),
    }
    for name, fine in faults.items():
        if not fine:
            raise StateError(f"state.json: {name!r} is {_shown(state.get(name))}, which cannot be")
    assert isinstance(sizes, dict)
    unlisted = [name for name in (WEIGHTS, MOMENTS, RECIPE, *sums) if name not in sizes]
    if unlisted:
        raise StateError(f"state.json: 'sizes' lacks {', '.join(unlisted)[:200]}")


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _origin(value: Any) -> bool:
    """Whether this says where imported weights are from."""
    return _from_where(value) and _texts(value.get("sizes"))


def _from_where(value: Any) -> bool:
    """Whether this names weights that a run started from."""
    return _holds(value, "file", "format")


def _holds(value: Any, *names: str) -> bool:
    """Whether this is a table with texts under these names."""
    return isinstance(value, dict) and all(isinstance(value.get(name), str) for name in names)


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:60]} ..."
