"""What is installed: every part by kind and name, with its origin. Built once from the plugins, then immutable."""

from __future__ import annotations

import importlib
import string
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mim_core.errors import MimError, did_you_mean, one_line, strict, unknown, warn
from mim_core.host import process_state
from mim_core.host.kinds import KINDS, fault_of

EXTRAS = ("image", "video", "pointcloud", "multimodal")
"""Plugins of the project's own distributions, which mim-core has extras for."""


LETTERS = frozenset(string.ascii_lowercase + string.digits + "-.")
"""What the names of parts are made of."""


@dataclass(frozen=True)
class Card:
    """What people read about a part: one sentence, and the paper it comes from."""

    summary: str
    paper: str = ""


@dataclass(frozen=True)
class Entry:
    """One registered part: a lazy reference ``module:attribute`` and where it comes from.

    Attributes:
        twin: Of a recipe: reference to the same made small.
        origin: Distribution and version, for messages.
        heading: Of an evaluation: what stands above its scores.
    """

    kind: str
    name: str
    plugin: str
    load: str
    card: Card
    twin: str | None = None
    origin: str = ""
    heading: str = ""

    @property
    def full_name(self) -> str:
        """``plugin:name``, what runs and checkpoints store."""
        return f"{self.plugin}:{self.name}"

    @property
    def title(self) -> str:
        """The part in a sentence: masker 'mine:checker' of the plugin 'mine' (mim-mine 1.0)."""
        where = f" ({self.origin})" if self.origin else ""
        return f"{KINDS[self.kind]} {self.full_name!r} of the plugin {self.plugin!r}{where}"

    def resolve(self) -> Any:
        """Imports and returns the part.

        Raises:
            MimError: The reference cannot be imported, or what it leads to is no part of its kind; names the part, the
                plugin and the reason. In strict mode also where the import changes what the process shares.
        """
        return self._resolve(self.load)

    def resolve_twin(self) -> Any:
        """The small version of a recipe.

        Raises:
            MimError: The recipe names no twin.
        """
        if self.twin is None:
            raise MimError(f"Recipe {self.full_name!r} names no twin.")
        return self._resolve(self.twin)

    def _resolve(self, reference: str) -> Any:
        value = self._import(reference)
        fault = fault_of(self.kind, value)
        if fault is not None:
            raise MimError(f"The {self.title} cannot be used: {reference!r} {fault}.")
        return value

    def _import(self, reference: str) -> Any:
        module, _, attribute = reference.partition(":")
        there = getattr(sys.modules.get(module), "__dict__", {})
        if "." not in attribute and attribute in there:  # nothing is imported, so nothing can change
            return there[attribute]
        before = process_state.read()
        try:
            value: Any = importlib.import_module(module)
            for name in attribute.split("."):
                value = getattr(value, name)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # some libraries' errors are no Exception
            needs = " Is everything that it needs installed?" if isinstance(error, ImportError) else ""
            raise MimError(
                f"The {self.title} cannot be loaded from {reference!r}: {one_line(error)}\n{needs.lstrip()}"
                f'{" " if needs else ""}Its traceback: python -c "import {module}; {module}.{attribute}"'
            ) from error
        finally:
            changed = process_state.settle(before)
        if changed:
            message = f"The {self.title} changes global state when it is imported: {', '.join(changed)}."
            if strict():
                raise MimError(message)
            warn(message)
        return value


@dataclass(frozen=True)
class PluginRecord:
    """One plugin as found: its names, what it brought, or why it failed.

    Attributes:
        name: Entry-point name; the prefix of its parts.
        distribution: Name of the installed package.
        version: Its version.
        module: What the entry point refers to.
        seconds: Time its import took.
        counts: Parts brought, by kind.
        failure: One line that says why it is not used; None when it is.
        traceback: The whole traceback of a failure.
        disabled: Left out by MIM_CORE_PLUGINS or MIM_CORE_DISABLE.
        faults: What it does that a plugin must not, though it is used: such as changing global state on import.
    """

    name: str
    distribution: str
    version: str
    module: str
    seconds: float = 0.0
    counts: Mapping[str, int] = field(default_factory=dict)
    failure: str | None = None
    traceback: str = ""
    disabled: bool = False
    faults: tuple[str, ...] = ()

    @property
    def used(self) -> bool:
        """Whether its parts can be used: it neither failed nor is switched off."""
        return not self.failure and not self.disabled


class Register:
    """Handed to one plugin's hook for one kind. Calling it registers a part; keyword arguments only."""

    def __init__(self, kind: str, plugin: str, origin: str = "") -> None:
        self.kind, self.plugin, self.origin = kind, plugin, origin
        self.entries: list[Entry] = []

    def __call__(self, *, name: str, load: str, summary: str, paper: str = "") -> None:
        """Registers a part.

        Args:
            name: Its name within the plugin: lower-case letters, digits, ``-`` and ``.``.
            load: ``"package.module:Attribute"``, imported on first use.
            summary: One sentence about it.
            paper: Where it comes from.
        """
        self._add(name, load, summary, paper)

    def _add(self, name: Any, load: Any, summary: Any, paper: Any, twin: Any = None, heading: Any = "") -> None:
        one = KINDS[self.kind]
        if not isinstance(name, str) or not name or set(name) - LETTERS:
            raise ValueError(
                f"{one} name {name!r} may hold lower-case letters, digits, '-' and '.' only; the plugin is "
                f"{self.plugin!r}"
            )
        named = f"{one} {f'{self.plugin}:{name}'!r}"
        for what, reference in (("load", load), ("twin", twin)):
            if (what == "load" or reference is not None) and not _refers(reference):
                raise ValueError(f"{what} of {named} must read 'package.module:Attribute', got {reference!r}")
        if not isinstance(summary, str) or not isinstance(paper, str):
            raise ValueError(f"summary and paper of {named} must be text, got {summary!r} and {paper!r}")
        if not isinstance(heading, str):
            raise ValueError(f"heading of {named} must be text, got {heading!r}")
        if any(other.name == name for other in self.entries):
            raise ValueError(f"{named} is registered twice")
        card = Card(summary, paper)
        self.entries.append(Entry(self.kind, name, self.plugin, load, card, twin, self.origin, heading))


