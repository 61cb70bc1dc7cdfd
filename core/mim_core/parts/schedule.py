"""Numbers that change during a run: where in it a step stands, and a value that follows from that."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Shape = Literal["cosine", "linear"]


class Progress(float):
    """The share of a run that is done, in [0, 1]: a float that also knows the step and the epoch.

    Attributes:
        step: Optimizer steps that are done.
        epoch: The same in epochs, with its fraction.
        epochs: Epochs of the whole run.
        new_epoch: Whether the last of these steps ended an epoch.
    """

    step: int
    epoch: float
    epochs: float
    new_epoch: bool

    def __new__(
        cls, share: float, step: int = 0, epoch: float = 0.0, epochs: float = 1.0, new_epoch: bool = False
    ) -> Progress:
        """The share as a float that knows more."""
        made = super().__new__(cls, share)
        made.step, made.epoch, made.epochs, made.new_epoch = step, epoch, epochs, new_epoch
        return made

    def __getnewargs__(self) -> tuple[float]:
        return (float(self),)

    @classmethod
    def at(cls, step: int, steps: int, steps_per_epoch: float) -> Progress:
        """After so many steps of a run."""
        epoch, whole = step / steps_per_epoch, math.floor(step / steps_per_epoch + 1e-9)
        ended = step > 0 and whole > math.floor((step - 1) / steps_per_epoch + 1e-9)
        return cls(step / steps, step, epoch, steps / steps_per_epoch, ended)

    @classmethod
    def of(cls, progress: float) -> Progress:
        """The same as a `Progress`: of a plain share, a run of one epoch is thought of."""
        return progress if isinstance(progress, Progress) else cls(progress, epoch=float(progress))


@dataclass(frozen=True)
class Schedule:
    """A number that goes from one value to another: a momentum, a temperature, a share.

    Attributes:
        start: At the first step.
        end: At the end.
        shape: Along half a cosine (BYOL, arXiv 2006.07733, section 3.1), or a straight line.
        epochs: Where it arrives, in epochs; None: at the end of the run. It stays there afterwards.
    """

    start: float
    end: float
    shape: Shape = "cosine"
    epochs: float | None = None

    def at(self, progress: float) -> float:
        """The value at a moment of the run."""
        now = Progress.of(progress)
        done = float(now) if self.epochs is None else now.epoch / self.epochs if self.epochs > 0 else 1.0
        done = min(1.0, max(0.0, done))
        if self.shape == "cosine":
            done = (1 - math.cos(math.pi * done)) / 2
        return self.start + (self.end - self.start) * done
