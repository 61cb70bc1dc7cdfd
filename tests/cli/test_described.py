"""What describe reads from the sources is what the imported parts say, for everything that is installed."""

import importlib
import inspect
import subprocess
import sys
import textwrap

import pytest
from mim_core.commands.options import option_rows
from mim_core.host import described
from mim_core.host.described import NotPlain, as_float, constant, describe
from mim_core.host.loading import installed
from mim_core.recipes.options import plain
from mim_core.recipes.resolve import load_recipe
from mim_core.recipes.toml import to_toml, toml_of_parts

FUNCTIONS = ("recipes", "finetunings", "importers", "exporters", "evaluations")
ENTRIES = [entry for entry in installed().entries if entry.kind not in FUNCTIONS]
RECIPES = [*installed().of_kind("recipes"), *installed().of_kind("finetunings")]


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: f"{entry.kind}-{entry.full_name}")
def test_a_part(entry):
    found, part = describe(entry.load), entry.resolve()
    assert found.doc == inspect.getdoc(part)
    rows = [(option.name.replace("_", "-"), option.type, str(plain(option.default))) for option in found.options]
    assert rows == [row[:3] for row in option_rows(part.Config)]
    said = {row[0].replace("-", "_"): " ".join(row[3].split()) for row in option_rows(part.Config)}
    assert all(said[option.name] in ("", " ".join(option.help.split())) for option in found.options)


@pytest.mark.parametrize("entry", RECIPES, ids=lambda entry: entry.full_name)
@pytest.mark.parametrize("twin", [False, True])
def test_a_recipe(entry, twin):
    assert toml_of_parts(entry, installed(), twin) == to_toml(
        load_recipe(entry.full_name, installed(), twin, kind=entry.kind), installed()
    )


def module(tmp_path, monkeypatch, text):
    (tmp_path / "a_described_part.py").write_text(textwrap.dedent(text))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "a_described_part", raising=False)
    importlib.invalidate_caches()
    described._module.cache_clear()


def test_options_of_base_classes_and_names_for_types_and_defaults(tmp_path, monkeypatch):
    module(
        tmp_path,
        monkeypatch,
        '''
        from typing import Literal
        Kind = Literal["a", "b"]
        FIRST = "a"
        class Base:
            """Base."""
            class Config:
                one: int = 1
                """One."""
        class Part(Base):
            class Config(Base.Config):
                kind: Kind = FIRST
                """Which."""
                range: tuple[float, float] = (1, 4 / 2)
        ''',
    )
    found = describe("a_described_part:Part")
    assert found.doc == "Base."
    assert [(o.name, o.type, o.default, o.help) for o in found.options] == [
        ("one", "int", 1, "One."),
        ("kind", "a | b", "a", "Which."),
        ("range", "tuple[float, float]", (1.0, 2.0), ""),
    ]


def test_values_by_way_of_another_module_and_of_base_classes(tmp_path, monkeypatch):
    (tmp_path / "a_front_door.py").write_text("from mim_core.data.normalise import IMAGENET_MEAN\n")
    module(
        tmp_path,
        monkeypatch,
        """
        from typing import ClassVar
        from a_front_door import IMAGENET_MEAN
        from torch import nn
        class Base(nn.Module):
            train_options: ClassVar[dict] = {"base_lr": 0.5}
        class Part(Base):
            class Config:
                mean: tuple[float, ...] = IMAGENET_MEAN
        """,
    )
    found = describe("a_described_part:Part")
    assert found.doc == "", "torch imports its own modules, which must not go in a circle"
    assert found.options[0].default == (0.485, 0.456, 0.406)
    assert constant("a_described_part:Part", "train_options") == {"base_lr": 0.5}
    with pytest.raises(NotPlain, match="has no others"):
        constant("a_described_part:Part", "others")


@pytest.mark.parametrize(
    "text",
    [
        "class Part:\n    class Config:\n        one: int = compute()\n",
        "class Part:\n    class Config(Unknown):\n        one: int = 1\n",
        "Part = make()\n",
        "class Part(:\n",
    ],
)
def test_what_is_not_plain_is_not_guessed(tmp_path, monkeypatch, text):
    module(tmp_path, monkeypatch, text)
    with pytest.raises(NotPlain):
        describe("a_described_part:Part")


def test_whole_numbers_are_floats_where_floats_are_meant():
    assert [type(as_float(1, kind)) for kind in ("float", "float | None", "int", "int | float", "bool")] == [
        float,
        float,
        int,
        int,
        int,
    ]
    assert as_float((1, 2), "tuple[float, ...]") == (1.0, 2.0)


def test_describe_imports_no_torch():
    names = [entry.full_name for entry in [*ENTRIES, RECIPES[0]]]
    script = f"""
import sys
from mim_core.cli import main
assert not any(main(["describe", name]) for name in {names!r})
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
