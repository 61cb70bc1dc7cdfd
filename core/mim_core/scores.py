"""Tables of scores, each beside the baselines that it must beat."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

MAJORITY, RAW, UNTRAINED, PRETRAINED = "majority class", "raw input", "untrained encoder", "pre-trained encoder"


@dataclass(frozen=True)
class Score:
    """One cell of the table: an accuracy in [0, 1] on the test split, unless the column says another measure; the
    spread is the standard deviation over draws. Of errors, ``lower_is_better``."""

    row: str
    column: str
    value: float
    spread: float | None = None
    lower_is_better: bool = False


# ---- the table -------------------------------------------------------------------------------------------------------


def columns_of(scores: Iterable[Score]) -> tuple[list[str], list[str]]:
    """Rows and columns in order of appearance."""
    scores = list(scores)
    return list(dict.fromkeys(s.row for s in scores)), list(dict.fromkeys(s.column for s in scores))


def cell(scores: Iterable[Score], row: str, column: str) -> str:
    """A score as it is printed: accuracy, and the spread over draws."""
    for score in scores:
        if (score.row, score.column) == (row, column):
            return f"{score.value:.3f}" + ("" if score.spread is None else f" ± {score.spread:.3f}")
    return "-"


def verdict(scores: Iterable[Score]) -> list[str]:
    """What the table says in words, good or bad: the pre-trained encoder against the raw input and the untrained
    encoder; and where a lower value is the better one."""
    scores = list(scores)
    columns = columns_of(scores)[1]
    if not columns:
        return []
    errors = [column for column in columns if any(s.lower_is_better for s in scores if s.column == column)]
    value = {(s.row, s.column): s.value for s in scores}
    lines = [f"Lower is better in: {'; '.join(errors)}."] if errors else []
    for other in (UNTRAINED, RAW):
        worse = []
        for column in columns:
            own, theirs = value.get((PRETRAINED, column)), value.get((other, column))
            if own is None or theirs is None or not (own < theirs if column in errors else own > theirs):
                worse.append(column)
        if not worse:
            lines.append(f"The pre-trained encoder beats the {other} in every column.")
        else:
            lines.append(f"The pre-trained encoder does not beat the {other} in: {'; '.join(worse)}.")
    return lines


FINE_TUNED, SCRATCH = "fine-tuned", "trained from scratch"
"""Rows of a table of test scores."""


def class_weights(labels: Int[Tensor, " n"], classes: int) -> Float[Tensor, " classes"]:
    """One over the share of each class among the labels, divided by the classes that occur; 0 for those that do not.
    The mean weight of the labels is 1."""
    counts = labels.bincount(minlength=classes).float()
    return (len(labels) / int((counts > 0).sum()) / counts).where(counts > 0, counts)
