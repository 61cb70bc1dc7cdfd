"""``mim-core new-plugin`` writes a project that installs, passes its tests and trains as it is."""

import json
import re
import subprocess
import sys
import tomllib

import pytest
from mim_core.cli import main
from mim_core.commands.new_plugin import FILES, KINDS, TEMPLATES, Names, names_of, write_project
from mim_core.errors import MimError
from mim_core.host.loading import installed
from mim_core.host.registry import PluginRecord, Registry

NOTHING = Registry((), ())


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("projects")
    assert main(["new-plugin", "mim-my-sensors", "--into", str(folder)]) == 0
    return folder / "mim-my-sensors"


def test_names():
    assert names_of("mim-audio", NOTHING) == Names("mim-audio", "mim_audio", "audio")
    assert names_of("mim-audio/", NOTHING) == Names("mim-audio", "mim_audio", "audio")
    assert names_of("mim-my-audio2", NOTHING) == Names("mim-my-audio2", "mim_my_audio2", "my-audio2")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mim", "belongs to another project"),
        ("core", "mim-WORD"),
        ("mim-core", "mim-core's own"),
        ("mim-multimodal", "mim-core's own"),
        ("audio", "Such as: mim-audio"),
        ("Mim_Audio", "Such as: mim-audio"),
        ("mim-", "Such as: mim-audio"),
        ("mim--x", "Such as: mim-x"),
        ("mim-3d", "starts with a letter"),
        ("mim-audio/..", "is a path; a project has a name"),
        ("projects/mim-audio", "Try: mim-core new-plugin mim-audio --into projects"),
        ("my projects/audio", "Try: mim-core new-plugin mim-NAME --into 'my projects'"),
        ("mim-dev", 'mistaken for mim-core\'s own "mim-core[dev]"'),
        ("mim-authoring-taken", "taken by mim-authoring-taken 2.0"),
        ("mim-pet", "taken by animals 1.0"),
    ],
)
def test_names_that_are_refused(name, said):
    taken = (PluginRecord("other", "mim_authoring.taken", "2.0", "x"), PluginRecord("pet", "animals", "1.0", "x"))
    if "taken by" in said:
        said = said.replace("mim-authoring-taken", "mim_authoring.taken")
    with pytest.raises(MimError, match=re.escape(said)):
        names_of(name, Registry((), taken))


def test_installed_plugins_are_refused():
    for record in installed().plugins:
        with pytest.raises(MimError):
            names_of(f"mim-{record.name}", installed())


