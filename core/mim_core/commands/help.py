"""What ``--help`` says of a command. Options are read from the sources, so that no torch is imported: the answer comes
at once. ``pretrain RECIPE --help`` shows the options that people use, ``--help-all`` all of them."""

from __future__ import annotations

import textwrap
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from rich.markup import escape

from mim_core import terminal
from mim_core.errors import MimError
from mim_core.host.described import NotPlain, Option, constant, describe, describe_options
from mim_core.host.kinds import ROLES, role_kind
from mim_core.host.loading import installed
from mim_core.host.registry import Entry, Registry
from mim_core.recipes.fine_tuning import METHOD, TRAINING, recipe_entry
from mim_core.recipes.options import NONE
from mim_core.recipes.toml import parsed, toml_of_parts

ASKED = ("-h", "--help")
ALL = "--help-all"
OPTIONS = {
    "evaluate": ("RUN", "mim_core.commands.evaluate:EvaluateOptions"),
    "show": ("RUN", "mim_core.commands.show:ShowOptions"),
    "embed": ("RUN", "mim_core.commands.embed:EmbedOptions"),
    "predict": ("RUN", "mim_core.commands.predict:PredictOptions"),
    "export": ("", "mim_core.commands.export:ExportOptions"),
    "plugins": ("", "mim_core.commands.installed:PluginsOptions"),
    "list": ("", "mim_core.commands.installed:ListOptions"),
    "describe": ("", "mim_core.commands.installed:DescribeOptions"),
    "new-plugin": ("", "mim_core.commands.new_plugin:NewPluginOptions"),
    "doctor": ("", "mim_core.commands.doctor:DoctorOptions"),
}
"""Commands with options of their own: what they take before what their options say, and the class of these."""
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
RECIPE = "recipe.toml"
"""A run's own recipe."""
OF_RECIPES = ("pretrain", "bench", "import")
"""Commands that take a recipe first."""
HEAD = ("method.head", "method.pool", "method.label-smoothing", "method.balance")
"""Options of `core:classifier` that people use."""
SECTIONS = {
    "train": "mim_core.recipes.config:TrainConfig",
    "evaluate": "mim_core.recipes.config:EvaluateConfig",
    "pretrain": "mim_core.commands.options:PretrainOptions",
    "finetune": "mim_core.commands.finetune:FinetuneOptions",
    "finetune-recipe": "mim_core.commands.finetune_recipes:RecipeOptions",
    "import": "mim_core.commands.import_weights:ImportOptions",
    "bench": "mim_core.commands.bench:BenchOptions",
}
"""Options that are no part's, and those of the commands that take a run's: where their class is."""
Tables = dict[str, Any]
"""A recipe as in its file: a table for each role, and for training and evaluation."""


def help_text(program: str, plugin: str | None, command: str, arguments: Sequence[str]) -> str | None:
    """What ``--help`` says; None where the command itself must say it: a part's source does not show its options, or
    no such run is there.

    Raises:
        MimError: There is no such recipe.
    """
    if not set(arguments) & set(ASKED):
        return None
    named = arguments[0] not in ASKED
    if command in USAGE and not named:
        return _filled(USAGE[command](program, plugin))
    try:
        if command in OPTIONS and (not named or command not in WITH_PARTS):
            takes, reference = OPTIONS[command]
            return _of_options(f"{program} {command}", reference, takes)
        return WITH_PARTS[command](program, plugin, arguments) if named and command in WITH_PARTS else None
    except (NotPlain, MimError):  # the command says it better
        if command in OF_RECIPES and not arguments[0].endswith(".toml") and not (Path(arguments[0]) / RECIPE).is_file():
            from mim_core.commands.options import full_recipe_name  # and tyro, which no other help needs

            full_recipe_name(arguments[0], plugin, installed())  # a misspelt name is said without torch
        return None


def help_of_own(program: str, command: str, reference: str) -> str | None:
    """What ``--help`` says of a plugin's own command ``module:function``; None where the command itself must say it:
    the options of ``to-images`` are not in a class ``ToImagesOptions`` of that module."""
    name = "".join(word.capitalize() for word in command.split("-"))
    try:
        return _of_options(f"{program} {command}", f"{reference.partition(':')[0]}:{name}Options")
    except NotPlain:
        return None


