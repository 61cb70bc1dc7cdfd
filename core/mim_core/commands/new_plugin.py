"""new-plugin: a complete small project for whoever writes parts of their own. Imports no torch."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import tyro
from packaging.utils import canonicalize_name
from packaging.version import Version

from mim_core.commands.options import parse
from mim_core.errors import MimError, unknown
from mim_core.host.loading import installed
from mim_core.host.registry import EXTRAS, Registry
from mim_core.terminal import tell
from mim_core.text import counted
from mim_core.version import __version__

TEMPLATES = Path(__file__).parents[1] / "templates" / "plugin"


FILES = {
    "pyproject.toml": "pyproject.toml",
    "README.md": "README.md",
    "gitignore": ".gitignore",
    "ci.yml": ".github/workflows/ci.yml",
    "init.py": "{package}/__init__.py",
    "main.py": "{package}/__main__.py",
    "plugin.py": "{package}/plugin.py",
    "data.py": "{package}/data.py",
    "tokenizer.py": "{package}/tokenizer.py",
    "masker.py": "{package}/masker.py",
    "target.py": "{package}/target.py",
    "method.py": "{package}/method.py",
    "recipes.py": "{package}/recipes.py",
    "contracts.py": "tests/test_contracts.py",
}
"""Template, less its ending ``.tmpl``, -> where it goes in the project."""
KINDS = {
    "masker": ("spans", "maskers", "MaskerContract"),
    "tokenizer": ("windows", "tokenizers", "TokenizerContract"),
    "target": ("centred", "targets", "TargetContract"),
    "data": ("waves", "data", "DataContract"),
    "method": ("pull", "methods", "MethodContract"),
}
"""What a project may be limited to -> the example's name, what its kind is called, and its contract."""
WHOLE = ("masker", "tokenizer", "target", "data", "recipe")
"""What a project has that is not limited: a recipe of its own parts, for a method of the core."""
RECIPES = {"recipe": "mae-tiny", "method": "pull-tiny"}
"""What a project has that brings a recipe -> the recipe."""


NAME = re.compile(r"mim-[a-z][a-z0-9]*(-[a-z0-9]+)*")


OURS = ("core", *EXTRAS)
"""Plugin names of mim-core's own distributions, installed or not."""


OPTION = "--into"


@dataclass(frozen=True)
class NewPluginOptions:
    """Write a small plugin project that installs, passes its tests and trains as it is: one masker, tokenizer, target,
    data source and recipe, to be replaced by your own."""

    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]
    """Of the distribution, such as mim-audio; the package is then mim_audio and the plugin audio."""
    into: str = "."
    """The folder in which the project's folder is made."""
    only: str = ""
    """Limit it to some parts: masker, tokenizer, target, data; several with commas. There is no recipe then. Or write a
    training method of your own: method, with a recipe for mim-image's sample."""


@dataclass(frozen=True)
class Names:
    """What a project is called: mim-audio, mim_audio, audio."""

    distribution: str
    package: str
    plugin: str


def new_plugin(program: str, plugin: str | None, arguments: list[str]) -> int:
    """``mim-core new-plugin NAME``.

    Raises:
        MimError: No name is given.
    """
    if not {"-h", "--help"} & set(arguments) and not _names_one(arguments):
        raise MimError(f"Which name? Usage: {program} new-plugin mim-NAME [--into FOLDER]")
    options = parse(NewPluginOptions, f"{program} new-plugin", arguments)
    names = names_of(options.name, installed())
    folder = Path(options.into) / names.distribution
    kinds = kinds_of(options.only)
    written = write_project(folder, names, kinds)
    tell(
        f"Wrote {folder}: {counted(len(written), 'file')}. The plugin is {names.plugin!r}, its package {names.package}."
    )
    tell("The licence is yours to choose: nothing was written in your name.")
    recipe = RECIPES.get(kinds[-1])
    run = f" && {names.distribution} pretrain {recipe} --twin" if recipe else ""
    tell(f'Next: cd {shlex.quote(str(folder))} && pip install -e ".[dev]" && mim-core plugins && pytest{run}')
    return 0


def _names_one(arguments: list[str]) -> bool:
    """Whether there is anything beside options; they may stand on either side of the name."""
    rest = [given for before, given in zip(["", *arguments], arguments, strict=False) if before != OPTION]
    return any(not given.startswith("-") for given in rest)


def reserved() -> set[str]:
    """Plugin names that would be mistaken for one of mim-core's own: its distributions and its extras."""
    return {*OURS, *(metadata.metadata("mim-core").get_all("Provides-Extra") or ())}


