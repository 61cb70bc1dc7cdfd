"""bench: real steps, measured; nothing is kept and nobody is told."""

import json
import re
import sys
import time
from contextlib import contextmanager
from types import ModuleType

import pytest
import torch
from mim_core.commands import bench
from mim_core.data.noise import Noise
from mim_core.errors import MimError
from mim_core.host import loading
from mim_core.host.hookspecs import hookimpl
from mim_core.training.bench import _spread
from mim_core.training.engine import Engine
from mim_core.training.stopwatch import idle
from mim_core.training.trainer import Trainer

TINY = ("bench", "image:mae-vit-tiny", "--twin")
NOISE = ("bench", "image:mae-vit-base", "--twin", "--use", "data=core:noise", "--seconds", "0.2")


def test_a_table_for_people(mim, tmp_path):
    said = mim(*TINY, "--seconds", "2")
    assert said.code == 0, said
    labels = [line.split()[0] for line in said.out.splitlines() if line.strip()]
    for label in ("device", "batch", "mode", "speed", "step", "time", "memory", "operations", "MFU", "versions"):
        assert label in labels
    assert "to warm up" in said.all
    assert "whole run about" in " ".join(said.out.split())
    assert "16 samples: 1 rank x 1 micro-batch of 16" in said.all
    assert list(tmp_path.iterdir()) == []


def test_json(mim, tmp_path):
    said = mim(*TINY, "--seconds", "2", "--json", "--train.micro-batch", "4", "--train.device", "cpu", "--out", "here")
    assert said.code == 0, said
    found = json.loads(said.out)
    assert list(tmp_path.iterdir()) == []
    assert found["steps"] >= 1
    assert 0 < found["seconds"] < 10
    assert found["run_steps"] == 20
    assert found["run_seconds"] == pytest.approx(20 * 16 / found["samples_per_second"])
    assert found["samples_per_second"] == pytest.approx(found["steps"] * 16 / found["seconds"])
    step = found["seconds_per_step"]
    assert 0 < step["p10"] <= step["median"] <= step["p90"]
    assert set(found["shares"]) == {"data", "prepare", "forward_backward", "optimizer"}
    assert all(share > 0 for share in found["shares"].values())
    assert 0.5 < sum(found["shares"].values()) <= 1
    assert found["flop_per_second"] == pytest.approx(found["flop_per_sample"] * found["samples_per_second"])
    assert found["mfu"] == pytest.approx(found["flop_per_second"] / found["peak_flop_per_second"])
    assert 0 < found["mfu"] < 1
    assert "measured here" in found["peak_source"]
    assert found["memory"] > 50e6
    settings = found["settings"]
    assert (settings["micro_batch"], settings["accumulation"], settings["ranks"]) == (4, 4, 1)
    assert (settings["precision"], settings["strategy"], settings["device"]) == ("fp32", "single", "cpu")
    assert found["versions"]["torch"] == torch.__version__


def test_one_step_however_short_the_time(mim):
    found = json.loads(mim(*NOISE, "--json", "--seconds", "1e-9").out)
    assert (found["steps"], found["warmup_steps"]) == (1, 1)
    assert found["settings"]["batch_size"] == 16, "short steps are left as they are"
    assert found["run_seconds"] is None, "noise says nothing of a run's length"
    assert "Only 1 step measured: for more, a longer --seconds." in found["notes"]


def test_steps_longer_than_the_time_are_measured_on_smaller_batches(mim, monkeypatch):
    """A batch of 4,096 that would take a minute."""
    real = Trainer._micro_batch

    def slow(trainer, batches, part):
        time.sleep(0.015 * trainer.run.micro)
        return real(trainer, batches, part)

    monkeypatch.setattr(Trainer, "_micro_batch", slow)
    began = time.perf_counter()
    said = mim(*TINY, "--seconds", "2", "--json", "--train.batch-size", "4096", "--train.micro-batch", "256")
    assert time.perf_counter() - began < 20
    found = json.loads(said.out)
    assert 2 <= found["settings"]["batch_size"] <= 64
    assert "A step of 4,096 samples takes about" in said.err
    assert found["steps"] >= 1
    assert found["run_seconds"] > 30


def test_observers_and_probes_are_left_alone(mim, monkeypatch):
    called = []
    module = ModuleType("fake_observer")
    for name in ("mim_run_started", "mim_metrics_read", "mim_features_judged", "mim_run_finished", "mim_run_left"):

        def hook(run, name=name):
            called.append(name)

        hook.__name__ = name
        setattr(module, name, hookimpl(hook))
    monkeypatch.setitem(sys.modules, "fake_observer", module)
    candidates = [*loading.discover(), loading.Candidate("spy", "mim-spy", "1.0", "fake_observer")]
    registry = loading.load(candidates, environ={})
    monkeypatch.setattr(bench, "installed", lambda: registry)
    said = mim(*TINY, "--seconds", "0.2", "--train.log-every", "1", "--evaluate.every", "1")
    assert said.code == 0, said
    assert "mim-spy 1.0" in said.all
    assert called == []


def test_more_steps_than_the_recipe_has(mim):
    short = ("--train.epochs", "0.0001")
    assert "steps 1 step, each of 16 samples" in mim(*NOISE, *short, "--dry-run").all
    found = json.loads(mim(*NOISE, *short, "--json").out)
    assert found["steps"] >= 1


def test_several_ranks(loaded_python, tmp_path):
    first, second = loaded_python.ranks(["-m", "mim_core", *NOISE, "--json"], cwd=tmp_path, timeout=120)
    for done in (first, second):
        assert done.returncode == 0, done.stderr
    assert not second.stdout
    found = json.loads(first.stdout)  # one answer, not two
    settings = found["settings"]
    assert (settings["ranks"], settings["micro_batch"], settings["strategy"]) == (2, 8, "ddp")
    assert found["samples_per_second"] == pytest.approx(found["steps"] * 16 / found["seconds"])
    assert list(tmp_path.iterdir()) == []


# ---- numbers ---------------------------------------------------------------------------------------------------------


def test_spread():
    assert _spread([float(n) for n in range(11)]) == {"median": 5.0, "p10": 1.0, "p90": 9.0}
    assert _spread([2.0]) == {"median": 2.0, "p10": 2.0, "p90": 2.0}


def test_a_gpu_waits_only_for_what_the_other_phases_leave():
    phases = {"data": 6.0, "prepare": 1.0, "forward_backward": 6.0, "optimizer": 1.0}
    assert idle(phases, 10.0) == 2.0
    assert idle(phases, 20.0) == 6.0
    assert idle(phases, 5.0) == 0.0


# ---- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "answer"),
    {
        "bench": "Which recipe? Recipes: amae-1, amae-1-tiny",
        "bench mae-vit-tny": "Unknown recipe 'mae-vit-tny'. Did you mean 'mae-vit-tiny'?",
        "bench mae-vit-tiny --second 3": "--seconds",
        "bench mae-vit-tiny --seconds 0": "--seconds must be positive",
        "bench mae-vit-tiny --masker.ratio 1.5": "ratio must lie between 0 and 1",
        "bench mae-vit-base": "To measure without data: --use data=core:noise",
        "bench mae-vit-base --data.root empty": "nested or not. To measure without data: --use data=core:noise",
        "bench mae-vit-base --use data=noise --data.items 0": "data (core:noise): items must be at least 1",
    }.items(),
)
def test_one_message_that_helps(refused, tmp_path, line, answer):
    said = refused(*line.split())
    assert answer in said
    without = "To measure without data"
    assert (without in said) == (without in answer), "only where the data is at fault"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["CUDA out of memory. Tried to allocate 2 GiB", "can't allocate memory: 8 bytes"])
def test_full_memory_says_what_helps(mim, monkeypatch, tmp_path, text):
    @contextmanager
    def full(engine, last):
        raise RuntimeError(f"{text}\nmore") if "CUDA" not in text else torch.OutOfMemoryError(text)
        yield

    monkeypatch.setattr(Engine, "micro_batch", full)
    said = mim(*NOISE)
    assert said.code == 2, said
    assert "is full with 16 samples at once" in said.all
    assert "--train.micro-batch, such as 8, or --train.activation-checkpointing" in said.all
    assert text in said.all
    assert "Traceback" not in said.all
    assert list(tmp_path.iterdir()) == []


def test_another_runtime_error_stays_what_it_is(mim, monkeypatch):
    @contextmanager
    def broken(engine, last):
        raise RuntimeError("shapes do not fit")
        yield

    monkeypatch.setattr(Engine, "micro_batch", broken)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        mim(*NOISE)


def test_help(mim):
    assert "Measure a recipe's training speed" in mim("--help").out
    said = mim("bench", "--help")
    assert said.code == 0
    assert "usage: mim-core bench RECIPE [OPTIONS]" in said.out
    said = mim("bench", "mae-vit-tiny", "--help", plugin="image")
    for option in ("--seconds", "--json", "--masker.ratio", "--data.root", "--train.micro-batch", "--use"):
        assert option in said.out


def test_dry_run_prints_the_plan(mim, tmp_path):
    said = mim(*TINY, "--dry-run")
    assert said.code == 0
    assert "20 steps, each of 16 samples" in said.all
    assert re.search(r"time +about [\d.]+ (s|min) on this machine, measured on a step of \d+ samples", said.all)
    assert list(tmp_path.iterdir()) == []


# ---- noise -----------------------------------------------------------------------------------------------------------


def test_noise_follows_from_the_key():
    source = Noise(Noise.Config(items=7), {"a": (3, 8, 8), "b": (5,)})
    assert len(source) == 7
    first, same, other = source.read(0, 11), source.read(0, 11), source.read(0, 12)
    assert {name: value.shape for name, value in first.items()} == {"a": (3, 8, 8), "b": (5,)}
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)
    many = torch.stack([source.read(0, key)["a"] for key in range(200)])
    assert abs(float(many.mean())) < 0.02
    assert abs(float(many.std()) - 1) < 0.02


def test_noise_has_no_labels():
    with pytest.raises(MimError, match="no labels"):
        Noise(Noise.Config(), {"a": (3, 8, 8)}).labelled("train")


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 4, 6, 6), (2, 16), (9,)])
def test_noise_can_be_shown(shape):
    source = Noise(Noise.Config(), {"a": shape})
    picture = source.picture("a", source.read(0, 1)["a"])
    assert picture.media_type == "image/png"
    assert picture.content.startswith(b"\x89PNG")


def test_a_recipe_trains_on_noise(mim, tmp_path):
    said = mim("pretrain", "image:mae-vit-base", "--twin", "--use", "data=core:noise", "--quiet", "--out", "run")
    assert said.code == 0, said
    assert "data:image/png" in (tmp_path / "run/report.html").read_text()
    assert "Noise has no labels" in mim("evaluate", "run").err


def test_the_source_is_found_by_its_bare_name():
    registry = loading.installed()
    assert registry.get("data", "noise").full_name == "core:noise"
    assert registry.get("data", "noise").resolve() is Noise
