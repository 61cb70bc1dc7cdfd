"""plugins, list, describe, recipes: what is installed. None of them imports torch, but for describe."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Annotated, Any

import tyro
from rich.markup import escape
from rich.table import Table

from mim_core.commands.arguments import option_rows, parse, take_name
from mim_core.errors import MimError, nearest, unknown
from mim_core.plugins import installed
from mim_core.registry import KINDS, Entry, PluginRecord, Registry
from mim_core.terminal import console, tell


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


@dataclass(frozen=True)
class PluginsOptions:
    """List the plugins that are installed, with version and what each brings."""

    errors: bool = False
    """Show why a plugin failed, with its traceback."""


def plugins(program: str, plugin: str | None, arguments: list[str]) -> int:
    """``mim-core plugins``."""
    options = parse(PluginsOptions, f"{program} plugins", arguments)
    records = installed().plugins
    screen = console()
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
    table = _table("plugin", "distribution", "version", "brings")
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
    return {"data": "data sources", "importers": "import formats"}.get(kind, kind)


def list_parts(program: str, plugin: str | None, arguments: list[str]) -> int:
    """``mim-core list KIND``."""
    kind, rest = take_name(arguments, "kind", f"One of: {', '.join(KINDS)}.")
    if kind in ("-h", "--help"):
        console().print(f"usage: {program} list KIND\n\nLists the parts of a kind: {', '.join(KINDS)}.")
        return 0
    known = {**{name: name for name in KINDS}, **{one: name for name, one in KINDS.items()}}
    if kind not in known:
        raise unknown("kind", kind, KINDS)
    if rest:
        raise MimError(f"{program} list takes one kind; {' '.join(rest)!r} is too much.")
    _print_entries(installed(), known[kind])
    return 0


def _print_entries(registry: Registry, kind: str, plugin: str | None = None) -> None:
    entries = registry.of_kind(kind, plugin)
    if not entries:
        tell(registry.none_of(kind) if plugin is None else f"The plugin {plugin!r} brings none.")
        return
    table = _table("name", "summary", "paper")
    for entry in entries:
        table.add_row(entry.full_name, escape(entry.card.summary), escape(entry.card.paper))
    console().print(table)


@dataclass(frozen=True)
class RecipesOptions:
    """List the recipes."""


def recipes(program: str, plugin: str | None, arguments: list[str]) -> int:
    """``recipes``: of one plugin, or of all."""
    parse(RecipesOptions, f"{program} recipes", arguments)
    registry = installed()
    off = [record for record in registry.plugins if record.name == plugin and not record.used]
    if plugin is not None and off and registry.plugin(plugin) is None:
        raise MimError(
            f"The plugin {plugin!r} is {'switched off' if off[0].disabled else 'broken'}. See: mim-core plugins"
        )
    _print_entries(registry, "recipes", plugin)
    return 0


@dataclass(frozen=True)
class DescribeOptions:
    """Describe a recipe or a part: what it is, where it comes from, its options."""

    name: Annotated[str, tyro.conf.Positional]
    """Full name such as image:mae-vit-base, or a bare one while it is unique."""


def describe(program: str, plugin: str | None, arguments: list[str]) -> int:
    """``mim-core describe NAME``."""
    options = parse(DescribeOptions, f"{program} describe", arguments)
    registry = installed()
    found = [entry for entry in registry.entries if options.name in (entry.full_name, entry.name)]
    if not found:
        names = [entry.full_name for entry in registry.entries]
        near = nearest(options.name, [*names, *(entry.name for entry in registry.entries)])
        guess = f" Did you mean {near!r}?" if near else ""
        raise MimError(
            f"Nothing is named {options.name!r}.{guess}{registry.absent(options.name)}\nSee: {program} list KIND, with "
            f"one of {', '.join(KINDS)}."
        )
    for entry in found:
        _describe_one(entry, registry)
    return 0


def _describe_one(entry: Entry, registry: Registry) -> None:
    screen = console()
    screen.print(f"[bold]{entry.full_name}[/]  {KINDS[entry.kind]}, from {escape(entry.origin)}")
    screen.print(entry.card.summary + (f"  ({entry.card.paper})" if entry.card.paper else ""), markup=False)
    value = entry.resolve()
    text = inspect.getdoc(value)
    if text:
        screen.print(f"\n{text}", markup=False)
    if entry.kind == "recipes":
        _describe_recipe(entry, registry, screen)
    elif hasattr(value, "Config"):
        _describe_options(value, screen)
    screen.print()


def _describe_recipe(entry: Entry, registry: Registry, screen: Any) -> None:
    from mim_core.recipe import load_recipe, to_toml

    run = load_recipe(entry.full_name, registry)
    screen.print(f"\n{to_toml(run, registry)}", markup=False)
    screen.print(
        f"Train it: mim-{entry.plugin} pretrain {entry.name} --data.root FOLDER        Its plan: add --dry-run",
        markup=False,
    )


def _describe_options(value: Any, screen: Any) -> None:
    table = _table("option", "type", "default", "")
    rows = option_rows(value.Config)
    for row in rows:
        table.add_row(*map(escape, row))  # tuple[float, float] would read as a style
    screen.print()
    screen.print(table if rows else "It has no options.")
