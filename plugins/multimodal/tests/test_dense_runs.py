"""Maps of classes and of depth, learned by the commands that people use."""

import numpy as np
import pytest
from mim_core.cli import main
from mim_multimodal.data import SAMPLE, Aligned
from mim_multimodal.dense_methods import MapSource
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
