"""Whole runs through the loop: bad and short clips, resumed runs, other lengths, scores with the controls."""

import json

import av
import numpy as np
import pytest
from mim_core import loop
from mim_core.cli import main
from mim_core.plugins import installed
from mim_core.recipe import load_recipe, override


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


def test_repeated_clips_train(trouble, tmp_path):
    assert len(run(tmp_path / "a", trouble, 3, repeat=3)) == 3


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
