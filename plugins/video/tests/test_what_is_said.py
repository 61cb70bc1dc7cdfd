"""What the command line says before a run begins: the plan, advice, and mistakes that are told at once."""

import os
import sys

import av
import numpy as np
import pytest
import torch
from mim_core.cli import main
from mim_core.data.labelled import LabelledSource
from mim_core.errors import MimError
from mim_core.runs.inventory import digest_of
from mim_video.data import Clips


def noise(path, frames=40, size=(40, 48)):
    path.parent.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(len(path.stem))
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        for _ in range(frames):
            blocks = draw.integers(0, 256, (size[0] // 8, size[1] // 8, 3), np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(blocks.repeat(8, 0).repeat(8, 1), "rgb24")))
        file.mux(stream.encode())


@pytest.fixture
def few(tmp_path):
    """Six clips of two classes."""
    for name in ("hop/a.mp4", "hop/ab.mp4", "hop/abc.mp4", "run/a.mp4", "run/ab.mp4", "run/abc.mp4"):
        noise(tmp_path / "clips" / name)
    return tmp_path / "clips"


@pytest.fixture
def plan(few, tmp_path, capsys):
    """``plan("--data.repeat", 2)`` -> (exit code, standard output, errors), spaces and line breaks as one space."""

    def call(*more, command="pretrain", recipe="videomae-vit-tiny"):
        arguments = [command, recipe, "--data.root", few, "--out", tmp_path / "run", "--dry-run", *more]
        code = main([str(argument) for argument in arguments], plugin="video")
        said = capsys.readouterr()
        return code, " ".join(said.out.split()), " ".join(said.err.split())

    return call


def test_a_reader_that_is_missing_fails_before_the_run(plan, monkeypatch):
    monkeypatch.setitem(sys.modules, "decord", None)
    code, _, error = plan("--data.reader", "decord")
    assert code == 2
    assert 'pip install "mim-video[decord]"' in error


def test_the_plan_names_the_reader(plan):
    code, said, error = plan()
    assert code == 0, error
    assert f"reader pyav {av.__version__} (auto)" in said
    assert f"reader pyav {av.__version__} " in plan("--data.reader", "pyav")[1]
    assert "(auto)" not in plan("--data.reader", "pyav")[1]


def test_the_plan_in_words(plan):
    said = plan("--train.epochs", 1, "--train.warmup-epochs", 0, "--data.repeat", 1, "--train.batch-size", 8)[1]
    assert "6 clips for training, 2 classes" in said
    assert "steps 1 step, each of 8 samples; 1 epoch, each of 0.75 steps" in said
    said = plan("--train.batch-size", 2048, "--train.epochs", 3000, "--data.repeat", 2)[1]
    assert "9 steps, each of 4,096 samples (2,048 items, 2 samples of each); 3,000 epochs, each of 0.00293 st" in said


def test_memory_counts_repeated_clips(plan):
    def activations(*more):
        text = plan("--train.batch-size", 8, *more)[1]
        number, unit = text.partition("moments, ")[2].split()[:2]
        return float(number) * {"MB": 1, "GB": 1000}[unit]

    one, four = (activations("--data.repeat", repeat) for repeat in (1, 4))
    assert four == pytest.approx(4 * one, rel=0.01)
    assert activations("--data.repeat", 4, "--train.micro-batch", 2) == pytest.approx(one, rel=0.01)


def test_advice_for_few_clips_fits_them(plan):
    _, said, warned = plan()
    assert "batch 4 in place of 8" in said
    assert "one step takes" not in warned
    warned = plan("--train.batch-size", 8, "--train.epochs", 50)[2]
    assert "one step takes 8 samples and there are 6: " in warned
    assert "try --train.batch-size 4 --train.epochs 667. That makes 1,000 steps." in warned


@pytest.mark.parametrize("value", [("8", "32"), ("8",), ("8", "32", "32", "3")])
def test_the_three_numbers_of_a_size(plan, value):
    code, _, error = plan("--tokenizer.size", *value)
    assert code == 2
    assert f"size should be three numbers: frames, height, width; got {' x '.join(value)}" in error


def test_an_unknown_recipe_lists_those_of_the_plugin(plan):
    code, _, error = plan(recipe="videomae-vit-tinny")
    assert code == 2
    assert "Did you mean 'videomae-vit-tiny'?" in error
    assert "simmim" not in error
    assert "mim-core pretrain image:simmim-vit-base" in plan(recipe="simmim-vit-base")[2]


def test_help_of_pretrain_tells_how_to_see_a_recipes_options(capsys):
    assert main(["pretrain", "--help"], plugin="video") == 0
    assert "mim-video pretrain RECIPE --help" in capsys.readouterr().out


def test_labelled_clips_are_augmented(few):
    source = Clips(Clips.Config(root=few, stride=2, repeat=3), {"video": (3, 4, 16, 16)})
    labelled = LabelledSource(source)
    split = source.labelled("train")
    assert "augmentation" not in labelled.plan()
    for index, label in enumerate(split.labels.tolist()):
        drawn = [labelled.read(index, key) for key in (1, 1, 2, 3)]
        assert {int(item["label"]) for item in drawn} == {label}
        assert drawn[0]["video"].shape == (3, 4, 16, 16)
        assert torch.equal(drawn[0]["video"], drawn[1]["video"])
        assert len({item["video"].numpy().tobytes() for item in drawn}) == 3
        assert not torch.equal(drawn[0]["video"], split.items[index]["video"])
    batch = {"video": drawn[0]["video"][None], "index": torch.tensor([0]), "key": torch.tensor([1])}
    assert labelled.samples_per_item * len(batch["video"]) == len(labelled.finish(batch)["video"])


def test_no_labels_are_told(few):
    for path in sorted(few.glob("hop/*")):
        path.rename(few / path.name)
    with pytest.raises(MimError, match="has no classes"):
        LabelledSource(Clips(Clips.Config(root=few), {"video": (3, 4, 16, 16)}))


def test_kept_features_know_the_files_that_they_were_made_of(few):
    def digest():
        clips = Clips(Clips.Config(root=few), {"video": (3, 4, 16, 16)})
        return digest_of(clips, [clips.labelled("train"), clips.labelled("test")])

    for name in ("hop/4.mp4", "hop/5.mp4", "run/4.mp4", "run/5.mp4"):
        noise(few / name, frames=4)
    seen = [digest()]
    assert digest() == seen[0]
    os.utime(few / "hop/a.mp4", (1, 1))
    seen.append(digest())
    noise(few / "run/a.mp4", frames=9)
    seen.append(digest())
    for old, new in (("hop/4.mp4", "x"), ("run/4.mp4", "hop/4.mp4"), ("x", "run/4.mp4")):  # mended labels
        (few / old).rename(few / new)
    seen.append(digest())
    assert len({*seen}) == len(seen)
