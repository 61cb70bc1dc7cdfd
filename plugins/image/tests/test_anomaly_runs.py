"""Anomaly detection from the command line: training on normal pictures, tables, heat maps, and what is refused."""

import csv
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from mim_core import aupro, auroc, build_method, load_run
from mim_core.cli import main
from mim_core.host.loading import installed
from mim_core.recipes.resolve import load_recipe
from PIL import Image


def picture(path, number, defect=False, mask=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.zeros((28, 28), np.uint8)
    if not mask:
        values[:, ::4] = 150 + 10 * number
    if defect:
        values[8 : 14 + number, 10:18] = 255
    Image.fromarray(values).save(path)


@pytest.fixture(scope="module")
def bottle(tmp_path_factory):
    """MVTec AD's layout: stripes, and stripes with a white box."""
    root = tmp_path_factory.mktemp("mvtec") / "bottle"
    for i in range(12):
        picture(root / f"train/good/{i:03}.png", i % 4)
    for i in range(4):
        picture(root / f"test/good/{i:03}.png", i)
        picture(root / f"test/box/{i:03}.png", i, defect=True)
        picture(root / f"ground_truth/box/{i:03}_mask.png", i, defect=True, mask=True)
    return root


def command(*arguments):
    return main(list(map(str, arguments)), plugin="image")


def pretrain(root, out, recipe="ssmctb-autoencoder-tiny", *more):
    data = ["--data.root", root, "--data.crop", 1, 1, "--data.normal", ""]
    return command("pretrain", recipe, "--twin", "--quiet", "--out", out, *data, *more)


@pytest.fixture(scope="module")
def run(bottle, tmp_path_factory):
    """A detector that has seen the stripes for 120 steps, judged."""
    out = tmp_path_factory.mktemp("runs") / "detector"
    assert pretrain(bottle, out, "ssmctb-autoencoder-tiny", "--train.batch-size", 4, "--train.steps", 120) == 0
    assert command("evaluate", out) == 0
    return out


def table(run):
    content = json.loads((run / "scores.json").read_text())
    return {(s["row"], s["column"]): s["value"] for s in content["scores"]}, content["notes"]


def test_the_table_is_that_of_the_maps(run, bottle):
    found, notes = table(run)
    source, method = load_run(run).source(), load_run(run).method.eval()
    split = source.labelled("test")
    batch = source.finish({"image": torch.stack([split.items[i]["image"] for i in range(8)])})
    maps, truth = method.score_maps(batch, 1), torch.stack([split.items[i]["truth"] for i in range(8)])
    own = {column: value for (row, column), value in found.items() if row == "pre-trained encoder"}
    assert own["image AUROC, highest"] == pytest.approx(auroc(maps.flatten(1).amax(dim=1), split.labels))
    assert own["pixel AUROC"] == pytest.approx(auroc(maps.flatten(), truth.flatten()), abs=1e-6)
    assert own["PRO, 30%"] == pytest.approx(aupro(maps, truth, 0.3), abs=1e-6)
    assert own["pixel AUROC"] > 0.9
    assert {row for row, _ in found} == {"chance", "raw input", "untrained encoder", "pre-trained encoder"}
    assert found["chance", "image AP, mean"] == 0.5
    assert len({column for _, column in found}) == 7
    assert any("4 normal images and 4 abnormal ones judged" in note for note in notes)


def test_raw_input_is_the_nearest_normal_picture(run):
    """Four of the training pictures are the four normal test pictures, so these are at distance 0."""
    found, _ = table(run)
    assert found["raw input", "image AUROC, highest"] == 1
    assert found["raw input", "pixel AUROC"] > 0.95


def test_heat_maps_in_the_report(run):
    report = (run / "report.html").read_text()
    assert "<h2>Anomaly scores</h2>" in report
    assert "<h2>Anomaly detection</h2>" in report  # above the table
    assert "frozen features" not in report
    assert "image AUROC, mean " in report.split("<h2>")[0]  # what a reader sees first
    assert "finetune" not in report
    assert "the first 4 are normal" in report
    assert report.count('alt="scores"') == report.count('alt="truth"') == report.count('alt="input"') == 8


def test_predict_writes_score_maps(run, bottle, tmp_path):
    assert command("predict", run, bottle / "test", "--anomaly", "--out", tmp_path / "out", "--quiet") == 0
    with open(tmp_path / "out/predictions.csv") as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert len(rows) == 8
    source, method = load_run(run).source(), load_run(run).method.eval()
    split = source.labelled("test")
    for i in (0, 7):
        name = split.names[i].removeprefix("test/")
        batch = source.finish({"image": split.items[i]["image"][None]})
        scores = np.load(tmp_path / "out" / rows[name]["scores"])
        np.testing.assert_allclose(scores, method.score_maps(batch, 1)[0].numpy(), rtol=1e-4, atol=1e-6)
        assert float(rows[name]["highest score"]) == pytest.approx(float(scores.max()))
        assert Image.open(tmp_path / "out" / rows[name]["heat"]).size == (112, 112)
        shown = [float(rows[name][f"crop {side}"]) for side in ("left", "top", "width", "height")]
        assert shown == [0, 0, *Image.open(bottle / split.names[i]).size]  # all of it


def test_a_masked_autoencoder_is_a_detector(bottle, tmp_path, capsys):
    more = ("--use", "data=image:anomalies", "--train.batch-size", 4, "--train.steps", 4, "--tokenizer.patch", 4, 4)
    assert pretrain(bottle, tmp_path / "mae", "mae-vit-tiny", *more) == 0
    assert command("evaluate", tmp_path / "mae", "--on", "image:anomaly", "--evaluate.covers", 1) == 0
    found, _ = table(tmp_path / "mae")
    assert ("pre-trained encoder", "PRO, 30%") in found
    assert command("predict", tmp_path / "mae", bottle / "test/box/000.png", "--anomaly", "--out", tmp_path / "o") == 0
    assert np.load(tmp_path / "o/000-scores.npy").shape == (28, 28)
    capsys.readouterr()
    assert command("predict", tmp_path / "mae", bottle / "test", "--anomaly", "--covers", 0) == 2
    assert "--covers must be at least 1" in capsys.readouterr().err


def test_data_that_tell_nothing_of_anomalies(tmp_path, capsys, run):
    assert command("pretrain", "mae-vit-tiny", "--twin", "--quiet", "--out", tmp_path / "m", "--train.steps", 1) == 0
    capsys.readouterr()
    assert command("evaluate", tmp_path / "m", "--on", "image:anomaly") == 2
    assert "Images does not say what is abnormal" in capsys.readouterr().err


@pytest.mark.parametrize("gone", ["box", "good"])
def test_a_test_split_of_one_kind(run, bottle, tmp_path, capsys, gone):
    shutil.copytree(bottle, tmp_path / "one")
    shutil.rmtree(tmp_path / "one/test" / gone)
    assert command("evaluate", run, "--data-root", tmp_path / "one") == 2
    said = capsys.readouterr().err
    assert f"All 4 test samples are {'normal' if gone == 'box' else 'abnormal'}: there is nothing to tell apart" in said


def test_a_mask_of_another_size_stops_evaluation(run, bottle, tmp_path, capsys):
    shutil.copytree(bottle, tmp_path / "other")
    Image.new("L", (30, 28), 255).save(tmp_path / "other/ground_truth/box/002_mask.png")
    assert command("evaluate", run, "--data-root", tmp_path / "other") == 2
    assert "002_mask.png is 30 x 28" in capsys.readouterr().err


def test_one_training_picture(bottle, tmp_path):
    """The run trains on it and is judged."""
    shutil.copytree(bottle, tmp_path / "few")
    for path in sorted((tmp_path / "few/train/good").iterdir())[1:]:
        path.unlink()
    assert pretrain(tmp_path / "few", tmp_path / "run", "ssmctb-autoencoder-tiny", "--train.steps", 2) == 0
    assert command("evaluate", tmp_path / "run") == 0
    assert len(table(tmp_path / "run")[0]) == 28


# ---- the method ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"block": "sspcab", "loss": "huber"}, {"block": "none"}, {"dilation": 2}])
def test_other_blocks(options):
    recipe = load_recipe("image:ssmctb-autoencoder-tiny", installed(), twin=True)
    part = recipe.parts["method"]
    part = replace(part, options=replace(part.options, **options))
    method = build_method(replace(recipe, parts={**recipe.parts, "method": part}))
    image = torch.randn(2, 1, 28, 28)
    outcome = method(method.prepare({"image": image}))
    patches = method.tokenizer.split({"image": method._rebuilt(image)[0]}).values.flatten(2)
    torch.testing.assert_close(outcome.predictions["main"], patches)
    if options.get("block") == "none":
        assert set(outcome.parts) == {"main"}
    else:
        torch.testing.assert_close(outcome.loss, outcome.parts["main"] + 0.1 * outcome.parts["block"])


def test_a_patch_that_does_not_fit_the_stages(tmp_path, capsys):
    code = command("pretrain", "ssmctb-autoencoder-tiny", "--twin", "--out", tmp_path / "x", "--tokenizer.patch", 7, 7)
    assert code == 2
    assert "2 stages halve the picture to 1/4" in capsys.readouterr().err
