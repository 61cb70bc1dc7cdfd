"""Whole plugin projects, good and broken, in a Python of their own: as if pip had installed them."""

import json
import re
import sys

import pytest
import torch
from mim_core.parts.layout import Layout
from mim_core.testing import MaskerContract

BROKEN = (
    "raises_on_import",
    "misspelt_hook",
    "forgotten_marker",
    "wrong_signature",
    "same_name",
    "needs_newer_core",
    "missing_dependency",
)
REASONS = {
    "mim-wrong-signature 0.3.0": "its mim_register_maskers takes 'colour', which that hook does not pass; a hook",
    "mim-same-name 0.3.0": "the plugin name 'example' is already taken by mim-example 1.2.3",
    "mim-needs-newer-core 0.3.0": "it needs mim-core>=99, and ",
    "mim-missing-dependency 0.3.0": "ModuleNotFoundError: No module named 'a_library_that_is_not_installed'",
    "mim-raises-on-import 0.3.0": "RuntimeError: the extension [cuda] was built for another torch",
    "mim-misspelt-hook 0.3.0": "Did you mean 'mim_register_maskers'?",
    "mim-forgotten-marker 0.3.0": "mim_register_targets is named like a hook but is not marked",
}


@pytest.fixture
def everything(session):
    return session("example_plugin", *(f"broken_plugins/{name}" for name in BROKEN))


def closed(text):
    """The text without blanks: a narrow table folds within words."""
    return "".join(text.split())


def words(text):
    """The text without the line breaks of a table."""
    return " ".join(text.split())


def test_plugins_shows_each_and_what_it_brings(everything):
    done = everything.mim("plugins")
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line[0] != " "]
    rows = {line.split()[0]: line for line in reversed(lines)}
    assert words(rows["example"]).startswith("example mim-example 1.2.3 1 masker, 1 method")
    assert words(rows["image"]).startswith("image mim-image")
    assert [line.split()[1] for line in lines if "FAILED" in line] == [
        "mim-forgotten-marker",
        "mim-missing-dependency",
        "mim-misspelt-hook",
        "mim-needs-newer-core",
        "mim-raises-on-import",
        "mim-same-name",
        "mim-wrong-signature",
    ]
    for reason in REASONS.values():
        assert closed(reason) in closed(done.stdout)
    for distribution in REASONS:  # and once on standard error, whatever the command is
        assert done.stderr.count(f"{distribution} is not used") == 1


def test_plugins_errors_shows_the_traceback(everything):
    done = everything.mim("plugins", "--errors")
    assert done.returncode == 0, done.stderr
    for distribution, reason in REASONS.items():
        assert distribution in done.stdout
        assert reason in words(done.stdout)
    assert 'raise RuntimeError("the extension [cuda] was built for another torch")' in done.stdout
    assert done.stdout.count("Traceback (most recent call last)") == len(REASONS)
    assert "mim-example 1.2.3 (" not in done.stdout


def test_a_run_that_needs_a_broken_plugin_says_so(everything):
    done = everything.mim("describe", "forgotten-marker:found")
    assert done.returncode == 2
    assert "Nothing is named 'forgotten-marker:found'" in done.stderr
    done = everything.mim("pretrain", "image:mae-vit-tiny", "--use", "masker=missing-dependency:mine", "--dry-run")
    assert done.returncode == 2
    assert "mim-missing-dependency 0.3.0 failed to load: ModuleNotFoundError" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_slow_plugin_is_named_with_its_time(session):
    here = session("broken_plugins/slow_import", "example_plugin")
    done = here.mim("plugins", "--errors")
    assert done.returncode == 0, done.stderr
    (line,) = done.stderr.splitlines()
    assert re.fullmatch(r"mim-core: warning: mim-slow-import 0\.3\.0 took \d+\.\d s to import, more than 2 s; .*", line)
    assert "mim-slow-import 0.3.0 (mim_slow_import)" in done.stdout
    assert "s to import, more than 2 s" in done.stdout
    assert "slow-import:late" in here.mim("list", "maskers").stdout
    done = here.mim("plugins", MIM_CORE_STRICT="1")
    assert done.returncode == 2
    assert done.stderr.startswith("mim-core: error: mim-slow-import 0.3.0 took")


def test_a_plugin_that_changes_global_state_is_named(session):
    here = session("broken_plugins/changes_global_state", "example_plugin")
    done = here.mim("plugins", "--errors", MIM_EXAMPLE_SET="before")
    assert done.returncode == 0, done.stderr
    (line,) = done.stderr.splitlines()
    for text in (line, words(done.stdout)):
        assert "mim-changes-global-state 0.3.0" in text
        assert "changes global state on import: " in text
        assert "os.environ (MIM_EXAMPLE_NEW, MIM_EXAMPLE_SET; left)" in text
        assert "sys.path (added '/nowhere/vendored'; left)" in text
        assert "Python's random state (put back)" in text
        assert "the root logger's level (30 became 10; put back)" in text
        assert "the root logger's handlers (0 became 1; put back)" in text
        assert "secret" not in text
    assert "changes-global-state:polite" in here.mim("list", "maskers").stdout
    done = here.mim("plugins", MIM_CORE_STRICT="1")
    assert done.returncode == 2
    assert "mim-changes-global-state 0.3.0 changes global state on import" in done.stderr


