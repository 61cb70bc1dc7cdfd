"""Golden cases that are no whole method: schedules, heads, necks, metrics, and models after training on labels.

A trial takes a case and gives its comparisons. Those of the core stand in `TRIALS`; a plugin's in ``TRIALS`` of its own
module ``golden``, by the ``method`` of the case's metadata.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mim_core.errors import MimError
from mim_core.host.loading import installed
from mim_core.testing.golden_entries import Comparison, Entries, GoldenCase, compare

Trial = Callable[[GoldenCase], list[Comparison]]

TRIALS = {
    "mae-schedule": "golden_finetune:try_schedule",
    "videomae-schedule": "golden_finetune:try_schedule",
    "vitdet-lr-decay": "golden_finetune:try_vitdet_rates",
    "mae-finetune": "golden_finetune:try_mae",
    "mae-linprobe": "golden_finetune:try_linprobe",
    "vitdet-pyramid": "golden_dense:try_pyramid",
    "beit-neck": "golden_dense:try_neck",
    "upernet": "golden_dense:try_upernet",
    "position-interpolation": "golden_dense:try_positions",
    "representation": "golden_dense:try_representation",
    "ssmctb-2d": "golden_blocks:try_ssmctb",
    "ssmctb-3d": "golden_blocks:try_ssmctb",
    "anomaly-metrics": "golden_blocks:try_anomaly_metrics",
}
"""By the method of a case: the module here, and the function in it."""

KINDS = {
    ("lr_decay_rate", "scale"): "vitdet_lr_decay",
    ("gt", "dt"): "coco_ap",
    ("groups", "lr"): "schedule",
}
"""Keys of a case of numbers alone -> its method."""


def trial_of(form: str) -> Trial | None:
    """The trial of a method; None where there is none."""
    if form in TRIALS:
        module, _, name = TRIALS[form].partition(":")
        trial: Trial = getattr(importlib.import_module(f"mim_core.testing.{module}"), name)
        return trial
    packages = {str(entry.load).partition(".")[0] for entry in installed().of_kind("importers")}
    for package in sorted(packages - {"mim_core"}):
        if importlib.util.find_spec(f"{package}.golden") is not None:
            trials: Mapping[str, Trial] = importlib.import_module(f"{package}.golden").TRIALS
            if form in trials:
                return trials[form]
    return None


def read_numbers(path: Path) -> GoldenCase:
    """The case of a ``.json`` file, which holds numbers alone: all of them as `GoldenCase.config`.

    Raises:
        MimError: It is no golden case.
    """
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise MimError(f"{path} is no golden case: {type(error).__name__}: {error}") from error
    keys = set(content) if isinstance(content, dict) else set()
    kind = next((name for needed, name in KINDS.items() if set(needed) <= keys), None)
    if kind is None:
        raise MimError(f"{path} is no golden case: its keys are {', '.join(sorted(map(str, keys))[:8]) or 'none'}.")
    if kind == "schedule":
        kind = "mae_schedule" if content["lr"] and "blr" in content["lr"][0] else "videomae_schedule"
    empty = [Entries({}, f"{name}/") for name in ("in", "out", "grad")]
    return GoldenCase(path, kind.replace("_", "-"), Entries(content, "config: "), {}, *empty)


def compare_all(case: GoldenCase, actual: Mapping[str, Any], left_out: Mapping[str, str]) -> list[Comparison]:
    """Every output and gradient of a case against what was found under its name, and those of gradients under
    "grad/"."""
    values = {name: torch.as_tensor(value) for name, value in actual.items()}
    lines = [compare(name, wanted, values.get(name), left_out) for name, wanted in case.outputs.items()]
    return lines + [
        compare(f"grad/{name}", wanted, values.get(f"grad/{name}"), left_out) for name, wanted in case.gradients.items()
    ]


def compare_numbers(name: str, wanted: Any, actual: Any) -> Comparison:
    """Two lists of numbers."""
    return compare(name, torch.tensor(wanted, dtype=torch.float64), torch.tensor(actual, dtype=torch.float64), {})


def compare_update(name: str, before: Tensor, wanted: Tensor, actual: Tensor, allowed: float = 5e-3) -> Comparison:
    """Two updates of one weight, as a share of the larger: an update of Adam's divides by small gradients, so that
    float32 and float64 differ by about 1e-3."""
    change = (wanted.double() - before.double()).abs().max().clamp(min=1e-12)
    apart = float((actual.detach().double().reshape(wanted.shape) - wanted.double()).abs().max() / change)
    return Comparison(name, apart if apart == apart else float("inf"), allowed)
