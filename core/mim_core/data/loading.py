"""Reading a source in a keyed order: requests, batches, and the processes that read.

Reading an item has a limit of time, so that one file cannot stop a run. A process that reads says which item it is at,
so that one that hangs is named, and none outlives the run, however that ends.
"""

from __future__ import annotations

import atexit
import gc
import math
import os
import shutil
import signal
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from multiprocessing import util
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from mim_core import randomness
from mim_core.data.source import DataSource, Sample
from mim_core.data.time_limits import ITEM_SECONDS, Places, TooSlow, at_place, time_limit
from mim_core.errors import BadSample, ReadersGone

TRIES = 20
"""Replacements that are drawn before all others are gone through."""


LOOKED_AT = 100
"""Bad items in a row after which reading gives up, where more are bad than a run may have."""


@dataclass(frozen=True)
class Request:
    """What a worker is asked for: which item, and the key of its draws."""

    index: int
    key: int


class KeyedDataset(Dataset[Any]):
    """Reads what is requested; a bad file is replaced by another item that follows from the same key, and reported.

    Replacements are tried in an order that follows from the key and meets every item once, so that a readable file is
    found however few there are, and results do not depend on workers, ranks, or where a run stopped.

    Args:
        source: What is read.
        places: Where the processes that read write which item they are at.
    """

    def __init__(self, source: DataSource, places: Places | None = None) -> None:
        self.source, self.places = source, places
        self.bad: dict[int, tuple[str, str]] = {}
        """Items that could not be read, with path and reason. They are tried again with another key, which may ask for
        another part of the file, so that what is read follows from the key and not from what this process met before;
        but not beyond the first tries, nor where it took too long."""
        self.slow: set[int] = set()

    def __getitem__(self, request: Request) -> tuple[dict[str, Tensor] | None, list[tuple[str, str]]]:
        """(sample, bad files met). The sample is None when no replacement could be read."""
        skipped, paths = list[tuple[str, str]](), set[str]()
        most = max(1.0, getattr(self.source.config, "max_bad", 1.0) * len(self.source))
        for tried, index in enumerate(replacements(request, len(self.source))):
            known = index in self.slow or (tried > TRIES and index in self.bad)
            sample = None if known else self._read(index, request.key)
            if sample is None:
                skipped.append(self.bad[index])
                paths.add(self.bad[index][0])  # a file that holds several items counts once
                # the run ends for it, whoever reads, so there is no need to look at very many more
                if len(paths) > most and len(skipped) >= LOOKED_AT:
                    break
                continue
            sample["index"] = torch.tensor(index, dtype=torch.int64)
            sample["key"] = torch.tensor(request.key, dtype=torch.int64)
            return sample, skipped
        return None, skipped

    def is_bad(self, index: int) -> bool:
        """Whether an item cannot be read; `bad` then has the reason."""
        return self._read(index, 0) is None

    def _read(self, index: int, key: int) -> dict[str, Tensor] | None:
        name = self.source.name_of(index)
        try:
            with at_place(self.places, name), time_limit(self.source.item_seconds):
                return self.source.read(index, key)
        except BadSample as error:
            self.bad[index] = (error.path, error.reason)
        except TooSlow as error:
            self.bad[index] = (name, str(error))
            self.slow.add(index)
        return None


def replacements(request: Request, count: int) -> Iterator[int]:
    """The item that is asked for, then all others, each once, in an order that follows from the key."""
    yield request.index
    seen = {request.index}
    for attempt in range(TRIES):
        index = randomness.torch_seed(request.key, f"replace {attempt}") % count
        if index not in seen:
            seen.add(index)
            yield index
    start = randomness.torch_seed(request.key, "replace from") % count
    step = randomness.torch_seed(request.key, "replace step") % count
    while math.gcd(step, count) != 1:
        step += 1
    for number in range(count):
        index = (start + number * step) % count
        if index not in seen:
            yield index


