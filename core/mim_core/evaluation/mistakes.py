"""Where a classifier is wrong: which class it takes for which, and the samples that it is surest of and wrong about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import Subset

from mim_core.data.source import DataSource, Picture
from mim_core.errors import MimError
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
class Matrix:
    """What is taken for what.

    Attributes:
        classes: Names: all, or the ``WIDEST`` that are mistaken most often.
        matrix: [classes, classes] how many, by truth (rows) and answer; empty columns and rows are there too.
        others: How many of each of these classes got a class that is not among them.
    """

    classes: tuple[str, ...]
    matrix: list[list[int]]
    others: list[int]


def matrix_of(counts: Int[Tensor, "K K"], names: Sequence[str]) -> Matrix:
    """Of all counts by truth and answer, those of the classes that are shown."""
    kept = _most_mistaken(counts)
    within = counts[kept][:, kept]
    others = (counts[kept].sum(dim=1) - within.sum(dim=1)).tolist()
    return Matrix(tuple(names[number] for number in kept.tolist()), within.tolist(), others)


@dataclass(frozen=True)
class Mistakes(Matrix):
    """What a classifier takes for what; no classes where samples have several labels.

    Attributes:
        asked: How many samples.
        split: How many there are.
        wrong: How many got a wrong answer.
        worst: The mistakes with the largest probabilities.
        film: Whether their pictures are wide strips of frames.
    """

    asked: int
    split: int
    wrong: int
    worst: list[Mistake]
    film: bool = False


@torch.no_grad()
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
    try:
        shares, read = method.test_shares(source, part, device, batch_size)
    except MimError:  # of these none can be read
        return None
    truth, chosen = part.labels[read], chosen[read]
    wrong, pictures = method.wrong(shares, truth), Pictures(source, "test")
    shown = [
        Mistake(pictures.name(int(chosen[row])), right, answer, share, pictures[int(chosen[row])])
        for row, right, answer, share in wrong[:WORST]
    ]
    counts = torch.zeros(method.classes, method.classes, dtype=torch.int64)
    if truth.ndim == 1:  # of several labels, none is taken for another
        counts.index_put_((truth, shares.argmax(dim=1)), torch.ones_like(truth), accumulate=True)
    matrix = matrix_of(counts, method.label_names()) if truth.ndim == 1 else Matrix((), [], [])
    return Mistakes(**vars(matrix), asked=len(chosen), split=len(split.labels), wrong=len(wrong), worst=shown,
                    film=pictures.film)  # fmt: skip


def _most_mistaken(counts: Int[Tensor, "K K"]) -> Int[Tensor, " k"]:
    """Numbers of the classes that are shown, in their order."""
    mistaken = counts.sum(dim=1) + counts.sum(dim=0) - 2 * counts.diagonal()
    return mistaken.argsort(descending=True, stable=True)[:WIDEST].sort().values
