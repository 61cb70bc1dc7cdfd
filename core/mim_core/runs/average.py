"""The average of a method's weights over time, for evaluation (``--train.ema``)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from mim_core.ranks.tensors import follow, local, reshard


class WeightAverage:
    """An exponential moving average of all trained weights of a method; evaluation and export take it.

    The momentum is min(momentum, (1 + t) / (10 + t)) at update t, so that the first weights are soon forgotten
    (TensorFlow's ExponentialMovingAverage).

    Args:
        module: Whose trainable parameters are averaged. Buffers are not: evaluation takes the module's own.
        momentum: The weight of the past, such as 0.9999.
    """

    def __init__(self, module: nn.Module, momentum: float) -> None:
        self.module, self.momentum = module, momentum
        self.parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.tensors = {name: p.detach().clone() for name, p in self.parameters.items()}

    def update(self, step: int) -> None:
        """Follows the parameters after update number ``step``, counted from 0."""
        momentum = min(self.momentum, (1 + step) / (10 + step))
        follow(self.tensors.values(), self.parameters.values(), momentum)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The module has the average's weights while this lasts."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        reshard(self.module)
        for name, parameter in self.parameters.items():
            mine, theirs = local(self.tensors[name]), local(parameter)
            kept = theirs.clone()
            theirs.copy_(mine)
            mine.copy_(kept)
