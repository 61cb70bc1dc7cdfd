"""What every plugin keeps to: all that can be checked of one from its registration alone.

    class TestMine(PluginContract):
        plugin = "mine"  # the entry point's name

Without a file of one's own, `mim_core.testing.suite` has the same checks, and every recipe's `MethodContract`:

    MIM_PLUGIN=mine pytest --pyargs mim_core.testing.suite
"""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, ClassVar

import torch

from mim_core.errors import MimError
from mim_core.host.kinds import KINDS, base_of
from mim_core.host.loading import discover, installed
from mim_core.host.registry import LETTERS, Entry, PluginRecord, Registry
from mim_core.methods.build import build_method
from mim_core.methods.method import Method
from mim_core.parts.teacher import Teacher
from mim_core.parts.tokenizer import Tokenizer
from mim_core.recipes.config import ResolvedPart, ResolvedRun, RunConfig
from mim_core.recipes.resolve import load_recipe
from mim_core.recipes.toml import from_toml, to_toml
from mim_core.testing.checks import saying
from mim_core.training.loop import start, train

HEAVY = ("torch", "timm", "torchvision", "transformers")
"""What the plugin module must not import: ``mim-core plugins`` imports it."""


IMPORTS = """import importlib, sys, torch
import mim_core.methods.build, mim_core.training.loop, mim_core.evaluation.report
from mim_core.host import process_state
for module in sys.argv[1:]:
    before = process_state.read()
    try:
        importlib.import_module(module)
    except Exception as error:
        sys.exit(f"{module} cannot be imported: {type(error).__name__}: {error}")
    changed = process_state.settle(before)
    if changed:
        sys.exit(f"importing {module} changes global state: " + "; ".join(changed))
"""
"""A program that imports modules as a run does, and ends with a sentence on the first that changes something."""


