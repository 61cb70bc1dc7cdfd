"""What the commands say on the way from pre-training to scores, with the bundled shapes."""

import json
import tomllib

import numpy as np
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
    from mim_core.evaluation.report import in_rows

    text = 'a = [\n    1,\n    -2,\n]\nb = [\n    "x",\n]\nc = [\n' + "    7,\n" * 80 + "]\n"
    rows = in_rows(text)
    assert tomllib.loads(rows) == tomllib.loads(text)
    assert "a = [1, -2]\n" in rows
    assert len(rows.splitlines()) < 12


def test_recipes_judge_standardised_features():
    from mim_pointcloud import recipes

    for recipe in (recipes.point_mae_vit_tiny, recipes.point_mae_vit_small):
        assert recipe().evaluate.standardize


def test_classes_and_features_of_new_shapes(tmp_path, capsys):
    for number in range(12):
        path = tmp_path / "data" / ("ball", "box")[number % 2] / f"{number}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        draw = np.random.default_rng(number)
        points = draw.normal(size=(300, 3)) if number % 2 else draw.random((300, 3))
        np.save(path, points.astype(np.float32))
    short = ["--quiet", "--train.warmup-epochs", "0", "--train.workers", "0", "--train.batch-size", "4"]
    run = str(tmp_path / "run")
    start = ["pretrain", "pointcloud:point-mae-vit-tiny", "--twin", "--train.steps", "1", "--out", run]
    assert main([*start, *short, "--data.root", str(tmp_path / "data")]) == 0
    assert main(["finetune", run, *short, "--train.epochs", "1"]) == 0
    new = tmp_path / "new/test"
    new.mkdir(parents=True)
    for number in range(3):
        np.save(new / f"{number}.npy", np.random.default_rng(50 + number).random((300, 3)).astype(np.float32))
    np.save(new / "flat.npy", np.zeros((300, 3), np.float32))
    assert main(["predict", f"{run}/finetune", str(tmp_path / "new"), "--out", str(tmp_path / "p")]) == 0
    assert "flat.npy: all its points lie at one place" in capsys.readouterr().err
    found = [row.split(",")[:2] for row in (tmp_path / "p/predictions.csv").read_text().splitlines()[1:]]
    assert [name for name, _ in found] == ["test/0.npy", "test/1.npy", "test/2.npy"]
    assert {name for _, name in found} <= {"ball", "box"}
    assert main(["embed", run, str(tmp_path / "new"), "--out", str(tmp_path / "f.npz"), "--quiet"]) == 0
    assert np.load(tmp_path / "f.npz")["features"].shape[0] == 3