def test_a_folder_that_holds_something_is_left_alone(tmp_path, capsys):
    mine = tmp_path / "mim-sensors/notes.txt"
    mine.parent.mkdir()
    mine.write_text("mine")
    assert main(["new-plugin", "mim-sensors", "--into", str(tmp_path)]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert [path.name for path in mine.parent.iterdir()] == ["notes.txt"]
    mine.unlink()
    assert main(["new-plugin", "mim-sensors", "--into", str(tmp_path)]) == 0


def test_a_file_in_the_way(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["new-plugin", "mim-sensors", "--into", str(tmp_path / "file")]) == 2
    assert "Cannot write" in capsys.readouterr().err


def test_help_and_last_line(tmp_path, capsys):
    assert main(["new-plugin", "--help"]) == 0
    assert "--into" in capsys.readouterr().out
    assert main(["new-plugin"]) == 2
    assert "mim-core new-plugin mim-NAME" in capsys.readouterr().err
    assert main(["new-plugin", "mim-sensors", "--into", str(tmp_path)]) == 0
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert last.startswith(f"Next: cd {tmp_path}/mim-sensors && pip install -e")
    assert last.endswith("mim-sensors pretrain mae-tiny --twin")


def test_every_template_is_written_and_filled(project):
    assert {path.name for path in TEMPLATES.glob("*.tmpl")} == {f"{name}.tmpl" for name in FILES}
    paths = [path for path in project.rglob("*") if path.is_file() and path.parent.name != "__pycache__"]
    assert len(paths) == len(FILES) - 1, "a method is written where it is asked for"
    for path in paths:
        text = path.read_text()
        assert not re.search(r"(?<!\$)\{\{|mim-core==", text), path
        assert text.endswith("\n")
    assert "${{ matrix.python }}" in (project / ".github/workflows/ci.yml").read_text()


def test_the_project_says_who_it_is(project):
    about = tomllib.loads((project / "pyproject.toml").read_text())["project"]
    assert about["name"] == "mim-my-sensors"
    assert about["entry-points"]["mim_core"] == {"my-sensors": "mim_my_sensors.plugin"}
    assert about["dependencies"] == ["mim-core>=0.1,<0.2"]
    assert "license" not in about, "the licence is the author's choice"
    assert not (project / "LICENSE").exists()


def test_the_project_is_in_good_style(project):
    check_style(project)


@pytest.mark.parametrize(
    "only", ["masker", "tokenizer", "target", "data", "method", "masker,target", "target, tokenizer", "method,data"]
)
def test_a_project_may_be_limited_to_some_parts(only, tmp_path):
    """It holds their files alone, in good style, and the plugin registers what is there."""
    assert main(["new-plugin", "mim-few", "--only", only, "--into", str(tmp_path)]) == 0
    project, kinds = tmp_path / "mim-few", {kind.strip() for kind in only.split(",")}
    recipes = ["recipes"] if "method" in kinds else []
    files = {path.stem for path in (project / "mim_few").glob("*.py")}
    assert files == {"__init__", "__main__", "plugin", *kinds, *recipes}
    hooks = re.findall(r"def mim_register_(\w+)", (project / "mim_few/plugin.py").read_text())
    order = ("tokenizer", "masker", "target", "data", "method")
    assert hooks == [*(KINDS[kind][1] for kind in order if kind in kinds), *recipes]
    trains = "mim-few pretrain pull-tiny --twin" in (project / "README.md").read_text()
    assert trains == bool(recipes) == ("pull-tiny" in (project / ".github/workflows/ci.yml").read_text())
    assert not any("mae-tiny" in path.read_text() for path in project.rglob("*") if path.is_file())
    check_style(project)


def test_a_project_of_unknown_parts(tmp_path, capsys):
    assert main(["new-plugin", "mim-few", "--only", "maskr", "--into", str(tmp_path)]) == 2
    assert "Did you mean 'masker'?" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_a_masker_and_a_method_pass_their_own_tests(environment, tmp_path):
    assert main(["new-plugin", "mim-one", "--only", "masker,method", "--into", str(tmp_path)]) == 0
    assert (tmp_path / "mim-one/mim_one/method.py").read_text().count("\n") <= 60, "a method is one short file"
    environment.install(tmp_path / "mim-one")
    done = environment.run("pytest -q -p no:cacheprovider", tmp_path / "mim-one", MIM_CORE_STRICT="1")
    assert " passed" in done.stdout
    environment.run("mim-core pretrain image:mae-vit-tiny --twin --use masker=one:spans --out run --quiet", tmp_path)
    environment.run("mim-one pretrain pull-tiny --twin --out pull --quiet", tmp_path)
    environment.run("pip uninstall --quiet --yes mim-one", tmp_path)  # its folder goes with this test


def check_style(project):
    rules = "E,F,W,I,B,UP,C4,SIM,RUF,PT,RET,T20"
    for command in (["check", f"--select={rules}"], ["format", "--check", "--diff"]):
        arguments = [sys.executable, "-m", "ruff", *command, "--isolated", "--no-cache", "--line-length=120", "."]
        done = subprocess.run(arguments, cwd=project, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_it_installs_and_trains(project, environment, tmp_path):
    environment.install(project)
    shown = environment.run("mim-core plugins", tmp_path, MIM_CORE_STRICT="1")
    row = " ".join(shown.stdout.partition("my-sensors ")[2].split("\n\n")[0].split())
    assert f"my-sensors {row}".startswith(
        "my-sensors mim-my-sensors 0.1.0 1 tokenizer, 1 masker, 1 target, 1 recipe, 1 data source"
    )
    environment.run("mim-my-sensors pretrain mae-tiny --twin --out run --quiet", tmp_path)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 20
    assert losses[-1] < 0.9 * losses[0]
    scores = environment.run("mim-my-sensors evaluate run --evaluate.on knn", tmp_path)
    assert "majority class" in scores.stdout
    refused = environment.run("mim-core new-plugin mim-my-sensors", tmp_path, code=2)
    assert "taken by mim-my-sensors 0.1.0" in refused.stderr


@pytest.mark.slow
def test_it_passes_its_own_tests(project, environment):
    environment.install(project)
    done = environment.run("pytest -q -p no:cacheprovider", project, MIM_CORE_STRICT="1")
    assert " passed" in done.stdout


def test_a_project_can_be_written_where_nothing_is(tmp_path):
    names = Names("mim-x", "mim_x", "x")
    written = write_project(tmp_path / "deep/down/mim-x", names)
    assert [path for path in written if not path.exists()] == []
