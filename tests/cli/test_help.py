"""What --help says, without torch where no recipe's parts are needed to say it."""

import subprocess
import sys
from pathlib import Path

import pytest
from mim_core.commands.help import OPTIONS, OWN, USAGE, USED
from mim_core.host import threads
from mim_core.host.loading import installed

COMMANDS = [[name, "--help"] for name in (*USAGE, *OPTIONS)] + [
    ["show", "runs/x", "-h"],
    ["list", "--help"],
    ["--help"],
]
OLD_RUN = str(Path(__file__).parents[1] / "flow/old_run")
RECIPES = [entry.full_name for entry in installed().of_kind("recipes")]


def test_no_help_imports_torch():
    asked = [*COMMANDS, *(["pretrain", name, "--help"] for name in RECIPES), ["new-plugin", "-h"], ["doctor", "-h"]]
    asked += [[name, "image:mae-vit-tiny", "--help"] for name in ("bench", "import")]
    asked += [["finetune", entry.full_name, "--help"] for entry in installed().of_kind("finetunings")]
    asked += [[name, OLD_RUN, "--help"] for name in ("evaluate", "finetune")]
    asked += [["pretrain", f"{OLD_RUN}/recipe.toml", "--help"]]
    asked += [[name, "image:mae-vit-tiny", "--use", "masker=block", "--help"] for name in ("pretrain", "bench")]
    asked += [["finetune", OLD_RUN, f"--use=method={name}", "--help"] for name in ("classifier", "part-segmenter")]
    script = f"""
import sys
from mim_core.cli import main
for arguments in {asked!r}:
    assert main(arguments) == 0, arguments
    assert "torch" not in sys.modules, arguments
"""
    script += """
import mim_multimodal.plugin, mim_pointcloud.plugin, mim_video.plugin
own = [("video", ["prepare", "-h"]), ("video", ["probe", "--help"]), ("pointcloud", ["prepare", "-h"])]
own += [("multimodal", ["tokenize", "-h"])]
for plugin, arguments in own:
    assert main(arguments, plugin, more=getattr(sys.modules[f"mim_{plugin}.plugin"], "COMMANDS")) == 0
    assert "torch" not in sys.modules, arguments
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-500:] + done.stderr[-2000:]


def test_all_help_fits_80_columns(mim):
    longest = "multimodal:multimae-captions-vit-tiny"
    of_recipes = [[command, longest, "--help"] for command in ("pretrain", "import", "bench")]
    tuned = ["finetune", "image:mae-finetune-vit-large", "--help"]
    for arguments in [*COMMANDS, ["pretrain", "image:mae-vit-tiny", "--help"], *of_recipes, tuned]:
        said = mim(*arguments).out
        assert max(map(len, said.splitlines())) <= 80, arguments
    assert "\n--into " in mim("new-plugin", "--help").out, "also options whose default is a folder"


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_shows_the_options_that_people_use(mim, name):
    said = mim("pretrain", name, "--help").out
    assert max(map(len, said.splitlines())) <= 80
    assert f"mim-core pretrain {name} --help-all\n" in said
    options = [line.split()[0] for line in said.splitlines() if line.startswith("--")]
    assert options[: len(OWN)] == [f"--{option}" for option in OWN]
    assert set(options[len(OWN) :]) <= {f"--{option}" for option in USED}
    assert len(options) >= 13


@pytest.mark.parametrize(
    ("command", "takes"),
    [
        ("predict", "RUN INPUT"),
        ("embed", "RUN INPUT"),
        ("evaluate", "RUN"),
        ("show", "RUN"),
        ("export", "RUN"),
    ],
)
def test_what_a_command_takes_is_named_and_described(mim, command, takes):
    lines = mim(command, "--help", plugin="image").out.splitlines()
    assert lines[0] == f"usage: mim-image {command} {takes} [OPTIONS]"
    assert [line.split()[0] for line in lines if line[:1].isupper() and "  " in line][
        : len(takes.split())
    ] == takes.split()


def test_all_options_are_a_word_away(mim):
    said = mim("pretrain", "image:mae-vit-tiny", "--help-all")
    assert said.code == 0
    for option in ("--decoder.width", "--train.betas", "--evaluate.k", "--data.crop", "--tokenizer.patch"):
        assert option in said.all
    assert "heads one (--use depth.target=none), of several tokenizers one with its heads" in said.all


def test_docstrings_are_shown_without_their_line_breaks(mim):
    said = mim("evaluate", OLD_RUN, "--help-all").out
    assert "the same encoder untrained. A run that was trained on labels is tested instead" in said


def test_a_twin_shows_its_own_values(mim):
    assert "(64)" in mim("pretrain", "image:mae-vit-tiny", "--help").out
    assert "(16)" in mim("pretrain", "image:mae-vit-tiny", "--twin", "--help").out


@pytest.mark.parametrize("command", ["pretrain", "bench", "import"])
def test_an_unknown_recipe_is_a_mistake_as_ever(mim, command):
    said = mim(command, "image:no-such", "--help")
    assert said.code == 2
    assert "Unknown recipe" in said.err
    said = mim(command, "mae-vit-tiny", "--help", plugin="video")
    assert "Another plugin has it: mim-core pretrain image:mae-vit-tiny" in said.err


def test_a_misspelt_recipe_imports_no_torch():
    script = "import sys; from mim_core.cli import main; assert main(['pretrain', 'mae-vit-tinny', '--help']) == 2; "
    script += "assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "Did you mean 'mae-vit-tiny'?" in done.stderr


def test_a_run_shows_its_own_values(mim):
    said = mim("evaluate", OLD_RUN, "--help").out
    for option in (
        "--on",
        "--data-root",
        "--size",
        "--evaluate.k",
        "--evaluate.few-labels",
        "--data.root",
        "--data.crop",
    ):
        assert f"\n{option} " in said
    assert "[0.6, 1.0]" in said
    said = mim("finetune", OLD_RUN, "--help").out
    for option in ("--scratch", "--method.head", "--data.root", "--train.epochs"):
        assert f"\n{option} " in said
    assert "(100.0)" in said
    assert "init" not in said


def test_a_file_shows_what_it_changes(mim, tmp_path):
    path = tmp_path / "own.toml"
    path.write_text('recipe = "image:mae-vit-tiny"\n[masker]\nuse = "block"\n[train]\nbase-lr = 0.125\n')
    said = " ".join(mim("pretrain", path, "--help").out.split())
    assert "startsfromimage:mae-vit-tiny" in said.replace(" ", "")  # a long path breaks lines anywhere
    assert "(0.125)" in said
    assert "--masker.ratio" in said


def test_another_part_shows_its_own_options_and_values(mim):
    said = mim("pretrain", "image:mae-vit-tiny", "--use", "data=core:noise", "--help").out
    assert "--masker.ratio" in said
    assert "--data.root" not in said
    said = mim("finetune", OLD_RUN, "--use", "method=part-segmenter", "--help").out
    assert "\n--method.levels " in said
    assert "--method.head" not in said
    assert "(0.0002)" in said, "the method's own learning rate"


@pytest.mark.parametrize(
    ("command", "use", "words"),
    [
        (("pretrain", "image:mae-vit-tiny"), "masker=blok", "Unknown masker 'blok'. Did you mean 'block'?"),
        (("pretrain", "image:mae-vit-tiny"), "head=linear", "Unknown role 'head'"),
        (("finetune", OLD_RUN), "method=masked-autoencoder", "does not learn from labels"),
    ],
)
def test_a_part_that_does_not_fit_is_a_mistake_as_ever(mim, command, use, words):
    said = mim(*command, "--use", use, "--help")
    assert said.code == 2
    assert words in said.err


@pytest.mark.parametrize("command", USAGE)
def test_what_needs_a_name_fits_80_columns(mim, command):
    said = mim(command, "--help").out
    assert max(map(len, said.splitlines())) <= 80
    assert "image:mae-vit-tiny" in said or command == "finetune"


@pytest.mark.parametrize("command", ["evaluate", "finetune"])
def test_a_run_that_is_not_there_is_a_mistake_as_ever(mim, tmp_path, command):
    assert mim(command, tmp_path / "none", "--help").code == 2


def running(folder, count):
    (folder / "proc").mkdir(exist_ok=True)
    (folder / "proc/loadavg").write_text(f"0.50 0.60 0.70 {count}/300 12345\n")
    return folder


@pytest.mark.parametrize(
    ("cores", "others", "given", "sleeps"),
    [
        (2, 0, {}, False),
        (2, 1, {}, True),
        (2, 1, {"OMP_NUM_THREADS": "1"}, False),
        (8, 4, {"OMP_NUM_THREADS": "4"}, False),
        (8, 5, {"OMP_NUM_THREADS": "4"}, True),
        (64, 4, {}, False),  # what a machine does by itself
        (64, 5, {}, True),
        (2, 9, {"GOMP_SPINCOUNT": "5"}, False),
        (2, 9, {"OMP_WAIT_POLICY": "active"}, False),
    ],
)
def test_threads_sleep_while_they_wait_where_others_want_the_cores(tmp_path, monkeypatch, cores, others, given, sleeps):
    monkeypatch.setattr(threads.os, "cpu_count", lambda: cores)
    environ = dict(given)
    assert threads.sleep_where_busy(environ, running(tmp_path, others + 1)) == sleeps
    assert environ == ({**given, "GOMP_SPINCOUNT": "0"} if sleeps else given)


def test_where_linux_does_not_tell_nothing_is_changed(tmp_path):
    environ = {}
    assert not threads.sleep_where_busy(environ, tmp_path)
    assert not environ


@pytest.mark.parametrize("loaded", [True, False])
def test_a_command_looks_once_and_not_where_torch_is_loaded(mim, monkeypatch, loaded):
    looks = []
    monkeypatch.setattr("mim_core.cli.sleep_where_busy", lambda: looks.append(1))
    if not loaded:
        monkeypatch.delitem(sys.modules, "torch")
        monkeypatch.setattr("mim_core.cli._command", lambda *given: lambda *arguments: 0)
    mim("list")
    assert not looks
    assert mim("evaluate", "nowhere").code == (2 if loaded else 0)
    assert len(looks) == (not loaded)
