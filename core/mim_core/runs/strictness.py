"""What a checkpoint must hold for a run to go on from it to the bit: all moments and averages, by name and shape."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from mim_core.errors import MimError
from mim_core.runs.state import AVERAGE, MOMENTS

KEPT = ("exp_avg", "exp_avg_sq", "step")
"""What AdamW keeps of a parameter that a step has touched."""


def kept_of(optimizer: torch.optim.Optimizer) -> tuple[str, ...]:
    """What an optimizer keeps of such a parameter: what its class says in ``kept``, or AdamW's."""
    kept: tuple[str, ...] = getattr(optimizer, "kept", KEPT)
    return kept


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the tensors in a file, from its header."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise MimError(
            f"{path} cannot be read: {error}. Restore it, or remove its checkpoint to start from an earlier one."
        ) from error


def moment_faults(
    path: Path, state: Mapping[str, Any], parameters: Mapping[str, Tensor], kept: tuple[str, ...] = KEPT
) -> list[str]:
    """What is wrong with the moments. A parameter that no step has touched has none, where the state says so; older
    states do not say, and there all of a parameter's may be missing."""
    shapes, faults = _shapes(path / MOMENTS), list[str]()
    untouched, older = set(state.get("untouched", ())), "untouched" not in state
    for name, parameter in parameters.items():
        keys = {key: f"{name}/{key}" for key in kept}
        present = [key for key, full in keys.items() if full in shapes]
        if not present and (older or name in untouched):
            continue
        faults += [f"{MOMENTS} lacks {full}" for key, full in keys.items() if key not in present]
        for key in present:
            shape = () if key == "step" else tuple(parameter.shape)
            if shapes[keys[key]] != shape:
                faults.append(f"{keys[key]} is {shapes[keys[key]]} in {MOMENTS} and should be {shape}")
    known = {f"{name}/{key}" for name in parameters for key in kept}
    return faults + [f"{MOMENTS} holds {name}, which is unknown here" for name in shapes if name not in known]


def average_faults(path: Path, state: Mapping[str, Any], method: nn.Module) -> list[str]:
    """What is wrong with the average of the weights."""
    if AVERAGE not in state["sizes"]:
        return [f"it has no {AVERAGE}, which --train.ema needs"]
    shapes = _shapes(path / AVERAGE)
    own = {name: tuple(p.shape) for name, p in method.named_parameters() if p.requires_grad}
    faults = [f"{AVERAGE} lacks {name}" for name in own if name not in shapes]
    faults += [f"{AVERAGE} holds {name}, which is unknown here" for name in shapes if name not in own]
    both = [name for name in own if name in shapes and shapes[name] != own[name]]
    return faults + [f"{name} is {shapes[name]} in {AVERAGE} and should be {own[name]}" for name in both]
