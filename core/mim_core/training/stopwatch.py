"""Where the time of a step goes, and how much of the device's power a run uses."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from mim_core.runs.run import PHASES


def idle(phases: dict[str, float], seconds: float) -> float:
    """Of the time in which the host waited for data, what the other phases, which a GPU works on meanwhile, leave."""
    others = sum(value for phase, value in phases.items() if phase != "data")
    return min(phases["data"], max(0.0, seconds - others))


@dataclass
class Stopwatch:
    """Splits the time into phases. On a GPU by events on its stream, so that nothing waits until they are read; the
    phase "data" is the time in which the host waited for a batch.

    Attributes:
        device: Whose time is measured.
    """

    device: torch.device
    _seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))
    _events: list[tuple[str, torch.cuda.Event]] = field(default_factory=list)
    _phase: str | None = None
    _since: float = field(default_factory=time.perf_counter)
    _began: float = field(default_factory=time.perf_counter)

    def start(self, phase: str | None) -> None:
        """The phase before ends and this one begins; None: no phase."""
        now = time.perf_counter()
        if self._phase is not None and (self.device.type != "cuda" or self._phase == "data"):
            self._seconds[self._phase] += now - self._since
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._events.append((phase or "", event))
        self._phase, self._since = phase, now

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time that is none of the steps', such as that of writing a checkpoint."""
        self.start(None)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # what is queued belongs to the steps
        before = time.perf_counter()
        yield
        self._began += time.perf_counter() - before

    def read(self) -> tuple[float, dict[str, float]]:
        """(seconds since the last reading, seconds in each phase). Waits for the GPU; starts anew."""
        if self._events:
            self._events[-1][1].synchronize()
            for (phase, begin), (_, end) in zip(self._events, self._events[1:], strict=False):
                if phase and phase != "data":
                    self._seconds[phase] += begin.elapsed_time(end) / 1000
        now = time.perf_counter()
        seconds = now - self._began
        if self.device.type == "cuda":  # the host waits while the device computes; only what is left is waiting
            self._seconds["data"] = idle(self._seconds, seconds)
        reading = (seconds, self._seconds)
        self._seconds, self._began = dict.fromkeys(PHASES, 0.0), now
        self._events = self._events[-1:]
        return reading
