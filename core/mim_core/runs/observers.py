"""Run observers: hooks of plugins that are called as a run goes on. Each is called by itself, so that one that fails
is named and costs no other its turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from mim_core.errors import MimError, one_line, warn
from mim_core.host.registry import Registry

OWN = "core"
"""The plugin of the core's own parts, whose observers are the trackers."""


def begin(registry: Registry, run: Any) -> None:
    """Tells that a run begins. Here an error ends it, before anything is trained.

    Raises:
        MimError: An observer failed; names its plugin.
    """
    for name, call in _observers(registry, "mim_run_started"):
        try:
            call(run=run)
        except MimError:
            raise
        except Exception as error:
            raise MimError(
                f"{_observer_name(registry, name)} failed in mim_run_started: {one_line(error)}{_without(name)}"
            ) from error


def tell(registry: Registry, hook: str, failures: dict[tuple[str, str], tuple[int, str]], **facts: Any) -> None:
    """Calls an observer hook. An error is a warning, said once per plugin and hook: a tracker must not end a run.

    Args:
        registry: Whose plugins are told.
        hook: Its name.
        failures: How often each failed so far and with what at last, by plugin and hook; added to.
        facts: The hook's arguments.
    """
    for name, call in _observers(registry, hook):
        try:
            call(**facts)
        except Exception as error:
            count, message = failures.get((name, hook), (0, ""))[0] + 1, one_line(error)
            failures[name, hook] = count, message
            if count == 1:
                warn(f"{_observer_name(registry, name)} failed in {hook}: {message}{_without(name)}")


def summarize(registry: Registry, failures: dict[tuple[str, str], tuple[int, str]]) -> None:
    """At a run's end, says how often each observer failed that failed more than once; and forgets it."""
    for (name, hook), (count, message) in failures.items():
        if count > 1:
            warn(f"{_observer_name(registry, name)} failed {count} times in {hook}, the last time with: {message}")
    failures.clear()


def _observers(registry: Registry, hook: str) -> Iterator[tuple[str, Callable[..., Any]]]:
    """(plugin, what calls its implementation), in pluggy's order."""
    caller = getattr(registry.hooks, hook)
    if not hasattr(caller, "get_hookimpls"):  # a stand-in for all of them
        yield "", caller
        return
    for hookimpl in reversed(caller.get_hookimpls()):

        def call(hookimpl: Any = hookimpl, **facts: Any) -> None:
            hookimpl.function(*(facts[name] for name in hookimpl.argnames))

        yield hookimpl.plugin_name, call


def _observer_name(registry: Registry, name: str) -> str:
    """An observer in a sentence."""
    if name == OWN:
        return "one of mim-core's trackers (--train.track)"
    record = registry.plugin(name)
    return f"the plugin {name!r} ({record.distribution} {record.version})" if record else "an observer"


def _without(name: str) -> str:
    return "" if name in ("", OWN) else f". To disable it: MIM_CORE_DISABLE={name}"
