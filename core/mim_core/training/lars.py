"""LARS: momentum, with each layer's step in proportion to its weights (arXiv 1708.03888, algorithm 1; as MAE's linear
probing has it)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from mim_core.ranks.tensors import whole

TRUST = 0.001
"""The trust coefficient of MAE's linear probing."""


class Lars(torch.optim.Optimizer):
    """Layer-wise adaptive rate scaling.

    The weight decay joins the gradient g first. Then g of a tensor of two and more axes is multiplied by trust * |w| /
    |g|, or by 1 where either norm is 0. The rate multiplies the momentum buffer, so that buffers fill at rate 0 too.

    Like torch's fused optimizers it leaves an update out, on the device, where ``found_inf`` is 1.

    Args:
        groups: Parameters, or groups of them with their own ``weight_decay``.
        lr: The rate, a number or a tensor.
        momentum: Share of the past in the buffer.
        trust: The trust coefficient.
    """

    kept = ("exp_avg", "step")
    found_inf: Tensor | None = None

    def __init__(self, groups: Iterable[Any], lr: Any, momentum: float = 0.9, trust: float = TRUST) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum, "trust": trust, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient.

        Raises:
            ValueError: A closure is given, which nothing here evaluates.
        """
        if closure is not None:
            raise ValueError("Lars takes no closure")
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            state["exp_avg"] = torch.zeros_like(parameter)
        change = parameter.grad
        assert change is not None
        if parameter.ndim > 1:
            change = change + group["weight_decay"] * parameter
            own, its = whole(parameter.norm()), whole(change.norm())
            ratio = torch.where((own > 0) & (its > 0), group["trust"] * own / its, torch.ones_like(own))
            change = change * ratio
        buffer = state["exp_avg"]
        moved = group["momentum"] * buffer + change
        new = parameter - group["lr"] * moved
        if self.found_inf is None:
            buffer.copy_(moved)
            parameter.copy_(new)
            state["step"] += 1
            return
        skip = self.found_inf.to(parameter.device) > 0
        buffer.copy_(torch.where(skip, buffer, moved))
        parameter.copy_(torch.where(skip, parameter, new))
        state["step"] += 1 - self.found_inf.to(parameter.device)
