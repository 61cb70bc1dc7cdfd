"""Processes that train together: who they are, how they agree, and who is named when one is gone.

Started by ``torchrun`` or by ``srun``; torch does the communication. Each process is a rank. A control group of its own
(gloo, on the host) carries what the loop must agree on, so that agreeing never waits for the device.

The rule for a batch that several ranks share: a module in training mode works on it together with the other ranks, and
may reduce over them (`batch_mean`, `mim_core.parts.norm.BatchNorm`); in evaluation mode it is alone.
"""

from __future__ import annotations

import json
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from mim_core.errors import MimError, RankError
from mim_core.ranks.launch import Launch

T = TypeVar("T")


BEAT = 2.0
"""Seconds between two signs of life."""


@dataclass
class World:
    """All ranks of a run, as one of them sees them.

    Attributes:
        launch: Which one this is.
        device: What it computes on.
        control: Group for what is agreed on the host; None when there is one rank.
        heart: Tells the others where this rank is; None when there is one rank.
    """

    launch: Launch
    device: torch.device
    control: dist.ProcessGroup | None = None
    heart: Heart | None = None
    _asked: tuple[Any, Tensor] | None = field(default=None, repr=False)

    @property
    def rank(self) -> int:
        """Number of this process, from 0."""
        return self.launch.rank

    @property
    def size(self) -> int:
        """Number of processes."""
        return self.launch.size

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which writes and speaks."""
        return self.launch.rank == 0

    @property
    def abandoned(self) -> bool:
        """Whether the launcher is gone; nobody would end this rank, or could start it anew beside another."""
        return self.heart is not None and self.heart.abandoned

    def phase(self, step: int, name: str) -> None:
        """Notes what this rank does now, for the message that names a lost one."""
        if self.heart is not None:
            self.heart.at(step, name)

    def poll(self, number: int) -> int:
        """The largest number that any rank gave *in its previous call*; all ranks get the same answer.

        One call behind, so that nobody waits: the answer travels while the next step is computed.
        """
        if self.control is None:
            return number
        answer = 0
        if self._asked is not None:
            work, value = self._asked
            work.wait()
            answer = int(value)
        value = torch.tensor(number)
        self._asked = (dist.all_reduce(value, dist.ReduceOp.MAX, group=self.control, async_op=True), value)
        return answer

    def settle(self) -> None:
        """Takes the last answer of `poll` off the way, at the end of a run."""
        if self._asked is not None:
            self._asked[0].wait()
            self._asked = None

    def error(self, text: str) -> MimError:
        """An error that this rank ran into, and that the others may not know of."""
        return MimError(text) if self.size == 1 else RankError(self.rank, text)

    def on_first(self, work: Callable[[], T]) -> T:
        """Does something on rank 0 alone, and gives all ranks its result, or its `MimError`.

        Raises:
            Exception: On rank 0, and where there is one rank alone: whatever the work raised.
            MimError: On the other ranks: that of the work, or one that tells its other errors.
        """
        if self.control is None:
            return work()
        outcome: list[Any] = [None, None]
        fault: Exception | None = None
        if self.first:
            try:
                outcome[0] = work()
            except Exception as error:
                fault = error
                outcome[1] = error if isinstance(error, MimError) else MimError(f"rank 0 failed: {error!r}")
                outcome[1].everywhere = True
        dist.broadcast_object_list(outcome, src=0, group=self.control)
        if fault is not None:
            raise fault
        if outcome[1] is not None:
            raise outcome[1]
        result: T = outcome[0]
        return result

    def together(self, work: Callable[[], T]) -> T:
        """Does something on every rank. If it fails on any, it fails on all, and rank 0 says what each met.

        Raises:
            MimError: Of all ranks.
        """
        result: T | None = None
        fault: MimError | None = None
        try:
            result = work()
        except MimError as met:
            fault = met
        messages = self.gather(None if fault is None else str(fault))
        if any(messages):
            same = len(set(messages)) == 1
            lines = [f"rank {rank}: {text}" for rank, text in enumerate(messages) if text]
            error = fault if same and fault is not None else MimError("\n".join(lines))
            error.everywhere = True
            raise error
        return cast(T, result)

    def compare(self, facts: dict[str, str]) -> None:
        """Refuses ranks that differ in what must be the same.

        Raises:
            MimError: Of all ranks; names the fact, and what each rank has.
        """
        rank_facts = self.gather(facts)
        for name in facts:
            each = [other[name] for other in rank_facts]
            if len(set(each)) > 1:
                listed = ", ".join(f"rank {rank}: {value}" for rank, value in enumerate(each))
                error = MimError(f"Ranks disagree on {name}: {listed}.")
                error.everywhere = True
                raise error

    def gather(self, value: T) -> list[T]:
        """Every rank's value, in the order of the ranks."""
        if self.control is None:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.control)
        return values

    def sum(self, *values: Tensor) -> None:
        """Adds host tensors up over the ranks, in place."""
        if self.control is not None:
            for value in values:
                dist.all_reduce(value, group=self.control)


