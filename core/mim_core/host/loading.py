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
import inspect
import os
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from types import ModuleType

import pluggy
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from mim_core.errors import MimError, did_you_mean, one_line, strict, warn
from mim_core.host import hookspecs, process_state
from mim_core.host.kinds import KINDS
from mim_core.host.registry import (
    EXTRAS,
    LETTERS,
    Entry,
    EvaluationRegister,
    PluginRecord,
    RecipeRegister,
    Register,
    Registry,
)
from mim_core.version import PLUGIN_API, __version__

GROUP = "mim_core"


REGISTERS = {"recipes": RecipeRegister, "finetunings": RecipeRegister, "evaluations": EvaluationRegister}
"""Of the kinds whose parts say more of themselves than others."""


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
    candidates: dict[tuple[str, str], Candidate] = {}
    for distribution in metadata.distributions():
        for point in distribution.entry_points:
            if point.group != GROUP:
                continue
            name = distribution.metadata["Name"] or "a distribution without a name"
            version = distribution.version or "without a version"
            candidate = Candidate(point.name, name, version, point.value, tuple(distribution.requires or ()))
            candidates.setdefault((name, point.name), candidate)  # the first on sys.path is the one that imports find
    return sorted(candidates.values(), key=lambda c: (c.distribution.lower(), c.name))


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
    own = Candidate("core", "mim-core", __version__, "mim_core.plugin")
    candidates = sorted(candidates, key=lambda candidate: not _is_ours(candidate))
    wanted = _selection(candidates, environ)
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
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a plugin may fail in any way, also one that is no Exception; the others work
            cause = error
            reason = str(error) if isinstance(error, PluginError) else one_line(error)
            record = replace(record, failure=reason, traceback=_traceback(error))
        seconds = time.perf_counter() - start
        counts = {kind: sum(entry.kind == kind for entry in brought) for kind in KINDS}
        faults = _faults(before, seconds, slow if candidate is not own else float("inf"))
        record = replace(record, counts={k: n for k, n in counts.items() if n}, seconds=seconds, faults=faults)
        if strict(environ) and (record.failure or record.faults):
            message = f"failed to load: {record.failure}" if record.failure else " ".join(record.faults)
            raise MimError(f"{candidate.distribution} {candidate.version} {message}") from cause
        entries += brought
        records.append(record)
    return Registry(tuple(entries), tuple(records), manager.hook)


def _is_ours(candidate: Candidate) -> bool:
    """Whether it is one of the project's own distributions, which come before a stranger of the same plugin name."""
    return candidate.name in EXTRAS and canonicalize_name(candidate.distribution) == f"mim-{candidate.name}"


def _traceback(error: BaseException) -> str:
    try:
        return "".join(traceback.format_exception(error))
    except Exception as fault:  # an author's own __str__
        return f"Traceback that cannot be shown: {one_line(fault)}"


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
        if variable == "MIM_CORE_DISABLE" and "core" in asked:
            raise MimError(f"{variable} names 'core', whose parts are always there.")
        for name in sorted(asked - names - {"core"}):
            raise MimError(
                f"{variable} names {name!r}, which is not installed.{did_you_mean(name, names)} Installed: "
                f"{', '.join(sorted(names)) or 'none'}."
            )
        return asked

    only, without = listed("MIM_CORE_PLUGINS"), listed("MIM_CORE_DISABLE")
    return (only or names) - without  # core's own parts are always loaded; MIM_CORE_PLUGINS=core loads nothing else


