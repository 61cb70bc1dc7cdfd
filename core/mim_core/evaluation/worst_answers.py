"""Held-out samples whose answers have the smallest right share, as pictures: maps of classes and of depth, parts of
shapes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch.utils.data import Subset

from mim_core.data.source import DataSource, Picture
from mim_core.errors import MimError
from mim_core.evaluation.looks import Pictures
from mim_core.methods.supervised import Supervised

MOST = 48
"""Held-out samples that are asked, evenly over the split."""
WORST = 6
"""Samples that are shown."""
AT_ONCE = 8
"""Samples per forward pass."""


@dataclass(frozen=True)
class Answered:
    """A held-out sample beside its answer.

    Attributes:
        share: Of its answer, that is right.
        name: Of the sample.
        pictures: By what they are called.
    """

    share: float
    name: str
    pictures: dict[str, Picture]


@dataclass(frozen=True)
class WorstAnswers:
    """The worst of those that were asked.

    Attributes:
        shown: With the smallest share first.
        asked: How many samples.
        split: How many there are.
    """

    shown: list[Answered]
    asked: int
    split: int

    @property
    def rows(self) -> dict[str, list[Picture]]:
        """Pictures of the same kind side by side."""
        return {label: [each.pictures[label] for each in self.shown] for label in self.shown[0].pictures}


@torch.no_grad()
def worst_answers(method: Supervised, source: DataSource, device: torch.device, batch_size: int) -> WorstAnswers | None:
    """Asks the method about held-out samples; None where it tells no share, or none can be read.

    Args:
        method: Which tells `Supervised.right`; it stays on the device.
        source: Its data.
        device: Where to compute.
        batch_size: Samples at once, at most.
    """
    if type(method).right is Supervised.right:
        return None
    split = source.labelled("test")
    chosen = torch.linspace(0, len(split.labels) - 1, min(MOST, len(split.labels))).round().long().unique()
    items = Subset(split.items, split.items_of(chosen).tolist())
    part = replace(split, labels=split.labels[chosen], items=items, names=())
    worst: list[Answered] = []
    asked, names = 0, Pictures(source, "test")
    try:
        for batch, predictions in method.predicted(source, part, device, min(batch_size, AT_ONCE)):
            shares = method.right(batch, predictions)
            assert shares is not None
            asked, ready = asked + len(shares), source.finish(dict(batch))
            for row, share in enumerate(shares.tolist()):
                if share != share or (len(worst) == WORST and share >= worst[-1].share):
                    continue
                sample = {name: value[row] for name, value in ready.items()}
                own = {name: value[row] for name, value in predictions.items()}
                name = names.name(int(chosen[batch["sample"][row]]))
                worst = [*worst, Answered(share, name, method.compared(sample, own, source))]
                worst = sorted(worst, key=lambda each: each.share)[:WORST]
    except MimError:  # of these none can be read
        return None
    return WorstAnswers(worst, asked, len(split.labels)) if worst else None