def _of_options(usage: str, reference: str, named: str = "") -> str:
    """A command's own options; ``named`` is what it takes before those that have a place and no name."""
    spec = describe_options(reference)
    takes = [(option.metavar or option.name.upper(), option) for option in spec.options or () if option.positional]
    rows = [(f"--{option.name.replace('_', '-')}", option) for option in spec.options or () if not option.positional]
    takes = [*[(named, Option(named, "Path", None, "Folder of the run."))] * bool(named), *takes]
    usage = " ".join([usage, *(name for name, _ in takes)])
    return f"usage: {usage} [OPTIONS]\n\n{_filled(spec.doc)}\n\n{_table([*takes, *rows])}"


def _pretrain_with(program: str, plugin: str | None, arguments: Sequence[str]) -> str:
    """The options of a recipe, or of a file, that people use, with its values."""
    tables, title = _recipe(arguments[0], plugin, "--twin" in arguments)
    rows = [*_of_section("pretrain", OWN), *_of_parts(_swapped(tables, arguments), USED)]
    return (
        f"{_usage(f'{program} pretrain {arguments[0]}')}\n\n{_filled(title)}\n\n{_table(rows)}\n\n"
        f"{_all_of(f'{program} pretrain {arguments[0]}')}\n"
        "The same command resumes a run that was stopped."
    )


def _bench_with(program: str, plugin: str | None, arguments: Sequence[str]) -> str:
    tables, _ = _recipe(arguments[0], plugin, "--twin" in arguments)
    tables, title = _swapped(tables, arguments), describe_options(SECTIONS["bench"]).doc
    own = [*_of_section("bench"), *_of_section("pretrain", ("use", "dry-run", "twin"))]
    return (
        f"{_usage(f'{program} bench {arguments[0]}')}\n\n{_filled(title)}\n\n"
        f"{_table([*own, *_of_parts(tables, USED)])}\n\n"
        f"{_all_of(f'{program} bench {arguments[0]}')}"
    )


def _import_with(program: str, plugin: str | None, arguments: Sequence[str]) -> str:
    """Sizes and parts are those of the weights: of the recipe's parts only the data have options."""
    tables, _ = _recipe(arguments[0], plugin, False)
    used = [name for name in USED if not name.startswith("masker.")]
    title = f"Weights of another code base as a run, with the data and training of {arguments[0]}."
    return (
        f"{_usage(f'{program} import {arguments[0]} WEIGHTS --format NAME')}\n\n{_filled(title)}\n\n"
        f"{_table([*_of_section('import'), *_of_parts(tables, used)])}\n\n"
        f"{_all_of(f'{program} import {arguments[0]}')}"
    )


def _finetune_with(program: str, plugin: str | None, arguments: Sequence[str]) -> str | None:
    """The options of training a run on labels, and all of another method's; or of a fine-tuning recipe."""
    registry = installed()
    entry = recipe_entry(arguments[0], plugin, registry)
    if entry is not None:
        return _finetuning_with(program, entry, registry, arguments)
    tables = _of_run(arguments[0])
    if "init" in tables["method"]:
        return None
    train = {name: value for name, value in tables["train"].items() if name in ("workers", "device", "seed")}
    tables = _swapped({**tables, "method": {"use": METHOD}, "train": {**train, **TRAINING}}, arguments)
    head: Sequence[str] = HEAD
    if tables["method"]["use"] != METHOD:
        tables["train"].update(constant(_reference("method", tables["method"]["use"]), "train_options"))
        head = [f"method.{name}" for name in _known(tables, "method") if name != "init"]
    rows = [*_of_section("finetune"), *_of_parts(tables, (*head, *USED[:1], *USED[2:]))]
    return (
        f"{_usage(f'{program} finetune {arguments[0]}')}\n\nTrain on labels: the encoder of "
        f"{arguments[0]}.\n\n{_table(rows)}\n\n{_all_of(f'{program} finetune {arguments[0]}')}\n"
        "The same command resumes a run that was stopped."
    )


def _finetuning_with(program: str, entry: Entry, registry: Registry, arguments: Sequence[str]) -> str:
    """The options of a fine-tuning recipe that people use, with its values."""
    tables = _swapped(_of_entry(entry, registry, "--twin" in arguments), arguments)
    used = [*HEAD, *USED[:1], *USED[2:]] if tables["method"]["use"] == METHOD else [*USED[:1], *USED[2:]]
    rows = [*_of_section("finetune-recipe"), *_of_parts(tables, used)]
    return (
        f"{_usage(f'{program} finetune {arguments[0]}')}\n\n{_filled(f'{entry.card.summary} ({entry.card.paper})')}"
        f"\n\n{_table(rows)}\n\n{_all_of(f'{program} finetune {arguments[0]}')}\n"
        "The same command resumes a run that was stopped."
    )


