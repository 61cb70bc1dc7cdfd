"""Command-line options out of dataclasses, by tyro."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import textwrap
import types
import typing
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro

from mim_core.errors import MimError, unknown
from mim_core.host.registry import Registry
from mim_core.recipes.config import ResolvedRun
from mim_core.recipes.options import plain
from mim_core.recipes.resolve import swap
from mim_core.terminal import escaped_output

T = TypeVar("T")


def parse(cls: type[T], program: str, arguments: list[str], default: T | None = None) -> T:
    """The options of a command. A misspelt one is an error with the nearest name, exit code 2."""
    extra: dict[str, Any] = {} if default is None else {"default": default}
    arguments = ["--help" if argument == "--help-all" else argument for argument in arguments]
    with escaped_output():
        return tyro.cli(cls, prog=program, args=arguments, description=inspect.getdoc(cls), **extra)


def take_name(arguments: list[str], what: str, hint: str) -> tuple[str, list[str]]:
    """The first argument, which names something, and the rest.

    Raises:
        MimError: It is missing.
    """
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in ("-h", "--help")):
        raise MimError(f"Which {what}? {hint}")
    return arguments[0], arguments[1:]


def full_recipe_name(name: str, plugin: str | None, registry: Registry) -> str:
    """The full name of a recipe; a plugin's own script knows its recipes by their short names.

    Raises:
        MimError: There is no such recipe, or it is another plugin's.
    """
    if plugin is None:
        return registry.get("recipes", name).full_name
    if ":" not in name:
        own = {entry.name for entry in registry.of_kind("recipes", plugin)}
        if name not in own:
            matches = [entry.full_name for entry in registry.of_kind("recipes") if entry.name == name]
            elsewhere = f"Another plugin has it: mim-core pretrain {matches[0]}" if matches else ""
            raise unknown("recipe", name, own, elsewhere)
        return f"{plugin}:{name}"
    if not name.startswith(f"{plugin}:"):
        raise MimError(f"mim-{plugin} has only its own recipes; use: mim-core pretrain {name}")
    return name


def used(arguments: list[str]) -> list[tuple[str, str]]:
    """(role, name) of every ``--use ROLE=NAME``, which changes what other options there are, and so is read first.

    Raises:
        MimError: The role or the name is missing.
    """
    choices = []
    for i, argument in enumerate(arguments):
        text = argument.partition("=")[2] if argument.startswith("--use=") else None
        if argument == "--use":
            text = arguments[i + 1] if i + 1 < len(arguments) else ""
        if text is None:
            continue
        role, _, name = text.partition("=")
        if not role or not name:
            raise MimError(f"--use takes ROLE=NAME, such as --use masker=block; got {text!r}.")
        choices.append((role, name))
    return choices


def stated(arguments: list[str]) -> frozenset[str]:
    """The options of parts and of training that a command line states, such as train.batch_size."""
    names = (argument[2:].partition("=")[0] for argument in arguments if argument.startswith("--"))
    return frozenset(name.replace("-", "_") for name in names if "." in name)


def swap_all(run: ResolvedRun, arguments: list[str], registry: Registry) -> ResolvedRun:
    """The run with every ``--use`` applied."""
    for role, name in used(arguments):
        run = swap(run, role, name, registry)
    return run


@dataclasses.dataclass(frozen=True)
class PretrainOptions:
    """Options of the run itself; those of its parts follow."""

    out: Path | None = None
    """Folder of the run; runs/RECIPE by default, or runs/RECIPE-twin. One that holds a checkpoint resumes."""
    use: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Another part in a role: --use masker=block. May be given several times. The name none takes a role out: of
    several heads one (--use depth.target=none), of several tokenizers one with its heads (--use
    depth.tokenizer=none)."""
    init: Path | None = None
    """Start from the weights of this run, of an export, or of a plain ViT of any code base (timm, transformers, DINO,
    MAE), whose encoder is taken; timm:NAME takes what timm has on this disk. Whole methods of other code bases: see
    init-format."""
    init_format: str | None = None
    """The other code base, by its importer's name. See: mim-core list importers."""
    dry_run: bool = False
    """Print the plan and stop."""
    plan_for: str | None = None
    """With --dry-run: hours and memory on devices that are not here too, such as h100:8; from counted operations."""
    twin: bool = False
    """The recipe's small twin, for trying things out."""
    quiet: bool = False
    """No progress."""


