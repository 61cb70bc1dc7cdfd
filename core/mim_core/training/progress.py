"""What a run says while it works: a progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mim_core.terminal import console, tell
from mim_core.text import counted, duration, speed


def lasting(seconds: float) -> str:
    """How long a run takes, roughly: 42 s, 3 min, 9.6 h, 10 days."""
    for unit, name, until in ((1, "s", 90), (60, "min", 5400), (3600, "h", 48 * 3600)):
        if seconds < until:
            value = seconds / unit
            return f"{value:.2g} {name}" if value < 9.95 else f"{value:.0f} {name}"
    days = seconds / 86400
    return f"{days:.2g} days" if days < 9.95 else f"{days:,.0f} days"


LONG = 600
"""Seconds from which on a run's time is told after its second step."""


class Reporter:
    """Tells loss, samples per second and the time left.

    Args:
        name: Shown in front.
        first: Steps already done.
        steps: Steps in all.
        every: Least seconds between two plain lines.
        quiet: Says nothing.
    """

    def __init__(self, name: str, first: int, steps: int, every: float = 10.0, quiet: bool = False) -> None:
        self.name, self.first, self.steps, self.every, self.quiet = name, first, steps, every, quiet
        self.console = console(error=True, wide=False)
        self.bar: Progress | None = None
        self.task: Any = None
        self.started = self.spoken = time.monotonic()
        self.second: float | None = None

    def __enter__(self) -> Reporter:
        if self.console.is_terminal and not self.quiet:
            self.bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                TimeRemainingColumn(compact=True),
                TextColumn("left"),
                console=self.console,
            )
            self.bar.start()
            self.task = self.bar.add_task(self.name, total=self.steps, completed=self.first, note="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()

    def advance(self, step: int) -> None:
        """A step is done."""
        if self.bar is not None:
            self.bar.update(self.task, completed=step)

    def estimate(self, step: int) -> None:
        """Says how long a long run will take, once, by the step after the first, which warms up."""
        if self.quiet or step - self.first > 2:
            return
        now = time.monotonic()
        if self.second is None or step - self.first < 2:
            self.second = now
            return
        each = now - self.second
        if each * (self.steps - step) >= LONG:
            self.say(
                f"{self.name}: a step takes {lasting(each)}, so {counted(self.steps - step, 'step')} take about "
                f"{lasting(each * (self.steps - step))}."
            )

    def metrics(self, step: int, epoch: float, loss: float, rate: float) -> None:
        """New metrics are known; ``rate`` is in samples per second."""
        if self.quiet:
            return
        if self.bar is not None:
            self.bar.update(
                self.task, completed=step, note=f"epoch {epoch:.1f}  loss {loss:.4f}  {speed(rate)} samples/s"
            )
            return
        now = time.monotonic()
        if now - self.spoken < self.every and step < self.steps:
            return
        self.spoken = now
        left = (now - self.started) / max(1, step - self.first) * (self.steps - step)
        self.say(
            f"{self.name}: step {step}/{self.steps}  epoch {epoch:.2f}  loss {loss:.4f}  {speed(rate)} samples/s  "
            f"{duration(left)} left"
        )

    def say(self, text: str) -> None:
        """One line, above the bar if there is one."""
        if self.quiet:
            return
        if self.bar is not None:
            self.bar.console.print(text, highlight=False)
        else:
            tell(text, error=True)
