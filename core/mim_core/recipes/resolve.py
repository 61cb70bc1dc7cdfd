"""Recipes: a run as named parts with their options. A recipe is a function that returns a `RunConfig`; a user's file
is TOML with overrides.

recipe = "image:mae-vit-base"      # start from this recipe
[masker]
use = "block"                      # swap the part; its own defaults follow
ratio = 0.6
[depth.target]
use = "none"                       # take a head out; depth.tokenizer: the whole modality
[train]
epochs = 400
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import is_dataclass, replace
from typing import Any

from mim_core.errors import MimError, did_you_mean, one_line
from mim_core.host.kinds import ROLES, role_kind
from mim_core.host.registry import Entry, Registry
from mim_core.recipes.config import DEFAULTS, EvaluateConfig, Part, ResolvedPart, ResolvedRun, RunConfig, TrainConfig
from mim_core.recipes.options import NONE, fill


def resolve_part(role: str, part: Part, registry: Registry) -> ResolvedPart:
    """Finds the part and fills its options."""
    entry = registry.get(role_kind(role), part.name)
    cls = entry.resolve()
    options = fill(cls.Config, part.options, f"{role} ({entry.full_name})")
    return ResolvedPart(entry.full_name, cls, options, entry.origin)


def resolve(config: RunConfig, registry: Registry) -> ResolvedRun:
    """Finds every part of a run. Parts not named take core's: the method is a masked autoencoder."""
    parts = {**DEFAULTS, **config.parts}
    resolved = {role: resolve_part(role, part, registry) for role, part in parts.items()}
    where = config.recipe or "run"  # filling makes whole numbers floats where floats are wanted, as TOML will have it
    train = fill(TrainConfig, vars(config.train), f"{where}: train")
    evaluate = fill(EvaluateConfig, vars(config.evaluate), f"{where}: evaluate")
    return ResolvedRun(resolved, train, evaluate, config.recipe)


def load_recipe(name: str, registry: Registry, twin: bool = False, kind: str = "recipes") -> ResolvedRun:
    """The recipe of that name; with ``twin``, its small version for tests. ``kind``: "recipes", or "finetunings"."""
    return resolve(made(registry.get(kind, name), twin), registry)


def made(entry: Entry, twin: bool = False) -> RunConfig:
    """What a recipe's function returns, with the recipe's name.

    Raises:
        MimError: The function fails, or returns no `RunConfig`.
    """
    make = entry.resolve_twin() if twin else entry.resolve()
    try:
        config = make()
    except MimError:
        raise
    except Exception as error:
        module, _, function = str(entry.twin if twin else entry.load).partition(":")
        raise MimError(
            f"The {entry.title} cannot be made: {one_line(error)}\nIts traceback: python -c "
            f'"import {module}; {module}.{function}()"'
        ) from error
    if not isinstance(config, RunConfig):
        raise MimError(f"The {entry.title} returned {type(config).__name__}, not a RunConfig.")
    return replace(config, recipe=entry.full_name)


def swap(run: ResolvedRun, role: str, name: str, registry: Registry) -> ResolvedRun:
    """The run with another part in a role. A part that is already there keeps its options; a new one starts from its
    defaults; "none" takes the role out, see `mim_core.recipes.resolve.drop`.

    Raises:
        MimError: The recipe has no such role.
    """
    if name == NONE:
        return drop(run, role)
    entry = registry.get(role_kind(role), name)
    present = run.parts.get(role)
    if present is None and role_kind(role) != "methods" and "." not in role and role not in ROLES:
        raise MimError(f"This recipe has no {role!r}; it has {', '.join(run.parts)}.")
    if present is not None and present.name == entry.full_name:
        return run
    dropped = tuple(name for name in run.dropped if name != role)
    return replace(run, parts={**run.parts, role: resolve_part(role, Part(name), registry)}, dropped=dropped)


