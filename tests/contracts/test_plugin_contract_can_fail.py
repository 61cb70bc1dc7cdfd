"""Plugins that are wrong on purpose: each must fail the check that is there for it, and every check has one."""

import os
import sys
from dataclasses import dataclass, field, replace
from types import ModuleType

import pytest
from mim_core.errors import MimError
from mim_core.host.loading import installed
from mim_core.host.registry import Card, Entry, PluginRecord, Registry
from mim_core.parts.masker import Masker, RandomMasker
from mim_core.recipes.config import Part, RunConfig, TrainConfig
from mim_core.testing import PluginContract

NAME = "wrong"
HERE = "a_wrong_plugin"


class Thawed(RandomMasker):
    @dataclass
    class Config:
        ratio: float = 0.5


class NoDefault(RandomMasker):
    @dataclass(frozen=True)
    class Config:
        ratio: float


class NoHide(Masker):
    @dataclass(frozen=True)
    class Config:
        ratio: float = 0.5

    def count(self, layout):
        return layout.count // 2


class Odd(RandomMasker):
    @dataclass(frozen=True)
    class Config:
        ratio: float = 0.5

        def __post_init__(self):
            raise ValueError("odd")


class Table(RandomMasker):
    """An empty table is not written, so that its default comes back."""

    @dataclass(frozen=True)
    class Config(RandomMasker.Config):
        weights: dict[str, float] = field(default_factory=lambda: {"a": 1.0})


def recipe(**parts):
    """A recipe on noise, with some other parts."""
    whole = {
        "tokenizer": Part.of("core:patch", size=(8, 8), patch=(4, 4)),
        "masker": Part.of("core:random"),
        "encoder": Part.of("core:vit", width=16, depth=1, heads=2),
        "decoder": Part.of("core:transformer", width=16, depth=1, heads=2),
        "target": Part.of("core:values"),
        "data": Part.of("core:noise", items=64),
        **parts,
    }
    train = TrainConfig(epochs=1, batch_size=8, warmup_epochs=0, device="cpu", workers=0)
    return RunConfig({role: part for role, part in whole.items() if part is not None}, train)


def good():
    return recipe()


def builds_nothing():
    return recipe(masker=Part.of("core:grid", block=(3, 3)))


def forgets_a_table():
    return recipe(masker=Part.of("wrong:table", weights={}))


def has_no_data():
    return recipe(data=None)


def no_run():
    return {"masker": "core:random"}


@pytest.fixture(autouse=True)
def _module(monkeypatch):
    module = ModuleType(HERE)
    vars(module).update({name: value for name, value in globals().items() if not name.startswith("_")})
    monkeypatch.setitem(sys.modules, HERE, module)


def entry(kind, name, load, summary="Is wrong.", twin=None):
    return Entry(kind, name, NAME, f"{HERE}:{load}", Card(summary), twin and f"{HERE}:{twin}")


def contract_of(*entries, **about):
    class Contract(PluginContract):
        plugin = NAME
        steps = 1

        def registry(self):
            found = installed()
            own = PluginRecord(NAME, "mim-wrong", "1.0", "mim_core.plugin", **about)
            return Registry((*found.entries, *entries), (*found.plugins, own), found.hooks)

    return Contract()


def masker(name="fine", load="RandomMasker", **options):
    return entry("maskers", name, load, **options)


def of_recipe(load, twin):
    return entry("recipes", "run", load, twin=twin)


WRONG = [
    ([], {"failure": "RuntimeError: no"}, "test_it_is_found_and_loaded", "mim-wrong failed to load: RuntimeError: no"),
    ([], {"disabled": True}, "test_it_is_found_and_loaded", "switched off"),
    ([masker()], {}, "test_it_is_found_and_loaded", "0 entry points of group mim_core are named 'wrong'"),
    ([masker(name="Shouts")], {}, "test_names_and_cards", "not .'S'."),
    ([masker(name="snake_case")], {}, "test_names_and_cards", "not .'_'."),
    ([masker(summary=" ")], {}, "test_names_and_cards", "has no summary"),
    ([masker(summary="Hides")], {}, "test_names_and_cards", "is no sentence"),
    ([masker(load="good")], {}, "test_everything_resolves", "is a function, no class"),
    ([masker(load="RunConfig")], {}, "test_everything_resolves", "is not a Masker subclass"),
    ([masker(load="Thawed")], {}, "test_everything_resolves", "is not frozen"),
    ([masker(load="NoDefault")], {}, "test_everything_resolves", "has no default"),
    ([masker(load="NoHide")], {}, "test_everything_resolves", "wrong:fine cannot be used.* must define hide"),
    ([masker(load="Lost")], {}, "test_everything_resolves", "cannot be loaded from 'a_wrong_plugin:Lost'"),
    ([masker(load="Odd")], {}, "test_everything_resolves", "options of wrong:fine cannot be .* odd"),
    ([entry("evaluations", "one", "NAME")], {}, "test_everything_resolves", "not callable"),
    ([of_recipe("good", None)], {}, "test_recipes_build", "names no twin"),
    ([of_recipe("no_run", "good")], {}, "test_recipes_build", "returns no RunConfig"),
    (
        [of_recipe("forgets_a_table", "good"), masker("table", "Table")],
        {},
        "test_recipes_survive_toml",
        "with another masker",
    ),
]


