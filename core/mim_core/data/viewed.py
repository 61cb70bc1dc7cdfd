"""Views of any source: other readings of its items."""

from __future__ import annotations

import torch
from torch import Tensor

from mim_core import randomness
from mim_core.data.source import DataSource, Sample
from mim_core.data.views import View, entries, kinds
from mim_core.data.wrapped import WrappedSource

PAIRED = "paired"
"""An entry of items that were read as two samples, until they are finished."""


class Viewed(WrappedSource):
    """Views of any source: each is another reading of the item, by a key of its own, so an item is decoded as often.

    Args:
        source: The source.
        views: What is asked for.

    Raises:
        ValueError: The source gives no such view.
    """

    def __init__(self, source: DataSource, views: tuple[View, ...]) -> None:
        super().__init__(source)
        name = type(source).__name__
        if "place" in kinds(views) and not source.shows_whole:
            raise ValueError(f"the method asks where the views of a sample lie, and {name} does not tell")
        self.pair, self.target, self.place = ("pair" in kinds(views), "target" in kinds(views), "place" in kinds(views))
        self.local = next((view for view in views if view.kind == "local"), None)
        self.smaller: DataSource | None = None
        if self.local is not None:
            self.smaller = type(source)(source.config, self.local.small(source.shapes))
            self.smaller.ids = source.ids
        if self.pair and source.samples_per_item > 1:
            raise ValueError(
                f"the method needs two views of each item, and {name} makes {source.samples_per_item} samples of "
                "each: let it make one, as --data.repeat 1 does"
            )
        self.samples_per_item = source.samples_per_item * (2 if self.pair else 1)

    def read(self, index: int, key: int) -> dict[str, Tensor]:
        """The item, and its views."""
        if not self.pair:
            return self._one(index, key)
        first, second = (self._one(index, each) for each in keys_of(key, "pair", 2))
        return {name: torch.stack([first[name], second[name]]) for name in first} | {PAIRED: torch.tensor(True)}

    def _one(self, index: int, key: int) -> dict[str, Tensor]:
        sample = dict(self.source.read(index, key))
        if self.target:
            (other,) = keys_of(key, "second view", 1)
            sample |= {f"{name}_target": value for name, value in self.source.read(index, other).items()}
        if self.local is not None and self.smaller is not None:
            small = [self.smaller.read(index, each) for each in keys_of(key, "local views", self.local.count)]
            sample |= {f"{name}_local": torch.stack([each[name] for each in small]) for name in small[0]}
        return sample

    def finish(self, sample: Sample) -> Sample:
        """Each view as the source finishes it; the two samples of an item one after the other. Held-out samples are no
        pairs."""
        if PAIRED in sample:
            sample = unpaired({name: value for name, value in sample.items() if name != PAIRED})
        about: Sample = {name: sample[name] for name in ("index", "key") if name in sample}
        endings = ("_target", "_local")
        done = self.source.finish({name: value for name, value in sample.items() if not name.endswith(endings)})
        for ending, source in zip(endings, (self.source, self.smaller), strict=True):
            view = {name.removesuffix(ending): value for name, value in sample.items() if name.endswith(ending)}
            if view and source is not None:
                done = {**done, **_finished(source, view, about, ending)}
        if self.place:
            rows = len(next(iter(done.values())))
            wanted = entries(self.shapes, (View("place"), *([View("target")] if self.target else [])))
            first = next(iter(done.values()))
            for name in (name for name in wanted if name.endswith(".place")):
                whole = torch.stack([torch.zeros(wanted[name][1]), torch.ones(wanted[name][1])]).to(first.device)
                done[name] = whole.expand(rows, -1, -1)
        return done


def viewed(source: DataSource, views: tuple[View, ...]) -> DataSource:
    """The source with these views of every sample: its own, or other readings of its items.

    Raises:
        ValueError: It gives no such view.
    """
    return source if not views or source.give_views(views) else Viewed(source, views)


def keys_of(key: int, what: str, count: int) -> list[int]:
    """Keys of the views of a sample, which follow from its own."""
    keys: list[int] = randomness.bits(torch.tensor([key]), what, count)[0].tolist()
    return keys


def unpaired(sample: Sample) -> Sample:
    """Items [B, 2, ...] as samples [2 B, ...], each with a key of its own."""
    samples = {name: value.flatten(0, 1) for name, value in sample.items() if name not in ("index", "key")}
    if "index" in sample:
        samples["index"] = sample["index"].repeat_interleave(2)
    if "key" in sample:
        samples["key"] = randomness.bits(sample["key"], "pair", 2).flatten()
    return samples


def _finished(source: DataSource, view: Sample, about: Sample, ending: str) -> Sample:
    """A view of a batch as its source finishes it; local ones are finished as samples, and put together again."""
    count = 0
    if ending == "_local":
        count = next(iter(view.values())).shape[1]
        view = {name: value.flatten(0, 1) for name, value in view.items()}
        about = {name: value.repeat_interleave(count) for name, value in about.items()}
    done = {name: value for name, value in source.finish({**about, **view}).items() if name in view}
    if count:
        done = {name: value.unflatten(0, (-1, count)) for name, value in done.items()}
    return {f"{name}{ending}": value for name, value in done.items()}