def _load_one(manager: pluggy.PluginManager, candidate: Candidate, records: list[PluginRecord]) -> list[Entry]:
    """Imports, checks and registers one plugin; on any fault nothing of it stays behind."""
    odd = set(candidate.name) - LETTERS
    if odd or not candidate.name:
        raise PluginError(
            f"its entry point is named {candidate.name!r}; a plugin's name holds lower-case letters, digits, '-' and "
            f"'.' only."
        )
    taken = next((r for r in records if r.name == candidate.name and r.used), None)
    if taken is not None:
        raise PluginError(
            f"the plugin name {candidate.name!r} is already taken by {taken.distribution} {taken.version}. Both "
            "cannot be used: uninstall one, or ask its author for another entry-point name."
        )
    _check_requirement(candidate)
    module = _module(candidate.module)
    wanted_api = getattr(module, "MIM_PLUGIN_API", PLUGIN_API)
    if wanted_api != PLUGIN_API:
        raise PluginError(
            f"it is written for plugin interface {wanted_api}; this mim-core {__version__} has {PLUGIN_API}."
        )
    _check_markers(module)
    _check_signatures(module)
    other = manager.get_name(module)
    if other is not None:
        raise PluginError(f"its module {candidate.module!r} is that of the plugin {other!r} already.")
    try:
        manager.register(module, name=candidate.name)
        _check_pending(manager, module)
        return _collect(manager, candidate, module)
    except BaseException:
        if manager.is_registered(module):  # pluggy leaves a plugin registered in part when a hook does not validate
            manager.unregister(module)
        raise


def _module(reference: str) -> ModuleType:
    """What an entry point leads to."""
    name, colon, _ = reference.partition(":")
    if colon:
        raise PluginError(f"its entry point reads {reference!r}; it must name a module alone, such as {name!r}.")
    return importlib.import_module(name)


def _check_requirement(candidate: Candidate) -> None:
    """pip may leave a plugin beside a core that it does not fit."""
    for text in candidate.requires:
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            raise PluginError(
                f"its metadata has a requirement that cannot be read: {text!r}. Ask its author to mend it."
            ) from None
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


def _implementations(module: ModuleType) -> Iterator[tuple[str, object]]:
    """The functions of a module that are marked, by the name of the hook that they are for."""
    mark = f"{hookspecs.PROJECT}_impl"
    for name, value in vars(module).items():
        options = getattr(value, mark, None)
        if isinstance(options, dict):
            yield options.get("specname") or name, value


def _check_signatures(module: ModuleType) -> None:
    """A hook passes what it passes: an implementation that asks for more could not be called."""
    for name, function in _implementations(module):
        spec = getattr(hookspecs, name, None)
        if spec is None or not callable(function):
            continue  # see _check_pending
        options = getattr(function, f"{hookspecs.PROJECT}_impl")
        if options.get("wrapper") or options.get("hookwrapper"):
            raise PluginError(f"{name} is marked as a wrapper; the hooks of mim-core take plain functions only.")
        passed = list(inspect.signature(spec).parameters)
        for parameter in inspect.signature(function).parameters.values():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                continue
            if parameter.default is not parameter.empty:
                continue  # pluggy leaves such arguments alone
            if parameter.name not in passed or parameter.kind is parameter.KEYWORD_ONLY:
                how = "by keyword alone" if parameter.name in passed else "which that hook does not pass"
                raise PluginError(
                    f"its {name} takes {parameter.name!r}, {how}; a hook passes by position: {', '.join(passed)}."
                )


def _check_pending(manager: pluggy.PluginManager, module: ModuleType) -> None:
    """A marked function whose name no hook has."""
    known = [name for name in vars(hookspecs) if name.startswith("mim_")]
    for caller in manager.get_hookcallers(module) or []:
        optional = all(impl.optionalhook for impl in caller.get_hookimpls() if impl.plugin is module)
        if not caller.has_spec() and not optional:
            raise PluginError(f"it implements {caller.name!r}, which is no hook.{did_you_mean(caller.name, known)}")


def _collect(manager: pluggy.PluginManager, candidate: Candidate, module: ModuleType) -> list[Entry]:
    """Calls the registration hooks of this plugin alone, so that each entry knows its origin."""
    others = [plugin for plugin in manager.get_plugins() if plugin is not module]
    origin = f"{candidate.distribution} {candidate.version}"
    entries: list[Entry] = []
    for kind in KINDS:
        register = REGISTERS.get(kind, Register)(kind, candidate.name, origin)
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
