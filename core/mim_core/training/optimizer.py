"""AdamW and the learning rate per step."""

from __future__ import annotations

import math

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


def learning_rate(step: int, steps_per_epoch: float, train: TrainConfig) -> float:
    """The rate of an update, counted from 0.

    Linear warm-up from ``warmup_lr``, then half a cosine to ``min_lr``, or a factor of 0.1 at each milestone, or
    constant. All rates are scaled by batch_size / lr_batch. As in MAE's code, the first update's rate is the warm-up's
    start.
    """
    scale = train.batch_size / train.lr_batch
    peak, low, start = train.base_lr * scale, train.min_lr * scale, train.warmup_lr * scale
    epoch = step / steps_per_epoch
    if epoch < train.warmup_epochs:
        return start + (peak - start) * epoch / train.warmup_epochs
    if train.schedule == "constant":
        return peak
    if train.schedule == "steps":
        return peak * 0.1 ** sum(epoch >= milestone for milestone in train.milestones)
    done = (epoch - train.warmup_epochs) / max(1e-12, train.epochs - train.warmup_epochs)
    return low + (peak - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


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
