"""Recipes as TOML files."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import tomli_w

from mim_core.data.time_limits import in_time
from mim_core.errors import BadSample, MimError
from mim_core.host.described import NotPlain, as_float, describe
from mim_core.host.kinds import role_kind
from mim_core.host.registry import Entry, Registry
from mim_core.recipes.config import DEFAULTS, EvaluateConfig, ResolvedRun, TrainConfig
from mim_core.recipes.options import check_text, fill, plain
from mim_core.recipes.resolve import drop, load_recipe, made, override
from mim_core.recipes.versions import warn_of_changes


def parsed(text: str, path: Path) -> dict[str, Any]:
    """The tables of a TOML text, which may come from anywhere.

    Args:
        text: The text.
        path: The file that it is from.

    Raises:
        ValueError: It is no TOML, is nested too deeply, or takes too long: a name of thousands of parts does.
    """
    try:
        with in_time(str(path)):
            return tomllib.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except BadSample as error:
        raise ValueError(error.reason) from None


def read_file(path: Path, registry: Registry) -> ResolvedRun:
    """A run from a TOML file: a recipe and overrides, or the resolved recipe of an earlier run.

    Raises:
        MimError: The file cannot be read, is not valid TOML, or names no recipe.
    """
    try:
        values = parsed(path.read_text(), path)
    except (OSError, UnicodeDecodeError) as error:
        raise MimError(f"Cannot read {path}: {error}") from None
    except ValueError as error:
        raise MimError(f"{path} is not valid TOML: {error}") from None
    name = values.pop("recipe", None)
    plugins, dropped = values.pop("plugins", {}), values.pop("dropped", [])
    if not isinstance(name, str):
        raise MimError(
            f'{path} names no recipe. Its first line should read: recipe = "image:mae-vit-base". See: mim-core list '
            f"recipes"
        )
    with _origins(plugins, registry):
        run = load_recipe(name, registry)
        for role in (role for role in dropped if role in run.parts):  # a tokenizer takes its heads with it
            run = drop(run, role)
        return replace(override(run, values, str(path), registry), told=_stated(values))


def _stated(values: Mapping[str, Any], scope: str = "") -> frozenset[str]:
    """The options that tables have, such as train.batch_size and rgb.tokenizer.size."""
    options = set[str]()
    for name, value in values.items():
        known = f"{scope}{name.replace('-', '_')}"
        options |= _stated(value, f"{known}.") if isinstance(value, Mapping) else {known}
    return frozenset(options)


@contextmanager
def _origins(plugins: Any, registry: Registry) -> Iterator[None]:
    """Says which packages a run was written with that are not of that version here, and adds to an error those that are
    not installed here; ``plugins`` is what `to_toml` wrote: distribution -> version."""
    plugins = plugins if isinstance(plugins, Mapping) else {}
    try:
        yield
    except MimError as error:
        present = {record.distribution for record in registry.plugins}
        lost = {name: version for name, version in plugins.items() if name not in present}
        if not lost:
            raise
        named = ", ".join(f"{name} {version}" for name, version in lost.items())
        raise MimError(
            f"{error}\nThis run was written with {named}, not installed here. Run: pip install {' '.join(lost)}"
        ) from error
    warn_of_changes(plugins, registry.versions())


def to_toml(run: ResolvedRun, registry: Registry) -> str:
    """The resolved recipe: every option of every part, with full names and the versions of the plugins they come
    from."""
    parts = {role: (part.name, plain(part.options)) for role, part in run.parts.items()}
    return _toml(run.recipe, run.dropped, parts, (run.train, run.evaluate), registry)


def toml_of_parts(entry: Entry, registry: Registry, twin: bool = False) -> str:
    """The same of a recipe, with the options that the sources of its parts say, so that no part is imported.

    Raises:
        NotPlain: A source does not say its options plainly.
    """
    config = made(entry, twin)
    parts = {}
    for role, part in {**DEFAULTS, **config.parts}.items():
        part_entry = registry.get(role_kind(role), part.name)
        known = {option.name: option for option in describe(part_entry.load).options or ()}
        given = {name.replace("-", "_"): value for name, value in part.options.items()}
        if not set(given) <= set(known):
            raise NotPlain(f"{part_entry.full_name} has options that its source does not show")
        options = {name: as_float(given.get(name, option.default), option.type) for name, option in known.items()}
        parts[role] = (part_entry.full_name, plain(options))
    train = fill(TrainConfig, vars(config.train), "train")
    evaluate = fill(EvaluateConfig, vars(config.evaluate), "evaluate")
    return _toml(config.recipe, (), parts, (train, evaluate), registry)


def _toml(
    recipe: str, dropped: Sequence[str], parts: Mapping[str, tuple[str, Any]], sections: Any, registry: Registry
) -> str:
    tables: dict[str, Any] = {"recipe": recipe, **({"dropped": list(dropped)} if dropped else {})}
    used = {name.partition(":")[0] for name, _ in parts.values()} | {recipe.partition(":")[0]}
    tables["plugins"] = {r.distribution: r.version for r in registry.plugins if r.name in used and r.used}
    for role, (name, options) in parts.items():
        scope, _, last = role.rpartition(".")
        target = tables.setdefault(scope, {}) if scope else tables
        target[last] = {"use": name, **{key: value for key, value in options.items() if value != {}}}
    tables["train"], tables["evaluate"] = map(plain, sections)
    for role, (_, options) in {**parts, "train": ("", plain(sections[0]))}.items():
        check_text(role, options)
    return tomli_w.dumps(tables)


def from_toml(text: str, registry: Registry) -> ResolvedRun:
    """The run that `to_toml` wrote. It does not need the recipe itself: every part is in it."""
    values = tomllib.loads(text)
    recipe, plugins = values.pop("recipe", ""), values.pop("plugins", {})
    run = ResolvedRun({}, TrainConfig(), EvaluateConfig(), recipe, tuple(values.pop("dropped", ())))
    with _origins(plugins, registry):
        return override(run, values, "recipe.toml", registry)


def completed(text: str, registry: Registry) -> str:
    """What `to_toml` wrote in an earlier version, with the options that have come since at their defaults, which leave
    a run what it was."""
    return to_toml(from_toml(text, registry), registry)
