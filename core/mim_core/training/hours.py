"""How long a run may be: epochs that fit into so many hours here, and hours on a device that is not here."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import torch

from mim_core.errors import MimError
from mim_core.methods.build import build_method
from mim_core.recipes.config import TrainConfig
from mim_core.runs.run import Run
from mim_core.text import amount, option, rounded, speed
from mim_core.training.cost import PEAKS
from mim_core.training.engine import Engine
from mim_core.training.optimizer import make_optimizer
from mim_core.training.pace import PLANNING, pace
from mim_core.training.progress import lasting

MANY = 2
"""Times the recipe's epochs from which on it is said how few these are."""
SPARE = 0.95
"""Share of the hours that the steps may take; checkpoints and readings take the rest."""
EFFICIENCY = 0.35
"""Share of a device's peak that a plan for another one counts on: an assumption, which nothing here has measured."""
LEAST = 0.02
"""Seconds that a step takes on such a device at least, however small it is: an assumption too."""
MEMORY = {
    "B200": 180e9,
    "H200": 141e9,
    "H100 NVL": 94e9,
    "GH200": 96e9,
    "H100": 80e9,
    "H800": 80e9,
    "L40S": 48e9,
    "L40": 48e9,
    "L4": 24e9,
    "A100": 80e9,
    "A800": 80e9,
    "A40": 48e9,
    "A10": 24e9,
    "A30": 24e9,
    "RTX 6000 Ada": 48e9,
    "RTX A6000": 48e9,
    "RTX 4090": 24e9,
    "RTX 3090": 24e9,
}
"""Bytes of memory of a device by a part of its name; the first that fits counts. Some were also sold with less."""


def fitted(run: Run) -> tuple[TrainConfig, str]:
    """The training options with as many epochs as fit into ``train.hours`` here, and what was chosen, in words. The
    warm-up keeps its share of the run. All ranks call it; a method of its own is timed.

    Raises:
        MimError: Not even one step fits.
    """
    train = run.train
    assert train.hours is not None
    trial = replace(run, method=build_method(run.config, run.registry).to(run.device))
    calm = replace(trial, config=replace(run.config, train=replace(train, compile=False)))
    with torch.random.fork_rng(devices=[]):
        engine = Engine(calm.method, calm.train, run.world)
        timing = pace(calm, engine, make_optimizer(calm.method, calm.train, run.device), PLANNING)
    steps = int(SPARE * train.hours * 3600 / (timing.seconds * run.samples_per_step))
    if steps < 1:
        least = timing.seconds * run.samples_per_step / 3600 / SPARE
        raise MimError(
            f"--train.hours {train.hours:g} is less than one step takes here; --train.hours {option(least, 2)} has "
            "one. Smaller steps: --train.batch-size."
        )
    epochs = steps * train.batch_size / len(run.source)
    warm = train.warmup_epochs * min(1.0, epochs / train.epochs)
    chosen = replace(train, epochs=epochs, steps=steps, warmup_epochs=float(f"{warm:.4g}"))
    summary = (
        f"--train.hours {train.hours:g}: {steps:,} steps, {rounded(epochs):,.6g} epochs with {option(warm)} of "
        f"warm-up, at {speed(1 / timing.seconds)} samples/s, measured on a step of {timing.samples}"
    )
    if epochs > MANY * train.epochs:
        whole = timing.seconds * train.epochs * len(run.source) * run.source.samples_per_item
        summary += (
            f". Without --train.hours there are {rounded(train.epochs):,.6g} epochs, which take about {lasting(whole)}"
        )
    return chosen, summary


def planned(allowed: float) -> str:
    """How long a run takes that was given so many hours, for its plan."""
    return (
        f"about {lasting(SPARE * allowed * 3600)}, what --train.hours {allowed:g} leaves beside files and checkpoints"
    )


@dataclass(frozen=True)
class Elsewhere:
    """Devices that are not here.

    Attributes:
        name: As in `PEAKS`.
        count: How many.
    """

    name: str
    count: int

    @classmethod
    def of(cls, text: str) -> Elsewhere:
        """ "h100:8": eight H100; without a number one.

        Raises:
            MimError: The device is not known, or the number makes no sense.
        """
        name, _, count = text.partition(":")
        known = {re.sub(r"\W", "", part).lower(): part for part in PEAKS}
        plain = re.sub(r"\W", "", name).lower()
        if plain not in known or not (count or "1").isdecimal() or int(count or "1") < 1:
            raise MimError(f"--plan-for takes DEVICE:COUNT, such as h100:8; got {text!r}. Devices: {', '.join(known)}.")
        return cls(known[plain], int(count or "1"))

    def time(self, operations: float, steps: int, samples: int) -> str:
        """Hours of a run of so many steps, each of so many floating-point operations on so many samples."""
        busy = min(self.count, samples)
        seconds = operations / (PEAKS[self.name] * busy * EFFICIENCY)
        peak = f"{EFFICIENCY:.0%} of the peak of {rounded(PEAKS[self.name] / 1e12):g} TFLOP/s in bf16"
        where = f"on {self.count} x {self.name}"
        text = f"about {lasting(steps * max(seconds, LEAST))} {where}: "
        if seconds >= LEAST:
            text += f"its operations, assuming {peak}. Reading data is not counted"
        else:
            text += f"assuming {LEAST * 1000:g} ms a step; its operations alone would take less, at {peak}"
        return text if busy == self.count else f"{text}. A step has samples for {busy} of the devices"

    def memory(self, weights: int, activations: float, samples: int) -> str:
        """Whether the batch fits at once, and the largest power of two that would. ``weights`` are bytes, with their
        gradients and moments; ``activations`` bytes of a sample."""
        room = MEMORY[next(part for part in MEMORY if part in self.name)] * 0.9 - weights
        each = -(-samples // self.count)
        needed = activations / 2 * each  # bf16 halves most of what is kept
        most = 2 ** int(max(1.0, room / max(1.0, activations / 2))).bit_length() // 2
        summary = f"{amount(weights + needed, 'B')} for {each:,} samples on each"
        if room <= activations / 2:
            return f"{summary}; not even one sample fits into {self.name}: --train.strategy fsdp2, or a smaller model"
        return summary if needed <= room else f"{summary}, which is too much: --train.micro-batch {most:,} fits"
