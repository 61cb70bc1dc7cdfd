"""Where a classifier is wrong: which class it takes for which, and the samples that it is surest of and wrong about."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import Subset

from mim_core.data.source import DataSource, Picture
from mim_core.evaluation.looks import Pictures
from mim_core.methods.classifier import Classifier

MOST = 2000
"""Held-out samples that are asked, evenly over the split."""
WORST = 12
"""Mistakes that are shown."""
WIDEST = 20
"""Classes of the largest matrix."""


@dataclass(frozen=True)
class Mistake:
    """A held-out sample that got another class."""

    name: str
    truth: str
    answer: str
    share: float
    picture: Picture


@dataclass(frozen=True)
class Mistakes:
    """What a classifier takes for what.

    Attributes:
        classes: Names: all, or the ``WIDEST`` that are mistaken most often.
        matrix: [classes, classes] samples, by truth (rows) and answer; empty columns and rows are there too.
        others: Samples of each of these classes that got a class that is not among them.
        asked: How many samples.
        split: How many there are.
        wrong: How many got another class.
        worst: The mistakes with the largest probabilities.
    """

    classes: tuple[str, ...]
    matrix: list[list[int]]
    others: list[int]
    asked: int
    split: int
    wrong: int
    worst: list[Mistake]


def mistakes_of(method: Classifier, source: DataSource, device: torch.device, batch_size: int) -> Mistakes | None:
    """Asks the classifier about held-out samples; None where none can be read.

    Args:
        method: The classifier; it stays on the device.
        source: Its data.
        device: Where to compute.
        batch_size: Samples at once.
    """
    split = source.labelled("test")
    chosen = torch.linspace(0, len(split.labels) - 1, min(MOST, len(split.labels))).round().long().unique()
    items = Subset(split.items, split.items_of(chosen).tolist())
    part = replace(split, labels=split.labels[chosen], items=items, names=())
    shares, seen = torch.zeros(len(chosen), method.classes), torch.zeros(len(chosen))
    with torch.no_grad():
        for batch, predictions in method.predicted(source, part, device, batch_size):
            shares.index_add_(0, batch["sample"], predictions["class"].softmax(dim=1))
            seen.index_add_(0, batch["sample"], torch.ones(len(batch["sample"])))
    read = (seen > 0).nonzero()[:, 0]
    if not len(read):
        return None
    shares, truth, chosen = shares[read] / seen[read, None], part.labels[read], chosen[read]
    found = shares.argmax(dim=1)
    counts = torch.zeros(method.classes, method.classes, dtype=torch.int64)
    counts.index_put_((truth, found), torch.ones_like(truth), accumulate=True)
    wrong = (found != truth).nonzero()[:, 0]
    sure = shares[wrong, found[wrong]]
    worst = wrong[sure.argsort(descending=True, stable=True)[:WORST]]
    names, pictures = method.config.names or split.classes, Pictures(source, "test")
    shown = [
        Mistake(
            pictures.name(int(chosen[row])),
            names[int(truth[row])],
            names[int(found[row])],
            float(shares[row, found[row]]),
            pictures[int(chosen[row])],
        )
        for row in worst.tolist()
    ]
    kept = _most_mistaken(counts)
    within = counts[kept][:, kept]
    others = (counts[kept].sum(dim=1) - within.sum(dim=1)).tolist()
    classes = tuple(names[number] for number in kept.tolist())
    return Mistakes(classes, within.tolist(), others, len(read), len(split.labels), len(wrong), shown)


def _most_mistaken(counts: Int[Tensor, "K K"]) -> Int[Tensor, " k"]:
    """Numbers of the classes that are shown, in their order."""
    mistaken = counts.sum(dim=1) + counts.sum(dim=0) - 2 * counts.diagonal()
    return mistaken.argsort(descending=True, stable=True)[:WIDEST].sort().values
