"""A source whose labelled training split is trained on."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from torch import Tensor

from mim_core.data.source import DataSource, Labelled
from mim_core.data.wrapped import WrappedSource
from mim_core.text import counted


class LabelledSource(WrappedSource):
    """A source whose labelled training split is what is trained on; for methods that learn from labels.

    Raises:
        MimError: The source has no labels.
    """

    def __init__(self, source: DataSource) -> None:
        super().__init__(source)
        self.split = source.labelled("train")
        self.samples_per_item = 1  # `read_labelled` gives one sample of each

    def __len__(self) -> int:
        return len(self.split.labels)

    def files_of(self, split: str = "pretrain") -> Iterator[tuple[str, ...]]:
        """The source's; what is trained on is its split "train"."""
        return self.source.files_of("train" if split == "pretrain" else split)

    def read(self, index: int, key: int) -> dict[str, Tensor]:
        """An augmented item with its ``label``."""
        return self.source.read_labelled(index, key)

    def name_of(self, index: int) -> str:
        """As the source names it; where it does not tell, the item's number and its class."""
        if self.split.names:
            return self.split.names[index]
        return f"{index} ({self.split.classes[int(self.split.labels[index])]})"

    def items_named(self, names: Collection[str]) -> dict[str, int]:
        """Of labelled items; where a bad file has another name than its item, as the source has them."""
        own = {self.name_of(index): index for index in range(len(self))}
        others = {name for name in names if name not in own}
        found = {name: self.source.name_of(i) for name, i in self.source.items_named(others).items()} if others else {}
        known = {**{name: name for name in names if name in own}, **found}
        return {name: own[item] for name, item in known.items() if item in own}

    def presence(self) -> Mapping[frozenset[str], tuple[int, str]]:
        """Not looked up: the source's is of its items for pre-training."""
        return {}

    def labelled(self, split: str) -> Labelled:
        """The source's."""
        return self.split if split == "train" else self.source.labelled(split)

    def plan(self) -> dict[str, str]:
        """The source's, the labelled samples, and whether they are augmented."""
        split = self.split
        classes = counted(len(split.classes), "class", "classes")
        rows = {"labels": f"{len(split.labels):,} labelled training samples of {classes}"}
        if type(self.source).read_labelled is DataSource.read_labelled:
            rows["augmentation"] = "none: this data source reads its labelled samples as they are"
        return {**self.source.plan(), **rows}
