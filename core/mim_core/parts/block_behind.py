"""A masked block behind a named module of somebody else's network."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from mim_core.errors import MimError, did_you_mean
from mim_core.parts.masked_block import SSMCTB, SSPCAB, MaskedBlock

Network = TypeVar("Network", bound=nn.Module)

BLOCKS = {"ssmctb": SSMCTB, "sspcab": SSPCAB}

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
"""Modules that run whatever they hold."""


class _Behind(nn.Module):
    """What is hooked behind a module: a block, and the weight of its loss.

    Args:
        block: The block.
        weight: Factor of its loss.
        where: Name of the module, for messages.
    """

    def __init__(self, block: MaskedBlock, weight: float, where: str) -> None:
        super().__init__()
        self.block, self.weight, self.where = block, weight, where

    def forward(self, x: Any) -> Tensor:
        """The block's output.

        Raises:
            MimError: The module's output is no tensor that the block takes.
        """
        if not isinstance(x, Tensor):
            raise MimError(
                f"with_block: the module {self.where!r} gives a {type(x).__name__}; a block stands behind one that "
                "gives a tensor [B, C, ...]."
            )
        try:
            output: Tensor = self.block(x)
        except ValueError as error:
            raise MimError(
                f"with_block: behind the module {self.where!r}: {error}: with_block(model, {self.where!r}, "
                f"channels={x.shape[1] if x.ndim > 1 else 1}, axes={max(x.ndim - 2, 1)})."
            ) from error
        return output

    def hook(self, module: nn.Module, given: Any, output: Any) -> Tensor:
        """What torch calls after the module."""
        features: Tensor = self(output)
        return features


def with_block(
    model: Network,
    name: str,
    *,
    block: str = "ssmctb",
    channels: int | None = None,
    axes: int | None = None,
    weight: float = 0.1,
    **options: Any,
) -> Network:
    """Puts a masked block behind a module of a network, in place: the network goes on with the block's output. Add
    ``block_loss(model)`` to its loss, and give the optimizer the parameters after this call.

        model = with_block(detector, "layer3")
        loss = loss_of_detector(model(x)) + block_loss(model)

    Weights that the network has keep their names.

    Args:
        model: Any network.
        name: Of the module, as ``named_modules`` has it, such as "layer3" or "backbone.layer3".
        block: "ssmctb" (arXiv 2209.12148) or "sspcab" (arXiv 2111.09099).
        channels: That the module gives; read off its last convolution or norm by default.
        axes: Behind batch and channels; those of its convolutions by default.
        weight: Factor of the block's loss.
        options: Of the block: kernel, dilation, loss ("mse" or "huber"), reduction, width, heads, head_width.

    Raises:
        MimError: No such module, a block that is there already, channels that cannot be read off, or options that do
            not fit. When the network is called: the module gives no tensor of these channels.
    """
    target = _module(model, name)
    if any(isinstance(part, _Behind) and part.where == name for part in model.modules()):
        raise MimError(f"with_block: there is a block behind {name!r} already.")
    if block not in BLOCKS:
        raise MimError(f"with_block: unknown block {block!r}.{did_you_mean(block, BLOCKS)} Known: {', '.join(BLOCKS)}.")
    if not 0 <= weight < float("inf"):
        raise MimError(f"with_block: weight must be finite and not negative, got {weight}.")
    channels = _channels(target, name) if channels is None else channels
    try:
        made = BLOCKS[block](channels, _axes(target, model) if axes is None else axes, **options)
    except (TypeError, ValueError) as error:
        raise MimError(f"with_block: {error}.") from error
    behind = _Behind(made, weight, name)
    like = next((p for p in target.parameters() if p.is_floating_point()), None)
    behind.to(device=None if like is None else like.device, dtype=None if like is None else like.dtype)
    behind.train(target.training)
    _attach(model, target, name, behind)
    return model


def block_loss(model: nn.Module) -> Tensor:
    """The weighted losses of all blocks of a network since the last call, their sum: a scalar with a gradient, once for
    each forward pass. Zero where nothing was computed in training mode.

    Raises:
        MimError: The network has no block.
    """
    blocks = [part for part in model.modules() if isinstance(part, _Behind | MaskedBlock)]
    if not blocks:
        raise MimError("block_loss: this network has no masked block; with_block(model, NAME) puts one in.")
    weights = {id(part.block): part.weight for part in blocks if isinstance(part, _Behind)}
    total: Tensor | None = None
    for part in blocks:
        if isinstance(part, MaskedBlock) and (loss := part.take_loss()) is not None:
            loss = loss * weights.get(id(part), 1.0)
            total = loss if total is None else total + loss.to(total.device)
    return torch.zeros((), device=next(model.parameters()).device) if total is None else total


def _module(model: nn.Module, name: str) -> nn.Module:
    modules = dict(model.named_modules())
    if not name or name not in modules:
        guess = did_you_mean(name, [known for known in modules if known])
        first = ", ".join(known for known, _ in model.named_children()) or "none"
        raise MimError(f"with_block: the network has no module {name!r}.{guess} Its first level: {first}.")
    return modules[name]


def _channels(target: nn.Module, name: str) -> int:
    """Channels of the last convolution or norm within a module."""
    for part in reversed(list(target.modules())):
        channels = getattr(part, "out_channels", getattr(part, "num_features", getattr(part, "num_channels", None)))
        if isinstance(channels, int) and channels > 0:
            return channels
    raise MimError(
        f"with_block: how many channels the module {name!r} gives cannot be read off its layers; say so: "
        f"with_block(model, {name!r}, channels=...)."
    )


def _axes(target: nn.Module, model: nn.Module) -> int:
    """Axes of the convolutions of a module, or else of the network; 2 where it has none."""
    for where in (target, model):
        for part in where.modules():
            for axes, kinds in {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}.items():
                if isinstance(part, kinds):
                    return axes
    return 2


def _owners(model: nn.Module, name: str) -> Iterator[nn.Module]:
    """The module of a name and those around it, from the inside."""
    parts = name.split(".")
    for length in range(len(parts), -1, -1):
        yield model.get_submodule(".".join(parts[:length]))


def _attach(model: nn.Module, target: nn.Module, name: str, behind: _Behind) -> None:
    """Makes the block a module of the network and hooks it behind the target. What holds it is no container, which
    would run it too; where all are containers, a plain sequence runs it as its last."""
    owner = next((part for part in _owners(model, name) if not isinstance(part, CONTAINERS)), None)
    if owner is not None:
        label = "masked_block"
        while hasattr(owner, label):
            label += "_"
        owner.add_module(label, behind)
        target.register_forward_hook(behind.hook)
    elif type(target).forward is nn.Sequential.forward:
        target.add_module("masked_block", behind)
    else:
        raise MimError(f"with_block: nothing around {name!r} can hold a block; name a module within it.")
