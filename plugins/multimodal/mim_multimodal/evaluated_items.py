"""Aligned items as evaluation sees them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from mim_multimodal.items import Items


class Fixed(Dataset[Any]):
    """Items under the fixed crop of evaluation, each with its number as ``index``; ``note`` says which others there
    are."""

    def __init__(
        self,
        source: Any,
        items: Items,
        numbers: Sequence[int],
        shapes: Mapping[str, tuple[int, ...]],
        note: str = "",
    ) -> None:
        self.source, self.items, self.numbers, self.note = source, items, tuple(numbers), note
        self.shapes = dict(shapes)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        sample = self.source.take(self.items, self.numbers[index], self.shapes)
        return {**sample, "index": torch.tensor(index, dtype=torch.int64)}
