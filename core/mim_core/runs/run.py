"""A run under way, as the loop and observers see it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from mim_core.data.source import DataSource
from mim_core.host.registry import Registry
from mim_core.methods.method import Method
from mim_core.ranks.world import World
from mim_core.recipes.config import ResolvedRun, TrainConfig
from mim_core.runs import observers


@dataclass
class Run:
    """A run under way; observers get this.

    Attributes:
        config: The resolved recipe.
        folder: Where its files go.
        method: What is trained.
        source: Its data.
        registry: Where its parts were found.
        world: The ranks that share it.
        micro: Samples at once on a device.
        accumulation: Micro-batches of each rank in a step.
        step: Optimizer steps done.
        steps: Optimizer steps in all.
        cost: Floating-point operations per sample; None until they are counted.
        trackers: The trackers that are told of it, by name; see trackers.py.
        failures: How often observers failed, and with what at last, by plugin and hook.
        command: What was asked for, as it can be given again; empty where no command was.
        origins: The weights that it started from, the oldest first, see `mim_core.runs.origins`.
        sizes: Which options follow from the number of items and what the data hold, in words; empty where none do.
    """

    config: ResolvedRun
    folder: Path
    method: Method
    source: DataSource
    registry: Registry
    world: World
    micro: int
    accumulation: int
    step: int = 0
    steps: int = 0
    skipped: dict[str, str] = field(default_factory=dict)
    cost: int | None = None
    trackers: dict[str, Any] = field(default_factory=dict)
    failures: dict[tuple[str, str], tuple[int, str]] = field(default_factory=dict)
    command: str = ""
    origins: list[dict[str, str]] = field(default_factory=list)
    sizes: tuple[str, ...] = ()

    @property
    def device(self) -> torch.device:
        """Where this rank computes."""
        return self.world.device

    @property
    def train(self) -> TrainConfig:
        """The training options."""
        return self.config.train

    @property
    def steps_per_epoch(self) -> float:
        """Steps in which as many samples are seen as there are."""
        return len(self.source) / self.train.batch_size

    @property
    def samples_per_step(self) -> int:
        """What a step learns from: the items of its batch times the samples that the data make of each."""
        return self.train.batch_size * self.source.samples_per_item

    def observe(self, hook: str, **facts: Any) -> None:
        """Calls an observer hook, on rank 0. Its error is a warning: a tracker must not end a run."""
        if self.world.first:
            observers.tell(self.registry, hook, self.failures, run=self, **facts)


PHASES = ("data", "prepare", "forward_backward", "optimizer")