@dataclass(frozen=True)
class Batch:
    """A micro-batch, and the bad files met on the way. ``sample`` is None when some item could not be replaced."""

    sample: Sample | None
    skipped: tuple[tuple[str, str], ...]

    def pin_memory(self) -> Batch:
        """Called by the loader when a GPU will take the batch."""
        if self.sample is None:
            return self
        return Batch({name: value.pin_memory() for name, value in self.sample.items()}, self.skipped)


def collate(items: Sequence[tuple[dict[str, Tensor] | None, list[tuple[str, str]]]]) -> Batch:
    """Stacks the entries of the samples."""
    skipped = tuple(entry for _, entries in items for entry in entries)
    samples = [sample for sample, _ in items if sample is not None]
    if len(samples) < len(items):
        return Batch(None, skipped)
    return Batch({name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}, skipped)


class Readable(Dataset[Any]):
    """The items of a split, each with its ``index``; None for one whose file cannot be read, or not in time.

    Args:
        items: Read by index.
        seconds: The longest that reading an item may take.
    """

    def __init__(self, items: Dataset[Any], seconds: float = ITEM_SECONDS) -> None:
        self.items, self.seconds = items, seconds

    def __getitem__(self, index: int) -> dict[str, Tensor] | None:
        try:
            with time_limit(self.seconds):
                return {**self.items[index], "index": torch.tensor(index, dtype=torch.int64)}
        except (BadSample, TooSlow):
            return None

    @staticmethod
    def collate(items: Sequence[dict[str, Tensor] | None]) -> Sample:
        """Stacks those that could be read; empty when none could."""
        samples = [item for item in items if item is not None]
        return {name: torch.stack([item[name] for item in samples]) for name in samples[0]} if samples else {}


