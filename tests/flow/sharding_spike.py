"""Two gloo ranks: FSDP2 over a masked autoencoder whose target is an EMA teacher's features, called in `prepare`.
Started by test_sharding.py.

Shows that the contracts survive sharding: `prepare`, `forward` and `encode` all run on a sharded method, `after_step`
updates the sharded teacher, and losses and weights equal those of one process.
"""

from __future__ import annotations

import copy
import sys

import torch
import torch.distributed as dist
from mim_core import build_method, randomness
from mim_core.method import Head, MaskedAutoencoder
from mim_core.target import Target
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method


class Teacher(nn.Module):
    """Tokenizer and encoder, without gradient."""

    def __init__(self, student: MaskedAutoencoder) -> None:
        super().__init__()
        self.tokenizer, self.encoder = copy.deepcopy(student.tokenizer), copy.deepcopy(student.encoder)
        self.requires_grad_(False)

    def forward(self, patches, mask) -> Tensor:
        whole = type(mask).nothing_hidden(mask.hidden.shape[0], patches.layout, mask.hidden.device)
        return self.encoder(self.tokenizer.embed(patches.values), patches.layout, whole).tokens


class TeacherTarget(Target):
    """The teacher's tokens at the queried units."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def make(self, sample, patches, mask, teacher=None):
        assert teacher is not None
        return mask.take(teacher(patches, mask), mask.query_ids).float()

    def loss(self, prediction: Tensor, values: Tensor) -> Tensor:
        return (prediction.float() - values).square().mean(dim=-1)


class Distilled(MaskedAutoencoder):
    """A masked autoencoder that follows its own moving average."""

    def after_step(self, progress: float) -> None:
        with torch.no_grad():
            for mine, theirs in zip(
                [*self.tokenizer.parameters(), *self.encoder.parameters()], self.teacher.parameters(), strict=True
            ):
                theirs.lerp_(mine.detach(), 0.1)


def make() -> Distilled:
    plain = build_method("image:mae-vit-tiny", seed=3)
    assert isinstance(plain, MaskedAutoencoder)
    decoder = plain.heads["main"].decoder
    decoder.pred = _linear(64, plain.encoder.width)
    head = Head(decoder, TeacherTarget(plain.encoder.width))
    return Distilled(plain.tokenizer, plain.masker, plain.encoder, {"features": head}, teacher=Teacher(plain))


def _linear(inputs: int, outputs: int) -> nn.Linear:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return nn.Linear(inputs, outputs)


def batch(step: int, rows: slice) -> dict[str, Tensor]:
    index = torch.arange(8)
    key = randomness.make_key(0, step, index)
    image = randomness.uniform(key, "image", 28 * 28).float().reshape(8, 1, 28, 28)
    return {"image": image[rows], "key": key[rows]}


def train(method: Distilled, rows: slice, sharded: bool) -> list[float]:
    # not Adam: a key bias has no gradient but rounding noise, which Adam turns into whole steps
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
    losses = []
    for step in range(4):
        prepared = method.prepare(batch(step, rows))
        with torch.autocast("cpu", torch.bfloat16, enabled="--bf16" in sys.argv):
            outcome = method(prepared)
        assert outcome.loss.dtype == torch.float32
        assert prepared.targets["features"].dtype == torch.float32, "FSDP2 cast the target"
        outcome.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        method.after_step(step / 4)
        loss = outcome.loss.detach()
        if sharded:
            dist.all_reduce(loss, op=dist.ReduceOp.SUM)
            loss /= dist.get_world_size()
        losses.append(float(loss))
    return losses


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    alone = make()
    expected = train(alone, slice(0, 8), sharded=False)
    method = make()
    for encoder in (method.encoder, method.teacher.encoder):
        for block in encoder.blocks:
            fully_shard(block)
    fully_shard(method)
    register_fsdp_forward_method(method, "prepare")
    register_fsdp_forward_method(method, "encode")
    found = train(method, slice(rank * 4, rank * 4 + 4), sharded=True)
    tolerance = 2e-2 if "--bf16" in sys.argv else 1e-5
    assert all(abs(a - b) <= tolerance * abs(b) for a, b in zip(found, expected, strict=True)), (found, expected)
    assert len(set(found)) == len(found), "the loss does not move"
    method.eval(), alone.eval()
    with torch.no_grad():
        features = method.encode(batch(9, slice(0, 8))).pooled
        reference = alone.encode(batch(9, slice(0, 8))).pooled
    state = get_model_state_dict(method, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if "--bf16" not in sys.argv:
        torch.testing.assert_close(features, reference, rtol=1e-3, atol=1e-4)
        for name, value in alone.state_dict().items():
            if rank == 0:
                torch.testing.assert_close(state[name], value, rtol=1e-3, atol=1e-4, msg=name)
    if rank == 0:
        print("SHARDED EQUALS SINGLE", found)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