def alone(device: torch.device) -> World:
    """A process by itself."""
    return World(Launch(), device)


def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def choose_device(name: str, launch: Launch | None = None) -> torch.device:
    """The device that was asked for, or this rank's GPU if there is one.

    Raises:
        MimError: It cannot be used, or more ranks were started on this machine than it has GPUs.
    """
    launch = launch or Launch.from_environment()
    asked = name
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda:") and launch.size > 1:
        raise MimError(
            f"--train.device {name} would put all {launch.size} ranks on one GPU; each takes its own with "
            "--train.device cuda."
        )
    if name == "cuda" and torch.cuda.is_available():
        if torch.cuda.device_count() == 1 and "SLURM_PROCID" in os.environ:
            name = "cuda:0"  # --gpus-per-task=1 shows each task its own alone
        elif launch.local_rank >= torch.cuda.device_count():
            raise MimError(
                f"Rank {launch.rank} is number {launch.local_rank} on its machine, which has "
                f"{torch.cuda.device_count()} GPUs. Start at most as many processes as there are GPUs, or use "
                "--train.device cpu."
            )
        else:
            name = f"cuda:{launch.local_rank}"
    try:
        device = torch.device(name)
        if device.type == "meta":
            raise RuntimeError("it holds no values")
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise MimError(f"--train.device {asked} cannot be used: {str(error).splitlines()[0]}") from error
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


@contextmanager
def world(device_name: str, timeout: float) -> Iterator[World]:
    """Joins the other ranks, and leaves them at the end.

    Args:
        device_name: Such as "auto", see `choose_device`.
        timeout: Seconds after which a rank that does not answer is lost.

    Raises:
        MimError: They cannot be reached.
        RankError: A rank died or hung, within ``timeout`` seconds.
    """
    launch = Launch.from_environment()
    device = choose_device(device_name, launch)
    if launch.size == 1:
        before = dist.is_initialized()
        try:
            yield alone(device)
        finally:
            if dist.is_initialized() and not before:  # FSDP2's group of one
                dist.destroy_process_group()
        return
    store, control = _joined(launch, device, timeout)
    heart = Heart(dist.PrefixStore("heart", store), launch)
    heart.start()
    try:
        yield World(launch, device, control, heart)
    except (dist.DistBackendError, dist.DistNetworkError, RuntimeError) as error:
        if not _lost_contact(error):
            raise
        raise RankError(launch.rank, heart.story(error, timeout)) from error
    else:
        dist.barrier(group=control)
        dist.destroy_process_group()
    finally:
        heart.stop()
        if dist.is_initialized() and device.type == "cpu":  # NCCL's may wait for the lost rank for ever
            with suppress(RuntimeError):
                dist.destroy_process_group()


