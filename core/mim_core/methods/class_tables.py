"""Scores of each class, and what was taken for what."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from mim_core.scores import Table
from mim_core.standard_errors import share_error


def confusion(predictions: Int[Tensor, " n"], labels: Int[Tensor, " n"], names: Sequence[str]) -> Table:
    """How many samples of each class (rows) got which (columns)."""
    counts = _counts(predictions, labels, len(names))
    rows = tuple((name, *row) for name, row in zip(names, counts.tolist(), strict=True))
    return Table(("true class", *names), rows)


def class_scores(predictions: Int[Tensor, " n"], labels: Int[Tensor, " n"], names: Sequence[str]) -> Table:
    """Of each class: its samples, the share of them that is right (recall) with its binomial standard error, the share
    of what got the class that is of it (precision), and F1. A score that divides by 0 is an empty cell."""
    counts = _counts(predictions, labels, len(names)).double()
    right, support, given = counts.diagonal(), counts.sum(dim=1), counts.sum(dim=0)
    rows = []
    for name, hits, own, got in zip(names, right.tolist(), support.tolist(), given.tolist(), strict=True):
        recall = hits / own if own else None
        error = None if recall is None else share_error(recall, int(own))
        precision = hits / got if got else None
        f1 = 2 * hits / (own + got) if own + got else None
        rows.append((name, int(own), *map(as_cell, (recall, error, precision, f1))))
    return Table(("class", "samples", "recall", "standard error", "precision", "F1"), tuple(rows))


def as_cell(value: float | None) -> float | str:
    """A number as a table of a file has it; nothing where there is none."""
    return "" if value is None or value != value else round(float(value), 6)


def _counts(predictions: Int[Tensor, " n"], labels: Int[Tensor, " n"], classes: int) -> Int[Tensor, "K K"]:
    counts = torch.zeros(classes, classes, dtype=torch.int64)
    return counts.index_put_((labels, predictions), torch.ones_like(labels), accumulate=True)