def names_of(name: str, registry: Registry) -> Names:
    """The names that follow from the distribution's.

    Raises:
        MimError: It is not a name that a plugin can have, or it is taken; says by what, and what would do.
    """
    if name == "mim":
        raise MimError("The name 'mim' belongs to another project. Say what yours is for: mim-audio, for example.")
    name = name.rstrip("/")  # a shell completes the names of folders so
    folder, last = os.path.split(name)
    if folder:
        named = last if NAME.fullmatch(last) else "mim-NAME"
        raise MimError(
            f"{name!r} is a path; a project has a name, and the folder beside it. Try: mim-core new-plugin {named} "
            f"{OPTION} {shlex.quote(folder)}"
        )
    if not NAME.fullmatch(name):
        words = re.findall(r"[a-z0-9]+", name.lower())
        words = (words[1:] if words[:1] == ["mim"] else words) or ["audio"]
        better = "-".join(words)
        guess = f" Such as: mim-{better}" if NAME.fullmatch(f"mim-{better}") and better not in reserved() else ""
        raise MimError(
            f"A plugin is named mim-WORD, in small letters, digits and single hyphens, and WORD starts with a letter; "
            f"got {name!r}.{guess}"
        )
    names = Names(name, name.replace("-", "_"), name.removeprefix("mim-"))
    if names.plugin in OURS:
        raise MimError(f"The name {name!r} belongs to mim-core's own distributions: {', '.join(OURS)}. Choose another.")
    if names.plugin in reserved():
        raise MimError(
            f'The name {name!r} would be mistaken for mim-core\'s own "mim-core[{names.plugin}]". Choose another.'
        )
    taken = [r for r in registry.plugins if names.plugin == r.name or name == canonicalize_name(r.distribution)]
    if taken:
        raise MimError(
            f"The plugin name {names.plugin!r} is taken by {taken[0].distribution} {taken[0].version}, which is "
            f"installed. Choose another name, or uninstall it. See: mim-core plugins"
        )
    if importlib.util.find_spec(names.package) is not None:
        raise MimError(f"A package {names.package!r} is installed or lies in this folder already. Choose another name.")
    return names


def kinds_of(only: str) -> tuple[str, ...]:
    """The parts that a project brings: those that are named, or all with a recipe of them.

    Raises:
        MimError: One is no such part.
    """
    chosen = [name.strip() for name in only.split(",") if name.strip()]
    for name in chosen:
        if name not in KINDS:
            raise unknown("part of a project", name, KINDS)
    return tuple(kind for kind in KINDS if kind in chosen) or WHOLE


def write_project(folder: Path, names: Names, kinds: tuple[str, ...] = WHOLE) -> list[Path]:
    """Writes every file of the project, or those of some parts.

    Raises:
        MimError: The folder holds something, or cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise MimError(f"{folder} exists and is not empty. Name another folder: --into FOLDER, or another plugin.")
    values = {**vars(names), "core": _requirement(), **_about(kinds)}
    written = []
    left_out = {f"{kind}.py" for kind in KINDS if kind not in kinds}
    left_out |= set() if kinds[-1] in RECIPES else {"recipes.py"}
    try:
        for template, place in FILES.items():
            if template in left_out:
                continue
            path = folder / place.format(package=names.package)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(_filled((TEMPLATES / f"{template}.tmpl").read_text(encoding="utf-8"), values), "utf-8")
            written.append(path)
    except OSError as error:
        raise MimError(f"Cannot write {error.filename}: {error.strerror}.") from None
    return written


def _about(kinds: tuple[str, ...]) -> dict[str, Any]:
    """What templates ask about the parts of a project."""
    parts = [KINDS[kind] for kind in kinds if kind in KINDS]
    contracts = sorted([*(part[2] for part in parts), "PluginContract"])
    helpers = ["keys", "uncovered"] if "masker" in kinds else ["uncovered"]
    about = {"kinds": kinds, "example": parts[0][0], "recipe": RECIPES.get(kinds[-1], "")}
    return {**about, "contracts": [*contracts, *helpers], "registered": [f'"{part[1]}"' for part in parts]}


def _filled(text: str, values: Mapping[str, Any]) -> str:
    """The text with each ``{{name}}`` replaced, and parts of it left out; the expressions of a workflow, which have a
    dollar in front, stay."""
    from jinja2 import Environment, StrictUndefined  # here, so that --help is quick

    kept = text.replace("${{", "\0")
    made = Environment(
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, undefined=StrictUndefined, autoescape=False
    ).from_string(kept)  # Python and TOML, no HTML
    return made.render(values).replace("\0", "${{")


def _requirement() -> str:
    """The core that the project is written for: below 1.0 a minor release may break plugins."""
    version = Version(__version__)
    if version.major:
        return f"mim-core>={version.major}.{version.minor},<{version.major + 1}"
    return f"mim-core>=0.{version.minor},<0.{version.minor + 1}"
