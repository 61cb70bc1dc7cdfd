"""What others build on, pinned by surface.txt: names, hooks, protocols, contracts, commands and their options, recipes
and parts. A change must edit that file on purpose:

    MIM_WRITE_SURFACE=1 pytest tests/surface

"Removed" lines in its diff break somebody; say in CHANGELOG.md what they should do, and raise PLUGIN_API where a hook
or a protocol breaks.
"""

import dataclasses
import difflib
import importlib
import inspect
import os
import sys
from pathlib import Path

import mim_core
import pytest
from mim_core import cli, testing
from mim_core.commands import bench
from mim_core.commands.options import option_rows, type_text
from mim_core.host import hookspecs, kinds, registry
from mim_core.host.kinds import ROLES
from mim_core.host.loading import installed
from mim_core.recipes.config import EvaluateConfig, TrainConfig
from mim_core.recipes.resolve import load_recipe
from mim_core.testing.checks import Contract

FILE = Path(__file__).parent / "surface.txt"
PLUGINS = ("core", "image", "multimodal", "pointcloud", "video")
"""Those of this repository; what else is installed is not pinned."""
PROTOCOLS = (
    *("Tokenizer", "Masker", "Target", "Encoder", "Decoder", "Method", "DataSource", "Labelled", "Picture"),
    *("Layout", "Patches", "Mask", "Draw"),
)
CONTRACTS = [Contract, *(value for name, value in vars(testing).items() if name.endswith("Contract"))]
ADVICE = (
    "The public surface is not what tests/surface/surface.txt says. If that is meant: "
    "MIM_WRITE_SURFACE=1 pytest tests/surface, read the diff, and commit it with a line in CHANGELOG.md; where a hook "
    "or a protocol breaks, raise PLUGIN_API."
)


def signature(function):
    """Parameters and what is returned, as written."""
    function = inspect.unwrap(getattr(function, "__func__", function))
    return unquoted(str(inspect.signature(function)))


def unquoted(text):
    """Without quotes, of which annotations that are text have more or fewer."""
    return text.replace("'", "").replace('"', "")


def members(cls):
    """Attributes and methods that a class adds, public ones and those that make and call it."""
    for name, hint in sorted(vars(cls).get("__annotations__", {}).items()):
        if not name.startswith("_"):
            yield unquoted(f"{name}: {hint}")
    own = ("__init__", "__len__") if not dataclasses.is_dataclass(cls) else ()
    for name, value in sorted(vars(cls).items()):
        if isinstance(value, property):
            yield f"{name}: property"
        elif callable(getattr(cls, name)) and not inspect.isclass(value) and (name[0] != "_" or name in own):
            yield f"{name}{signature(value)}"


def names():
    yield f"PLUGIN_API {mim_core.PLUGIN_API}"
    yield from (f"mim_core.{name}" for name in sorted(mim_core.__all__))
    yield from (f"mim_core.testing.{name}" for name in sorted(testing.__all__))


def hooks():
    for name, value in vars(hookspecs).items():
        if name.startswith("mim_"):
            yield f"{name}{signature(value)}"
    for cls in (registry.Register, registry.RecipeRegister, registry.EvaluationRegister):
        yield f"{cls.__name__}.__call__{signature(cls.__call__)}"
    yield from (f"Card.{line}" for line in members(registry.Card))
    yield from (f"kind {kind}: {one}" for kind, one in kinds.KINDS.items())
    yield from (f"role {role}: {kind}" for role, kind in ROLES.items())


def protocols():
    for name in PROTOCOLS:
        yield from (f"{name}.{line}" for line in members(getattr(mim_core, name)))


def contracts():
    for cls in sorted(CONTRACTS, key=lambda cls: cls.__name__):
        yield from (f"{cls.__name__}.{line}" for line in members(cls))


