"""Whole runs on folders as people have them: bad files, odd sizes, grey and colour."""

import json

import numpy as np
import pytest
from mim_core.cli import main
from mim_core.runs import checkpoint
from PIL import Image


def noise(path, size=(40, 30), seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def skipped(folder):
    return [json.loads(line) for line in (folder / "skipped.jsonl").read_text().splitlines()]


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def trouble(tmp_path):
    """Good images, and one of each kind of trouble, in two classes."""
    for label in ("cat", "dog"):
        for i in range(8):
            noise(tmp_path / label / f"{i}.jpg", seed=i)
    (tmp_path / "cat/empty.jpg").write_bytes(b"")
    (tmp_path / "dog/text.png").write_text("I am a text.")
    whole = noise(tmp_path / "dog/truncated.jpg", size=(300, 300)).read_bytes()
    (tmp_path / "dog/truncated.jpg").write_bytes(whole[: len(whole) // 2])
    Image.new("RGB", (1, 1), (1, 2, 3)).save(tmp_path / "cat/single.png")
    Image.new("RGB", (20_000, 8), (1, 2, 3)).save(tmp_path / "dog/wide.png")
    return tmp_path


BAD = {"cat/empty.jpg", "dog/text.png", "dog/truncated.jpg"}


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_files_are_named_and_the_run_goes_on(trouble, pretrain, workers):
    code, said, folder = pretrain("--train.workers", workers)
    assert code == 0, said
    assert len(metrics(folder)) == 5
    assert {entry["file"] for entry in skipped(folder)} == BAD
    assert len(skipped(folder)) == 3  # each once, though all were met several times
    reasons = {entry["file"]: entry["reason"] for entry in skipped(folder)}
    assert reasons["cat/empty.jpg"] == reasons["dog/text.png"] == "not an image of a kind that is read"
    assert "truncated" in reasons["dog/truncated.jpg"]
    assert said.count("cannot be used") == 1  # one warning, and where the list is
    assert str(folder / "skipped.jsonl") in said
    assert (folder / "report.html").exists()


def test_replacements_do_not_depend_on_workers(trouble, pretrain):
    losses = []
    for workers in (0, 2):
        code, said, folder = pretrain("--train.workers", workers)
        assert code == 0, said
        losses.append([line["loss"] for line in metrics(folder)])
        folder.rename(trouble / f".{workers}")
    assert losses[0] == losses[1]


def test_a_run_with_bad_files_is_judged_without_them(trouble, pretrain, capsys):
    code, said, folder = pretrain()
    assert code == 0, said
    assert main(["evaluate", str(folder), "--on", "knn"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    # held out is every fifth of a class, by name: cat/4.jpg, cat/single.png, dog/4.jpg, dog/truncated.jpg
    assert "15 labelled training samples, 3 test samples, 2 classes." in out
    scores = json.loads((folder / "scores.json").read_text())
    assert any("3 files cannot be used and are left out" in note for note in scores["notes"])
    assert all(0 <= score["value"] <= 1 for score in scores["scores"])


def test_a_resumed_run_names_each_bad_file_once(trouble, pretrain):
    assert pretrain("--train.max-hours", "0")[0] == 3
    code, said, folder = pretrain()
    assert code == 0, said
    assert len(metrics(folder)) == 5
    assert len(skipped(folder)) == len({entry["file"] for entry in skipped(folder)}) == 3


def test_more_bad_files_than_allowed(trouble, pretrain):
    code, said, folder = pretrain("--data.max-bad", "0.1")  # 2.1 of 21
    assert code == 2
    assert "3 of 21 files cannot be used, more than the share of 0.1 that --data.max-bad allows" in said
    assert all(name in said for name in BAD)
    assert str(folder / "skipped.jsonl") in said
    assert "Traceback" not in said
    assert {entry["file"] for entry in skipped(folder)} == BAD
    assert pretrain("--data.max-bad", "0.1")[0] == 2  # asking again does not pass it
    code, said, folder = pretrain("--data.max-bad", "0.15")  # 3.15
    assert code == 0, said


def test_a_run_stopped_by_bad_files_goes_on_with_a_larger_share(trouble, pretrain):
    code, said, folder = pretrain("--data.max-bad", "0.1", "--train.checkpoint-every", "1", "--train.seed", "1")
    stopped = checkpoint.newest(folder)
    assert code == 2
    assert stopped is not None, "this seed must meet the third bad file after the first checkpoint"
    code, said, folder = pretrain("--data.max-bad", "0.5", "--train.checkpoint-every", "1", "--train.seed", "1")
    assert code == 0, said
    assert len(metrics(folder)) == 5


def test_nothing_but_bad_files(tmp_path, pretrain):
    for i in range(1000):
        (tmp_path / f"{i}.png").write_text("I am a text.")
    code, said, folder = pretrain()
    assert code == 2
    found = len(skipped(folder))
    assert 500 < found <= 1000  # a readable file is looked for until more than the limit are bad
    assert f"{found} of 1000 files cannot be used, more than the share of 0.5 that --data.max-bad allows" in said
    assert checkpoint.newest(folder) is None
    assert "Traceback" not in said


def test_no_bad_file_no_list(tmp_path, pretrain):
    noise(tmp_path / "a.png")
    noise(tmp_path / "b.png", seed=1)
    code, said, folder = pretrain()
    assert code == 0, said
    assert not (folder / "skipped.jsonl").exists()


@pytest.mark.parametrize("recipe", ["mae-vit-tiny", "mae-vit-base", "simmim-vit-base"])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_size_and_channels(tmp_path, pretrain, capsys, recipe, channels):
    """From training to the report, the scores and the exported encoder, on pictures 42 high and 28 wide."""
    for label in ("cat", "dog"):
        for i in range(10):
            noise(tmp_path / label / f"{i}.webp", size=(30 + i, 60 - i), seed=i)
    colours = ["--tokenizer.channels", channels, "--data.mean", *[0.5] * channels, "--data.std", *[0.25] * channels]
    code, said, folder = pretrain("--tokenizer.size", 42, 28, "--tokenizer.patch", 14, 7, *colours, recipe=recipe)
    assert code == 0, said
    assert metrics(folder)[-1]["step"] == 5
    assert (folder / "report.html").read_text().count("data:image/png;base64,") == 12  # 4 held out; 3 rows
    assert main(["evaluate", str(folder), "--on", "knn"]) == 0
    assert "16 labelled training samples, 4 test samples, 2 classes." in capsys.readouterr().out
    if recipe != "simmim-vit-base":
        assert main(["export", str(folder)]) == 0


def test_non_square_plan(tmp_path, pretrain, capsys):
    noise(tmp_path / "a.png")
    arguments = ["--data.root", str(tmp_path), "--tokenizer.size", "42", "28", "--tokenizer.patch", "14", "7"]
    arguments += ["--train.epochs", "320"]  # of the one image
    assert main(["pretrain", "mae-vit-tiny", "--twin", *arguments, "--dry-run"], plugin="image") == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "input image 1 x 42 x 28" in out
    assert "12 on a grid of 3 x 4; 9 hidden, 3 into the encoder" in out
