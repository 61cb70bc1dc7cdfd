"""Standard errors of scores, over the test samples: how far a score would move with other samples of the same kind.
They say nothing of other seeds or other training data."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mim_core.errors import MimError

GROUPS = 20
"""Parts that the test samples fall into for the jackknife."""

HOW = (
    "In brackets: standard errors over the test samples; of shares binomial, of means over classes binomial within "
    "each class."
)
"""What is said below a table of accuracies."""


def share_error(share: float, count: int) -> float:
    """Of a share of ``count`` samples: binomial, sqrt(p (1 - p) / n)."""
    return math.sqrt(max(0.0, share * (1 - share)) / count)


def mean_error(values: Float[Tensor, " n"]) -> float | None:
    """Of a mean of one value per sample: their deviation (n - 1) by sqrt(n); None for fewer than two."""
    return float(values.double().std()) / math.sqrt(len(values)) if len(values) > 1 else None


def class_mean_error(values: Float[Tensor, " n"], classes: Int[Tensor, " n"]) -> float | None:
    """Of the mean over classes of each one's mean: the variance of each class's mean, which of values 0 and 1 is
    binomial, added up and divided by the square of their number. None where all classes have one sample alone, which
    does not vary.

    Args:
        values: One per sample.
        classes: Of each sample.
    """
    present = classes.unique()
    own = [values[classes == one].double() for one in present]
    if all(len(each) < 2 for each in own):
        return None
    return math.sqrt(sum(float(each.var(correction=0)) / len(each) for each in own)) / len(present)


def jackknife_error(score: Callable[[Bool[Tensor, " n"]], float], count: int, groups: int = GROUPS) -> float | None:
    """Of any score: it is computed again without each part of the samples in turn (Efron's jackknife with groups; every
    ``groups``-th sample is a part). None where a part cannot be left out, as when the only abnormal samples are in it.

    Args:
        score: Of the samples that are kept, bool [n].
        count: How many samples there are.
        groups: Parts; no more than there are samples.
    """
    groups = min(groups, count)
    if groups < 2:
        return None
    part = torch.arange(count) % groups
    try:
        return grouped_error([score(part != one) for one in range(groups)])
    except (ValueError, MimError):
        return None


def grouped_error(without: list[float]) -> float | None:
    """The jackknife's error from the score without each part in turn; None where one is no number."""
    values = torch.tensor(without, dtype=torch.float64)
    if len(values) < 2 or not bool(values.isfinite().all()):
        return None
    return math.sqrt((len(values) - 1) * float(values.var(correction=0)))
