"""Twins: recipes made small for tests, with narrow, shallow parts on bundled data: the same code at a thousandth of the
work, 20 steps on a CPU."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from mim_core.recipes.config import Part, RunConfig

Changes = Mapping[str, Mapping[str, object]]
"""Options by role."""


STEPS = 20


class Recipe:
    """A recipe's function with its twin: ``recipe()`` and ``recipe.twin()``."""

    def __init__(self, function: Callable[[], RunConfig], small: Callable[[RunConfig], RunConfig]) -> None:
        functools.update_wrapper(self, function)
        self.function, self.small = function, small

    def __call__(self) -> RunConfig:
        """The recipe."""
        return self.function()

    def twin(self) -> RunConfig:
        """The recipe made small."""
        return self.small(self.function())


class Twins:
    """Makes twins of a plugin's recipes, as a decorator: ``@TWINS()``, or ``@TWINS({"encoder": {"width": 48}})`` where
    the twin of one recipe differs.

    Args:
        items: Items of the bundled data; a twin trains for 20 steps.
        batch: Samples per step.
        changes: Options that every twin has, by role.
    """

    def __init__(self, items: int, batch: int, changes: Changes) -> None:
        self.items, self.batch, self.changes = items, batch, changes

    def __call__(
        self, changes: Changes | Callable[[], Changes] | None = None, items: int | None = None, **train: Any
    ) -> Callable[[Callable[[], RunConfig]], Recipe]:
        """Decorates a recipe's function.

        Args:
            changes: Options in which its twin differs from the others, by role; a role's replace those of all twins.
                A function is called when the twin is made.
            items: Items of its data, where these are others.
            train: Training options of its twin.
        """

        def twin(config: RunConfig) -> RunConfig:
            own = changes() if callable(changes) else changes or {}
            return small(config, items or self.items, self.batch, {**self.changes, **own}, train)

        return lambda function: Recipe(function, twin)


def small(config: RunConfig, items: int, batch: int, changes: Changes, train: Mapping[str, Any]) -> RunConfig:
    """A recipe with these options, for 20 steps on a CPU."""
    options: dict[str, Any] = {
        "epochs": STEPS * batch / items,
        "batch_size": batch,
        "micro_batch": None,
        "warmup_epochs": 4 * batch / items,
        "lr_batch": batch,
        "base_lr": 1e-3,
        "warmup_lr": 0.0,
        "min_lr": 0.0,
        "milestones": tuple(16 * batch / items for _ in config.train.milestones),
        "log_every": 1,
        "workers": 0,
        "precision": "fp32",
        "device": "cpu",
        **train,
    }
    return replace(config, parts=with_options(config.parts, changes), train=replace(config.train, **options))


def with_options(parts: Mapping[str, Part], changes: Changes) -> dict[str, Part]:
    """The parts, with other options in some roles."""
    return {role: Part(part.name, {**part.options, **changes.get(role, {})}) for role, part in parts.items()}
