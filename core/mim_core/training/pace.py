"""How long training takes here, by a few real steps on small batches before it begins. Keeps nothing."""

from __future__ import annotations

import tempfile
import time
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from mim_core.errors import MimError, one_line
from mim_core.runs.run import Run
from mim_core.text import counted, option, rounded, speed
from mim_core.training.cost import measured_flops, peak_flops
from mim_core.training.engine import Engine
from mim_core.training.faults import BadFiles
from mim_core.training.optimizer import make_optimizer
from mim_core.training.progress import Reporter, lasting
from mim_core.training.trainer import Trainer

FOREVER = 10**9
"""Steps of a run that is cut short; the metrics of none are read."""


SMALL, GROWTH, SURE = 2, 4, 1.0
"""Items of the first batch on each device, how many times as large the next one is, and seconds of a step that is long
enough to go by."""


PLANNING = 10.0
"""Seconds that a plan may measure for."""


MOST_BYTES = 4e9
"""What a plan may take of the memory to measure."""


DAY = 86400
"""Seconds; of a longer run the plan says how many epochs fit."""


@dataclass(frozen=True)
class Pace:
    """What a few steps took.

    Attributes:
        seconds: Per sample, over all ranks.
        items: In the batch that was timed.
        samples: Made of them.
    """

    seconds: float
    items: int
    samples: int


class PassedOver(BadFiles):
    """Bad files are counted and replaced; nothing is written of them, and none ends what is measured, unless nothing
    replaces it."""

    def share(self) -> None:
        """Counts them, on all ranks."""
        for fresh in self.run.world.gather(self.fresh):
            self.run.skipped.update(fresh)
        self.fresh = {}

    def _write(self, reasons: dict[str, str]) -> None:
        """Nothing."""

    def _error(self, why: str, alone: bool = True) -> MimError:
        path, reason = next(iter({**self.run.skipped, **self.fresh}.items()))
        return self.run.world.error(f"too many files cannot be used, {why}; the first: {path}: {reason}.")


def with_batch(run: Run, items: int, folder: Path) -> Run:
    """The run with batches of so many items, at once on its devices, without an end, in another folder."""
    train = replace(run.train, batch_size=items, micro_batch=items // run.world.size, log_every=FOREVER)
    config = replace(run.config, train=train)
    micro = items // run.world.size
    return replace(run, config=config, folder=folder, micro=micro, accumulation=1, step=0, steps=FOREVER)


def pace(run: Run, engine: Engine, optimizer: torch.optim.Optimizer, seconds: float) -> Pace:
    """Two steps on a small batch, of which the second is timed, then on larger ones, up to the micro-batch, while there
    is time. All ranks call it. The weights are no longer the run's own afterwards.

    Args:
        run: Which run.
        engine: Its method.
        optimizer: Over its parameters.
        seconds: How long it may take, about; one batch is always timed.
    """
    world, began = run.world, time.perf_counter()
    items, most = min(SMALL, run.micro) * world.size, run.micro * world.size
    with tempfile.TemporaryDirectory(prefix="mim-pace-") as folder:
        while True:
            taken = _second_step(with_batch(run, items, Path(folder)), engine, optimizer)
            left = seconds - (time.perf_counter() - began)
            enough = items >= most or taken >= SURE or 2 * GROWTH * taken > left
            taken, enough = world.on_first(partial(tuple[float, bool], (taken, enough)))
            if enough:
                samples = items * run.source.samples_per_item
                return Pace(taken / samples, items, samples)
            items = min(items * GROWTH, most)


def _second_step(run: Run, engine: Engine, optimizer: torch.optim.Optimizer) -> float:
    """Seconds of the second step."""
    trainer = Trainer(run, engine, optimizer, None, Reporter("pace", 0, FOREVER, quiet=True))
    trainer.bad = PassedOver(run)

    def steps():  # type: ignore[no-untyped-def]  # a generator, which can be closed
        yield from trainer

    with closing(steps()) as each:
        next(each)
        wait(run.device)
        began = time.perf_counter()
        next(each)
        wait(run.device)
        return time.perf_counter() - began


def wait(device: torch.device) -> None:
    """Until a GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def time_of(run: Run, operations: int, bytes_needed: float) -> str:
    """How long a run takes on this machine, for the plan: measured where it is one process and small enough, else by
    its operations. The weights are no longer the run's own afterwards.

    Args:
        run: Which run.
        operations: Per sample.
        bytes_needed: To train on a batch of `SMALL` items.
    """
    samples = run.samples_per_step * run.steps
    if run.world.size > 1:
        return "not measured with several ranks; bench tells"
    if bytes_needed > min(MOST_BYTES, _free(run.device) / 2):
        return _at_least(run, operations * samples)
    try:
        with torch.random.fork_rng(devices=[]):
            calm = replace(run, config=replace(run.config, train=replace(run.train, compile=False)))
            timing = pace(calm, Engine(run.method, calm.train, run.world), _optimizer(run), PLANNING)
    except Exception as error:  # the data's or a part's: a plan is told all the same
        return f"cannot be measured: {error if isinstance(error, MimError) else one_line(error)}"
    total = timing.seconds * samples
    text = f"about {lasting(total)} on this machine, measured on a step of {counted(timing.samples, 'sample')} "
    text += f"({speed(1 / timing.seconds)} samples/s)"
    if total > DAY:
        text += f"; --train.epochs {option(run.train.epochs * DAY / total, 2)} takes about a day"
    return text


def _optimizer(run: Run) -> torch.optim.Optimizer:
    return make_optimizer(run.method, run.train, run.device)


def _at_least(run: Run, operations: float) -> str:
    precision = torch.float32 if run.train.precision == "fp32" or run.device.type == "cpu" else torch.bfloat16
    peak = peak_flops(run.device) or measured_flops(run.device, precision)
    return (
        f"at least {lasting(operations / peak)} on this machine: its operations at {rounded(peak / 1e9):g} GFLOP/s, "
        f"the speed of large matrix products here. Too large to measure in a plan; bench tells more"
    )


def _free(device: torch.device) -> float:
    """Bytes of memory that are free; of the host where the device is a CPU."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        return 2 * MOST_BYTES