def programs():
    """(program, its commands) of the core and of each plugin."""
    yield "mim-core", cli.COMMANDS
    for plugin in PLUGINS[1:]:
        record = next(record for record in installed().plugins if record.name == plugin)
        more = getattr(importlib.import_module(record.module), "COMMANDS", {})
        yield f"mim-{plugin}", {**{name: cli.COMMANDS[name] for name in cli.OF_A_PLUGIN}, **more}


def options(where, cls):
    for name, kind, default, _ in option_rows(cls):
        yield f"{where} --{name} {kind} = {default}"


def commands():
    """Commands, and the options of the classes that their modules define."""
    modules = {"mim_core.commands.options"}
    for program, known in programs():
        for name, (reference, _) in known.items():
            yield f"{program} {name}"
            modules.add(reference.partition(":")[0])
    for module in sorted(modules):
        for name, cls in sorted(vars(importlib.import_module(module)).items()):
            if name.endswith("Options") and cls.__module__ == module:
                yield from options(f"{module.removeprefix('mim_core.')}.{name}", cls)
    run = load_recipe("image:mae-vit-tiny", installed())
    for field in dataclasses.fields(bench._options(run)):  # made for a run, so that no module has it
        if field.name not in (*run.parts, "train", "evaluate"):
            yield f"bench --{field.name.replace('_', '-')} = {field.default}"
    yield from options("train", TrainConfig)
    yield from options("evaluate", EvaluateConfig)


def parts():
    """Every part with its options; recipes by name."""
    for kind in kinds.KINDS:
        for entry in installed().of_kind(kind):
            if entry.plugin not in PLUGINS:
                continue
            yield f"{kind} {entry.full_name}"
            if kind in ROLES.values():
                yield from options(f"{kind} {entry.full_name}", entry.resolve().Config)


SECTIONS = {
    "names": names,
    "hooks": hooks,
    "protocols": protocols,
    "contracts": contracts,
    "commands": commands,
    "parts": parts,
}


def surface():
    return "".join(
        f"[{title}]\n" + "".join(f"{line}\n" for line in lines()) + "\n" for title, lines in SECTIONS.items()
    )


def difference(pinned, found):
    """What was added (+) and removed (-), without what stayed; empty when nothing changed."""
    lines = difflib.unified_diff(pinned.splitlines(), found.splitlines(), "pinned", "found", n=0, lineterm="")
    return "\n".join(line for line in lines if line[:1] in "+-" and line[:3] not in ("+++", "---"))


def test_the_surface_is_the_pinned_one():
    found = surface()
    if os.environ.get("MIM_WRITE_SURFACE"):
        FILE.write_text(found)
    changed = difference(FILE.read_text(), found)
    assert not changed, f"{ADVICE}\n\n{changed}"


@pytest.mark.parametrize("title", SECTIONS)
def test_a_change_in_each_section_is_seen(title, monkeypatch):
    found = surface()
    monkeypatch.setitem(SECTIONS, title, lambda whole=SECTIONS[title]: [*list(whole())[1:], "something new"])
    lines = difference(found, surface()).splitlines()
    assert "+something new" in lines
    assert sum(line.startswith("-") for line in lines) == 1


def test_what_is_pinned_is_what_people_use():
    found = surface().splitlines()
    for line in (
        "mim_core.MaskedAutoencoder",
        "mim_core.testing.PluginContract",
        "mim_register_maskers(register: Register) -> None",
        "Tokenizer.split(self, sample: Sample) -> Patches",
        "Masker.count(self, layout: Layout) -> int",
        "DataSource.read(self, index: int, key: int) -> dict[str, Tensor]",
        "mim-core doctor",
        "mim-video probe",
        "maskers core:random --ratio float = 0.75",
        "recipes image:mae-vit-base",
    ):
        assert line in found, line
    assert len(found) == len(set(found)) + found.count("") - 1, "a line is there twice"


def test_types_are_readable():
    assert type_text(tuple[int, ...]) == "tuple[int, ...]"
    assert "typing" not in surface()
    assert "<" not in surface().replace("->", "")
    assert "mim_core.host.hookspecs" in sys.modules