def _refers(reference: Any) -> bool:
    """Whether this reads ``package.module:Attribute``."""
    module, colon, attribute = reference.partition(":") if isinstance(reference, str) else ("", "", "")
    return bool(colon) and all(name.isidentifier() for name in (*module.split("."), *attribute.split(".")))


class RecipeRegister(Register):
    """Registers recipes, which name a small twin for tests."""

    def __call__(self, *, name: str, load: str, summary: str, paper: str = "", twin: str | None = None) -> None:
        """Registers a recipe.

        Args:
            name: Its name within the plugin.
            load: ``"package.module:function"``, a function without arguments that returns a `RunConfig`.
            summary: One sentence about it.
            paper: Where it comes from.
            twin: Reference to a function that returns the same recipe made small.
        """
        self._add(name, load, summary, paper, twin)


class EvaluationRegister(Register):
    """Registers evaluations, which say what stands above their scores."""

    def __call__(self, *, name: str, load: str, summary: str, paper: str = "", heading: str = "") -> None:
        """Registers an evaluation.

        Args:
            name: Its name within the plugin.
            load: ``"package.module:function"``, a function ``(study: Study) -> list[Score]``.
            summary: One sentence about it.
            paper: Where it comes from.
            heading: Above its scores in report.html and in model cards, such as "Probes of frozen features"; "Scores"
                where none is given.
        """
        self._add(name, load, summary, paper, heading=heading)


class Registry:
    """Immutable lookup of everything that is installed."""

    def __init__(self, entries: tuple[Entry, ...], plugins: tuple[PluginRecord, ...], hooks: Any = None) -> None:
        self.entries, self.plugins, self.hooks = entries, plugins, hooks

    def of_kind(self, kind: str, plugin: str | None = None) -> list[Entry]:
        """All parts of a kind, sorted by full name; of one plugin, if named."""
        matches = [e for e in self.entries if e.kind == kind and plugin in (None, e.plugin)]
        return sorted(matches, key=lambda entry: entry.full_name)

    def plugin(self, name: str) -> PluginRecord | None:
        """The plugin that is used under that name; one that failed or is switched off is not."""
        return next((r for r in self.plugins if r.name == name and r.used), None)

    def versions(self) -> dict[str, str]:
        """Distribution -> version of every plugin that is used."""
        return {record.distribution: record.version for record in self.plugins if record.used}

    def none_of(self, kind: str) -> str:
        """What to say where no part of a kind is there: which plugins are lacking."""
        many = {"data": "data sources", "importers": "import formats", "exporters": "export formats"}.get(kind, kind)
        if any(record.name != "core" for record in self.plugins):
            return f"No plugin that is in use brings {many}. See: mim-core plugins"
        return f'No plugin is installed that brings {many}. Try: pip install "mim-core[{EXTRAS[0]}]"'

    def get(self, kind: str, name: str) -> Entry:
        """The part of that name: full (``image:patch``), or bare while it is unique.

        Raises:
            MimError: Unknown or ambiguous; says what exists, the nearest name, and which plugin might have had it.
        """
        known = self.of_kind(kind)
        if not known:
            absent = self.absent(name)
            raise MimError(f"Unknown {KINDS[kind]} {name!r}. {absent.lstrip() or self.none_of(kind)}")
        matches = [entry for entry in known if name in (entry.full_name, entry.name)]
        exact = [entry for entry in matches if entry.full_name == name]
        if len(exact or matches) == 1:
            return (exact or matches)[0]
        if matches:
            raise MimError(
                f"{KINDS[kind].capitalize()} {name!r} is ambiguous: {', '.join(e.full_name for e in matches)}. Use a "
                f"full name."
            )
        bare = [entry.name for entry in known]
        names = [entry.name if bare.count(entry.name) == 1 else entry.full_name for entry in known]
        names += [entry.full_name for entry in known if ":" in name]
        raise unknown(KINDS[kind], name, set(names), self.absent(name))

    def absent(self, name: str) -> str:
        """Which plugin would have had the name, or failed to load."""
        plugin = name.partition(":")[0] if ":" in name else ""
        notes = []
        for record in self.plugins:
            if record.failure:
                notes.append(
                    f"\n{record.distribution} {record.version} failed to load: {record.failure} Run: mim-core plugins "
                    f"--errors"
                )
            elif record.disabled and record.name == plugin:
                notes.append(f"\nThe plugin {plugin!r} is switched off by MIM_CORE_PLUGINS or MIM_CORE_DISABLE.")
        names = {record.name for record in self.plugins}
        if plugin and plugin not in names:
            package = f'"mim-core[{plugin}]"' if plugin in EXTRAS else f"mim-{plugin}"
            guess = "" if plugin in EXTRAS else did_you_mean(plugin, {*names, *EXTRAS})
            notes.append(f"\nNo plugin {plugin!r} is installed.{guess or f' Try: pip install {package}'}")
        return "".join(notes)
