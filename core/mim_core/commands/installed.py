"""plugins, list, describe, recipes: what is installed. None of them imports torch."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import tyro
from rich.markup import escape

from mim_core import terminal
from mim_core.commands.options import option_rows, parse
from mim_core.errors import MimError, did_you_mean, unknown
from mim_core.host.described import Described, NotPlain, Option
from mim_core.host.described import describe as describe_source
from mim_core.host.kinds import KINDS
from mim_core.host.loading import installed
from mim_core.host.registry import Entry, PluginRecord, Registry
from mim_core.recipes.options import plain


def recipe_text(entry: Entry, registry: Registry) -> str:
    """The resolved recipe as `to_toml` writes it, from the sources of its parts where these say their options
    plainly."""
    from mim_core.recipes.resolve import load_recipe
    from mim_core.recipes.toml import to_toml, toml_of_parts

    try:
        return toml_of_parts(entry, registry)
    except NotPlain:
        return to_toml(load_recipe(entry.full_name, registry), registry)


@dataclass(frozen=True)
class PluginsOptions:
    """List the plugins that are installed, with version and what each brings."""

    errors: bool = False
    """Show why a plugin failed, with its traceback."""


def plugins(program: str, plugin: str | None, arguments: list[str]) -> int:
    """``mim-core plugins``."""
    options = parse(PluginsOptions, f"{program} plugins", arguments)
    records = installed().plugins
    screen = terminal.console()
    if options.errors:
        failed = [record for record in records if record.failure]
        for record in failed:
            screen.print(
                f"{record.distribution} {record.version} ({record.module}): {record.failure}",
                markup=False,
                style="bold",
            )
            screen.print(record.traceback, markup=False)
        for record in (record for record in records if record.faults):
            screen.print(f"{record.distribution} {record.version} ({record.module})", markup=False, style="bold")
            for fault in record.faults:
                screen.print(f"  It {fault}", markup=False)
        if not failed:
            screen.print("No plugin failed to load.")
        return 0
    table = terminal.table("plugin", "distribution", "version", "brings")
    for record in records:
        table.add_row(record.name, record.distribution, record.version, _brings(record))
    screen.print(table)
    return 0


def _brings(record: PluginRecord) -> str:
    if record.failure:
        return f"[red]FAILED[/] {escape(record.failure)} See: mim-core plugins --errors"
    if record.disabled:
        return "switched off by MIM_CORE_PLUGINS or MIM_CORE_DISABLE"
    parts = [f"{n} {KINDS[kind] if n == 1 else _plural(kind)}" for kind, n in record.counts.items()]
    return " ".join([", ".join(parts), *(f"[yellow]It {escape(fault)}[/]" for fault in record.faults)])


def _plural(kind: str) -> str:
    return {"data": "data sources", "importers": "import formats", "exporters": "export formats"}.get(kind, kind)


def list_parts(program: str, plugin: str | None, arguments: list[str]) -> int:
    """``mim-core list [KIND]``.

    Raises:
        MimError: The kind is unknown, or more than one is named.
    """
    if arguments and arguments[0] in ("-h", "--help"):
        kinds = textwrap.fill(f"Lists the parts of a kind, or all kinds: {', '.join(KINDS)}.", terminal.WIDTH)
        terminal.tell(f"usage: {program} list [KIND]\n\n{kinds}")
        return 0
    if not arguments:
        _print_kinds(installed(), program)
        return 0
    kind, rest = arguments[0], arguments[1:]
    known = {**{name: name for name in KINDS}, **{one: name for name, one in KINDS.items()}}
    if kind not in known:
        raise unknown("kind", kind, KINDS)
    if rest:
        raise MimError(f"{program} list takes one kind; unexpected argument {' '.join(rest)!r}.")
    _print_entries(installed(), known[kind])
    return 0


SHORT = 50
"""Letters of two names beside which the table of kinds still fits 80 columns."""


def _print_kinds(registry: Registry, program: str) -> None:
    """All kinds, how many parts there are of each, and the first names."""
    table = terminal.table("kind", "parts", "names")
    for kind in KINDS:
        entries = registry.of_kind(kind)
        names = [entry.full_name for entry in entries]
        shown = names[: 2 if len(", ".join(names[:2])) < SHORT else 1]
        table.add_row(kind, str(len(names)), ", ".join([*shown, *(["..."] if len(names) > len(shown) else [])]))
    terminal.console().print(table)
    terminal.tell(f"\nOne kind with summaries: {program} list KIND. One part: {program} describe NAME.")


def _print_entries(registry: Registry, kind: str, plugin: str | None = None) -> None:
    entries = registry.of_kind(kind, plugin)
    if not entries:
        terminal.tell(registry.none_of(kind) if plugin is None else f"The plugin {plugin!r} brings none.")
        return
    table = terminal.table("name", "summary")
    table.columns[0].no_wrap = True
    for entry in entries:
        paper = f" [dim]({escape(entry.card.paper)})[/]" if entry.card.paper else ""
        table.add_row(entry.full_name, escape(entry.card.summary) + paper)
    terminal.console().print(table)


@dataclass(frozen=True)
class RecipesOptions:
    """List the recipes."""


def recipes(program: str, plugin: str | None, arguments: list[str]) -> int:
    """``recipes``: of one plugin, or of all.

    Raises:
        MimError: The plugin is switched off or broken.
    """
    parse(RecipesOptions, f"{program} recipes", arguments)
    registry = installed()
    off = [record for record in registry.plugins if record.name == plugin and not record.used]
    if plugin is not None and off and registry.plugin(plugin) is None:
        raise MimError(
            f"The plugin {plugin!r} is {'switched off' if off[0].disabled else 'broken'}. See: mim-core plugins"
        )
    _print_entries(registry, "recipes", plugin)
    if more := len(registry.of_kind("finetunings", plugin)):
        terminal.tell(f"Recipes that train on labels, {more} of them: mim-core list finetunings")
    return 0


@dataclass(frozen=True)
class DescribeOptions:
    """Describe a recipe or a part: what it is, where it comes from, its options."""

    name: Annotated[str, tyro.conf.Positional]
    """Full name such as image:mae-vit-base, or a bare one while it is unique."""


def describe(program: str, plugin: str | None, arguments: list[str]) -> int:
    """``mim-core describe NAME``.

    Raises:
        MimError: Nothing has that name.
    """
    options = parse(DescribeOptions, f"{program} describe", arguments)
    registry = installed()
    matches = [entry for entry in registry.entries if options.name in (entry.full_name, entry.name)]
    if not matches:
        names = [entry.full_name for entry in registry.entries]
        guess = did_you_mean(options.name, [*names, *(entry.name for entry in registry.entries)])
        raise MimError(
            f"Nothing is named {options.name!r}.{guess}{registry.absent(options.name)}\nSee: {program} list KIND, with "
            f"one of {', '.join(KINDS)}."
        )
    for entry in matches:
        _describe_one(entry, registry)
    return 0


def _describe_one(entry: Entry, registry: Registry) -> None:
    screen = terminal.console()
    screen.print(f"[bold]{entry.full_name}[/]  {KINDS[entry.kind]}, from {escape(entry.origin)}")
    screen.print(entry.card.summary + (f"  ({entry.card.paper})" if entry.card.paper else ""), markup=False)
    described = _described(entry)
    if described.doc:
        screen.print(f"\n{_unwrapped(described.doc)}", markup=False)
    if entry.kind in ("recipes", "finetunings"):
        _describe_recipe(entry, registry, screen)
    elif described.options is not None:
        _describe_options(described.options, screen)
    screen.print()


def _unwrapped(doc: str) -> str:
    """A docstring whose paragraphs are single lines, which the terminal wraps; indented text stays as it is."""
    paragraphs = doc.split("\n\n")
    plain_text = [text if any(line.startswith(" ") for line in text.splitlines()) else None for text in paragraphs]
    return "\n\n".join(kept or " ".join(text.split()) for kept, text in zip(plain_text, paragraphs, strict=True))


def _described(entry: Entry) -> Described:
    """What the part's source says of it; where it does not say it plainly, what the part says when it is imported."""
    try:
        return describe_source(entry.load)
    except NotPlain:
        value = entry.resolve()
        rows = option_rows(value.Config) if hasattr(value, "Config") else None
        return Described(inspect.getdoc(value) or "", None if rows is None else tuple(Option(*row) for row in rows))


def _describe_recipe(entry: Entry, registry: Registry, screen: Any) -> None:
    screen.print(f"\n{recipe_text(entry, registry)}", markup=False)
    screen.print(
        f"Train it: mim-{entry.plugin} pretrain {entry.name} --data.root FOLDER\nIts plan: add --dry-run",
        markup=False,
    )


def _describe_options(options: Sequence[Option], screen: Any) -> None:
    table = terminal.table("option", "type", "default", "")
    for option in options:
        row = (option.name.replace("_", "-"), option.type, str(plain(option.default)), option.help)
        table.add_row(*map(escape, row))  # tuple[float, float] would read as a style
    screen.print()
    screen.print(table if options else "It has no options.")
