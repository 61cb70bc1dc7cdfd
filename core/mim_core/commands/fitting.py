"""A recipe on other data than its own: which options may follow from the data, and those that do before a run is
built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mim_core.commands.options import stated
from mim_core.data.source import DataSource
from mim_core.host.registry import Registry
from mim_core.recipes.config import ResolvedRun
from mim_core.recipes.options import plain
from mim_core.recipes.resolve import made
from mim_core.recipes.toml import from_toml
from mim_core.runs import checkpoint
from mim_core.runs.folder import read_recipe


def on_data(run: ResolvedRun, arguments: list[str], registry: Registry) -> ResolvedRun:
    """The run, with what the command line states among what was told. Where it is on its recipe's own data, or on none
    that lie in a folder, all options are as they should be."""
    if run.told is None:
        return run
    root = _root(run)
    if root is None or root == _own(run.recipe, registry, "--twin" in arguments):
        return replace(run, told=None)
    return replace(run, told=run.told | stated(arguments))


def suited(
    run: ResolvedRun, folder: Path, registry: Registry, twin: bool = False
) -> tuple[ResolvedRun, tuple[str, ...]]:
    """The run of a recipe that was made for other data, with the options that its data want, where nobody stated them;
    and what was changed, in words. A run that goes on keeps what it recorded.

    Args:
        run: The run.
        folder: Where it goes.
        registry: Where its recipe is found.
        twin: Whether it is a twin, which stays as it is.
    """
    part = run.parts.get("data")
    if twin or run.told is None or part is None:
        return run, ()
    source: type[DataSource] = part.cls
    changes, why = source.suits(part.options, run.parts)
    free = dict[str, dict[str, Any]]()
    for role, options in changes.items():
        own = vars(run.parts[role].options)
        new = {name: value for name, value in options.items() if f"{role}.{name}" not in run.told}
        if new := {name: value for name, value in new.items() if own[name] != value}:
            free[role] = new
    latest = checkpoint.to_resume(folder) if free else None
    if latest is not None:
        before = from_toml(read_recipe(latest / "recipe.toml"), registry).parts
        free = {role: {name: getattr(before[role].options, name) for name in options} for role, options in free.items()
                if role in before and before[role].name == run.parts[role].name}  # fmt: skip
    parts = dict(run.parts)
    for role, options in free.items():
        parts[role] = replace(parts[role], options=replace(parts[role].options, **options))
    notes = (f"{why}: {_listed(run, free)}",) if free and latest is None else ()
    return replace(run, parts=parts), notes


def _listed(run: ResolvedRun, changes: Mapping[str, Mapping[str, Any]]) -> str:
    """Such as "tokenizer.channels 3 in place of 1"."""
    return ", ".join(
        f"{role}.{name.replace('_', '-')} {_shown(value)} in place of {_shown(getattr(run.parts[role].options, name))}"
        for role, options in changes.items()
        for name, value in options.items()
    )


def _shown(value: Any) -> str:
    value = plain(value)
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _root(run: ResolvedRun) -> Path | None:
    data = run.parts.get("data")
    return None if data is None else getattr(data.options, "root", None)


def _own(recipe: str, registry: Registry, twin: bool = False) -> Path | None:
    """The folder of the data that a recipe, or its twin, names; None where it names none, or is not known."""
    for kind in ("recipes", "finetunings"):
        for entry in registry.of_kind(kind):
            if entry.full_name == recipe:
                data = made(entry, twin).parts.get("data")
                root = None if data is None else data.options.get("root")
                return None if root is None else Path(root)
    return None
