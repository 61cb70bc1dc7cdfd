"""What the commands say on the way from pre-training to scores, with the bundled shapes."""

import json
import tomllib

import pytest
import torch
from mim_core.cli import main
from mim_core.errors import MimError
from mim_core.interop.weights import import_checkpoint

TWIN = ("pretrain", "pointcloud:point-mae-vit-tiny", "--twin", "--quiet")
SHORT = ("--train.epochs", "0.03", "--train.warmup-epochs", "0")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a run in runs/point-mae-vit-tiny-twin."""
    folder = tmp_path_factory.mktemp("place")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main([*TWIN, *SHORT]) == 0
    return folder


@pytest.fixture
def here(place, monkeypatch):
    monkeypatch.chdir(place)
    return place


RUN = "runs/point-mae-vit-tiny-twin"


def test_a_twin_has_a_folder_of_its_own(here):
    assert [path.name for path in (here / "runs").iterdir()] == ["point-mae-vit-tiny-twin"]


def test_a_dry_run_refuses_what_the_run_would_refuse(here, capsys):
    before = (here / RUN / "recipe.toml").read_bytes()
    for dry in ((), ("--dry-run",)):
        assert main([*TWIN, *SHORT, "--tokenizer.groups", "8", *dry]) == 2
        assert "holds a run with other settings: tokenizer.groups (was 16, now 8)" in capsys.readouterr().err
    assert main([*TWIN, *SHORT, "--dry-run"]) == 0
    assert main([*TWIN, *SHORT, "--tokenizer.groups", "8", "--dry-run", "--out", "new"]) == 0
    assert not (here / "new").exists()
    assert (here / RUN / "recipe.toml").read_bytes() == before


@pytest.mark.parametrize("command", [(*TWIN, "--init"), ("finetune",), ("evaluate",)])
def test_a_weights_file_needs_a_format(here, capsys, command):
    torch.save({"base_model": {}}, here / "weights.pth")
    out = ("--out", "other") if command[0] == "pretrain" else ()
    assert main([*command, "weights.pth", *out]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "weights.pth is a weights file, not a run" in said
    assert "--init weights.pth --init-format NAME. Formats: " in said
    assert "pointcloud:point-mae" in said


def test_a_table_that_replaces_others_says_so(here, capsys):
    assert main(["evaluate", RUN, "--on", "knn,linear"]) == 0
    assert "is replaced" not in capsys.readouterr().out
    assert main(["evaluate", RUN, "--on", "knn"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "also had linear" in said
    assert "--on knn,linear" in said
    columns = {score["column"] for score in json.loads((here / RUN / "scores.json").read_text())["scores"]}
    assert not any(column.startswith("linear") for column in columns)


def test_ops_in_a_plan(here, capsys):
    pytest.importorskip("fpsample")
    assert main([*TWIN, *SHORT, "--tokenizer.ops", "fpsample", "--out", "fp", "--dry-run"]) == 0
    if not torch.cuda.is_available():
        pytest.importorskip("triton")
        assert main([*TWIN, *SHORT, "--tokenizer.ops", "triton", "--out", "tr", "--dry-run"]) == 2
        assert "triton needs a CUDA GPU" in " ".join(capsys.readouterr().err.split())


def test_weights_without_a_decoder_are_named_so():
    state = {"MAE_encoder.norm.weight": torch.zeros(384), "MAE_encoder.norm.bias": torch.zeros(384)}
    with pytest.raises(MimError, match=r"have no decoder.*MAE_decoder\. or increase_dim\."):
        import_checkpoint(state, format="point-mae")


def test_long_lists_of_numbers_stand_in_rows():
    from mim_core.evaluation.report import _in_rows

    text = 'a = [\n    1,\n    -2,\n]\nb = [\n    "x",\n]\nc = [\n' + "    7,\n" * 80 + "]\n"
    rows = _in_rows(text)
    assert tomllib.loads(rows) == tomllib.loads(text)
    assert "a = [1, -2]\n" in rows
    assert len(rows.splitlines()) < 12


def test_recipes_judge_standardised_features():
    from mim_pointcloud import recipes

    for recipe in (recipes.point_mae_vit_tiny, recipes.point_mae_vit_small):
        assert recipe().evaluate.standardize
