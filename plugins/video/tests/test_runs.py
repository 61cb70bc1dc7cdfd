"""Whole runs through the loop: bad and short clips, resumed runs, other lengths, scores with the controls."""

import json
from dataclasses import replace

import av
import numpy as np
import pytest
import torch
from mim_core.cli import main
from mim_core.errors import MimError
from mim_core.evaluation.features import prepare_study
from mim_core.evaluation.input_size import tokenizer_at
from mim_core.host.loading import installed
from mim_core.methods.build import open_source
from mim_core.recipes.resolve import load_recipe, override
from mim_core.runs.load import load_run
from mim_core.scores import PRETRAINED
from mim_core.text import amount
from mim_core.training import loop
from mim_core.training.cost import step_cost


def noise(path, frames=12, size=(40, 48), seed=0):
    """A clip of grey blocks that change."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(seed)
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=10)
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        for _ in range(frames):
            blocks = draw.integers(0, 256, (size[0] // 8, size[1] // 8, 3), np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(blocks.repeat(8, 0).repeat(8, 1), "rgb24")))
        file.mux(stream.encode())
    return path


@pytest.fixture
def trouble(tmp_path):
    """Two classes of good clips, and one of each kind of trouble."""
    for label in ("jump", "run"):
        for i in range(8):
            noise(tmp_path / "clips" / label / f"{i}.mp4", seed=i)
    noise(tmp_path / "clips/run/short.mp4", frames=1)
    (tmp_path / "clips/run/empty.mp4").write_bytes(b"")
    (tmp_path / "clips/jump/text.mp4").write_text("I am a text.")
    return tmp_path / "clips"


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def run(folder, root, steps, **data):
    """``steps`` steps of videomae-vit-tiny's twin, from where the folder's run stands."""
    registry = installed()
    config = load_recipe("video:videomae-vit-tiny", registry, twin=True)
    options = {"data": {"root": str(root), **data}, "train": {"epochs": steps * 8 / 19, "checkpoint_every": 1}}
    under_way = loop.start(override(config, options, "the test", registry), folder, registry)
    assert loop.train(under_way, quiet=True)
    return [line["loss"] for line in read(folder / "metrics.jsonl")]


def test_a_run_from_python_names_bad_files(trouble, tmp_path):
    losses = run(tmp_path / "a", trouble, 5)
    assert len(losses) == 5
    assert losses == run(tmp_path / "b", trouble, 5)
    assert {line["file"] for line in read(tmp_path / "a/skipped.jsonl")} <= {"run/empty.mp4", "jump/text.mp4"}
    assert read(tmp_path / "a/skipped.jsonl")


@pytest.mark.counted
def test_repeated_clips_train_and_are_counted(trouble, tmp_path, capsys):
    assert len(run(tmp_path / "a", trouble, 3, repeat=3)) == 3
    for line in read(tmp_path / "a/metrics.jsonl"):
        assert line["samples_per_second"] == pytest.approx(8 * 3 / line["seconds_per_step"], rel=1e-6)
    under_way = loop.start(load_recipe("video:videomae-vit-tiny", installed(), twin=True), tmp_path, installed())
    clips = under_way.source.finish({"video": torch.stack([under_way.source.read(i, i)["video"] for i in range(4)])})
    assert len(clips["video"]) == 4 * under_way.source.samples_per_item == 8
    operations = step_cost(under_way)[0]
    assert line["flops_per_second"] == pytest.approx(operations * line["samples_per_second"])
    capsys.readouterr()
    assert pretrain(tmp_path / "b", trouble, "--dry-run", "--data.repeat", 3) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "of 24 samples (8 items, 3 samples of each)" in said
    assert f"{amount(operations * 24, 'FLOP')} per step" in said


def test_the_target_must_undo_what_the_data_did(trouble, tmp_path, capsys):
    grey = ["--data.mean", 0.5, 0.5, 0.5, "--data.std", 0.25, 0.25, 0.25]
    assert pretrain(tmp_path / "a", trouble, *grey) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "the mean of the target is 0.485 0.456 0.406, that of the data 0.5 0.5 0.5" in said
    assert "--target.mean 0.5 0.5 0.5" in said
    assert pretrain(tmp_path / "a", trouble, *grey, "--target.mean", 0.5, "--dry-run") == 2
    assert "--target.std 0.25 0.25 0.25" in " ".join(capsys.readouterr().err.split())
    assert pretrain(tmp_path / "a", trouble, *grey, "--target.mean", 0.5, "--target.std", 0.25, "--dry-run") == 0
    assert pretrain(tmp_path / "a", trouble, "--target.mean", 0.5, "--dry-run") == 2
    noise_only = ["pretrain", "videomae-vit-tiny", "--twin", "--use", "data=core:noise", "--dry-run"]
    assert main([*noise_only, "--target.mean", "0.5"], plugin="video") == 0  # noise subtracts nothing


def pretrain(folder, root, *more):
    arguments = ["pretrain", "videomae-vit-tiny", "--twin", "--data.root", str(root), "--out", str(folder), "--quiet"]
    return main([*arguments, *map(str, more)], plugin="video")


def test_resumed_to_the_bit(trouble, tmp_path):
    epochs = ["--train.epochs", 4 * 8 / 19]
    assert pretrain(tmp_path / "a", trouble, *epochs) == 0
    assert pretrain(tmp_path / "b", trouble, *epochs, "--train.max-hours", 1e-9) == 3
    assert pretrain(tmp_path / "b", trouble, *epochs) == 0
    losses = [[line["loss"] for line in read(tmp_path / name / "metrics.jsonl")] for name in "ab"]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 4


def test_scores_have_the_controls(trouble, tmp_path, capsys):
    size = ["--tokenizer.size", 4, 24, 32]
    assert pretrain(tmp_path / "a", trouble, "--train.epochs", 2 * 8 / 19, *size) == 0
    assert main(["evaluate", str(tmp_path / "a"), "--on", "knn"], plugin="video") == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "files cannot be used and are left out" in out
    rows = {score["row"] for score in json.loads((tmp_path / "a/scores.json").read_text())["scores"]}
    assert {f"pre-trained encoder, {label}" for label in ("first frame only", "shuffled frames")} <= rows
    report = (tmp_path / "a/report.html").read_text()
    assert report.count("data:image/gif;base64,") > 0
    assert report.count("data:image/png;base64,") > 0


@pytest.mark.parametrize("recipe", ["videomae-vit-tiny", "videomae-vit-small", "mae-st-vit-base"])
def test_an_encoder_evaluates_at_another_length_and_size(trouble, tmp_path, capsys, recipe):
    """Positions of every kind, of 8 frames of 32 x 32 in training."""
    folder, size = tmp_path / "a", (16, 24, 48)
    arguments = ["pretrain", recipe, "--twin", "--data.root", str(trouble), "--out", str(folder), "--quiet"]
    assert main([*arguments, "--train.epochs", str(8 / 19)], plugin="video") == 0
    before = (folder / "report.html").read_text()
    assert main(["evaluate", str(folder), "--on", "knn", "--size", *map(str, size)], plugin="video") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Inputs of 16 x 24 x 48; the encoder was trained at 8 x 32 x 32" in said
    assert (folder / "scores-16x24x48.json").exists()
    assert not (folder / "scores.json").exists()
    assert (folder / "report.html").read_text() == before
    run, method, _ = load_run(folder, installed())
    study = prepare_study(folder, installed(), size=size)
    source = open_source(run, tokenizer_at(run, size))
    ready = source.finish({"video": source.labelled("test").items[0]["video"][None]})
    assert ready["video"].shape == (1, 3, *size)
    with torch.no_grad():
        assert torch.allclose(method.eval().encode(ready).pooled, study.rows[PRETRAINED].test[:1], atol=1e-5)
    files = set((folder / "features").iterdir())
    assert prepare_study(folder, installed()).rows  # made when they are asked for
    assert set((folder / "features").iterdir()) > files, "features of another size are kept apart"


def test_the_data_are_read_otherwise_when_judged(trouble, tmp_path, capsys):
    """Views in time and space, another stride: options of the data that `evaluate` takes too."""
    folder = tmp_path / "a"
    assert pretrain(folder, trouble, "--train.epochs", 8 / 19) == 0
    more = ["--data.views", "2", "3", "--data.stride", "1"]
    assert main(["evaluate", str(folder), "--on", "knn", *more], plugin="video") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Each clip's features are the mean over 6 views." in said
    assert "Data options differ from the run: --data.stride, --data.views." in said
    assert (folder / "scores-stride-1-views-2x3.json").exists()
    assert not (folder / "scores.json").exists()
    assert main(["evaluate", str(folder), "--on", "knn", "--data.view", "2", "3"], plugin="video") == 2
    assert "--data.views" in " ".join(capsys.readouterr().err.split())
    assert main(["evaluate", str(folder), "--data.views", "0", "3"], plugin="video") == 2
    assert "views must be two counts" in " ".join(capsys.readouterr().err.split())


def test_sizes_that_do_not_fit(trouble, tmp_path, capsys):
    assert pretrain(tmp_path / "a", trouble, "--train.epochs", 8 / 19, "--encoder.position", "learned") == 0
    for size, message in (
        ("16 24 50", "patch"),
        ("24 24", "three numbers"),
    ):
        assert main(["evaluate", str(tmp_path / "a"), "--size", *size.split()], plugin="video") == 2
        assert message in " ".join(capsys.readouterr().err.split())
    assert main(["evaluate", str(tmp_path / "a"), "--on", "knn", "--size", "16", "24", "48"], plugin="video") == 0
    assert "its positions are interpolated to that grid" in " ".join(capsys.readouterr().out.split())
    run = load_recipe("video:videomae-vit-tiny", installed(), twin=True)
    pair = {"a.tokenizer" if role == "tokenizer" else role: part for role, part in run.parts.items()}
    assert tokenizer_at(replace(run, parts=pair), (16, 24, 48)).shapes == {"video": (3, 16, 24, 48)}
    other = replace(run.parts["tokenizer"], options=run.parts["encoder"].options)
    with pytest.raises(MimError, match=r"has the tokenizer .* which has no input size"):
        tokenizer_at(replace(run, parts={**run.parts, "tokenizer": other}), (16, 24, 48))
