"""Sizes that fit a small collection: batch, epochs, warm-up and rate where nobody has stated them. A recipe's numbers
are for its paper's data: on 490 pictures, 1,600 epochs of batches of 4,096 are 191 steps.

The rate of AdamW falls with the square root of the batch (arXiv 2205.10287), not with the batch: at 64 instead of 4,096
the latter would leave 1/64 of it. docs/decisions.md has what was measured.
"""

from __future__ import annotations

import math
from collections.abc import Container
from dataclasses import replace

from mim_core.recipes.config import TrainConfig
from mim_core.text import counted, option, rounded

OPEN = ("batch_size", "epochs", "base_lr", "warmup_epochs", "milestones")
"""Training options that may follow from the number of items."""
AT_LEAST, STEADY = 4, 16
"""Steps that an epoch should have; and those that it gets where the batch is made smaller, if that stays large."""
ENOUGH = 64
"""A batch of at most so many is not made smaller for the sake of `STEADY`."""
SMALLEST = 4
"""A batch is not made smaller than this where there are as many items."""
FEW = 1000
"""Steps that pre-training should have. Training on labels keeps its epochs: few labels are soon known by heart."""


def fitting_batch(items: int, batch: int, ranks: int = 1) -> int:
    """A batch of which an epoch has `AT_LEAST` steps: itself, or the largest power of two that gives `STEADY`, or that
    is at most `ENOUGH` and gives `AT_LEAST`, or `SMALLEST`. It is a multiple of the ranks."""
    if batch * AT_LEAST <= items:
        return batch
    most = max(items // STEADY, min(ENOUGH, items // AT_LEAST), min(SMALLEST, items))
    power = 2 ** (most.bit_length() - 1)
    return min(batch, max(ranks, power // ranks * ranks))


def fitted(
    train: TrainConfig, items: int, stated: Container[str], ranks: int = 1, least: int = FEW
) -> tuple[TrainConfig, tuple[str, ...]]:
    """The training options with sizes that fit so many items, and what was changed and why, in words.

    Args:
        train: The recipe's options, and what the user stated.
        items: How many there are.
        stated: Names of the options that the user stated, such as "train.epochs".
        ranks: Processes that share a batch.
        least: Steps that the run should have.
    """
    if not items:
        return train, ()
    free = {name for name in OPEN if f"train.{name}" not in stated}
    if train.steps is not None or train.hours is not None:
        free -= {"epochs"}
    new, changes = _batch(train, items, free, ranks, stated)
    steps = new.epochs * items / new.batch_size
    if "epochs" in free and round(steps) < least:
        epochs = float(f"{least * new.batch_size / items:.4g}")
        changes.append(
            f"epochs {option(rounded(epochs), 9)} in place of {option(rounded(train.epochs), 9)}: the run had "
            f"{counted(max(1, round(steps)), 'step')}, now {round(epochs * items / new.batch_size):,}"
        )
        new = replace(new, epochs=epochs)
    new, more = _along(train, new, free, items)
    return new, (*changes, *more)


def _batch(
    train: TrainConfig, items: int, free: set[str], ranks: int, stated: Container[str]
) -> tuple[TrainConfig, list[str]]:
    """With a smaller batch where an epoch has too few steps, and the rate that goes with it."""
    batch = fitting_batch(items, train.batch_size, ranks) if "batch_size" in free else train.batch_size
    if batch == train.batch_size:
        return train, []
    each = [float(f"{items / size:.2g}") for size in (train.batch_size, batch)]
    changes = [
        f"batch {batch:,} in place of {train.batch_size:,}: an epoch of {counted(items, 'item')} had "
        f"{each[0]:g} steps, now {each[1]:g}"
    ]
    new = replace(train, batch_size=batch)
    if new.micro_batch is not None and "train.micro_batch" not in stated:
        new = replace(new, micro_batch=_divisor(batch // ranks, new.micro_batch))
    if "base_lr" in free and train.optimizer == "adamw":
        new = replace(new, base_lr=float(f"{train.base_lr * math.sqrt(train.batch_size / batch):.4g}"))
        changes.append(
            f"base-lr {option(new.base_lr, 4)} in place of {option(train.base_lr, 9)}: the rate falls with the root of "
            "the batch"
        )
    return new, changes


def _divisor(number: int, most: int) -> int:
    return max(part for part in range(1, min(number, most) + 1) if number % part == 0)


def _along(train: TrainConfig, new: TrainConfig, free: set[str], items: int) -> tuple[TrainConfig, list[str]]:
    """With warm-up and milestones that keep their shares of the run; and a warm-up of a twentieth of it where it would
    be longer than a fifth."""
    share, changes = new.epochs / train.epochs, []
    if share != 1 and "milestones" in free and train.milestones:
        new = replace(new, milestones=tuple(float(f"{at * share:.4g}") for at in train.milestones))
        changes.append(f"milestones {', '.join(option(at, 4) for at in new.milestones)}, the same shares of the run")
    if "warmup_epochs" not in free or not train.warmup_epochs or train.hours is not None:
        return new, changes
    epochs = new.epochs if new.steps is None else new.steps * new.batch_size / items
    warm, why = new.warmup_epochs * share, "the same share of the run"
    if warm > epochs / 5:
        warm, why = epochs / 20, f"a twentieth of {option(rounded(epochs), 9)} epochs"
    if warm != train.warmup_epochs:
        new = replace(new, warmup_epochs=float(f"{warm:.4g}"))
        changes.append(
            f"warm-up {option(new.warmup_epochs, 4)} in place of {option(rounded(train.warmup_epochs), 9)}: {why}"
        )
    return new, changes
