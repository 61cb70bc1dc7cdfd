"""The optimizer over a method's parameters, with a rate for each layer, and its weight decay per step."""

from __future__ import annotations

from typing import Any

import torch

from mim_core.errors import MimError
from mim_core.methods.layers import layer_scale
from mim_core.methods.method import Method
from mim_core.parts.schedule import Schedule
from mim_core.recipes.config import TrainConfig
from mim_core.text import counted, option
from mim_core.training.lars import Lars


def make_optimizer(method: Method, train: TrainConfig, device: torch.device) -> torch.optim.Optimizer:
    """Fused AdamW, or LARS. Weight decay on matrices, none on biases and 1-D parameters; one group for each of these
    in every layer, where rates decay by layer.

    Raises:
        MimError: Rates are to decay by layer, and the encoder has no list of blocks.
    """
    decayed, plain = ({id(parameter) for parameter in params} for params in method.parameter_groups(train.decay_tokens))
    scales = _scales(method, train.layer_decay)
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    for name, parameter in method.named_parameters():
        if id(parameter) not in decayed | plain:
            continue
        key = (scales[name], id(parameter) in decayed)
        decay = train.weight_decay if key[1] else 0.0
        group = groups.setdefault(key, {"params": [], "weight_decay": decay, "decays": key[1], "scale": key[0]})
        group["params"].append(parameter)
    if not groups:
        raise MimError("Nothing of this method is trained: all of it is frozen.")
    for group in groups.values():
        group["lr"] = torch.tensor(0.0, device=device) if device.type == "cuda" else 0.0
    ordered = sorted(groups.values(), key=lambda group: not group["decays"])
    if train.optimizer == "lars":
        return Lars(ordered, 0.0, momentum=train.betas[0])
    return torch.optim.AdamW(ordered, betas=train.betas, fused=True)


def _scales(method: Method, decay: float) -> dict[str, float]:
    """What each parameter's rate is multiplied by, by name."""
    names = [name for name, _ in method.named_parameters()]
    if decay == 1:
        return dict.fromkeys(names, 1.0)
    depth = method.depth()
    if not depth:
        raise MimError(
            "--train.layer-decay goes by the blocks of an encoder, and this one has no list of them. Leave it out."
        )
    return {name: layer_scale(name, depth, decay) for name in names}


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
            f"{option(20 * train.batch_size / items)} gives 20 steps."
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
    """Sets the rate of all groups, each times its layer's scale, without a new tensor where it is one."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(rate * group.get("scale", 1.0))
        else:
            group["lr"] = rate * group.get("scale", 1.0)