def _evaluate_with(program: str, plugin: str | None, arguments: Sequence[str]) -> str:
    """The options of judging a run, and all of its data's."""
    return _of_a_run("evaluate", program, arguments[0], "evaluate", "data")


def _show_with(program: str, plugin: str | None, arguments: Sequence[str]) -> str:
    """The options of looks and reports, and all of the run's data's where the run is there."""
    try:
        return _of_a_run("show", program, arguments[0], "data")
    except (NotPlain, MimError):
        return _of_options(f"{program} show", OPTIONS["show"][1], "RUN")


def _embed_with(program: str, plugin: str | None, arguments: Sequence[str]) -> str:
    """The options of features of files, and all of the run's data's."""
    return _of_a_run("embed", program, f"{arguments[0]} INPUT", "data")


def _predict_with(program: str, plugin: str | None, arguments: Sequence[str]) -> str:
    """The options of answers about files, and all of the run's data's."""
    return _of_a_run("predict", program, f"{arguments[0]} INPUT", "data")


def _of_a_run(command: str, program: str, takes: str, *roles: str) -> str:
    """A command's own options, and all of these roles of the run that it takes first."""
    tables = _of_run(takes.removesuffix(" INPUT"))
    spec = describe_options(OPTIONS[command][1])
    own = [(f"--{option.name.replace('_', '-')}", option) for option in spec.options or () if option.name != "input"]
    more = [f"{role}.{option.name}" for role in roles for option in _known(tables, role).values()]
    return (
        f"usage: {program} {command} {takes} [OPTIONS]\n\n{_filled(spec.doc)}\n\n"
        f"{_table([*own, *_of_parts(tables, more)])}"
    )


WITH_PARTS: dict[str, Callable[[str, str | None, Sequence[str]], str | None]] = {
    "pretrain": _pretrain_with,
    "bench": _bench_with,
    "import": _import_with,
    "finetune": _finetune_with,
    "evaluate": _evaluate_with,
    "show": _show_with,
    "embed": _embed_with,
    "predict": _predict_with,
}
"""Commands whose options are also those of a recipe's or a run's parts: what they say with it."""


def _recipe(name: str, plugin: str | None, twin: bool) -> tuple[Tables, str]:
    """A recipe's parts and options, and what it is; of a TOML file those of its recipe, changed as it says."""
    registry = installed()
    if not name.endswith(".toml"):
        entry = registry.get("recipes", f"{plugin}:{name}" if plugin and ":" not in name else name)
        return _of_entry(entry, registry, twin), f"{entry.card.summary} ({entry.card.paper})"
    values = _read(Path(name))
    entry = registry.get("recipes", str(values.get("recipe")))
    tables = _of_entry(entry, registry, False)
    for role in {*ROLES, "train", "evaluate"} & {*values}:
        own = {key.replace("-", "_"): value for key, value in values[role].items()}
        other = "use" in own and _full_name(role, own["use"]) != tables.get(role, {}).get("use")
        tables[role] = own if other else {**tables.get(role, {}), **own}
    return tables, f"{name}, which starts from {entry.full_name}."


def _of_entry(entry: Entry, registry: Registry, twin: bool) -> Tables:
    tables: Tables = tomllib.loads(toml_of_parts(entry, registry, twin))
    return tables


def _of_run(name: str) -> Tables:
    tables = _read(Path(name) / RECIPE)
    if not {"method", "data", "train", "evaluate"} <= {*tables}:
        raise NotPlain(f"{name} is not a run of all parts")
    return tables


def _swapped(tables: Tables, arguments: Sequence[str]) -> Tables:
    """The tables with every ``--use`` applied: another part has options of its own.

    Raises:
        NotPlain: A role is taken out or added, which may change what other roles there are.
        MimError: There is no such part.
    """
    if not any(argument.startswith("--use") for argument in arguments):
        return tables
    from mim_core.commands.options import used  # and tyro, which no other help needs

    changed = dict(tables)
    for role, name in used([*arguments]):
        if role not in ROLES or role not in tables or name == NONE:
            raise NotPlain(f"--use {role}={name}")
        full = _full_name(role, name)
        if full != changed[role].get("use"):
            changed[role] = {"use": full}
    return changed


def _read(path: Path) -> Tables:
    """A recipe's file.

    Raises:
        NotPlain: It cannot be read, or holds something else than a table for a role.
    """
    try:
        tables: Tables = parsed(path.read_text(), path)
    except (OSError, ValueError) as error:
        raise NotPlain(f"{path}: {error}") from error
    if not all(isinstance(tables[role], dict) for role in {*ROLES, "train", "evaluate"} & {*tables}):
        raise NotPlain(f"{path} has no table for each role")
    return tables