def command_class(run: ResolvedRun, own: type[Any] = PretrainOptions, what: str = "Pre-train") -> type[Any]:
    """A dataclass with the command's own options, those of training, of evaluation and of every part, with the run's
    values as defaults."""
    hints = hints_of(own)
    fields: list[Any] = [(f.name, hints[f.name], dataclasses.field(default=f.default)) for f in dataclasses.fields(own)]
    for name, content in _tree(run).items():
        if isinstance(content, dict):
            inner = dataclasses.make_dataclass(
                f"{name.title()}Options",
                [(n, type(v), dataclasses.field(default=v)) for n, v in content.items()],
                frozen=True,
            )
            fields.append((name, inner, dataclasses.field(default_factory=inner)))
        else:
            fields.append((name, type(content), dataclasses.field(default=content)))
    cls = dataclasses.make_dataclass("Pretrain", fields, frozen=True)
    cls.__doc__ = f"{what} {run.recipe}."
    return cls


def with_data(own: type[T], data: Any, **given: Any) -> T:
    """A command's own options, and under ``data`` those of a run's data source with the run's values."""
    hint: Any = Annotated[type(data), tyro.conf.arg(help="Options of the data; the run's by default.")]
    more = [("data", hint, dataclasses.field(default=data))]
    cls = dataclasses.make_dataclass(own.__name__, more, bases=(own,), frozen=True)
    cls.__doc__ = own.__doc__
    made: T = cls(**given)
    return made


def hints_of(cls: type) -> dict[str, Any]:
    """Types with tyro's help taken from the strings below the fields, which a made dataclass would lose."""
    hints = typing.get_type_hints(cls, include_extras=True)
    tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
    for field, text in itertools.pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
            help_text = " ".join(ast.literal_eval(text.value).split())
            hints[field.target.id] = Annotated[hints[field.target.id], tyro.conf.arg(help=help_text)]
    return hints


def _tree(run: ResolvedRun) -> dict[str, Any]:
    """Options by role; roles with a scope in a dict of their own."""
    tree: dict[str, Any] = {}
    for role, part in run.parts.items():
        scope, _, last = role.rpartition(".")
        if scope:
            tree.setdefault(scope, {})[last] = part.options
        else:
            tree[role] = part.options
    return {**tree, "train": run.train, "evaluate": run.evaluate}


def apply(run: ResolvedRun, chosen: Any) -> ResolvedRun:
    """The run with the options that the command line gave."""
    parts = {}
    for role, part in run.parts.items():
        value = chosen
        for name in role.split("."):
            value = getattr(value, name)
        parts[role] = dataclasses.replace(part, options=value)
    return dataclasses.replace(run, parts=parts, train=chosen.train, evaluate=chosen.evaluate)


def type_text(hint: Any) -> str:
    """A type as people read it: the choices of a literal, ``tuple[float, float]``, ``Path | None``."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return type_text(arguments[0])
    if origin is typing.Literal:
        return " | ".join(map(str, arguments))
    if origin in (typing.Union, types.UnionType):
        return " | ".join(map(type_text, arguments))
    if origin is not None:
        inner = ", ".join("..." if argument is Ellipsis else type_text(argument) for argument in arguments)
        return f"{origin.__name__}[{inner}]"
    return "None" if hint is type(None) else getattr(hint, "__name__", str(hint))


def option_rows(cls: type) -> list[tuple[str, str, str, str]]:
    """(name, type, default, help) of every option of a dataclass, for ``describe``."""
    hints = hints_of(cls)
    rows = []
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        note = next((getattr(m, "help", "") for m in getattr(hint, "__metadata__", ())), "") or ""
        kind = type_text(hint)
        default = field.default if field.default is not dataclasses.MISSING else "{}"
        rows.append((field.name.replace("_", "-"), kind, str(plain(default)), note))
    return rows