def override(run: ResolvedRun, values: Mapping[str, Any], where: str, registry: Registry) -> ResolvedRun:
    """The run with the values of a TOML file, or of any nested mapping of the same form.

    Raises:
        MimError: A misspelt table, option or name, with the nearest.
    """
    for table, content in values.items():
        if not isinstance(content, Mapping):
            raise MimError(f"{where}: {table!r} must be a table, such as [train].")
        if table in ("train", "evaluate"):
            section = fill(type(getattr(run, table)), content, f"{where}: {table}", getattr(run, table))
            run = replace(run, **{table: section})
            continue
        for role, options in _roles(table, content, run, where):
            if "use" in options:
                run = swap(run, role, str(options["use"]), registry)
            if options.get("use") == NONE and len(options) == 1:
                continue
            part = run.parts.get(role)
            if part is None:
                raise MimError(f'{where}: this recipe has no [{role}]; say which part with use = "NAME".')
            rest = {key: value for key, value in options.items() if key != "use"}
            filled = fill(type(part.options), rest, f"{where}: {role} ({part.name})", part.options)
            run = replace(run, parts={**run.parts, role: replace(part, options=filled)})
    return run


def _roles(table: str, content: Mapping[str, Any], run: ResolvedRun, where: str) -> list[tuple[str, Mapping[str, Any]]]:
    """[masker] is a role; [depth.target] arrives as a table of tables."""
    if table in ROLES:
        return [(table, content)]
    scopes = {role.partition(".")[0] for role in run.parts if "." in role}
    nested = content and all(isinstance(value, Mapping) and key in ROLES for key, value in content.items())
    if nested:
        return [(f"{table}.{role}", options) for role, options in content.items()]
    known = {*ROLES, "train", "evaluate", *scopes}
    guess = did_you_mean(table, known, shown="[{}]".format)
    raise MimError(f"{where}: unknown table [{table}].{guess}\nTables: {', '.join(sorted(known))}.")


DROPPED = ("tokenizer", "target", "decoder", "teacher", "scorer")
"""Roles that may be taken out, each with a scope in front; a method says where it cannot do without a teacher."""


def drop(run: ResolvedRun, role: str) -> ResolvedRun:
    """The run without a role: ``depth.target`` is one head less; ``depth.tokenizer`` takes the modality out, and the
    heads that ask for it; ``depth.decoder`` gives the head the decoder that the others have.

    Raises:
        MimError: No such role, one that a run cannot do without, or the last tokenizer or target.
    """
    scope, _, last = role.rpartition(".")
    if role not in run.parts:
        guess = did_you_mean(role, run.parts)
        raise MimError(f"There is no role {role!r} to take out.{guess}\nThis run has: {', '.join(run.parts)}.")
    if last not in DROPPED or (last == "decoder" and not scope):
        raise MimError(
            f"A run cannot do without {role!r}. Teachers and scorers can go, and tokenizers, targets and decoders of a "
            "scope."
        )
    gone = {role}
    segments: Mapping[str, str] = getattr(run.parts["method"].options, "segments", {}) if "method" in run.parts else {}
    heads = [name.rpartition(".")[0] for name in run.parts if name.rpartition(".")[2] == "target"]
    lost = {name for name in heads if last == "tokenizer" and segments.get(name, name) == scope}
    lost |= {scope} if last == "target" else set()
    own = ("target", "decoder", "teacher")
    gone |= {f"{name}.{part}".lstrip(".") for name in lost for part in own if name or part == "target"}
    parts = {name: part for name, part in run.parts.items() if name not in gone}
    for needed in ("tokenizer", "target"):
        had = any(name.rpartition(".")[2] == needed for name in run.parts)  # a method that learns from labels has none
        if had and not any(name.rpartition(".")[2] == needed for name in parts):
            raise MimError(f"Without {role} this run has no {needed} left; it needs one.")
    if "method" in parts:
        parts["method"] = replace(parts["method"], options=_without(parts["method"].options, lost))
    dropped = tuple(dict.fromkeys([*run.dropped, *(name for name in run.parts if name in gone)]))
    return replace(run, parts=parts, dropped=dropped)


def _without(options: Any, heads: set[str]) -> Any:
    """The method's options without what they say of these heads."""
    if not is_dataclass(options):
        return options
    settings = {name: getattr(options, name, None) for name in ("segments", "weights")}
    kept = {
        name: {head: value for head, value in values.items() if head not in heads}
        for name, values in settings.items()
        if isinstance(values, Mapping)
    }
    return replace(options, **kept)  # type: ignore[type-var]
