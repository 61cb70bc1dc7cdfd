"""AdamW over a method's parameters, and its weight decay per step."""

from __future__ import annotations

import torch

from mim_core.errors import MimError
from mim_core.methods.method import Method
from mim_core.parts.schedule import Schedule
from mim_core.recipes.config import TrainConfig
from mim_core.text import counted


def make_optimizer(method: Method, train: TrainConfig, device: torch.device) -> torch.optim.AdamW:
    """Fused AdamW over two groups: weight decay on matrices, none on biases and 1-D parameters."""
    decayed, plain = method.parameter_groups(train.decay_tokens)
    groups = [
        {"params": decayed, "weight_decay": train.weight_decay, "decays": True},
        {"params": plain, "weight_decay": 0.0, "decays": False},
    ]
    rate = torch.tensor(0.0, device=device) if device.type == "cuda" else 0.0
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=rate, betas=train.betas, fused=True)


def check_steps(train: TrainConfig, items: int) -> None:
    """Refuses a run of less than half a step.

    Raises:
        MimError: Says what to change.
    """
    exact = train.epochs * items / train.batch_size
    if round(exact) == 0 and items:
        raise MimError(
            f"{counted(train.epochs, 'epoch')} of {counted(items, 'item')} are {exact:.2g} steps of "
            f"{counted(train.batch_size, 'sample')}: nothing to train. More of them: --train.epochs "
            f"{20 * train.batch_size / items:.3g} gives 20 steps."
        )


def weight_decay(progress: float, train: TrainConfig) -> float:
    """The weight decay of an update, at a share of the run that is done."""
    if train.weight_decay_end is None:
        return train.weight_decay
    return Schedule(train.weight_decay, train.weight_decay_end).at(progress)


def set_decay(optimizer: torch.optim.Optimizer, decay: float) -> None:
    """Sets the weight decay of the groups that have one."""
    for group in optimizer.param_groups:
        if group["decays"]:
            group["weight_decay"] = decay


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets the rate of all groups, without a new tensor where it is one."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