def _joined(launch: Launch, device: torch.device, timeout: float) -> tuple[dist.Store, dist.ProcessGroup]:
    """Joins the other ranks: the launcher's store, and the group that agrees on the host.

    Raises:
        RankError: They cannot be reached.
    """
    wait = timedelta(seconds=timeout)
    os.environ.update(RANK=str(launch.rank), WORLD_SIZE=str(launch.size), LOCAL_RANK=str(launch.local_rank))
    try:
        store, _, _ = next(dist.rendezvous("env://", timeout=wait))
        store.set_timeout(wait)
        # a process may train several times, and old addresses are of no use
        store = dist.PrefixStore(f"world {store.add(f'worlds of {launch.rank}', 1)}", store)
        # the host's group must be the first to notice: NCCL's watchdog ends the process without a word
        slower = wait + timedelta(seconds=60 if device.type == "cuda" else 0)
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(
            backend, store=dist.PrefixStore("group", store), rank=launch.rank, world_size=launch.size, timeout=slower
        )
        control = dist.new_group(backend="gloo", timeout=wait)
        assert isinstance(control, dist.ProcessGroup)
    except (RuntimeError, ValueError) as error:
        raise RankError(launch.rank, f"cannot join the other ranks: {str(error).splitlines()[0]}") from error
    return store, control


def _lost_contact(error: Exception) -> bool:
    """Whether an error says that another rank is gone. gloo raises plain RuntimeErrors."""
    signs = ("connection closed", "timed out", "timeout", "connection reset", "broken pipe", "nccl", "gloo")
    return isinstance(error, dist.DistError) or any(sign in str(error).lower() for sign in signs)


class Heart(threading.Thread):
    """Writes this rank's step and phase to the launcher's store every few seconds, for others to read when contact is
    lost."""

    def __init__(self, store: dist.Store, launch: Launch) -> None:
        super().__init__(name="heart", daemon=True)
        self.store, self.launch = store, launch
        self.place: tuple[int, str, float] = (0, "start", time.monotonic())
        self.beats = 0
        self.abandoned = False
        """The launcher, and its store, are gone."""
        self.ended = threading.Event()
        self._beat()

    def at(self, step: int, phase: str) -> None:
        """Where this rank is now."""
        self.place = (step, phase, time.monotonic())

    def run(self) -> None:
        """Beats until it is stopped, or nobody is left to hear."""
        while not self.ended.wait(BEAT):
            try:
                self._beat()
            except RuntimeError:
                self.abandoned = not self.ended.is_set()
                return

    def stop(self) -> None:
        """Ends the thread."""
        self.ended.set()

    def _beat(self) -> None:
        step, phase, since = self.place
        self.beats += 1
        text = json.dumps([self.beats, step, phase, round(time.monotonic() - since)])
        self.store.set(str(self.launch.rank), text)

    def story(self, error: Exception, timeout: float) -> str:
        """Why contact was lost: where every rank was last seen, and which gave no sign of life."""
        lines = [f"contact to another rank was lost (after at most {timeout:g} s): {str(error).splitlines()[0]}"]
        try:
            before = [json.loads(self.store.get(str(rank))) for rank in range(self.launch.size)]
            time.sleep(2 * BEAT)
            now = [json.loads(self.store.get(str(rank))) for rank in range(self.launch.size)]
        except (RuntimeError, ValueError):
            lines.append("The launcher's store is gone too, so nothing is known of the others.")
            return "\n".join(lines)
        for rank, ((beats, *_), (later, step, phase, seconds)) in enumerate(zip(before, now, strict=True)):
            sign = "alive" if later > beats else "DEAD: it gives no sign of life"
            lines.append(f"  rank {rank}: {sign}; when last heard at step {step}, {phase}, for {seconds} s")
        lines.append("The last complete checkpoint stays; the same command resumes from there.")
        return "\n".join(lines)
