"""What ``--help`` says of a command. Options are read from the sources, so that no torch is imported: the answer comes
at once. ``pretrain RECIPE --help`` shows the options that people use, ``--help-all`` all of them."""

from __future__ import annotations

import textwrap
import tomllib
from collections.abc import Callable, Sequence
from io import StringIO
from typing import Any

from rich.markup import escape

from mim_core import terminal
from mim_core.errors import MimError
from mim_core.host.described import NotPlain, Option, describe, describe_options
from mim_core.host.loading import installed
from mim_core.host.registry import Entry, Registry
from mim_core.recipes.resolve import made, role_kind
from mim_core.recipes.toml import toml_of_parts

ASKED = ("-h", "--help")
ALL = "--help-all"
OPTIONS = {
    "evaluate": ("RUN", "mim_core.commands.evaluate:EvaluateOptions"),
    "show": ("RUN", "mim_core.commands.show:ShowOptions"),
    "export": ("RUN", "mim_core.commands.export:ExportOptions"),
}
"""Commands with options of their own: what they take, and the class of their options."""
OWN = ("out", "use", "init", "dry-run", "twin")
USED = (
    "data.root",
    "masker.ratio",
    "train.epochs",
    "train.batch-size",
    "train.micro-batch",
    "train.base-lr",
    "train.workers",
    "train.device",
    "train.max-hours",
    "train.seed",
)
"""Options of a run's parts and of its training that people use."""


def help_text(program: str, plugin: str | None, command: str, arguments: Sequence[str]) -> str | None:
    """What ``--help`` says; None where the command itself must say it: a part's source does not show its options, or
    the options depend on a run."""
    if not set(arguments) & set(ASKED):
        return None
    named = arguments[0] not in ASKED
    if command in USAGE and not named:
        return USAGE[command](program, plugin)
    try:
        if command in OPTIONS and (not named or command != "evaluate"):
            takes, reference = OPTIONS[command]
            return _of_options(f"{program} {command} {takes}", reference)
        if command == "pretrain" and named and not arguments[0].endswith(".toml"):
            return _of_recipe(program, plugin, arguments)
    except NotPlain:
        return None
    return None


def _of_options(usage: str, reference: str) -> str:
    """A command's own options."""
    found = describe_options(reference)
    rows = [(f"--{option.name.replace('_', '-')}", option) for option in found.options or () if not option.positional]
    return f"usage: {usage} [OPTIONS]\n\n{_filled(found.doc)}\n\n{_table(rows)}"


def _of_recipe(program: str, plugin: str | None, arguments: Sequence[str]) -> str | None:
    """The options of a recipe that people use, with the recipe's values."""
    registry, name = installed(), arguments[0]
    try:
        entry = registry.get("recipes", f"{plugin}:{name}" if plugin and ":" not in name else name)
    except MimError:
        return None
    own = {option.name.replace("_", "-"): option for option in _options_of("mim_core.commands.options:PretrainOptions")}
    rows = [(f"--{option}", own[option]) for option in OWN]
    rows += _of_parts(entry, registry, "--twin" in arguments)
    return (
        f"usage: {program} pretrain {name} [OPTIONS]\n\n{_filled(f'{entry.card.summary} ({entry.card.paper})')}\n\n"
        f"{_table(rows)}\n\nAll options of its parts: {program} pretrain {name} {ALL}\n"
        "The same command resumes a run that was stopped."
    )


def _of_parts(entry: Entry, registry: Registry, twin: bool) -> list[tuple[str, Option]]:
    tables: dict[str, Any] = tomllib.loads(toml_of_parts(entry, registry, twin))
    parts = {role: registry.get(role_kind(role), part.name).load for role, part in made(entry, twin).parts.items()}
    rows = []
    for option in USED:
        role, _, name = option.partition(".")
        key = name.replace("-", "_")
        if role == "train":
            known = {option.name: option for option in _options_of("mim_core.recipes.config:TrainConfig")}
        else:
            known = {option.name: option for option in (describe(parts[role]).options if role in parts else ()) or ()}
        if key in known:
            found = known[key]
            rows.append((f"--{option}", Option(key, found.type, tables[role].get(key, found.default), found.help)))
    return rows


def _options_of(reference: str) -> tuple[Option, ...]:
    return describe_options(reference).options or ()


def _filled(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), terminal.WIDTH)


def _table(rows: Sequence[tuple[str, Option]]) -> str:
    """Option and type, and below them what it does and its default."""
    table = terminal.table("option", "what it does")
    table.columns[0].no_wrap = True
    for name, option in rows:
        default = "" if option.default in (None, "none", False, (), [], {}, "") else f" [dim]({option.default})[/]"
        table.add_row(escape(name), escape(" ".join(option.help.split())) + default)
    text = StringIO()
    terminal.console(file=text).print(table)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


def _recipes(plugin: str | None) -> str:
    entries = installed().of_kind("recipes", plugin)
    return ", ".join(entry.name if plugin else entry.full_name for entry in entries) or "none"


def _pretrain(program: str, plugin: str | None) -> str:
    return (
        f"usage: {program} pretrain RECIPE [OPTIONS]\n\nTrains a recipe, or a TOML file that starts from "
        f"one.\n\nrecipes: {_recipes(plugin)}\n\n"
        f"Options depend on the recipe's parts: {program} pretrain RECIPE --help\n"
        "Swap a part: --use masker=block. See what would happen: --dry-run. The same command resumes a run that was "
        "stopped."
    )


def _finetune(program: str, plugin: str | None) -> str:
    return (
        f"usage: {program} finetune RUN [OPTIONS]\n\nTrains the encoder of a pre-trained run on labels, all of its "
        "weights at one learning rate (no layer-wise decay), and tests it on held-out samples.\n\n"
        f"Options depend on the run's parts: {program} finetune RUN --help\n"
        "The same from untrained weights: --scratch. Other data: --data.root FOLDER. Another head: --method.head mlp "
        "--method.pool max. See what would happen: --dry-run. The same command resumes a run that was stopped."
    )


def _import(program: str, plugin: str | None) -> str:
    formats = ", ".join(entry.full_name for entry in installed().of_kind("importers", plugin))
    return (
        f"usage: {program} import RECIPE WEIGHTS --format NAME [OPTIONS]\n\nMakes weights of another code base a run "
        "of no step: evaluate, show, export, finetune and pretrain --init take it, and pretrain RUN/recipe.toml --out "
        "RUN trains it on. Sizes and parts are those of the weights; data and training those of the recipe.\n\n"
        f"recipes: {_recipes(plugin)}\nformats: {formats or 'none'}\n\n"
        f"Options: {program} import RECIPE --help"
    )


def _bench(program: str, plugin: str | None) -> str:
    return (
        f"usage: {program} bench RECIPE [OPTIONS]\n\nMeasures the training loop on real steps and keeps nothing: "
        f"samples per second, where the time goes,\nmemory, operations per second and their share of what the device "
        f"could do.\n\nrecipes: {_recipes(plugin)}\n\n"
        f"Options are those of pretrain, with --seconds 60 and --json: {program} bench RECIPE --help\n"
        "Without data: --use data=core:noise. Several GPUs: start it as pretrain, by torchrun."
    )


USAGE: dict[str, Callable[[str, str | None], str]] = {
    "pretrain": _pretrain,
    "finetune": _finetune,
    "import": _import,
    "bench": _bench,
}
"""Commands whose options depend on what they are given: what they say without it."""