@pytest.mark.parametrize(("entries", "about", "check", "text"), WRONG)
def test_wrong_plugins(entries, about, check, text):
    with pytest.raises(AssertionError, match=text):
        getattr(contract_of(*entries, **about), check)()


REFUSED = [
    ([of_recipe("good", "builds_nothing")], "test_recipes_build", "does not divide the grid"),
    ([of_recipe("good", "has_no_data")], "test_twins_train", "has no data"),
]


@pytest.mark.parametrize(("entries", "check", "text"), REFUSED)
def test_what_the_core_refuses_fails_with_its_words(entries, check, text):
    with pytest.raises(MimError, match=text):
        getattr(contract_of(*entries), check)()


@pytest.mark.slow
def test_a_plugin_module_that_imports_torch():
    class Heavy(PluginContract):
        plugin = NAME

        def record(self):
            return PluginRecord(NAME, "mim-wrong", "1.0", "mim_core.parts.masker")

    with pytest.raises(AssertionError, match=r"mim_core.parts.masker imports torch"):
        Heavy().test_listing_it_imports_nothing_heavy()


def test_a_plugin_that_changes_global_state(monkeypatch):
    contract = contract_of(masker(), faults=("changes global state on import: sys.path (added 'x'; left).",))
    point = replace(installed().plugins[-1], name=NAME)
    monkeypatch.setattr("mim_core.testing.plugins.discover", lambda: [point])
    with pytest.raises(AssertionError, match="mim-wrong changes global state on import"):
        contract.test_it_is_found_and_loaded()


CHANGES = {
    "import torch; torch.set_default_dtype(torch.float64)": "torch's default dtype .torch.float32 became torch.float64",
    "import torch; torch.manual_seed(0)": "torch's random state",
    "import logging; logging.basicConfig(level=10)": "the root logger's level",
    "import os; os.chdir('/')": "the working folder",
    "import torch; torch.set_grad_enabled(False)": "torch's gradient mode",
    "raise RuntimeError('no luck')": "cannot be imported: RuntimeError: no luck",
}


@pytest.fixture
def quick_starts(loaded_python, monkeypatch, tmp_path):
    """The contract's program starts in a Python that has loaded torch; test_plugins.py starts it as it is."""

    def run(command, **_):
        return loaded_python.run(command[1:], tmp_path, os.environ)

    monkeypatch.setattr("mim_core.testing.plugins.subprocess.run", run)


@pytest.mark.slow
@pytest.mark.parametrize("line", CHANGES)
def test_a_part_whose_module_changes_global_state(tmp_path, monkeypatch, quick_starts, line):
    (tmp_path / "a_careless_part.py").write_text(f"{line}\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    careless = Entry("maskers", "careless", NAME, "a_careless_part:Anything", Card("Is careless."))
    with pytest.raises(AssertionError, match=f"a_careless_part.*{CHANGES[line]}"):
        contract_of(careless).test_parts_change_nothing_shared()


@pytest.mark.slow
def test_a_part_whose_module_changes_nothing(tmp_path, monkeypatch, quick_starts):
    (tmp_path / "a_careful_part.py").write_text("import torch\nWIDTH = torch.ones(3)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    careful = Entry("maskers", "careful", NAME, "a_careful_part:Anything", Card("Is careful."))
    contract_of(careful).test_parts_change_nothing_shared()


def test_a_plugin_that_is_not_there():
    class Absent(PluginContract):
        plugin = "absent"

    with pytest.raises(AssertionError, match="no plugin 'absent' is installed; there are: core, image"):
        Absent().record()


def test_a_good_one_passes():
    contract = contract_of(of_recipe("good", "good"), masker("table", "Table"))
    contract.test_names_and_cards()
    contract.test_everything_resolves()
    contract.test_recipes_build()
    contract.test_recipes_survive_toml()
    contract.test_listing_it_imports_nothing_heavy()
    with pytest.raises(AssertionError, match=r"recipe.toml does not name mim-other"):
        contract_of(of_recipe("good", "good")).__class__.test_twins_train(_Renamed())


class _Renamed(PluginContract):
    plugin = NAME
    steps = 1

    def registry(self):
        return contract_of(of_recipe("good", "good")).registry()

    def record(self):
        return PluginRecord(NAME, "mim-other", "1.0", "mim_core.plugin")


def test_every_check_can_fail():
    checks = {check for check in vars(PluginContract) if check.startswith("test_")}
    alone = {"test_listing_it_imports_nothing_heavy", "test_parts_change_nothing_shared"}
    assert {row[-2] for row in [*WRONG, *REFUSED]} | alone == checks
