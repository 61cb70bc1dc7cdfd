"""The plugin host: finds entry points, loads each plugin in isolation, and collects what they register.

pluggy does the calling; this module handles what pluggy leaves open: a duplicate entry-point name, a plugin that
raises, a registration that fails half-way, a misspelt hook, a forgotten marker, and names that clash. It also names
those that take long or change global state while they are loaded.

Environment: ``MIM_CORE_STRICT=1`` raises at the first fault; ``MIM_CORE_PLUGINS=a,b`` loads only these;
``MIM_CORE_DISABLE=c`` leaves some out.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
import time
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from types import ModuleType

import pluggy
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from mim_core import hookspecs, process_state, trackers
from mim_core.errors import MimError, nearest
from mim_core.registry import KINDS, Entry, PluginRecord, RecipeRegister, Register, Registry
from mim_core.version import PLUGIN_API, __version__

GROUP = "mim_core"
SLOW = 2.0
"""Seconds of loading above which a plugin is named: it makes every command wait."""


class PluginError(Exception):
    """A plugin that cannot be used, and why."""


@dataclass(frozen=True)
class Candidate:
    """An entry point that announces a plugin, not yet imported."""

    name: str
    distribution: str
    version: str
    module: str
    requires: tuple[str, ...] = ()


def discover() -> list[Candidate]:
    """All announced plugins, sorted by distribution and name: the same order in every process."""
    found: dict[tuple[str, str], Candidate] = {}
    for distribution in metadata.distributions():
        for point in distribution.entry_points:
            if point.group != GROUP:
                continue
            name = distribution.metadata["Name"]
            candidate = Candidate(
                point.name, name, distribution.version, point.value, tuple(distribution.requires or ())
            )
            found.setdefault((name, point.name), candidate)  # the first on sys.path is the one that imports find
    return sorted(found.values(), key=lambda c: (c.distribution.lower(), c.name))


def load(candidates: Iterable[Candidate], environ: Mapping[str, str] = os.environ, slow: float = SLOW) -> Registry:
    """Loads core's own parts and every candidate that is wanted.

    Args:
        candidates: What `discover` found.
        environ: Where the switches are read.
        slow: Seconds of loading above which a plugin is named.

    Raises:
        MimError: In strict mode, at the first plugin that fails or does what a plugin must not.
    """
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(trackers, name=trackers.__name__)  # observers only: it brings no parts
    own = Candidate("core", "mim-core", __version__, "mim_core.builtin")
    candidates = list(candidates)
    wanted = _selection(candidates, environ)
    strict = environ.get("MIM_CORE_STRICT", "") not in ("", "0")
    entries: list[Entry] = []
    records: list[PluginRecord] = []
    for candidate in [own, *candidates]:
        record = PluginRecord(candidate.name, candidate.distribution, candidate.version, candidate.module)
        if candidate is not own and candidate.name not in wanted:
            records.append(replace(record, disabled=True))
            continue
        start, before = time.perf_counter(), process_state.read()
        brought: list[Entry] = []
        cause: BaseException | None = None
        try:
            brought = _load_one(manager, candidate, records)
        except (Exception, SystemExit) as error:  # a plugin may fail in any way; the others must work all the same
            cause = error
            reason = str(error) if isinstance(error, PluginError) else f"{type(error).__name__}: {error}"
            record = replace(record, failure=reason, traceback=traceback.format_exc())
        seconds = time.perf_counter() - start
        counts = {kind: sum(entry.kind == kind for entry in brought) for kind in KINDS}
        faults = _faults(before, seconds, slow if candidate is not own else float("inf"))
        record = replace(record, counts={k: n for k, n in counts.items() if n}, seconds=seconds, faults=faults)
        if strict and (record.failure or record.faults):
            said = f"failed to load: {record.failure}" if record.failure else " ".join(record.faults)
            raise MimError(f"{candidate.distribution} {candidate.version} {said}") from cause
        entries += brought
        records.append(record)
    return Registry(tuple(entries), tuple(records), manager.hook)


def _faults(before: Mapping[str, object], seconds: float, slow: float) -> tuple[str, ...]:
    """What a plugin did while it was loaded, beside what it brought."""
    faults = []
    changed = process_state.settle(before)
    if changed:
        faults.append(f"changes global state on import: {', '.join(changed)}.")
    if seconds > slow:
        faults.append(
            f"took {seconds:.1f} s to import, more than {slow:g} s; its plugin module should import nothing heavy."
        )
    return tuple(faults)


def _selection(candidates: list[Candidate], environ: Mapping[str, str]) -> set[str]:
    """Names of the plugins to load."""
    names = {candidate.name for candidate in candidates}

    def listed(variable: str) -> set[str]:
        asked = {name.strip() for name in environ.get(variable, "").split(",") if name.strip()}
        for name in sorted(asked - names):
            near = nearest(name, names)
            guess = f" Did you mean {near!r}?" if near else ""
            raise MimError(
                f"{variable} names {name!r}, which is not installed.{guess} Installed: "
                f"{', '.join(sorted(names)) or 'none'}."
            )
        return asked

    only, without = listed("MIM_CORE_PLUGINS"), listed("MIM_CORE_DISABLE")
    return (only or names) - without


def _load_one(manager: pluggy.PluginManager, candidate: Candidate, records: list[PluginRecord]) -> list[Entry]:
    """Imports, checks and registers one plugin; on any fault nothing of it stays behind."""
    taken = next((r for r in records if r.name == candidate.name and not r.disabled), None)
    if taken is not None:
        raise PluginError(
            f"the plugin name {candidate.name!r} is already taken by {taken.distribution} {taken.version}. Both "
            f"cannot be used: uninstall one, "
            "or ask its author for another entry-point name."
        )
    _check_requirement(candidate)
    module = importlib.import_module(candidate.module)
    wanted_api = getattr(module, "MIM_PLUGIN_API", PLUGIN_API)
    if wanted_api != PLUGIN_API:
        raise PluginError(
            f"it is written for plugin interface {wanted_api}; this mim-core {__version__} has {PLUGIN_API}."
        )
    _check_markers(module)
    try:
        manager.register(module, name=candidate.name)
        _check_pending(manager, module)
        return _collect(manager, candidate.name, module)
    except BaseException:
        if manager.is_registered(module):  # pluggy leaves a plugin registered in part when a hook does not validate
            manager.unregister(module)
        raise


def _check_requirement(candidate: Candidate) -> None:
    """pip may leave a plugin beside a core that it does not fit."""
    for text in candidate.requires:
        requirement = Requirement(text)
        applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if (
            canonicalize_name(requirement.name) == "mim-core"
            and applies
            and not requirement.specifier.contains(__version__, prereleases=True)
        ):
            raise PluginError(
                f"it needs mim-core{requirement.specifier}, and {__version__} is installed. Run: pip install -U "
                f"mim-core {candidate.distribution}"
            )


def _check_markers(module: ModuleType) -> None:
    """A function named like a hook without @hookimpl would silently do nothing."""
    known = [name for name in vars(hookspecs) if name.startswith("mim_")]
    for name, value in vars(module).items():
        if name.startswith("mim_") and callable(value) and not hasattr(value, f"{hookspecs.PROJECT}_impl"):
            raise PluginError(f"{name} is named like a hook but is not marked @mim_core.hookimpl.")
    marked = [name for name, value in vars(module).items() if hasattr(value, f"{hookspecs.PROJECT}_impl")]
    if not marked:
        raise PluginError(f"its module {module.__name__!r} implements no hook. Hooks: {', '.join(known)}.")


def _check_pending(manager: pluggy.PluginManager, module: ModuleType) -> None:
    """A marked function whose name no hook has."""
    known = [name for name in vars(hookspecs) if name.startswith("mim_")]
    for caller in manager.get_hookcallers(module) or []:
        optional = all(impl.optionalhook for impl in caller.get_hookimpls() if impl.plugin is module)
        if not caller.has_spec() and not optional:
            near = nearest(caller.name, known)
            raise PluginError(
                f"it implements {caller.name!r}, which is no hook.{f' Did you mean {near!r}?' if near else ''}"
            )


def _collect(manager: pluggy.PluginManager, name: str, module: ModuleType) -> list[Entry]:
    """Calls the registration hooks of this plugin alone, so that each entry knows its origin."""
    others = [plugin for plugin in manager.get_plugins() if plugin is not module]
    entries: list[Entry] = []
    for kind in KINDS:
        register = RecipeRegister(kind, name) if kind == "recipes" else Register(kind, name)
        hook = manager.subset_hook_caller(f"mim_register_{kind}", remove_plugins=others)
        hook(register=register)
        entries += register.entries
    return entries


@functools.cache
def installed() -> Registry:
    """The registry of what is installed: made on first call, then always the same. Warns once of plugins that failed,
    and of those that do what a plugin must not."""
    registry = load(discover())
    for record in registry.plugins:
        if record.failure:
            warn(f"{record.distribution} {record.version} is not used: {record.failure} Run: mim-core plugins --errors")
        if record.faults:
            warn(f"{record.distribution} {record.version} {' It also '.join(record.faults)}")
    return registry


def warn(text: str) -> None:
    """One line on standard error, from the first rank only."""
    if os.environ.get("RANK", "0") == "0":
        print(f"mim-core: warning: {text}", file=sys.stderr)  # noqa: T201
