"""Checkpoints: weights in safetensors, everything else JSON, no pickle.

    RUN/checkpoints/step-00001000/
        weights.safetensors      the whole method: encoder and decoder
        optimizer.safetensors    AdamW's moments, by parameter name
    average.safetensors      the moving average of the weights, with --train.ema
        state.json               step, versions, sizes and SHA-256 of the others and of itself; written last
        recipe.toml              the resolved recipe, so that the folder describes itself

Written under a temporary name, synced, and renamed. A folder of the final name whose files have the sizes in
state.json is whole; the newest whole one wins, by its number. One that is incomplete is skipped with a warning, and
moved aside when a checkpoint is written next. Folders of other names are the user's, and left alone.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mim_core.disk import _digest, _sync, is_full
from mim_core.errors import MimError, warn
from mim_core.methods.method import Method
from mim_core.ranks.tensors import fill_from_first
from mim_core.ranks.tensors import whole as whole_tensor
from mim_core.runs.average import WeightAverage
from mim_core.runs.state import (
    AVERAGE,
    DIGEST,
    FORMAT,
    MOMENTS,
    RECIPE,
    STATE,
    WEIGHTS,
    StateError,
    TornError,
    digest_of,
    number_of,
    read_state,
    read_text,
    regular,
)
from mim_core.runs.strictness import average_faults, kept_of, moment_faults
from mim_core.tensor_files import usual_mode


@dataclass(frozen=True)
class Loaded:
    """A checkpoint as read from disk."""

    path: Path
    step: int
    state: dict[str, Any]
    weights: dict[str, Tensor]


@dataclass(frozen=True)
class Contents:
    """What a checkpoint holds, as whole tensors on the host, by file; empty on all ranks but the first. ``untouched``
    are the parameters that no step has touched, which have no moments."""

    files: dict[str, dict[str, Tensor]]
    untouched: tuple[str, ...] = ()


def gather(method: Method, optimizer: torch.optim.Optimizer, average: WeightAverage | None, first: bool) -> Contents:
    """Collects the tensors of a run, sharded or not, on the first rank. All ranks must call it.

    Whole tensors and not shards go to disk, so that one format serves every strategy, any number of ranks and other
    programs; one tensor at a time is on a device in full. A weight that two parts share is there under both names.
    """
    files = {WEIGHTS: method.state_dict(), MOMENTS: _moments(method, optimizer)}
    if average is not None:
        files[AVERAGE] = dict(average.tensors)
    saved: dict[str, dict[str, Tensor]] = {name: {} for name in files}
    for file, tensors in files.items():
        memory: set[int] = set()
        for name, tensor in tensors.items():
            full = whole_tensor(tensor.detach())
            if first:
                kept = full.cpu().contiguous()
                place = kept.untyped_storage().data_ptr()
                saved[file][name] = kept.clone() if place in memory else kept  # a file holds no tensor twice
                memory.add(place)
    return Contents(saved, tuple(name for name, p in _trained(method, optimizer).items() if not optimizer.state.get(p)))


def save(run: Path, contents: Contents, step: int, recipe: str, extra: dict[str, Any], keep: int) -> Path:
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
        for name, tensors in contents.files.items():
            with usual_mode(part / name):
                save_file(tensors, part / name, metadata={"format": "pt"})
        (part / RECIPE).write_text(recipe, encoding="utf-8")
        sizes = {path.name: path.stat().st_size for path in part.iterdir()}
        digests = {path.name: _digest(path) for path in part.iterdir()}
        untouched = {"untouched": list(contents.untouched)}
        state = {"format": FORMAT, "step": step, **extra, **untouched, "sizes": sizes, "sha256": digests}
        (part / STATE).write_text(json.dumps({**state, DIGEST: digest_of(state)}, indent=1))
        for path in part.iterdir():
            _sync(path)
        _sync(part)
        if final.exists():  # not whole, or the run would have gone on from it
            _clear(final)
        part.rename(final)
        _sync(folder_of(run))
    except (OSError, SafetensorError) as error:
        shutil.rmtree(part, ignore_errors=True)
        before = newest(run)
        kept = f"The last complete checkpoint is {before}." if before else "There is no earlier checkpoint."
        room = "Free some space" if is_full(error) else "See that it can be written to"
        again = ": the run resumes from there" if before else ", or choose another folder with --out"
        raise MimError(
            f"Checkpoint {final} cannot be written: {error}. {kept} {room}, then rerun the command{again}."
        ) from error
    sound = []
    for path in steps_of(run):
        if whole(path):
            sound.append(path)
        else:  # a newer one would be in the way of every start
            _clear(path)
    for old in {*sound} - {*sound[-keep:], final}:
        shutil.rmtree(old, ignore_errors=True)
    return final


def _clear(path: Path) -> None:
    """Removes a checkpoint that its own state says is torn. One without a whole state gets another name, and is the
    user's to look at or to remove."""
    try:
        read_state(path)
    except TornError:
        shutil.rmtree(path, ignore_errors=True)
    except StateError as error:
        for number in range(1000):
            with suppress(OSError):  # that name is taken
                moved = path.rename(path.with_name(f"{path.name}.damaged" + (f"-{number}" if number else "")))
                warn(f"{path} is not a complete checkpoint: {error}. It is now {moved}.")
                return