class Reported(Dataset[Any]):
    """The items of a split, each with its ``index``; for one whose file cannot be used, or not in time, its number and
    why. Else as `Readable`.

    Args:
        items: Read by index.
        seconds: The longest that reading an item may take.
        places: Where the processes that read write which item they are at.
        names: Of the samples, for the places.
        views: Items of one sample.
    """

    def __init__(
        self,
        items: Dataset[Any],
        seconds: float = ITEM_SECONDS,
        places: Places | None = None,
        names: Sequence[str] = (),
        views: int = 1,
    ) -> None:
        self.items, self.seconds, self.places, self.names, self.views = items, seconds, places, names, views

    def __getitem__(self, index: int) -> dict[str, Tensor] | tuple[int, str]:
        try:
            name = self.names[index // self.views] if self.names else str(index)
            with at_place(self.places, name), time_limit(self.seconds):
                return {**self.items[index], "index": torch.tensor(index, dtype=torch.int64)}
        except BadSample as error:
            own = error.path.endswith(name) or name.startswith(error.path)  # of several files of an item, say which
            return index, error.reason if own else f"{error.path}: {error.reason}"
        except TooSlow as error:
            return index, str(error)

    @staticmethod
    def collate(items: Sequence[dict[str, Tensor] | tuple[int, str]]) -> tuple[Sample, list[tuple[int, str]]]:
        """Stacks those that could be read; and the numbers of the others, with why."""
        return Readable.collate([x for x in items if isinstance(x, dict)]), [x for x in items if isinstance(x, tuple)]


class KeyedBatches(Sampler[list[Request]]):
    """Requests in micro-batches, from any sample of the run onwards.

    Args:
        count: Items in the data set.
        micro_batch: Requests per list.
        seed: Decides order and keys.
        first: Number of the first sample.
        last: Number after the last sample.
        rank: Of the lists, this rank takes number rank, rank + ranks, ...
        ranks: How many share the run.
    """

    def __init__(
        self, count: int, micro_batch: int, seed: int, first: int, last: int, rank: int = 0, ranks: int = 1
    ) -> None:
        self.count, self.micro_batch, self.seed, self.first, self.last = count, micro_batch, seed, first, last
        self.rank, self.ranks = rank, ranks

    def __len__(self) -> int:
        return (self.last - self.first) // self.micro_batch // self.ranks

    def __iter__(self) -> Iterator[list[Request]]:
        return islice(self._all(), self.rank, None, self.ranks)

    def _all(self) -> Iterator[list[Request]]:
        waiting: list[Request] = []
        for epoch in range(self.first // self.count, -(-self.last // self.count)):
            start = max(0, self.first - epoch * self.count)
            stop = min(self.count, self.last - epoch * self.count)
            order = epoch_order(self.seed, epoch, self.count)[start:stop]
            keys = randomness.make_key(self.seed, epoch, order)
            for index, key in zip(order.tolist(), keys.tolist(), strict=True):
                waiting.append(Request(index, key))
                if len(waiting) == self.micro_batch:
                    yield waiting
                    waiting = []


def epoch_order(seed: int, epoch: int, count: int) -> Tensor:
    """The order of an epoch, int64 [count]."""
    key = randomness.make_key(seed, epoch, torch.zeros(1, dtype=torch.int64))
    return randomness.permutation(key, "order", count)[0]


def _apart(worker: int) -> None:
    """Signals are for the main process, which needs its workers for the last steps. Ctrl-C and launchers signal whole
    process groups, and schedulers every process: the first SIGTERM is ignored, and a second ends the worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *told: signal.signal(signal.SIGTERM, signal.SIG_DFL))
    for name in ("SIGUSR1", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(os, "setpgrp"):
        os.setpgrp()
    util.Finalize(None, _clear_away, (util.get_temp_dir(), os.getppid()), exitpriority=-100)


def _clear_away(folder: str, parent: int) -> None:
    """Removes the folder of sockets, where the main process was killed and cannot."""
    if os.getppid() != parent:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _kept_from_readers() -> Iterator[None]:
    """What exists now is not collected in a process that is forked here: an earlier iterator that waits to be collected
    would look for its own readers there, and torch would print a traceback."""
    frozen = gc.get_freeze_count()
    gc.freeze()
    try:
        yield
    finally:
        if not frozen:
            gc.unfreeze()


class Loader(DataLoader[Any]):
    """A loader whose processes end with this one, however it ends: they pass over the signal with which
    multiprocessing would end them, and it would wait for them for ever."""

    def __iter__(self) -> Any:
        if self.num_workers:
            util.get_temp_dir()  # readers share it, and one that is killed removes none of its own
        with _kept_from_readers():
            batches = super().__iter__()
        _READERS.update(getattr(batches, "_workers", ()))
        return batches


_READERS: weakref.WeakSet[Any] = weakref.WeakSet()
"""The processes that read."""


def end_readers(batches: Any = None) -> None:
    """Kills processes that read and waits for their end, which takes no time: those of one iterator over a `Loader`, or
    all. They hold nothing that could be lost, and one that is stopped or hangs hears nothing else."""
    workers = list(_READERS) if batches is None else getattr(batches, "_workers", ())
    for _ in range(len(workers) + 1):  # the loader's own handler may say anywhere that they are gone
        with suppress(RuntimeError):
            living = [worker for worker in workers if _is_ours(worker) and worker.is_alive()]
            for worker in living:
                worker.kill()
            for worker in living:
                worker.join(2)
            return


def readers_gone(error: BaseException) -> bool:
    """Whether an error says that a process that reads is gone. The loader says so in a handler of signals, which may
    raise it anywhere in the main process."""
    return isinstance(error, ReadersGone) or (isinstance(error, RuntimeError) and "DataLoader" in str(error))


def _is_ours(worker: Any) -> bool:
    """Whether this process started it; a process that was forked has a copy of the list."""
    return bool(getattr(worker, "_parent_pid", None) == os.getpid())


atexit.register(end_readers)  # runs before multiprocessing's own, which was registered earlier


def loader(
    dataset: Dataset[Any], sampler: Any, workers: int, collate_fn: Any, pin: bool = False, wait: float = 0
) -> Loader:
    """A loader over lists of requests. Results do not depend on ``workers``; one that gives nothing for ``wait``
    seconds is an error, unless that is 0."""
    return Loader(
        dataset,
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=collate_fn,
        pin_memory=pin,
        timeout=wait if workers else 0,
        worker_init_fn=_apart if workers else None,
        # the loader would otherwise draw its base seed from the global generator
        generator=torch.Generator().manual_seed(0),
    )
