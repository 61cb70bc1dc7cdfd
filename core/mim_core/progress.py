"""What a run says while it works: a progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mim_core.terminal import console, tell
from mim_core.words import speed


def duration(seconds: float) -> str:
    """Seconds as people say them: 42 s, 3 min 20 s, 5 h 12 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


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