def folder_of(run: Path) -> Path:
    """Where a run keeps its checkpoints."""
    return run / "checkpoints"


def steps_of(run: Path) -> list[Path]:
    """The folders of a run's checkpoints, whole or not, by step. Other names are the user's."""
    try:
        entries = [
            (number, path.name, path) for path in folder_of(run).iterdir() if (number := number_of(path)) is not None
        ]
        return [path for _, _, path in sorted(entries) if path.is_dir()]
    except OSError:  # there is none, or it cannot be listed
        return []


def fault_of(path: Path) -> str | None:
    """Why a checkpoint is not whole, as far as can be told without reading all of it; None where it is."""
    try:
        read_state(path)
    except StateError as error:
        return str(error)
    return None


def whole(path: Path) -> bool:
    """Whether all files of a checkpoint are there in the sizes that were written."""
    return fault_of(path) is None


def newest(run: Path, tell: Callable[[str], None] = lambda text: None) -> Path | None:
    """The newest whole checkpoint of a run, if there is one."""
    for path in reversed(steps_of(run)):
        fault = fault_of(path)
        if fault is None:
            return path
        tell(f"{path} is incomplete; skipping it: {fault}.")
    return None


def to_resume(run: Path, tell: Callable[[str], None] = lambda text: None) -> Path | None:
    """The newest whole checkpoint, or None where the run has none yet.

    Raises:
        MimError: There are checkpoints and none is whole, so that the run would start again from 0.
    """
    passed: list[str] = []
    path, folders = newest(run, passed.append), steps_of(run)
    if path is None and folders:
        raise MimError(
            f"{run} holds no complete checkpoint to resume from: {folders[-1]} is damaged: {fault_of(folders[-1])}. "
            f"Restore it; or, to start again from step 0, remove {folder_of(run)}, or choose another folder with --out."
        )
    for text in passed:
        tell(text)
    return path


def load(path: Path) -> Loaded:
    """Reads weights and state.

    Raises:
        MimError: A file is damaged, or was written by a newer mim-core.
    """
    try:
        state = read_state(path)
        if state["format"] > FORMAT:
            raise MimError(
                f"{path} has checkpoint format {state['format']}; this mim-core reads up to {FORMAT}. Update mim-core."
            )
        for name, digest in state.get("sha256", {}).items():
            if _digest(regular(path, name)) != digest:
                raise StateError(f"{name} is not what was written")
        return Loaded(path, state["step"], state, load_file(path / WEIGHTS))
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise _unreadable(path, error) from error


def recipe_of(path: Path) -> str:
    """The recipe in a checkpoint's folder.

    Raises:
        MimError: It is missing or no text.
    """
    try:
        return read_text(regular(path, RECIPE))
    except StateError as error:
        raise _unreadable(path, error) from error


def identity_of(path: Path) -> str:
    """What tells a checkpoint's content from that of any other: a digest of its state, which has those of its files.

    Raises:
        MimError: The state cannot be read.
    """
    try:
        return digest_of(read_state(path))
    except StateError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> MimError:
    return MimError(f"{path} cannot be read: {error}. Remove it to start from an earlier one, or restore it.")