def test_strict_stops_at_the_first(everything):
    done = everything.mim("plugins", MIM_CORE_STRICT="1")
    assert done.returncode == 2
    assert done.stderr.startswith("mim-core: error: mim-forgotten-marker 0.3.0 failed to load")
    assert "Traceback" not in done.stderr


def test_chosen_plugins_only(session):
    here = session("example_plugin", "broken_plugins/raises_on_import", "broken_plugins/slow_import")
    done = here.mim("list", "maskers", MIM_CORE_PLUGINS="example")
    assert done.returncode == 0
    assert done.stderr == ""
    names = [line.split()[0] for line in done.stdout.splitlines()[1:] if not line.startswith(" ")]
    core = ["core:block", "core:grid", "core:guided", "core:multi-block", "core:random", "core:region"]
    assert names == [*core, "example:checker"]


def test_list_and_describe_the_strangers_parts(session):
    here = session("example_plugin")
    assert "example:checker Every other unit, phase by key." in " ".join(here.mim("list", "maskers").stdout.split())
    done = here.mim("describe", "checker")
    assert "example:checker  masker, from mim-example 1.2.3" in done.stdout
    assert "It has no options." in done.stdout
    done = here.mim("describe", "example:pull")
    assert words("temperature float 0.2 Similarities are divided by this.") in words(done.stdout)


def train(here, *arguments):
    done = here.mim("pretrain", "image:mae-vit-tiny", "--twin", "--train.epochs", "0.0048", "--out", "run", *arguments)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in (here.work / "run/metrics.jsonl").read_text().splitlines()]


def test_train_with_the_strangers_masker(session):
    here = session("example_plugin")
    metrics = train(here, "--use", "masker=example:checker")
    assert [line["step"] for line in metrics] == [1, 2, 3]
    recipe = (here.work / "run/recipe.toml").read_text()
    assert 'use = "example:checker"' in recipe
    assert 'mim-example = "1.2.3"' in recipe
    done = here.mim("pretrain", "run/recipe.toml", "--dry-run", PYTHONPATH="")
    assert done.returncode == 2  # where the plugin is not installed, the recipe says what is missing
    assert "No plugin 'example' is installed. Try: pip install mim-example" in done.stderr
    assert "written with mim-example 1.2.3, not installed here" in done.stderr
    assert "Traceback" not in done.stderr
    done = here.mim("evaluate", "run", PYTHONPATH="")
    assert done.returncode == 2
    assert "Run: pip install mim-example" in done.stderr
    assert "Traceback" not in done.stderr


def test_train_the_strangers_method(session):
    here = session("example_plugin")
    metrics = train(here, "--use", "method=example:pull", "--method.temperature", "0.5")
    assert len(metrics) == 3
    assert (here.work / "run/report.html").exists()
    done = here.mim(
        "pretrain", "mae-vit-tiny", "--twin", "--use", "method=pull", "--train.micro-batch", "4", "--dry-run"
    )
    assert done.returncode == 2
    assert "compares the samples of a batch" in done.stderr


def test_pytest_finds_the_suite(session):
    here = session("example_plugin")
    done = here.python(
        *("-m", "pytest", "-q", "-p", "no:cacheprovider", "--pyargs", "mim_core.testing.suite"), MIM_PLUGIN="example"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
    assert "failed" not in done.stdout


class TestChecker(MaskerContract):
    """The conformance class, as a third party inherits it."""

    layouts = tuple(Layout.on_grid(*grid) for grid in ((4, 4), (14, 14), (3, 2), (2, 3, 4)))
    expected_hidden = {(4, 4): 8, (14, 14): 98, (2, 3, 4): 12}

    def make_masker(self):
        from mim_example.masker import CheckerMasker

        return CheckerMasker(CheckerMasker.Config())

    @pytest.fixture(autouse=True)
    def _importable(self, monkeypatch):
        from pathlib import Path

        monkeypatch.syspath_prepend(Path(__file__).parents[1] / "example_plugin")


LIGHT = [
    ["-c", "import mim_core"],
    ["-c", "import mim_image.plugin"],
    ["-m", "mim_core"],
    ["-m", "mim_core", "--help"],
    ["-m", "mim_core", "--version"],
    ["-m", "mim_core", "plugins"],
    ["-m", "mim_core", "plugins", "--errors"],
    ["-m", "mim_core", "plugins", "--help"],
    ["-m", "mim_core", "list", "maskers"],
    ["-m", "mim_core", "recipes"],
    ["-m", "mim_core", "lits"],
]


@pytest.mark.parametrize("arguments", LIGHT, ids=" ".join)
def test_listing_and_help_import_nothing_heavy(session, arguments):
    done = session("example_plugin").python("-X", "importtime", *arguments, fresh=True)
    assert done.returncode == (2 if "lits" in arguments else 0), done.stderr
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time")}
    assert "mim_core" in imported or arguments[0] == "-m"
    assert not imported & {"torch", "timm", "torchvision", "numpy", "PIL", "matplotlib", "mim_image.data"}
    assert torch.__name__ in sys.modules  # the check can fail: this process has it
