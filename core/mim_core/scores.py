"""Tables of scores, each beside the baselines that it must beat."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

MAJORITY, RAW, UNTRAINED, PRETRAINED = "majority class", "raw input", "untrained encoder", "pre-trained encoder"
DIGITS = 3
"""Behind the point, of a score that is shown."""


@dataclass(frozen=True)
class Score:
    """One cell of the table: an accuracy in [0, 1] on the test split, unless the column says another measure; the
    spread is the standard deviation over draws or seeds, the error the standard error over the test samples. Of
    errors, ``lower_is_better``."""

    row: str
    column: str
    value: float
    spread: float | None = None
    lower_is_better: bool = False
    error: float | None = None


@dataclass(frozen=True)
class Table:
    """What a test found beside its scores, such as the scores of each class.

    Attributes:
        columns: What they are called.
        rows: As many cells each as there are columns; an empty text is a cell without a value.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str | int | float, ...], ...]


# ---- the table -------------------------------------------------------------------------------------------------------


def columns_of(scores: Iterable[Score]) -> tuple[list[str], list[str]]:
    """Rows and columns in order of appearance."""
    scores = list(scores)
    return list(dict.fromkeys(s.row for s in scores)), list(dict.fromkeys(s.column for s in scores))


def cell(scores: Iterable[Score], row: str, column: str) -> str:
    """A score as it is printed: the value, the spread over draws behind ±, and in brackets the standard error over the
    test samples."""
    for score in scores:
        if (score.row, score.column) == (row, column):
            spread = "" if score.spread is None else f" ± {score.spread:.3f}"
            return f"{score.value:.3f}{spread}" + ("" if score.error is None else f" ({score.error:.3f})")
    return "-"


def verdict(scores: Iterable[Score]) -> list[str]:
    """What the table says in words, good or bad: the pre-trained encoder against the raw input and the untrained
    encoder, in the columns where it has a score; and where a lower value is the better one."""
    scores = list(scores)
    has = {score.column for score in scores if score.row == PRETRAINED}
    columns = [column for column in columns_of(scores)[1] if column in has]
    if not columns:
        return []
    errors = [column for column in columns if any(s.lower_is_better for s in scores if s.column == column)]
    value = {(s.row, s.column): round(s.value, DIGITS) for s in scores}
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


TRY = {
    PRETRAINED: "Try: train longer (--train.epochs), a patch or an input size that suits the data{or_tune}.",
    FINE_TUNED: "Try: more labelled samples, more epochs (--train.epochs), or a longer pre-training before.",
    SCRATCH: "Try: finetune without --scratch, more labelled samples, or more epochs (--train.epochs).",
}
"""What may help a row that does not win."""

TUNE = ", or finetune, which trains the whole encoder"


def best_cells(scores: Iterable[Score], own: str) -> set[tuple[str, str]]:
    """(row, column) of the run's ``own`` row where it beats every other row."""
    scores = list(scores)
    return {
        (score.row, score.column)
        for score in scores
        if score.row == own and (others := _others(scores, score)) and all(beats(score, other) for other in others)
    }


def headline(scores: Iterable[Score], own: str, labelled: bool = True) -> list[str]:
    """What a table says first: the scores of the run's ``own`` row, each beside the others of its column, whether it
    beats them, and what to try where it does not. Left to the table are means over classes, and what a column says
    otherwise, such as "linear, 100 labels" beside "linear".

    Args:
        scores: The table.
        own: The row of the run.
        labelled: Whether the data have labels that an encoder could be trained on.
    """
    scores = list(scores)
    columns = {score.column for score in scores}
    lines, lost = list[str](), False
    for score in scores:
        short, comma, _ = score.column.partition(",")
        if score.row != own or (comma and short in columns) or short.startswith("mean "):
            continue
        others = _others(scores, score)
        beaten_by = [other.row for other in others if not beats(score, other)]
        beside = ", ".join(f"{other.row} {other.value:.3f}" for other in others)
        end = f"no better than the {' and the '.join(beaten_by)}" if beaten_by else "better than all of these"
        lines.append(
            f"{score.column} {score.value:.3f}, {beside}: {end}." if others else f"{score.column} {score.value:.3f}."
        )
        lost |= bool(beaten_by)
    return lines + ([TRY[own].format(or_tune=TUNE if labelled else "")] if lost else [])


def _others(scores: list[Score], own: Score) -> list[Score]:
    """What stands beside a score: rows of its column, but for those of the same encoder with something taken from its
    input."""
    return [s for s in scores if s.column == own.column and s.row != own.row and not s.row.startswith(f"{own.row},")]


def beats(one: Score, other: Score) -> bool:
    """Whether one is the better of two scores of a column, in the digits that are shown."""
    own, theirs = round(one.value, DIGITS), round(other.value, DIGITS)
    return own < theirs if one.lower_is_better else own > theirs