def check(
    loaded: Loaded, method: Method, optimizer: torch.optim.Optimizer | None = None, average: WeightAverage | None = None
) -> None:
    """Refuses a checkpoint that lacks anything of what a run goes on from.

    Raises:
        MimError: Names the weights, moments or averages that are missing, unexpected or of another shape.
    """
    check_weights(method, loaded)
    faults: list[str] = []
    if optimizer is not None:
        faults += moment_faults(loaded.path, loaded.state, _trained(method, optimizer), kept_of(optimizer))
    if average is not None:
        faults += average_faults(loaded.path, loaded.state, method)
    if faults:
        summary = "; ".join(faults[:6]) + (f" and {len(faults) - 6} more" if len(faults) > 6 else "")
        raise MimError(
            f"{loaded.path} cannot be resumed from: {summary}. Restore it, or remove it to start "
            f"from an earlier one; to start anew from its weights: --init {loaded.path} and another --out."
        )


def restore(
    loaded: Loaded | None, method: Method, optimizer: torch.optim.Optimizer, average: WeightAverage | None = None
) -> None:
    """Puts weights, moments and the average back, strictly. All ranks must call it; the first has ``loaded``, the
    others None.

    Raises:
        MimError: The moments or the average cannot be read.
    """
    files: dict[str, dict[str, Tensor]] = {WEIGHTS: {}, MOMENTS: {}, AVERAGE: {}}
    if loaded is not None:
        check(loaded, method, optimizer, average)
        files[WEIGHTS] = loaded.weights
        try:
            files[MOMENTS] = load_file(loaded.path / MOMENTS)
            files[AVERAGE] = load_file(loaded.path / AVERAGE) if average is not None else {}
        except (OSError, SafetensorError) as error:
            raise _unreadable(loaded.path, error) from error
    for name, tensor in method.state_dict().items():
        fill_from_first(tensor, files[WEIGHTS].get(name))
    for name, tensor in (average.tensors if average is not None else {}).items():
        fill_from_first(tensor, files[AVERAGE].get(name))
    _restore_moments(files[MOMENTS], loaded, method, optimizer)


def _restore_moments(
    tensors: dict[str, Tensor], loaded: Loaded | None, method: Method, optimizer: torch.optim.Optimizer
) -> None:
    """The optimizer's moments beside their parameters, sharded as these are; none for one that no step has touched."""
    names = {id(parameter): name for name, parameter in method.named_parameters()}
    known = _tell_all(sorted(tensors))
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            if f"{name}/exp_avg" not in known:
                continue
            state: dict[str, Tensor] = {}
            # fused AdamW keeps the step beside the parameter
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            for key in kept_of(optimizer):
                state.setdefault(key, torch.zeros_like(parameter.detach()))
            for key, value in state.items():
                fill_from_first(value, tensors.pop(f"{name}/{key}", None))
            optimizer.state[parameter] = state
    if tensors and loaded is not None:
        raise MimError(f"{loaded.path} holds moments of unknown parameters: {', '.join(sorted(tensors)[:5])}.")


def _tell_all(names: list[str]) -> set[str]:
    """The first rank's names, on all ranks."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return set(names)
    payload: list[Any] = [names]
    dist.broadcast_object_list(payload, src=0)
    return set(payload[0])


def check_weights(method: Method, loaded: Loaded) -> None:
    """Raises MimError for weights that do not fit a method; names what is missing, unexpected or of another shape."""
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


def load_weights(method: Method, loaded: Loaded, averaged: bool = False) -> None:
    """Loads weights strictly, or their average where the run kept one.

    Raises:
        MimError: The average is missing, or does not fit the method.
    """
    check_weights(method, loaded)
    method.load_state_dict(loaded.weights)
    if averaged:
        faults = average_faults(loaded.path, loaded.state, method)
        if faults:
            raise _unreadable(loaded.path, StateError("; ".join(faults[:6])))
        method.load_state_dict(load_file(loaded.path / AVERAGE), strict=False)


def has_average(path: Path) -> bool:
    """Whether a whole checkpoint holds an average of the weights."""
    return whole(path) and AVERAGE in read_state(path).get("sizes", {})


def _trained(method: Method, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The parameters that an optimizer has, by name."""
    mine = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    return {name: parameter for name, parameter in method.named_parameters() if id(parameter) in mine}


def _moments(method: Method, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's tensors as ``parameter/moment``, in the order of the parameters."""
    return {
        f"{name}/{key}": value
        for name, parameter in method.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }
