"""A tokenizer of features: what a run's encoder makes of RGB is named, and the ids are a modality of 4M."""

import json
import multiprocessing
import shutil

import numpy as np
import pytest
import torch
from mim_core import parts_text
from mim_core.cli import main as command
from mim_core.host.loading import installed
from mim_core.interop.frozen_features import FrozenFeatures
from mim_core.methods.build import make_source
from mim_core.recipes.config import Part
from mim_core.runs.load import load_run
from mim_multimodal.data import SAMPLE
from mim_multimodal.plugin import COMMANDS
from mim_multimodal.token_store import TokenStore

SHORT = ["--twin", "--train.workers", "0", "--train.warmup-epochs", "0", "--quiet"]


def begun(recipe, folder, *options, steps=8):
    """A short run of the twin of a recipe."""
    start = ["pretrain", f"multimodal:{recipe}", *SHORT, "--train.steps", str(steps), *options]
    assert command([*start, "--out", str(folder)], "multimodal", COMMANDS) == 0
    return folder


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A run of several modalities, of which RGB is looked at."""
    return begun("multimae-vit-tiny", tmp_path_factory.mktemp("teacher") / "run", steps=2)


@pytest.fixture(scope="module")
def run(teacher, tmp_path_factory):
    """A tokenizer of its features, which opens where the teacher is gone."""
    folder, lent = tmp_path_factory.mktemp("vq") / "run", tmp_path_factory.mktemp("lent") / "teacher"
    shutil.copytree(teacher, lent)
    options = ["--tokenizer.no-random", "--tokenizer.parts", "", "--train.log-every", "1"]
    begun("vq-features-tiny", folder, "--tokenizer.run", str(lent), *options)
    shutil.rmtree(lent)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Some of the bundled frames."""
    root = tmp_path_factory.mktemp("data")
    for split, count in (("train", 9), ("test", 3)):
        for name in ("rgb", "depth", "semseg"):
            (root / split / name).mkdir(parents=True)
            for path in sorted((SAMPLE / split / name).rglob("*.*"))[:count]:
                shutil.copy(path, root / split / name)
    return root


def sample_of(run, rows=3):
    opened = load_run(run, installed())
    source = make_source(opened.recipe, opened.method)
    items = [source.read(index, index) for index in range(rows)]
    return source.finish({"rgb": torch.stack([item["rgb"] for item in items])}), opened.method.eval()


def test_units_are_the_features_of_one_modality(teacher, run):
    """Of RGB alone, as the teacher's own `encode` makes them, under a layer norm; its weights are in the checkpoint."""
    sample, method = sample_of(run)
    values = method.tokenizer.split(sample).values
    wanted = load_run(teacher, installed()).method.eval().encode(sample).tokens.detach()
    torch.testing.assert_close(values, torch.nn.functional.layer_norm(wanted, wanted.shape[-1:]))
    assert method.tokenizer.layout.grid == (4, 4)
    own = FrozenFeatures(FrozenFeatures.Config(run=teacher, modality="rgb", norm="none"), 16)
    torch.testing.assert_close(own.split(sample).values, wanted)
    assert not any(p.requires_grad for p in method.tokenizer.looks.parameters())
    assert method.name(sample).shape == (3, 16)
    assert method.rebuild(method.name(sample)).shape == (3, wanted.shape[2], 4, 4)


def test_metrics_and_report(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["loss/rebuilt"] < lines[0]["loss/rebuilt"]
    assert 0 < lines[-1]["usage"] <= 1 < lines[-1]["perplexity"] <= 16
    report = (run / "report.html").read_text()
    assert "rebuilt" in report
    assert report.count("data:image/png;base64") >= 16


def test_which_modality_must_be_said(teacher):
    with pytest.raises(ValueError, match="one of rgb, depth, semseg"):
        FrozenFeatures(FrozenFeatures.Config(run=teacher), 16)
    with pytest.raises(ValueError, match="one of rgb, depth, semseg"):
        FrozenFeatures(FrozenFeatures.Config(run=teacher, modality="sound"), 16)
    with pytest.raises(ValueError, match=r"say whose encoder it is: --tokenizer\.run"):
        FrozenFeatures(FrozenFeatures.Config(), 16)


def test_weights_that_are_gone_are_named(run, capsys):
    parts = load_run(run, installed()).recipe.parts["tokenizer"].options.parts
    assert "rgb.tokenizer" in parts
    start = ["pretrain", "multimodal:vq-features-tiny", *SHORT, "--tokenizer.no-random", "--train.steps", "2"]
    assert command([*start, "--tokenizer.parts", parts, "--tokenizer.run", "gone", "--out", str(run.parent / "x")]) == 2
    assert "not at hand: gone" in capsys.readouterr().err


def test_ids_are_a_modality_of_4m(run, data, tmp_path):
    """Made once, the same with any workers, and read back; or made by the run itself, generated and written."""
    for name, workers in (("one", "1"), ("two", "2")):
        options = ["--workers", workers, "--shard", "5", "--quiet"]
        assert command(["tokenize", str(run), str(data), str(tmp_path / name), *options], "multimodal", COMMANDS) == 0
    for process in multiprocessing.active_children():  # they end by themselves, in a while
        process.join(60)
    one, two = TokenStore(tmp_path / "one"), TokenStore(tmp_path / "two")
    assert one.grid == (4, 4)
    assert all(torch.equal(one.ids(name, 0), two.ids(name, 0)) for name in one.places)
    own = ["--data.root", str(data), "--use", "caption.tokenizer=none", "--train.batch-size", "4"]
    own += ["--use", "stored.target=core:ids", "--use", "stored.tokenizer=core:ids"]
    own += ["--stored.tokenizer.modality", "stored", "--stored.tokenizer.size", "4", "4"]
    own += ["--stored.tokenizer.names", str(one.codes), "--data.tokens", "stored", str(tmp_path / "one")]
    own += ["--use", "features.target=core:ids", "--use", "features.tokenizer=core:codes"]
    folder = begun("4m-vit-tiny", tmp_path / "4m", *own, "--features.tokenizer.run", str(run), steps=2)
    assert "features" in (folder / "report.html").read_text()
    few = tmp_path / "few" / "depth"
    few.mkdir(parents=True)
    shutil.copy(next((data / "test/depth").iterdir()), few / "1.png")
    asked = ["predict", str(folder), str(few.parent), "--given", "depth", "--predict", "features", "--steps", "2"]
    assert command([*asked, "--out", str(tmp_path / "made")], "multimodal", COMMANDS) == 0
    (made,) = (tmp_path / "made").rglob("*-features.npy")
    assert np.load(made).shape == (32, 4, 4)


def test_a_run_of_one_modality_under_another_name(tmp_path):
    """An image run's `image` is the data's `rgb`."""
    text = parts_text(
        tokenizer=Part.of("image:patch", size=(32, 32), patch=(8, 8)),
        encoder=Part.of("core:vit", width=8, depth=1, heads=2),
    )
    own = FrozenFeatures(FrozenFeatures.Config(random=True, parts=text, modality="rgb"), 16)
    assert own.shapes == {"rgb": (3, 32, 32)}
    with pytest.raises(KeyError, match="no 'rgb'; it has image"):
        own.split({"image": torch.zeros(1, 3, 32, 32)})