class PluginContract:
    """What every plugin keeps to.

    Attributes:
        plugin: Its name, as the entry point has it.
        steps: Optimizer steps that every recipe's twin is trained.
    """

    plugin: ClassVar[str] = ""
    steps: ClassVar[int] = 3

    def registry(self) -> Registry:
        """Where the plugin is looked up."""
        return installed()

    def record(self) -> PluginRecord:
        """The plugin as it was found."""
        records = [record for record in self.registry().plugins if record.name == self.plugin]
        known = ", ".join(sorted(record.name for record in self.registry().plugins))
        assert records, f"no plugin {self.plugin!r} is installed; there are: {known}"
        return records[0]

    def entries(self, kind: str | None = None) -> list[Entry]:
        """What it brings."""
        kinds = KINDS if kind is None else (kind,)
        return [entry for kind in kinds for entry in self.registry().of_kind(kind, self.plugin)]

    def test_it_is_found_and_loaded(self) -> None:
        """Its entry point is announced once, and loading it neither failed nor changed anything that others share."""
        record = self.record()
        assert not record.failure, f"{record.distribution} failed to load: {record.failure}\n{record.traceback}"
        assert not record.disabled, f"{self.plugin!r} is switched off by MIM_CORE_PLUGINS or MIM_CORE_DISABLE"
        announced = [candidate for candidate in discover() if candidate.name == self.plugin]
        assert len(announced) == 1, f"{len(announced)} entry points of group mim_core are named {self.plugin!r}"
        assert not record.faults, f"{record.distribution} {' '.join(record.faults)}"
        assert self.entries(), f"{self.plugin!r} registers nothing"

    def test_listing_it_imports_nothing_heavy(self) -> None:
        """Its plugin module imports no torch, so that listing is quick."""
        module = self.record().module
        code = f"import sys, importlib; importlib.import_module({module!r}); print(*sys.modules)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{module} cannot be imported by itself: {done.stderr}"
        heavy = sorted(set(HEAVY) & set(done.stdout.split()))
        assert not heavy, f"{module} imports {', '.join(heavy)}; register lazy references, and import there"

    def test_names_and_cards(self) -> None:
        """Names are lower-case, and every part has a card with a sentence about it."""
        for entry in self.entries():
            odd = sorted(set(entry.name) - LETTERS)
            assert not odd, f"{entry.full_name}: names hold lower-case letters, digits, '-' and '.'; not {odd}"
            summary = entry.card.summary.strip()
            assert summary, f"{entry.full_name} has no summary"
            assert summary.endswith("."), f"the summary of {entry.full_name} is no sentence: {summary!r}"

    def test_everything_resolves(self) -> None:
        """Every reference leads to what its kind promises, with a frozen ``Config`` whose options all have defaults."""
        for entry in self.entries():
            with saying(f"{entry.full_name} cannot be used"):
                part: Any = entry.resolve()
            if base_of(entry.kind) is not None:
                assert part.Config.__dataclass_params__.frozen, f"the Config of {entry.full_name} is not frozen"
                with saying(f"the options of {entry.full_name} cannot be their defaults"):
                    part.Config()

    def test_parts_change_nothing_shared(self) -> None:
        """Importing the modules of its parts, one after the other in a process of their own, changes nothing that
        others share: torch's defaults, seeds, logging, the working folder, the environment."""
        modules = dict.fromkeys(entry.load.partition(":")[0] for entry in self.entries())
        done = subprocess.run([sys.executable, "-c", IMPORTS, *modules], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr.strip().splitlines()[-1]

    def test_recipes_build(self) -> None:
        """Every recipe returns a `RunConfig` that builds, at full size on the meta device; so does its twin. A recipe
        whose teacher, or trained tokenizer, only a user can name says so."""
        for entry in self.entries("recipes"):
            assert entry.twin, f"the recipe {entry.full_name} names no twin"
            assert isinstance(entry.resolve()(), RunConfig), f"{entry.full_name} returns no RunConfig"
            for twin in (False, True):
                run = load_recipe(entry.full_name, self.registry(), twin=twin)
                if waits := [role for role, part in run.parts.items() if _waits(part)]:
                    assert waits[0] in _refusal(run, self.registry()), f"{entry.full_name} does not say what it lacks"
                    continue
                with torch.device("meta"):
                    method = build_method(run, self.registry())
                assert isinstance(method, Method), f"{entry.full_name} builds a {type(method).__name__}"

    def test_recipes_survive_toml(self) -> None:
        """A recipe written as ``recipe.toml`` is read as the same run."""
        for entry in self.entries("recipes"):
            for twin in (False, True):
                run = load_recipe(entry.full_name, self.registry(), twin=twin)
                self.check_same(entry, run, from_toml(to_toml(run, self.registry()), self.registry()))

    def check_same(self, entry: Entry, run: ResolvedRun, again: ResolvedRun) -> None:
        """Two runs have the same parts and options."""
        differ = [role for role in {*run.parts, *again.parts} if run.parts.get(role) != again.parts.get(role)]
        differ += [name for name in ("train", "evaluate", "recipe") if getattr(run, name) != getattr(again, name)]
        assert not differ, f"{entry.full_name} comes back from recipe.toml with another {', '.join(sorted(differ))}"

    def test_twins_train(self) -> None:
        """A few steps of every twin under the loop: finite losses, and a ``recipe.toml`` that repeats the run."""
        for entry in self.entries("recipes"):
            run = load_recipe(entry.full_name, self.registry(), twin=True)
            run = dataclasses.replace(run, train=dataclasses.replace(run.train, workers=0, log_every=1))
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name) / "run"
                begun = start(run, folder, self.registry())
                begun.steps = self.steps
                assert train(begun, quiet=True), f"the twin of {entry.full_name} stopped after {begun.step} steps"
                lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
                losses = [line["loss"] for line in lines]
                assert len(losses) == self.steps, f"the twin of {entry.full_name} logged {len(losses)} steps"
                assert all(map(math.isfinite, losses)), f"the twin of {entry.full_name} has losses {losses}"
                text = (folder / "recipe.toml").read_text()
            assert self.record().distribution in text, f"recipe.toml does not name {self.record().distribution}"
            self.check_same(entry, begun.config, from_toml(text, self.registry()))  # with what its data learned


def _waits(part: ResolvedPart) -> bool:
    """Whether a part is a teacher, or a tokenizer that a run has trained, whose run or weights nobody has named."""
    named = [getattr(part.options, name, None) for name in ("run", "weights", "parts")]
    return issubclass(part.cls, (Teacher, Tokenizer)) and hasattr(part.options, "run") and not any(named)


def _refusal(run: ResolvedRun, registry: Registry) -> str:
    """What is said of a run that cannot be built."""
    try:
        build_method(run, registry)
    except MimError as error:
        return str(error)
    return ""
