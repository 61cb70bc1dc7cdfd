"""``bench``: how fast a recipe trains on this machine, measured on real steps of the real loop. Keeps nothing."""

from __future__ import annotations

import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mim_core.data.loading import end_readers, readers_gone
from mim_core.host.registry import Registry
from mim_core.ranks.world import World, device_name
from mim_core.recipes.config import ResolvedRun, TrainConfig
from mim_core.runs import run as running
from mim_core.runs.average import WeightAverage
from mim_core.runs.run import PHASES
from mim_core.text import counted
from mim_core.training import loop
from mim_core.training.cost import measured_flops, peak_flops, step_cost
from mim_core.training.engine import Engine
from mim_core.training.optimizer import make_optimizer
from mim_core.training.pace import FOREVER, PassedOver, pace, wait, with_batch
from mim_core.training.progress import Reporter, lasting
from mim_core.training.trainer import Trainer

WARMUP, COMPILING, LEAST = 3, 8, 5
"""Steps that are not counted, the same while a compiler works, and steps that should be measured at least."""


SHORT = 2.0
"""Seconds of a step that is never made shorter."""


WAITING = 0.2
"""Share of the time spent waiting for data that is worth a word."""


@dataclass(frozen=True)
class Timing:
    """What the clocks of this rank said.

    Attributes:
        warmup: Steps before those measured.
        steps: Seconds of each measured step.
        seconds: Of all of them.
        phases: Seconds in each phase.
        finite: Whether all losses were finite.
    """

    warmup: int
    steps: list[float]
    seconds: float
    phases: dict[str, float]
    finite: bool


@dataclass(frozen=True)
class Result:
    """What ``bench --json`` prints. Rates are over all ranks, memory is the most of any.

    Attributes:
        recipe: Its full name.
        settings: How it was run: micro-batch, ranks, precision, device and so on.
        warmup_steps: Steps before those measured.
        steps: Steps measured.
        seconds: Time that these took.
        samples_per_second: Over all ranks.
        run_steps: Steps of the whole recipe on these data.
        run_seconds: How long these would take at this speed; None for data that say nothing of it (noise).
        seconds_per_step: "median", "p10" and "p90".
        shares: Of the time, by phase; "data" is time in which the device waited for it.
        memory: Bytes: most that torch held on a GPU, or that the process held.
        flop_per_sample: Counted; None where it cannot be.
        flop_per_second: Over all ranks.
        peak_flop_per_second: What the devices could do together.
        peak_source: Where that number is from.
        mfu: Share of the peak that was reached.
        versions: Of what took part.
        notes: What a reader should know.
    """

    recipe: str
    settings: dict[str, Any]
    warmup_steps: int
    steps: int
    seconds: float
    samples_per_second: float
    run_steps: int
    run_seconds: float | None
    seconds_per_step: dict[str, float]
    shares: dict[str, float]
    memory: int
    flop_per_sample: int | None
    flop_per_second: float | None
    peak_flop_per_second: float | None
    peak_source: str
    mfu: float | None
    versions: dict[str, str]
    notes: list[str] = field(default_factory=list)


def measure(
    config: ResolvedRun, registry: Registry, world: World, seconds: float, say: Callable[[str], None]
) -> Result:
    """Runs real steps for so many seconds, with those that warm up; at least one is measured. Where a step takes more
    than a part of that time, smaller batches are measured. All ranks call it. Files that a run would leave go to a
    folder that is removed; observers and probes are not called.

    Args:
        config: What to train.
        registry: Where its parts were found.
        world: The ranks that share it.
        seconds: How long it may take, about.
        say: Told what happens, line by line.

    Raises:
        MimError: The run cannot be built, or memory is full.
    """
    every = config.train.readings(FOREVER)
    config = replace(config, train=replace(config.train, log_every=FOREVER))
    with tempfile.TemporaryDirectory(prefix="mim-bench-") as folder, _explained(world, config.train):
        whole = loop.start(config, Path(folder), registry, world)
        until = time.perf_counter() + seconds
        engine = Engine(whole.method, whole.train, world)
        optimizer = make_optimizer(whole.method, whole.train, whole.device)
        run, notes = _fitting(whole, engine, optimizer, seconds, say)
        average = None if run.train.ema is None else WeightAverage(run.method, run.train.ema)
        trainer = Trainer(run, engine, optimizer, average, Reporter("bench", 0, FOREVER, quiet=True))
        trainer.bad = PassedOver(run)
        timing = _time(trainer, until, every, say)
        memory = max(world.gather(_memory(run.device)))
        say("Counting operations, and what the device could do.")
        return _result(trainer, timing, memory, whole, notes)