def _reference(role: str, name: object) -> str:
    return installed().get(role_kind(role), str(name)).load


def _full_name(role: str, name: str) -> str:
    return installed().get(role_kind(role), str(name)).full_name


def _known(tables: Tables, role: str) -> Mapping[str, Option]:
    """The options of a role by name; none where the role is empty."""
    if role in SECTIONS:
        spec = describe_options(SECTIONS[role])
    elif role in tables:
        spec = describe(_reference(role, tables[role].get("use")))
    else:
        return {}
    return {option.name: option for option in spec.options or ()}


def _of_parts(tables: Tables, names: Iterable[str]) -> list[tuple[str, Option]]:
    """Options such as "masker.ratio", with the values of the tables; those that a part does not have are left out."""
    rows = []
    for role, _, name in (text.partition(".") for text in names):
        key = name.replace("-", "_")
        option = _known(tables, role).get(key)
        if option is not None:
            value = tables[role].get(key, option.default)
            rows.append((f"--{role}.{key.replace('_', '-')}", Option(key, option.type, value, option.help)))
    return rows


def _of_section(section: str, names: Sequence[str] | None = None) -> list[tuple[str, Option]]:
    """A command's own options, all or these, in this order."""
    known = {name.replace("_", "-"): option for name, option in _known({}, section).items() if not option.positional}
    return [(f"--{name}", known[name]) for name in names or known]


def _usage(command: str) -> str:
    """The first line; a long one goes on below itself."""
    indent = " " * len("usage: ")
    return textwrap.fill(
        f"usage: {command} [OPTIONS]",
        terminal.WIDTH,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _all_of(command: str) -> str:
    """Where the other options are; the command stays in one piece."""
    said, command = "All options of its parts:", f"{command} {ALL}"
    return f"{said} {command}" if len(f"{said} {command}") <= terminal.WIDTH else f"{said}\n  {command}"


def _filled(text: str) -> str:
    """Paragraphs as wide as a table; names and commands stay in one piece."""
    return "\n\n".join(
        textwrap.fill(" ".join(paragraph.split()), terminal.WIDTH, break_long_words=False, break_on_hyphens=False)
        for paragraph in text.split("\n\n")
    )


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
        f"Options depend on the recipe's parts: {program} pretrain RECIPE --help\n\n"
        "Swap a part: --use masker=block. See what would happen: --dry-run. The same command resumes a run that was "
        "stopped."
    )


def _finetune(program: str, plugin: str | None) -> str:
    return (
        f"usage: {program} finetune RUN|RECIPE [OPTIONS]\n\nTrains the encoder of a pre-trained run on labels, all of "
        "its weights at one learning rate, and tests it on held-out samples. As a paper does it: --recipe "
        "RECIPE. From published weights: finetune RECIPE --init WEIGHTS. Such recipes: mim-core list "
        "finetunings\n\n"
        f"Options depend on the run's parts: {program} finetune RUN --help\n\n"
        "The same from untrained weights: --scratch. Other data: --data.root FOLDER. Another head: --method.head mlp "
        "--method.pool max. See what would happen: --dry-run. The same command resumes a run that was stopped."
    )


def _import(program: str, plugin: str | None) -> str:
    formats = ", ".join(entry.full_name for entry in installed().of_kind("importers", plugin))
    return (
        f"usage: {program} import RECIPE WEIGHTS --format NAME [OPTIONS]\n\nMakes weights of another code base a run "
        "of no step: evaluate, show, export, finetune and pretrain --init take it, and pretrain RUN/recipe.toml --out "
        "RUN trains it on. Sizes and parts are those of the weights; data and training those of the recipe.\n\n"
        f"recipes: {_recipes(plugin)}\n\nformats: {formats or 'none'}\n\n"
        f"Options: {program} import RECIPE --help"
    )


def _bench(program: str, plugin: str | None) -> str:
    return (
        f"usage: {program} bench RECIPE [OPTIONS]\n\nMeasures the training loop on real steps and keeps nothing: "
        f"samples per second, where the time goes, memory, operations per second and their share of what the device "
        f"could do.\n\nrecipes: {_recipes(plugin)}\n\n"
        f"Options are those of pretrain, with --seconds 60 and --json: {program} bench RECIPE --help\n\n"
        "Without data: --use data=core:noise. Several GPUs: start it as pretrain, by torchrun."
    )


USAGE: dict[str, Callable[[str, str | None], str]] = {
    "pretrain": _pretrain,
    "finetune": _finetune,
    "import": _import,
    "bench": _bench,
}
"""Commands whose options depend on what they are given: what they say without it."""
