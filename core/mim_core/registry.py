"""What is installed: every part by kind and name, with its origin. Built once from the plugins, then immutable."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mim_core.errors import MimError, nearest, unknown

KINDS = {
    "tokenizers": "tokenizer",
    "maskers": "masker",
    "targets": "target",
    "encoders": "encoder",
    "decoders": "decoder",
    "methods": "method",
    "recipes": "recipe",
    "data": "data source",
    "evaluations": "evaluation",
    "importers": "import format",
}
"""Kinds of parts, as hooks and ``mim-core list`` spell them, and what one of them is called."""

EXTRAS = ("image", "video", "pointcloud", "multimodal")


@dataclass(frozen=True)
class Card:
    """What people read about a part: one sentence, the paper it comes from, tags."""

    summary: str
    paper: str = ""
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Entry:
    """One registered part: a lazy reference ``module:attribute`` and where it comes from."""

    kind: str
    name: str
    plugin: str
    load: str
    card: Card
    twin: str | None = None

    @property
    def full_name(self) -> str:
        """``plugin:name``, what runs and checkpoints store."""
        return f"{self.plugin}:{self.name}"

    def resolve(self) -> Any:
        """Imports and returns the part.

        Raises:
            MimError: The reference cannot be imported; names the plugin and the reason.
        """
        return self._import(self.load)

    def resolve_twin(self) -> Any:
        """The small version of a recipe."""
        if self.twin is None:
            raise MimError(f"Recipe {self.full_name!r} names no twin.")
        return self._import(self.twin)

    def _import(self, reference: str) -> Any:
        module, _, attribute = reference.partition(":")
        try:
            value: Any = importlib.import_module(module)
            for name in attribute.split("."):
                value = getattr(value, name)
        except (ImportError, AttributeError) as error:
            what = KINDS[self.kind]
            raise MimError(
                f"The {what} {self.full_name!r} cannot be loaded from {reference!r}: {type(error).__name__}: {error}\n"
                f"It belongs to the plugin {self.plugin!r}; is everything that it needs installed?"
            ) from error
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


class Register:
    """Handed to one plugin's hook for one kind. Calling it registers a part; keyword arguments only."""

    def __init__(self, kind: str, plugin: str) -> None:
        self.kind, self.plugin = kind, plugin
        self.entries: list[Entry] = []

    def __call__(self, *, name: str, load: str, card: Card) -> None:
        """Registers a part.

        Args:
            name: Its name within the plugin: letters, digits, ``-`` and ``.``.
            load: ``"package.module:Attribute"``, imported on first use.
            card: What people read about it.
        """
        self._add(Entry(self.kind, name, self.plugin, load, card))

    def _add(self, entry: Entry) -> None:
        if not entry.name or any(not (c.isalnum() or c in "-.") for c in entry.name):
            raise ValueError(f"{KINDS[self.kind]} name {entry.name!r} may hold letters, digits, '-' and '.' only")
        if ":" not in entry.load:
            raise ValueError(f"load of {entry.name!r} must read 'package.module:Attribute', got {entry.load!r}")
        if any(other.name == entry.name for other in self.entries):
            raise ValueError(f"{KINDS[self.kind]} {entry.full_name!r} is registered twice")
        self.entries.append(entry)


class RecipeRegister(Register):
    """Registers recipes, which name a small twin for tests."""

    def __call__(self, *, name: str, load: str, card: Card, twin: str | None = None) -> None:
        """Registers a recipe.

        Args:
            name: Its name within the plugin.
            load: ``"package.module:function"``, a function without arguments that returns a `RunConfig`.
            card: What people read about it.
            twin: Reference to a function that returns the same recipe made small.
        """
        self._add(Entry(self.kind, name, self.plugin, load, card, twin))


class Registry:
    """Immutable lookup of everything that is installed."""

    def __init__(self, entries: tuple[Entry, ...], plugins: tuple[PluginRecord, ...], hooks: Any = None) -> None:
        self.entries, self.plugins, self.hooks = entries, plugins, hooks

    def of_kind(self, kind: str, plugin: str | None = None) -> list[Entry]:
        """All parts of a kind, sorted by full name; of one plugin, if named."""
        found = [e for e in self.entries if e.kind == kind and plugin in (None, e.plugin)]
        return sorted(found, key=lambda entry: entry.full_name)

    def get(self, kind: str, name: str) -> Entry:
        """The part of that name: full (``image:patch``), or bare while it is unique.

        Raises:
            MimError: Unknown or ambiguous; says what exists, the nearest name, and which plugin might have had it.
        """
        known = self.of_kind(kind)
        found = [entry for entry in known if name in (entry.full_name, entry.name)]
        exact = [entry for entry in found if entry.full_name == name]
        if len(exact or found) == 1:
            return (exact or found)[0]
        if found:
            raise MimError(
                f"{KINDS[kind].capitalize()} {name!r} is ambiguous: {', '.join(e.full_name for e in found)}. Use a "
                f"full name."
            )
        bare = [entry.name for entry in known]
        names = [entry.name if bare.count(entry.name) == 1 else entry.full_name for entry in known]
        names += [entry.full_name for entry in known if ":" in name]
        raise unknown(KINDS[kind], name, set(names), self._absent(name))

    def _absent(self, name: str) -> str:
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
            near = None if plugin in EXTRAS else nearest(plugin, {*names, *EXTRAS})
            advice = f"Did you mean {near!r}?" if near else f"Try: pip install {package}"
            notes.append(f"\nNo plugin {plugin!r} is installed. {advice}")
        return "".join(notes)