def _fitting(
    run: running.Run, engine: Engine, optimizer: torch.optim.Optimizer, seconds: float, say: Callable[[str], None]
) -> tuple[running.Run, list[str]]:
    """The run without an end; with smaller batches where a step takes more than a quarter of the time. GPUs and
    compilers, for which another size is other work, are measured as they are."""
    endless = replace(run, steps=FOREVER)
    if run.device.type == "cuda" or run.train.compile:
        return endless, []
    timing = pace(run, engine, optimizer, seconds / 4)
    step, limit = timing.seconds * run.samples_per_step, max(SHORT, seconds / 4)
    if step <= limit:
        return endless, []
    each = run.source.samples_per_item * run.world.size
    fits = int(limit / 2 / timing.seconds / each)
    items = max(timing.items, 2 ** max(0, fits.bit_length() - 1) * run.world.size)
    if items >= run.micro * run.world.size:
        items = run.micro * run.world.size
    note = (
        f"A step of {counted(run.samples_per_step, 'sample')} takes about {lasting(step)}: measured on batches of "
        f"{items:,} instead."
    )
    say(note)
    return with_batch(run, items, run.folder), [note]


def _time(trainer: Trainer, until: float, every: int, say: Callable[[str], None]) -> Timing:
    """Steps until the time is over on any rank, one at least. The clock is read as often as a run reads its metrics."""
    run, clock = trainer.run, trainer.clock
    laps, total, phases, finite = _Laps(run.device), 0.0, dict.fromkeys(PHASES, 0.0), True

    def read() -> None:
        nonlocal total, finite
        finite = bool(torch.isfinite(torch.stack(trainer.pending)).all()) and finite
        trainer.pending = []
        passed, parts = clock.read()
        total += passed
        for name, value in parts.items():
            phases[name] += value

    with closing(_steps(trainer)) as steps:
        warmup = _warm_up(steps, run, until, say)
        trainer.pending = []
        clock.read()
        laps.start()
        for count, _ in enumerate(steps, 1):
            laps.add()
            if count % every == 0:
                read()
            if run.world.poll(int(time.perf_counter() >= until)):
                break
        if trainer.pending:
            read()
    return Timing(warmup, laps.read(), total, phases, finite)


def _steps(trainer: Trainer) -> Generator[None]:
    """The trainer's steps, as something that can be closed."""
    yield from trainer


def _warm_up(steps: Iterator[None], run: running.Run, until: float, say: Callable[[str], None]) -> int:
    """The steps that are not measured; fewer where they would leave too little time for `LEAST` others. Returns how
    many."""
    count = COMPILING if run.train.compile else WARMUP
    left = max(0.0, until - time.perf_counter())
    say(f"Warming up: {count} steps of {run.samples_per_step:,} samples; then measuring, {left:.3g} s in all.")
    for done in range(1, count + 1):
        began = time.perf_counter()
        next(steps)
        wait(run.device)
        now = time.perf_counter()
        enough = not run.train.compile or done > 1  # a compiler works during the first step
        late = enough and now + LEAST * (now - began) > until
        if run.world.on_first(partial(bool, late)):
            return done
    return count


class _Laps:
    """Seconds of each step, on the GPU by events, which nothing waits for."""

    def __init__(self, device: torch.device) -> None:
        self.gpu = device.type == "cuda"
        self.marks: list[Any] = []

    def start(self) -> None:
        """Here the first step begins."""
        self.marks = []
        self.add()

    def add(self) -> None:
        """A step ends."""
        if self.gpu:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append(event)
        else:
            self.marks.append(time.perf_counter())

    def read(self) -> list[float]:
        """All of them; waits for the GPU."""
        if self.gpu:
            self.marks[-1].synchronize()
        pairs = zip(self.marks, self.marks[1:], strict=False)
        return [a.elapsed_time(b) / 1000 if self.gpu else b - a for a, b in pairs]


# ---- what follows from the times -------------------------------------------------------------------------------------


