"""Maps of classes and of depth, learned by the commands that people use."""

import csv
import json

import numpy as np
import pytest
import torch
from mim_core import load_run
from mim_core.cli import main
from mim_multimodal.data import SAMPLE, Aligned
from mim_multimodal.map_sources import MapSource
from PIL import Image

SHORT = ["--quiet", "--train.workers", "0", "--train.warmup-epochs", "0", "--train.batch-size", "8"]


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dense") / "run"
    start = ["pretrain", "multimodal:multimae-vit-tiny", "--twin", "--train.steps", "2", "--out", str(folder)]
    assert main([*start, *SHORT]) == 0
    return folder


def finetune(run, method, out, *more):
    chosen = ["finetune", str(run), "--use", f"method=multimodal:{method}", "--train.steps", "3", "--out", str(out)]
    return main([*chosen, *SHORT, "--method.inner", "64", "--method.blocks", "1", *more])


def test_pictures_alone_get_maps_of_classes(pretrained, tmp_path, capsys):
    alone = ["--use", "semseg.tokenizer=none", "--use", "depth.tokenizer=none"]
    assert finetune(pretrained, "segmenter", tmp_path / "run", *alone) == 0
    new = tmp_path / "new/rgb"
    new.mkdir(parents=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(new / "a.png")
    assert main(["predict", str(tmp_path / "run"), str(new.parent), "--out", str(tmp_path / "maps"), "--quiet"]) == 0
    with Image.open(tmp_path / "maps/rgb/a-semseg.png") as image:
        assert image.size == (32, 32)
    assert "mIoU" in (tmp_path / "run/scores.json").read_text()


def test_depth_is_learned_in_the_units_of_the_files(pretrained, tmp_path, capsys):
    options = ["--use", "depth.tokenizer=none", "--method.head", "linear"]
    assert finetune(pretrained, "depth-regressor", tmp_path / "run", *options) == 0
    scores = (tmp_path / "run/scores.json").read_text()
    assert "RMSE" in scores
    assert "unit of the files" in scores
    assert main(["export", str(tmp_path / "run"), "--to", "torch"]) == 0
    files = {"about.json": ""}
    torch.export.load(tmp_path / "run/program.pt2", extra_files=files)
    about = json.loads(files["about.json"])
    assert len(about["mean"]) == len(about["std"]) == 3
    assert "classes" not in about


def frames(root, count, unit):
    """Pictures whose depth grows with their brightness, at least 500 mm, in two splits."""
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for number in range(count):
            grey = rng.integers(1, 255, (8, 8), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
            for kind in ("rgb", "depth"):
                (root / split / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.stack([grey] * 3, 2)).save(root / split / "rgb" / f"{number}.png")
            depth = 500 + grey.astype(np.uint16) * 10
            if unit == "mm":
                Image.fromarray(depth).save(root / split / "depth" / f"{number}.png")
            else:
                np.save(root / split / "depth" / f"{number}.npy", (depth / 1000).astype(np.float32))
    return root


@pytest.mark.parametrize("unit", ["mm", "m"])
def test_maps_of_depth_are_in_the_unit_of_the_files(pretrained, tmp_path, unit):
    """Millimetres become whole numbers of 16 bits, metres floats; and a share of the labels is a share of the maps."""
    data = frames(tmp_path / "data", 4, unit)
    options = ["--use", "depth.tokenizer=none", "--use", "semseg.tokenizer=none", "--method.head", "linear"]
    options += ["--data.root", str(data), "--data.labels", "0.5"]
    assert finetune(pretrained, "depth-regressor", tmp_path / "run", *options) == 0
    source = load_run(tmp_path / "run").method.training_source(load_run(tmp_path / "run").source())
    assert len(source) == 2
    assert source.plan()["labels"].startswith("2 of 4 training items")
    assert main(["predict", str(tmp_path / "run"), str(data / "test"), "--out", str(tmp_path / "p"), "--quiet"]) == 0
    with open(tmp_path / "p/predictions.csv", newline="") as file:
        row = next(csv.DictReader(file))
    path = tmp_path / "p" / row["depth"]
    found = np.asarray(Image.open(path)) if unit == "mm" else np.load(path)
    assert found.dtype == (np.uint16 if unit == "mm" else np.float32)
    assert found.mean() == pytest.approx(float(row["mean"]), abs=1 if unit == "mm" else 1e-4)
    assert float(row["mean"]) * (1 if unit == "mm" else 1000) == pytest.approx(1780, abs=1000)


def test_what_is_predicted_is_no_input_and_all_inputs_are_needed(pretrained, tmp_path, capsys):
    assert finetune(pretrained, "segmenter", tmp_path / "run") == 2
    assert "Take it out: --use semseg.tokenizer=none" in " ".join(capsys.readouterr().err.split())
    assert finetune(pretrained, "segmenter", tmp_path / "run", "--use", "semseg.tokenizer=none") == 0
    given = ["--given", "rgb", "--out", str(tmp_path / "maps"), "--quiet"]
    assert main(["predict", str(tmp_path / "run"), str(SAMPLE), *given]) == 2
    assert "sees all of its inputs, rgb, depth" in " ".join(capsys.readouterr().err.split())


def test_a_class_that_is_taken_for_none_is_told(tmp_path):
    """Ids that start at 0 under a recipe for ADE20K, whose 0 is no class; and ids that start at 1."""
    for folder, first in (("own", 0), ("ade", 1)):
        for split in ("train", "test"):
            for kind, values in (
                ("rgb", np.zeros((16, 16, 3), np.uint8)),
                ("semseg", np.arange(first, first + 4, dtype=np.uint8).repeat(64).reshape(16, 16) % (3 + first)),
            ):
                path = tmp_path / folder / split / kind / "1.png"
                path.parent.mkdir(parents=True)
                Image.fromarray(values).save(path)
        inner = Aligned(Aligned.Config(tmp_path / folder, void=0, classes=3), {"rgb": (3, 16, 16)})
        data = MapSource(inner, "semseg", (16, 16))
        assert any("If it is one: --data.void None" in line for line in data.advice()) == (folder == "own")
        assert "0 in them is no class" in data.plan()["labels"]
        told = data.contents()["files hold"]
        assert "1 of 1 looked at: rgb 8 bits, 16 x 16" in told
        assert "learned from: semseg 8 bits, 16 x 16, ids 0, 1" in told


def test_maps_of_depth_are_described_with_the_files():
    inner = Aligned(Aligned.Config(SAMPLE), {"rgb": (3, 16, 16)})
    told = MapSource(inner, "depth", (16, 16)).contents()["files hold"]
    assert "learned from: depth 8 bits, 64 x 64, 8 to 255, 32 of 960 looked at" in told
    assert "depth" not in inner.contents()["files hold"]
