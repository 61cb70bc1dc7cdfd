"""Settings that are allowed and rarely meant, told when a run starts, each with what to type instead."""

from __future__ import annotations

from mim_core.errors import warn
from mim_core.recipes.config import TrainConfig
from mim_core.text import counted, option, rounded
from mim_core.training.collection_size import FEW, fitting_batch
from mim_core.training.learning_rate import learning_rate


def advise(train: TrainConfig, items: int) -> None:
    """Warns of a warm-up as long as the run, a learning rate of 0, a run of one step, and batches larger than the data.

    Args:
        train: The training options.
        items: How many items there are.
    """
    if not items:
        return
    steps = max(1, round(train.epochs * items / train.batch_size))
    if 0 < train.epochs <= train.warmup_epochs:
        warn(
            f"the warm-up of {counted(rounded(train.warmup_epochs), 'epoch')} is as long as the run of "
            f"{option(rounded(train.epochs), 9)}: the learning rate never reaches its peak. Shorten it: "
            f"--train.warmup-epochs {option(train.epochs / 20)}"
        )
    if steps == 1:
        warn(
            f"the whole run is 1 step: {counted(rounded(train.epochs), 'epoch')} of {counted(items, 'item')}. For 20 "
            f"steps: --train.epochs {option(20 * train.batch_size / items)}"
        )
    if peak_rate(train, items, steps) == 0:
        reason, remedy = "the warm-up starts at 0 and the run ends there", "--train.warmup-epochs 0, or more epochs"
        if train.base_lr == 0:
            reason, remedy = "--train.base-lr is 0", "--train.base-lr 1.5e-4"
        warn(f"the learning rate is 0 in every step: nothing is learned, because {reason}. Try {remedy}.")
    if train.batch_size > items:
        are = "is" if items == 1 else "are"
        warn(
            f"one step takes {counted(train.batch_size, 'sample')} and there {are} {items}: an epoch is less than a "
            f"step. For a small collection try {smaller(train, items)}"
        )


def peak_rate(train: TrainConfig, items: int, steps: int) -> float:
    """The largest learning rate of a run."""
    each = items / train.batch_size
    return max(learning_rate(step, each, train) for step in range(0, steps, max(1, steps // 200)))


def smaller(train: TrainConfig, items: int) -> str:
    """Options that fit a small collection, as those are that nobody states, see `mim_core.training.collection_size`; a
    warm-up of a twentieth where the recipe's is longer than a fifth."""
    batch = fitting_batch(items, train.batch_size)
    epochs = max(train.epochs, FEW * batch / items)
    options = f"--train.batch-size {batch}"
    if epochs > train.epochs:
        options += f" --train.epochs {option(epochs)}"
    if train.warmup_epochs > epochs / 5:
        options += f" --train.warmup-epochs {option(epochs / 20)}"
    if train.micro_batch is not None and train.micro_batch > batch:
        options += f" --train.micro-batch {batch}"
    return f"{options}. That makes {counted(round(epochs * items / batch), 'step')}."
