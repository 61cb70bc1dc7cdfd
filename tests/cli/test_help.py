"""What --help says, without torch where no recipe's parts are needed to say it."""

import subprocess
import sys

import pytest
from mim_core.commands.help import OPTIONS, OWN, USAGE, USED
from mim_core.host.loading import installed

COMMANDS = [[name, "--help"] for name in (*USAGE, *OPTIONS)] + [["show", "runs/x", "-h"], ["list", "--help"]]
RECIPES = [entry.full_name for entry in installed().of_kind("recipes")]


def test_no_help_imports_torch():
    asked = [*COMMANDS, *(["pretrain", name, "--help"] for name in RECIPES), ["new-plugin", "-h"], ["doctor", "-h"]]
    script = f"""
import sys
from mim_core.cli import main
for arguments in {asked!r}:
    assert main(arguments) == 0, arguments
    assert "torch" not in sys.modules, arguments
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-500:] + done.stderr[-2000:]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_shows_the_options_that_people_use(mim, name):
    said = mim("pretrain", name, "--help").out
    options = [line.split()[0] for line in said.splitlines() if line.startswith("--")]
    assert options[: len(OWN)] == [f"--{option}" for option in OWN]
    assert set(options[len(OWN) :]) <= {f"--{option}" for option in USED}
    assert len(options) >= 13
    assert max(map(len, said.splitlines())) <= 100


def test_all_options_are_a_word_away(mim):
    said = mim("pretrain", "image:mae-vit-tiny", "--help-all")
    assert said.code == 0
    for option in ("--decoder.width", "--train.betas", "--evaluate.k", "--data.crop", "--tokenizer.patch"):
        assert option in said.all


def test_a_twin_shows_its_own_values(mim):
    assert "(64)" in mim("pretrain", "image:mae-vit-tiny", "--help").out
    assert "(16)" in mim("pretrain", "image:mae-vit-tiny", "--twin", "--help").out


def test_an_unknown_recipe_is_a_mistake_as_ever(mim):
    said = mim("pretrain", "image:no-such", "--help")
    assert said.code == 2
    assert "Unknown recipe" in said.err
