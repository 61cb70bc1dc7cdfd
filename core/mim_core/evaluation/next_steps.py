"""What to try where a pre-trained encoder does not beat the untrained one: what the run's own metrics say of why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mim_core.methods.method import Method
from mim_core.recipes.config import ResolvedRun
from mim_core.runs import logs
from mim_core.scores import PRETRAINED, UNTRAINED, Score, beats
from mim_core.text import counted, option

FEW_STEPS = 1000
"""A run of fewer steps may not have learned what it could."""
FALLING = 0.01
"""The loss is still falling where the last quarter's mean is lower than that of the quarter before by this share."""
COLLAPSED = 0.5
"""Features have collapsed where their effective rank ends below this share of what it was at the first reading."""
FEW_UNITS = 25
"""Inputs of fewer units leave little to be told apart by."""


def next_steps(
    scores: Sequence[Score], run: ResolvedRun, method: Method, folder: Path, labelled: bool = True
) -> list[str]:
    """What to try, the likeliest first; nothing where the pre-trained encoder beats the untrained one in every column.

    Args:
        scores: The table.
        run: The run.
        method: Its method.
        folder: Where its metrics are.
        labelled: Whether the data have labels that an encoder could be trained on.
    """
    cells = {(score.row, score.column): score for score in scores}
    pairs = [(cells.get((PRETRAINED, s.column)), s) for s in scores if s.row == UNTRAINED]
    if all(own is not None and beats(own, other) for own, other in pairs):
        return []
    hints = _from_metrics(logs.read(folder / logs.METRICS), run)
    layout = getattr(getattr(method, "tokenizer", None), "layout", None)
    if layout is not None and layout.count < FEW_UNITS:
        hints.append(
            f"the input has {counted(layout.count, 'unit')}: smaller ones show more of it (the tokenizer's patch or "
            "groups)"
        )
    if labelled and run.evaluate.pool == "mean":
        hints.append("other features of the same encoder: --evaluate.pool mean-max, --evaluate.standardize")
    if labelled:
        hints.append("finetune, which trains the whole encoder on the labels, beside finetune --scratch")
    return [f"Try: {'; '.join(hints)}."] if hints else []


def _from_metrics(lines: Sequence[Mapping[str, Any]], run: ResolvedRun) -> list[str]:
    """What the metrics of a run say: too few steps, a loss that was still falling, features that collapsed."""
    hints: list[str] = []
    if not lines:
        return hints
    steps, epochs = int(lines[-1]["step"]), run.train.epochs
    losses, quarter = [float(line["loss"]) for line in lines], len(lines) // 4
    if quarter:
        late, before = (sum(part) / quarter for part in (losses[-quarter:], losses[-2 * quarter : -quarter]))
        if late < before - FALLING * abs(before):
            hints.append(
                f"train longer, for the loss was still falling in the last quarter ({before:.4g} to {late:.4g}): "
                f"--train.epochs {option(2 * epochs)}"
            )
    if not hints and steps < FEW_STEPS:
        hints.append(f"train longer than {counted(steps, 'step')}: --train.epochs {option(epochs * FEW_STEPS / steps)}")
    ranks = [float(line["effective_rank"]) for line in lines if "effective_rank" in line]
    if len(ranks) > 1 and ranks[-1] < COLLAPSED * ranks[0]:
        hints.append(
            f"a lower learning rate, for the features collapsed (effective rank {ranks[0]:.3g} to {ranks[-1]:.3g}): "
            f"--train.base-lr {option(run.train.base_lr / 4, 2)}"
        )
    return hints
