"""How well scores rank what is looked for, such as abnormal samples, before the rest: AUROC and average precision.
Scores are higher where something is more abnormal; ties count as ties."""

from __future__ import annotations

import torch
from torch import Tensor

from mim_core.errors import MimError

DIVERGED = "Some scores are not finite; the run's weights may have diverged."


def auroc(scores: Tensor, abnormal: Tensor) -> float:
    """Area under the curve of true against false positives: the chance that an abnormal one has the higher score, ties
    counting half.

    Args:
        scores: [n], of any kind.
        abnormal: [n], bool, or 0 and 1.

    Raises:
        MimError: All are normal, none is, a score is not finite, or the sizes differ.
    """
    return area(*_counts(scores, abnormal))


def average_precision(scores: Tensor, abnormal: Tensor) -> float:
    """The precision at each distinct score, weighted by the recall that it adds.

    Args:
        scores: [n], of any kind.
        abnormal: [n], bool, or 0 and 1.

    Raises:
        MimError: As `auroc`.
    """
    return precision(*_counts(scores, abnormal))


def area(hits: Tensor, misses: Tensor) -> float:
    """Below the curve of true against false positives, of counts down to each distinct score."""
    true, false = hits / hits[-1], misses / misses[-1]
    return float(torch.trapezoid(from_zero(true), from_zero(false)))


def precision(hits: Tensor, misses: Tensor) -> float:
    """At each distinct score, weighted by the recall that it adds; of counts down to each."""
    recall = hits / hits[-1]
    return float((recall.diff(prepend=recall.new_zeros(1)) * hits / (hits + misses)).sum())


def _counts(scores: Tensor, abnormal: Tensor) -> tuple[Tensor, Tensor]:
    """Abnormal and normal ones down to each distinct score, from the highest, float64."""
    if scores.shape != abnormal.shape:
        raise MimError(f"{len(scores):,} scores do not fit {len(abnormal):,} answers.")
    flags = abnormal.bool()
    positives = int(flags.sum())
    if not 0 < positives < len(flags):
        what = "all are normal" if positives == 0 else "all are abnormal"
        raise MimError(f"AUROC and average precision need both kinds; of {len(flags):,} {what}.")
    order, last = descending(scores)
    hits = flags[order].double().cumsum(0)[last]
    return hits, (last + 1).double() - hits


def descending(scores: Tensor) -> tuple[Tensor, Tensor]:
    """The order from the highest score, and where in it each distinct score ends.

    Raises:
        MimError: A score is NaN or infinite.
    """
    if not bool(scores.isfinite().all()):
        raise MimError(DIVERGED)
    values, order = scores.sort(descending=True, stable=True)
    ends = torch.ones_like(values, dtype=torch.bool)
    ends[:-1] = values[:-1] != values[1:]
    return order, ends.nonzero()[:, 0]


def from_zero(curve: Tensor) -> Tensor:
    """A curve with a point of 0 in front."""
    return torch.cat([curve.new_zeros(1), curve])
