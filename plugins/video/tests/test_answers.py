"""predict and embed on clips: the mean over the views of each."""

import csv
from dataclasses import replace

import av
import numpy as np
import pytest
import torch
from mim_core.cli import main
from mim_core.runs.load import load_run


def write_video(path, seed, frames=60):
    """A clip of grey blocks that change."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(seed)
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = 40, 48, "yuv420p"
        for _ in range(frames):
            blocks = draw.integers(0, 256, (5, 6, 3), np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(blocks.repeat(8, 0).repeat(8, 1), "rgb24")))
        file.mux(stream.encode())


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run and its classifier, each of few steps on small clips of two classes."""
    root = tmp_path_factory.mktemp("clips")
    for number in range(10):
        write_video(root / "data" / ("run", "jump")[number % 2] / f"{number}.mp4", number)
    short = ["--quiet", "--train.warmup-epochs", "0", "--train.workers", "0", "--train.batch-size", "4"]
    start = ["pretrain", "video:videomae-vit-tiny", "--twin", "--train.steps", "1", "--out", str(root / "run")]
    assert main([*start, *short, "--data.root", str(root / "data")]) == 0
    assert main(["finetune", str(root / "run"), *short, "--train.epochs", "1"]) == 0
    return root / "run"


def test_classes_are_the_mean_over_views(runs, tmp_path):
    for number in range(2):
        write_video(tmp_path / "new/test" / f"{number}.mp4", 100 + number)
    (tmp_path / "new/text.mp4").write_text("I am a text.")
    new, out = str(tmp_path / "new"), tmp_path / "p"
    views = ["--data.views", "2", "1", "--batch-size", "3"]
    assert main(["predict", str(runs / "finetune"), new, "--out", str(out), "--quiet", *views]) == 0
    with open(out / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["test/0.mp4", "test/1.mp4"]
    run = load_run(runs / "finetune")
    part = run.recipe.parts["data"]
    options = replace(part.options, root=tmp_path / "new", splits=False, views=(2, 1))
    source = part.cls(options, run.method.tokenizer.shapes)
    plain = source.plain()
    assert (plain.views, plain.names) == (2, ("test/0.mp4", "test/1.mp4", "text.mp4"))
    run.method.eval()
    for number, row in enumerate(rows):
        batch = source.finish({"video": torch.stack([plain.items[2 * number + view]["video"] for view in (0, 1)])})
        assert not torch.equal(batch["video"][0], batch["video"][1])
        with torch.no_grad():
            share = run.method.predict(batch)["class"].mean(dim=0)
        assert float(row["p(jump)"]) == pytest.approx(float(share[0]), abs=1e-5)
        assert row["class"] == ("jump", "run")[int(share.argmax())]


def test_official_lists_are_not_asked_for(runs, tmp_path):
    """A folder with a list of Kinetics' and one video that it does not name."""
    write_video(tmp_path / "new/mine.mp4", 100)
    (tmp_path / "new/train.csv").write_text("label,youtube_id,time_start,time_end,split\nrun,abc,0,10,train\n")
    assert main(["embed", str(runs), str(tmp_path / "new"), "--out", str(tmp_path / "f.npz"), "--quiet"]) == 0
    assert np.load(tmp_path / "f.npz")["names"].tolist() == ["mine.mp4"]
