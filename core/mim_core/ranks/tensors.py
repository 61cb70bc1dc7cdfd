"""Tensors that several ranks share: sums, means, and whole copies of sharded ones."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import _functional_collectives as functional
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor


@torch.no_grad()
def follow(averages: Iterable[Tensor], current: Iterable[Tensor], momentum: float) -> None:
    """average <- momentum * average + (1 - momentum) * current, in place, also where both are sharded alike.

    Raises:
        ValueError: There are more averages than tensors, or fewer.
    """
    mine = [local(tensor) for tensor in averages]
    theirs = [local(tensor.detach()) for tensor in current]
    if len(mine) != len(theirs):
        raise ValueError(f"{len(mine)} averages cannot follow {len(theirs)} tensors")
    if mine:
        torch._foreach_lerp_(mine, theirs, 1.0 - momentum)


# ---- what a batch shares ---------------------------------------------------------------------------------------------


def batch_mean(value: Tensor) -> Tensor:
    """The mean of a tensor over the ranks, without gradient; the tensor itself in a process alone. For modules in
    training mode only."""
    group = dist.group.WORLD if dist.is_initialized() else None
    if group is None or value.is_meta:
        return value
    return functional.all_reduce(value.detach(), "sum", group) / dist.get_world_size()


def gather(value: Tensor, gradient: bool = False) -> tuple[Tensor, int]:
    """The rows [n, ...] of all ranks, one after another, and the number of this rank's first row. All ranks must have
    as many, and call it. For modules in training mode only.

    Args:
        value: This rank's rows.
        gradient: Whether it goes through, to the rows of all ranks, as one process with the whole batch has it when
            every rank's loss is the mean over its own rows. Without it, what comes back is detached.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1 or value.is_meta:
        return value if gradient else value.detach(), 0
    start = dist.get_rank() * len(value)
    if gradient:
        rows: Tensor = _Gathered.apply(value)
        return rows, start
    return _all_rows(value), start


def _all_rows(value: Tensor) -> Tensor:
    """The rows of all ranks. Functional, so that a compiler sees through it."""
    mine, group = value.detach().contiguous(), dist.group.WORLD
    assert group is not None
    return functional.wait_tensor(functional.all_gather_tensor(mine, 0, group))


class _Gathered(torch.autograd.Function):
    """The rows of all ranks. A row's gradient is the sum of what all ranks' losses say of it: the mean over the ranks,
    which is taken of all gradients later, makes it that of the mean of their losses."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        ctx.rows, ctx.start = len(value), dist.get_rank() * len(value)
        return _all_rows(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _total(grad)[ctx.start : ctx.start + ctx.rows]


def _total(value: Tensor) -> Tensor:
    """The sum over the ranks; the tensor itself in a process alone."""
    group = dist.group.WORLD if dist.is_initialized() and dist.get_world_size() > 1 else None
    if group is None or value.is_meta:
        return value
    return functional.wait_tensor(functional.all_reduce(value.contiguous(), "sum", group))


# ---- sharded tensors as whole ones -----------------------------------------------------------------------------------


def whole(tensor: Tensor) -> Tensor:
    """The full tensor of a sharded one. All ranks must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this rank holds."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def reshard(module: nn.Module) -> None:
    """Frees whole weights that FSDP2 still holds: after a forward pass without a backward one the root keeps them, and
    would not see that their shards change."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


@torch.no_grad()
def fill_from_first(tensor: Tensor, value: Tensor | None) -> None:
    """Copies rank 0's ``value`` into a tensor, replicated or sharded, on all ranks; the others give None. All ranks
    must call it."""
    if isinstance(tensor, DTensor):
        full = torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device) if value is None else value
        tensor.copy_(distribute_tensor(full.to(tensor.device, tensor.dtype), tensor.device_mesh, tensor.placements))
        return
    if value is not None:
        tensor.copy_(value)
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.broadcast(tensor, src=0)
