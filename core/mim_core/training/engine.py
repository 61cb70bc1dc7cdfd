"""How a method is spread over devices and made fast: compiled, recomputed, replicated (DDP) or sharded (FSDP2).

Order matters, and is that of torchtitan: activation checkpointing inside, compilation around it, sharding outside. All
three work in place, so weights keep their names and a checkpoint fits any strategy.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from inspect import signature
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint as recompute

from mim_core.errors import MimError, RankError
from mim_core.methods.method import Method, Outcome
from mim_core.ranks.world import World
from mim_core.recipes.config import TrainConfig


def chosen(train: TrainConfig, ranks: int) -> str:
    """ "single", "ddp" or "fsdp2"."""
    if train.strategy == "auto":
        return "ddp" if ranks > 1 else "single"
    return "single" if train.strategy == "ddp" and ranks == 1 else train.strategy


def share(train: TrainConfig, ranks: int) -> tuple[int, int]:
    """(samples at once on a device, micro-batches per step) that make up the global batch.

    Raises:
        MimError: It does not divide; names the numbers that would.
    """
    batch = train.batch_size
    if batch % ranks:
        lower = batch // ranks * ranks
        batches = [str(number) for number in (lower, lower + ranks) if number]
        fitting = [str(number) for number in range(1, min(batch, 2 * ranks) + 1) if batch % number == 0]
        raise MimError(
            f"A batch of {batch} cannot be shared by {ranks} ranks. Batches near it that can: --train.batch-size "
            f"{' or '.join(batches)}. Valid rank counts: {', '.join(fitting)}."
        )
    each = batch // ranks
    micro = min(train.micro_batch or each, each)
    if each % micro:
        small = [number for number in range(1, min(math.isqrt(each), 10**6) + 1) if each % number == 0]
        fitting = [str(number) for number in sorted({*small, *(each // number for number in small)})[-8:]]
        share_of = f" gives each of {ranks} ranks {each} samples, which" if ranks > 1 else ""
        raise MimError(
            f"A batch of {batch}{share_of} cannot be cut into micro-batches of {micro}. --train.micro-batch values "
            f"that would do: {', '.join(fitting)}."
        )
    return micro, each // micro


_BUFFERS_STAY: Any = {
    # the name changed in torch 2.15; statistics are equal on all ranks already (mim_core.parts.norm)
    (
        "forward_sync_buffers"
        if "forward_sync_buffers" in signature(DistributedDataParallel).parameters
        else "broadcast_buffers"
    ): False
}


class Engine:
    """A method ready to be trained: `step_forward` runs its forward pass, gradients are averaged over the ranks.

    Args:
        method: What is trained; changed in place where it is compiled, recomputed or sharded.
        train: The training options.
        world: The ranks.

    Raises:
        MimError: Blocks are to be recomputed, and the method names none.
    """

    def __init__(self, method: Method, train: TrainConfig, world: World) -> None:
        self.method, self.world = method, world
        self.strategy = chosen(train, world.size)
        blocks = method.blocks()
        if train.activation_checkpointing:
            if not blocks:
                raise MimError("--train.activation-checkpointing: this method names no blocks to recompute.")
            for block in blocks:
                _recompute(block)
        if train.compile:
            self._compile(blocks)
        self.forward: Callable[[Any], Outcome] = method
        if self.strategy == "fsdp2":
            self._shard(blocks)
        elif self.strategy == "ddp":
            self.forward = DistributedDataParallel(method, gradient_as_bucket_view=True, **_BUFFERS_STAY)

    def _compile(self, blocks: list[nn.Module]) -> None:
        """The whole forward pass; block by block where it is sharded, whose hooks cannot be traced. Shapes never change
        within a run, so none is made dynamic: blocks of encoder and decoder differ in length."""
        if self.strategy != "fsdp2":
            self.method.compile(fullgraph=True, dynamic=False)
            return
        if not blocks:
            raise MimError("--train.compile with --train.strategy fsdp2: this method names no blocks to compile.")
        for block in blocks:
            block.compile(fullgraph=True, dynamic=False)

    def _shard(self, blocks: list[nn.Module]) -> None:
        """FSDP2 over the blocks, then over the rest. bf16 comes from autocast: a policy that casts inputs would cast
        the float32 targets inside Prepared too."""
        if not dist.is_initialized():
            _group_of_one(self.world.device)
        mesh = init_device_mesh(self.world.device.type, (self.world.size,))
        policy = MixedPrecisionPolicy(cast_forward_inputs=False)
        for module in (*blocks, self.method):
            fully_shard(module, mesh=mesh, mp_policy=policy)
        # torch's advice on changing such a view in place; parts change nothing of a block's result in place
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
        for name in ("prepare", "encode"):
            register_fsdp_forward_method(self.method, name)

    @contextmanager
    def micro_batch(self, last: bool) -> Iterator[None]:
        """One forward and backward pass; gradients are exchanged in the last one of a step."""
        if isinstance(self.forward, DistributedDataParallel):
            with nullcontext() if last else self.forward.no_sync(), warnings.catch_warnings():
                # a patch embedding of one channel has an axis of length 1, whose stride means nothing
                warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
                yield
            return
        if isinstance(self.method, FSDPModule):
            self.method.set_requires_gradient_sync(last)
        yield

    def explain(self, error: RuntimeError) -> Exception:
        """The error that a user can act on, for those of torch that name no parameter."""
        if "finished reduction" not in str(error):
            return error
        unused = [name for name, p in self.method.named_parameters() if p.requires_grad and p.grad is None]
        return RankError(
            self.world.rank,
            f"DDP needs a gradient for every parameter, and the loss does not depend on: {', '.join(unused[:8])}. "
            "Freeze these (requires_grad_(False)) in the method, or use --train.strategy fsdp2.",
        )


def _recompute(block: nn.Module) -> None:
    """Keeps only the block's inputs for the backward pass. Its name and weights stay as they are."""
    inner = block.forward

    def forward(*arguments: Any, **named: Any) -> Any:
        return recompute(inner, *arguments, use_reentrant=False, **named)

    block.forward = forward


def _group_of_one(device: torch.device) -> None:
    """FSDP2 needs a process group, also for one process."""
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
