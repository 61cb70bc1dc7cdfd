"""A run's folder: made, checked, and cut back to where a run resumes."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from mim_core.disk import write_whole
from mim_core.errors import MimError
from mim_core.locks import only_writer
from mim_core.recipes.toml import parsed
from mim_core.recipes.versions import with_earlier
from mim_core.runs import checkpoint, logs
from mim_core.runs.state import read_text


def open_folder(folder: Path, recipe: str, complete: Callable[[str], str] = str) -> dict[str, str]:
    """Makes the output folder, and refuses one that holds another run. Returns the bad files that it knows of, with
    reasons. The versions of plugins that a run was trained with before stay in its ``recipe.toml``.

    Args:
        folder: Where the run goes.
        recipe: Its resolved recipe.
        complete: Adds to the recipe of an earlier version the options that it did not know.

    Raises:
        MimError: It cannot be written, or holds a run with other settings.
    """
    path = folder / "recipe.toml"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        latest = checkpoint.to_resume(folder)
        before = read_recipe(path, latest) if latest is not None and path.exists() else None
        if before is not None:
            _same_run(complete(before), recipe, folder)
            recipe = with_earlier(recipe, before)
        write_whole(path, recipe)
        return {entry["file"]: entry["reason"] for entry in logs.mend(folder / logs.SKIPPED)}
    except OSError as error:
        raise MimError(f"The output folder {folder} cannot be written: {error}. Choose another with --out.") from error


def check_name(folder: Path) -> None:
    """Refuses a run's folder whose name is no UTF-8: files of tensors (safetensors) cannot be read there.

    Raises:
        MimError: It is such a name.
    """
    try:
        str(folder).encode()
    except UnicodeEncodeError:
        raise MimError(
            f"The name of the run's folder {folder} is not UTF-8, and files of tensors cannot be read there. "
            "Choose another with --out, or rename it."
        ) from None


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps a second run out of a folder; the system lets go when this process ends, however it ends.

    Raises:
        MimError: Another process trains into it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = only_writer(
            folder / ".lock",
            f"Another process trains into {folder}",
            "Wait for it, stop it, or choose another folder with --out.",
            stays=True,
        )
        lock.__enter__()
    except OSError as error:
        raise MimError(
            f"The output folder {folder} cannot be written ({folder / '.lock'}): {error}. Choose another with --out."
        ) from error
    with ExitStack() as stack:
        stack.push(lock)
        yield


FREE = {
    "train": (
        "workers",
        "log_every",
        "checkpoint_every",
        "keep_checkpoints",
        "max_hours",
        "micro_batch",
        "device",
        "strategy",
        "compile",
        "activation_checkpointing",
        "deterministic",
        "timeout",
        "item_timeout",
        "track",
    ),
    "data": ("max_bad", "root"),  # the files may have moved; their number is checked
}
"""Options that may change when a run goes on; the others would make it another run."""


def check_folder(folder: Path, recipe: str, complete: Callable[[str], str] = str) -> None:
    """Refuses what `open_folder` would refuse, and writes nothing.

    Raises:
        MimError: The folder holds a run with other settings.
    """
    folder.exists()  # a name that is too long is an OSError here, as it would be when the run starts
    path, latest = folder / "recipe.toml", checkpoint.to_resume(folder)
    if latest is not None and path.exists():
        _same_run(complete(read_recipe(path, latest)), recipe, folder)


def read_recipe(path: Path, latest: Path | None = None) -> str:
    """The text of a run's ``recipe.toml``, which is TOML.

    Args:
        path: The file.
        latest: A whole checkpoint of the run, which has a copy.

    Raises:
        MimError: It is damaged.
    """
    try:
        text = read_text(path)
        if not isinstance(parsed(text, path).get("plugins", {}), dict):
            raise ValueError("'plugins' is no table")
        return text
    except ValueError as error:
        copy = "" if latest is None else f" A copy is in its checkpoint: cp {latest / path.name} {path}"
        remedy = copy or " Restore it, or choose another folder with --out."
        raise MimError(f"{path} is damaged: {error}.{remedy}") from error


def _same_run(before: str, now: str, folder: Path) -> None:
    """A folder's run may go on with other free options only."""
    old, new = tomllib.loads(before), tomllib.loads(now)
    different = []
    for table in sorted({*old, *new} - {"plugins", "evaluate"}):
        a, b = old.get(table), new.get(table)
        if not isinstance(a, dict) or not isinstance(b, dict):
            different += [table] if a != b else []
            continue
        keys = [key for key in sorted({*a, *b}) if key not in FREE.get(table, ())]
        changed = [key for key in keys if a.get(key) != b.get(key)]
        different += [f"{table}.{key} (was {_short(a.get(key))}, now {_short(b.get(key))})" for key in changed]
    if different:
        raise MimError(
            f"{folder} holds a run with other settings: {'; '.join(different[:6])}.\nUse the same settings to "
            f"resume it, or another folder with --out; to start there from its weights, add --init {folder}."
        )


def _short(value: object, most: int = 80) -> str:
    """A value as it is told; of long ones, such as the vocabulary of captions, the beginning."""
    text = str(value)
    return text if len(text) <= most else f"{text[:most]}..."


def forget_after(folder: Path, step: int) -> None:
    """Drops metrics and scores of steps that will be done again, and what is damaged of the others.

    Raises:
        MimError: A log is no regular file, or cannot be read.
    """
    for name in (logs.METRICS, logs.PROBES):
        logs.mend(folder / name, lambda line: bool(line["step"] <= step))
