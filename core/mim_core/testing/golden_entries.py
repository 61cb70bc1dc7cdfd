"""What golden cases hold, and how two values of one entry are compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from mim_core.errors import MimError

LOSSES, OTHERS = 1e-5, 1e-4
"""What losses, and other values and gradients, may be off by, as a share of the entry's largest value."""


class Entries(dict[str, Any]):
    """What a file holds of one kind; one that it lacks is the file's mistake.

    Args:
        entries: By name.
        where: What they are called in the file.
    """

    def __init__(self, entries: Mapping[str, Any], where: str) -> None:
        super().__init__(entries)
        self.where = where

    def __missing__(self, name: str) -> Any:
        raise MimError(f"The case has no {self.where}{name}.")


@dataclass(frozen=True)
class GoldenCase:
    """What a file holds.

    Attributes:
        path: The file.
        form: Import format.
        config: Sizes, under the official names.
        weights: By group, "state", "teacher" and the like: official name -> weight.
        inputs: By name.
        outputs: By name.
        gradients: By official name.
    """

    path: Path
    form: str
    config: dict[str, Any]
    weights: Mapping[str, Mapping[str, Tensor]]
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    gradients: dict[str, Tensor]

    def state(self) -> dict[str, Tensor]:
        """All weights as the importer takes them: those of other groups with the group's name in front."""
        tensors: dict[str, Tensor] = dict(self.weights.get("state", {}))
        for group, weights in self.weights.items():
            if group != "state":
                tensors |= {f"{group}.{name}": value for name, value in weights.items()}
        return tensors


@dataclass(frozen=True)
class Comparison:
    """One entry of a case: how far off it is, as a share of its largest value; or why it is not compared."""

    name: str
    apart: float | None
    allowed: float
    why: str = ""

    @property
    def fits(self) -> bool:
        """Within what is allowed, or not compared."""
        return self.apart is None or self.apart <= self.allowed


def compare(name: str, wanted: Tensor, actual: Tensor | None, left_out: Mapping[str, str]) -> Comparison:
    """One entry: apart as a share of its largest value; or why it is not compared."""
    allowed = LOSSES if name.rpartition("/")[2].startswith("loss") and wanted.ndim == 0 else OTHERS
    if actual is None:
        known = next((why for start, why in left_out.items() if name.startswith(start)), "")
        alternative = "another option of the official code" if name.startswith("alt_") else ""
        why = known or alternative or "the adapter does not know it"
        return Comparison(name, None, allowed, why)
    if actual.numel() != wanted.numel():
        return Comparison(name, float("inf"), allowed, f"shape {tuple(actual.shape)}, not {tuple(wanted.shape)}")
    if not wanted.numel():  # nothing of both
        return Comparison(name, 0.0, allowed)
    wanted, actual = wanted.double(), actual.detach().double().reshape(wanted.shape)
    both = wanted.isnan() & actual.isnan()  # where there is nothing to score
    wanted, actual = wanted.masked_fill(both, 0.0), actual.masked_fill(both, 0.0)
    apart = float((actual - wanted).abs().max() / wanted.abs().max().clamp(min=1e-12))
    return Comparison(name, apart if apart == apart else float("inf"), allowed)