def _result(trainer: Trainer, timing: Timing, memory: int, whole: running.Run, notes: list[str]) -> Result:
    """All ranks call it."""
    run, steps = trainer.run, len(timing.steps)
    rate = steps * run.samples_per_step / timing.seconds
    notes = notes if timing.finite else [*notes, "A loss was not finite; the speed is measured all the same."]
    if steps < LEAST:
        notes.append(f"Only {counted(steps, 'step')} measured: for more, a longer --seconds.")
    if run.skipped:
        were = "was" if len(run.skipped) == 1 else "were"
        notes.append(f"{counted(len(run.skipped), 'file')} could not be used and {were} replaced.")
    shares = {name: value / timing.seconds for name, value in timing.phases.items()}
    if shares["data"] > WAITING:
        notes.append(
            f"The device waits for data {shares['data']:.0%} of the time; other --train.workers than "
            f"{run.train.workers} may help."
        )
    cost = _cost(run, notes)
    peak, source = _peak(run, torch.bfloat16 if trainer.bf16 else torch.float32)
    power = None if cost is None else cost * rate
    return Result(
        recipe=run.config.recipe,
        settings=_settings(trainer),
        warmup_steps=timing.warmup,
        steps=steps,
        seconds=timing.seconds,
        samples_per_second=rate,
        run_steps=whole.steps,
        run_seconds=None if _is_noise(run) else whole.steps * whole.samples_per_step / rate,
        seconds_per_step=_spread(timing.steps),
        shares=shares,
        memory=memory,
        flop_per_sample=cost,
        flop_per_second=power,
        peak_flop_per_second=peak,
        peak_source=source,
        mfu=None if power is None or peak is None else power / peak,
        versions=_versions(run.registry),
        notes=notes,
    )


def _is_noise(run: running.Run) -> bool:
    return run.config.parts["data"].name == "core:noise"


def _spread(values: list[float]) -> dict[str, float]:
    if len(values) == 1:
        values = values * 2
    tenths = statistics.quantiles(values, n=10, method="inclusive")
    return {"median": statistics.median(values), "p10": tenths[0], "p90": tenths[-1]}


def _cost(run: running.Run, notes: list[str]) -> int | None:
    """Operations per sample, without those that activation checkpointing repeats."""
    try:
        return step_cost(run)[0]
    except Exception as error:  # a plugin's method may not run on the meta device
        notes.append(f"The operations of this method cannot be counted: {type(error).__name__}: {error}"[:200])
        return None


def _peak(run: running.Run, precision: torch.dtype) -> tuple[float | None, str]:
    """FLOP/s that the devices of all ranks could do, and where the number is from."""
    known = peak_flops(run.device)
    if known is not None:
        return known * run.world.size, "the data sheet, dense bf16"
    try:
        mine = measured_flops(run.device, precision)
    except RuntimeError:  # no memory left for the matrices
        mine = 0.0
    flops = run.world.gather(mine)
    if not all(flops):
        return None, "not known"
    return sum(flops), f"large matrix products in {'bf16' if precision == torch.bfloat16 else 'fp32'}, measured here"


def _memory(device: torch.device) -> int:
    """Bytes: most that torch held on the GPU; on a CPU, most that this process held."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _settings(trainer: Trainer) -> dict[str, Any]:
    run = trainer.run
    return {
        "data": run.config.parts["data"].name,
        "batch_size": run.train.batch_size,
        "samples_per_item": run.source.samples_per_item,
        "micro_batch": run.micro,
        "accumulation": run.accumulation,
        "ranks": run.world.size,
        "precision": "bf16" if trainer.bf16 else "fp32",
        "strategy": trainer.engine.strategy,
        "compile": run.train.compile,
        "activation_checkpointing": run.train.activation_checkpointing,
        "workers": run.train.workers,
        "threads": torch.get_num_threads(),
        "device": str(run.device),
        "device_name": device_name(run.device),
    }


def _versions(registry: Registry) -> dict[str, str]:
    plugins = {r.distribution: r.version for r in registry.plugins if not r.failure and not r.disabled}
    return {"python": platform.python_version(), "torch": str(torch.__version__), **plugins}


@contextmanager
def _explained(world: World, train: TrainConfig) -> Iterator[None]:
    """Full memory, and a process that reads and is gone, as errors that say what to do."""
    try:
        yield
    except RuntimeError as error:
        if readers_gone(error):
            end_readers()
            raise world.error(
                f"a process that reads data is gone, or gave nothing for {train.timeout:g} s (--train.timeout): "
                f"{str(error).splitlines()[0]} --train.workers 0 shows where it happens."
            ) from error
        signs = ("out of memory", "not enough memory", "can't allocate memory")
        if not isinstance(error, torch.OutOfMemoryError) and not any(sign in str(error).lower() for sign in signs):
            raise
        micro = min(train.micro_batch or train.batch_size, train.batch_size // world.size)
        smaller = next((n for n in range(micro // 2, 0, -1) if micro % n == 0), None)
        advice = "a smaller --train.micro-batch" + (f", such as {smaller}" if smaller else "")
        recompute = "" if train.activation_checkpointing else ", or --train.activation-checkpointing"
        raise world.error(
            f"The memory of {world.device} is full with {micro} samples at once. Try {advice}{recompute}.\n"
            f"{str(error).splitlines()[0]}"
        ) from error
