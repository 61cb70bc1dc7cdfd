"""Tensors that several ranks share: sums, means, and whole copies of sharded ones."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import _functional_collectives as functional
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor


@torch.no_grad()
def follow(averages: Iterable[Tensor], current: Iterable[Tensor], momentum: float) -> None:
    """average <- momentum * average + (1 - momentum) * current, in place, also where both are sharded alike."""
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


def gather(value: Tensor) -> tuple[Tensor, int]:
    """The rows [n, ...] of all ranks, one after another, without gradient, and the number of this rank's first row. All
    ranks must have as many, and call it. For modules in training mode only."""
    if not dist.is_initialized() or dist.get_world_size() == 1 or value.is_meta:
        return value.detach(), 0
    mine = value.detach().contiguous()
    parts = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, mine)
    return torch.cat(parts), dist.get_rank() * len(value)


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
