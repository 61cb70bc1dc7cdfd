"""The order of samples: which items make a batch, and with which keys. It follows from seed, epoch and index alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor
from torch.utils.data import Sampler

from mim_core import randomness


@dataclass(frozen=True)
class Request:
    """What a worker is asked for: which item, and the key of its draws."""

    index: int
    key: int


class KeyedBatches(Sampler[list[Request]]):
    """Requests in micro-batches, from any sample of the run onwards.

    Args:
        count: Items in the data set.
        micro_batch: Requests per list.
        seed: Decides order and keys.
        first: Number of the first sample.
        last: Number after the last sample.
        rank: Of the lists, this rank takes number rank, rank + ranks, ...
        ranks: How many share the run.
    """

    def __init__(
        self, count: int, micro_batch: int, seed: int, first: int, last: int, rank: int = 0, ranks: int = 1
    ) -> None:
        self.count, self.micro_batch, self.seed, self.first, self.last = count, micro_batch, seed, first, last
        self.rank, self.ranks = rank, ranks

    def __len__(self) -> int:
        return (self.last - self.first) // self.micro_batch // self.ranks

    def __iter__(self) -> Iterator[list[Request]]:
        return islice(self._all(), self.rank, None, self.ranks)

    def _all(self) -> Iterator[list[Request]]:
        waiting: list[Request] = []
        for epoch in range(self.first // self.count, -(-self.last // self.count)):
            start = max(0, self.first - epoch * self.count)
            stop = min(self.count, self.last - epoch * self.count)
            order = epoch_order(self.seed, epoch, self.count)[start:stop]
            keys = randomness.make_key(self.seed, epoch, order)
            for index, key in zip(order.tolist(), keys.tolist(), strict=True):
                waiting.append(Request(index, key))
                if len(waiting) == self.micro_batch:
                    yield waiting
                    waiting = []


def epoch_order(seed: int, epoch: int, count: int) -> Tensor:
    """The order of an epoch, int64 [count]."""
    key = randomness.make_key(seed, epoch, torch.zeros(1, dtype=torch.int64))
    return randomness.permutation(key, "order", count)[0]
