"""What a run has otherwise than its recipe."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

from mim_core.errors import MimError
from mim_core.host.registry import Registry
from mim_core.recipes.config import ResolvedRun, TrainConfig
from mim_core.recipes.fine_tuning import TRAINING
from mim_core.recipes.options import plain
from mim_core.recipes.resolve import load_recipe

MACHINE = (
    "device",
    "workers",
    "micro_batch",
    "track",
    "log_every",
    "checkpoint_every",
    "keep_checkpoints",
    "max_hours",
)
"""Options of training that have no effect on the weights."""


def changes_of(run: ResolvedRun, registry: Registry) -> dict[str, tuple[Any, Any]]:
    """Options that are not the recipe's: as the command line calls them (``train.epochs``) -> the recipe's and the
    run's, as TOML has them. Of parts that the recipe does not have so, all that differs from their defaults. Empty
    where the recipe is not known here.

    Args:
        run: The run.
        registry: Where its recipe is looked up.
    """
    try:
        base = load_recipe(run.recipe, registry)
    except MimError:
        return {}
    changes: dict[str, tuple[Any, Any]] = {}
    for role, part in run.parts.items():
        theirs = base.parts.get(role)
        if theirs is not None and theirs.name == part.name:
            changes |= _different(role, theirs.options, part.options)
        else:
            changes[role] = (theirs.name if theirs else "none", part.name)
            changes |= _different(role, type(part.options)(), part.options)
    method = run.parts.get("method")
    tuned = method is not None and base.parts["method"].name != method.name
    changes |= _different("train", TrainConfig(**TRAINING) if tuned else base.train, run.train, MACHINE)
    return changes | {name: (name_of, "none") for name, name_of in _gone(run, base).items()}


def _different(role: str, one: Any, other: Any, free: tuple[str, ...] = ()) -> dict[str, tuple[Any, Any]]:
    if not is_dataclass(one) or type(one) is not type(other):
        return {}
    pairs = {f.name: (getattr(one, f.name), getattr(other, f.name)) for f in fields(one) if f.name not in free}
    return {f"{role}.{name}": (plain(a), plain(b)) for name, (a, b) in pairs.items() if a != b}


def _gone(run: ResolvedRun, base: ResolvedRun) -> dict[str, str]:
    """Parts of the recipe that were taken out by name."""
    return {role: base.parts[role].name for role in run.dropped if role in base.parts and role not in run.parts}
