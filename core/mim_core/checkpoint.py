"""Checkpoints: weights in safetensors, everything else JSON, no pickle.

    RUN/checkpoints/step-00001000/
        weights.safetensors      the whole method: encoder and decoder
        optimizer.safetensors    AdamW's moments, by parameter name
        state.json               step, versions, sizes and SHA-256 of the others; written last
        recipe.toml              the resolved recipe, so that the folder describes itself

Written under a temporary name, synced, and renamed. A folder of the final name whose files have the sizes in
state.json is whole; the newest whole one wins, and a torn one is passed over with a warning.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mim_core.errors import MimError
from mim_core.method import Method

FORMAT = 1


@dataclass(frozen=True)
class Loaded:
    """A checkpoint as read from disk."""

    path: Path
    step: int
    state: dict[str, Any]
    weights: dict[str, Tensor]


def folder_of(run: Path) -> Path:
    """Where a run keeps its checkpoints."""
    return run / "checkpoints"


def save(
    run: Path,
    method: Method,
    optimizer: torch.optim.Optimizer,
    step: int,
    recipe: str,
    extra: dict[str, Any],
    keep: int,
) -> Path:
    """Writes a checkpoint and removes the oldest beyond ``keep``.

    Raises:
        MimError: The disk is full or cannot be written; nothing that was there is lost.
    """
    final = folder_of(run) / f"step-{step:08d}"
    part = folder_of(run) / f".part-{os.getpid()}"
    try:
        for left in folder_of(run).glob(".part-*"):  # of a process that was killed while it wrote
            shutil.rmtree(left, ignore_errors=True)
        part.mkdir(parents=True)
        save_file(_contiguous(method.state_dict()), part / "weights.safetensors", metadata={"format": "pt"})
        save_file(_optimizer_tensors(method, optimizer), part / "optimizer.safetensors")
        (part / "recipe.toml").write_text(recipe)
        sizes = {path.name: path.stat().st_size for path in part.iterdir()}
        digests = {path.name: _digest(path) for path in part.iterdir()}
        state = {"format": FORMAT, "step": step, **extra, "sizes": sizes, "sha256": digests}
        (part / "state.json").write_text(json.dumps(state, indent=1))
        for path in part.iterdir():
            _sync(path)
        if final.exists():  # not whole, or the run would have gone on from it
            shutil.rmtree(final)
        part.rename(final)
        _sync(folder_of(run))
    except (OSError, SafetensorError) as error:
        shutil.rmtree(part, ignore_errors=True)
        before = newest(run)
        kept = f"The last whole checkpoint is {before}." if before else "There is no earlier checkpoint."
        raise MimError(
            f"Checkpoint {final} cannot be written: {error}. {kept} Free some space, or choose another folder with "
            f"--out, and start again with "
            "the same command: the run goes on from there."
        ) from error
    for old in sorted(folder_of(run).glob("step-*"))[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def whole(path: Path) -> bool:
    """Whether all files of a checkpoint are there in the sizes that were written."""
    try:
        sizes = json.loads((path / "state.json").read_text())["sizes"]
        return all((path / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError, TypeError):
        return False


def newest(run: Path, warn: Callable[[str], None] = lambda text: None) -> Path | None:
    """The newest whole checkpoint of a run, if there is one."""
    for path in sorted(folder_of(run).glob("step-*"), reverse=True):
        if whole(path):
            return path
        warn(f"{path} is not whole and is passed over.")
    return None


def load(path: Path) -> Loaded:
    """Reads weights and state.

    Raises:
        MimError: A file is damaged, or was written by a newer mim-core.
    """
    try:
        state = json.loads((path / "state.json").read_text())
        if state["format"] > FORMAT:
            raise MimError(
                f"{path} has checkpoint format {state['format']}; this mim-core reads up to {FORMAT}. Update mim-core."
            )
        for name, digest in state.get("sha256", {}).items():
            if _digest(path / name) != digest:
                raise ValueError(f"{name} is not what was written")
        return Loaded(path, state["step"], state, load_file(path / "weights.safetensors"))
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> MimError:
    return MimError(f"{path} cannot be read: {error}. Remove it to start from an earlier one.")


def restore(path: Path, method: Method, optimizer: torch.optim.Optimizer) -> Loaded:
    """Puts weights and moments back, strictly."""
    loaded = load(path)
    load_weights(method, loaded)
    try:
        tensors = load_file(path / "optimizer.safetensors")
    except (OSError, SafetensorError) as error:
        raise _unreadable(path, error) from error
    names = {id(parameter): name for name, parameter in method.named_parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            moments = {key: tensors.pop(f"{name}/{key}", None) for key in ("step", "exp_avg", "exp_avg_sq")}
            if any(value is None for value in moments.values()):
                continue  # a parameter that no step has touched yet
            on_device = parameter.device
            # fused AdamW keeps the step beside the parameter
            optimizer.state[parameter] = {
                key: value.to(on_device) for key, value in moments.items() if value is not None
            }
    if tensors:
        raise MimError(f"{path} holds moments of unknown parameters: {', '.join(sorted(tensors)[:5])}.")
    return loaded


def load_weights(method: Method, loaded: Loaded) -> None:
    """Loads weights strictly; a difference is an error that names it."""
    own = method.state_dict()
    faults = [f"missing: {name}" for name in own if name not in loaded.weights]
    faults += [f"unexpected: {name}" for name in loaded.weights if name not in own]
    for name, value in loaded.weights.items():
        if name in own and own[name].shape != value.shape:
            faults.append(f"{name} is {tuple(value.shape)} on disk and {tuple(own[name].shape)} in this recipe")
    if faults:
        more = f"\n  ... and {len(faults) - 10} more" if len(faults) > 10 else ""
        listed = "\n  ".join(faults[:10])
        raise MimError(
            f"{loaded.path} does not fit this recipe:\n  {listed}{more}\nUse another --out, or the recipe.toml of "
            f"that run."
        )
    method.load_state_dict(loaded.weights)


def _contiguous(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in state.items()}


def _optimizer_tensors(method: Method, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    names = {id(parameter): name for name, parameter in method.named_parameters()}
    return _contiguous(
        {
            f"{names[id(parameter)]}/{key}": value
            for parameter, moments in optimizer.state.items()
            for key, value in moments.items()
            if isinstance(value, Tensor)
        }
    )


def _digest(path: Path) -> str:
    with open(path, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
