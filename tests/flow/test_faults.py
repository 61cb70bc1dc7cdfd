"""Runs that are killed, ranks that are lost, losses that are not finite: nothing whole is lost, and the cause is
named."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from mim_core.errors import MimError
from mim_core.host.loading import installed
from mim_core.recipes.resolve import load_recipe
from mim_core.runs import checkpoint
from mim_core.testing import unchecked
from mim_core.training import loop
from mim_core.training.loop import start, train
from safetensors.torch import load_file

HERE = Path(__file__).parent
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def worker(name):
    sys.path.insert(0, str(HERE))
    try:
        return __import__(name)
    finally:
        sys.path.remove(str(HERE))


# ---- SIGKILL ---------------------------------------------------------------------------------------------------------


def test_twenty_kills_change_nothing(loaded_python, tmp_path):
    killed = worker("killed_worker")
    done = loaded_python.run([HERE / "killed_worker.py", tmp_path / "killed", "0"], timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    inside, outside = map(int, done.stdout.split("KILLED ")[1].split(" + "))
    assert inside + outside == killed.KILLS
    assert min(inside, outside) >= 5, done.stdout
    assert train(killed.make_run(tmp_path / "whole"), quiet=True)
    one, other = (checkpoint.newest(tmp_path / name) for name in ("whole", "killed"))
    assert one.name == other.name == f"step-{killed.STEPS:08d}"
    for file in ("weights", "optimizer", "average"):
        a, b = (load_file(path / f"{file}.safetensors") for path in (one, other))
        assert a.keys() == b.keys()
        assert all(torch.equal(value, b[name]) for name, value in a.items()), file
    lines = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("whole", "killed")]
    whole, resumed = ([(m["step"], m["loss"]) for m in map(json.loads, text)] for text in lines)
    assert whole == resumed
    assert not list((tmp_path / "killed/checkpoints").glob(".part*"))


# ---- lost ranks ------------------------------------------------------------------------------------------------------


def ranks(python, folder, how):
    """Two processes started as srun would start them; (exit codes, what each said, seconds)."""
    began = time.monotonic()
    started = python.start_ranks([HERE / "lost_worker.py", folder, how])
    first = started[0].communicate(timeout=120)[1]
    seconds = time.monotonic() - began
    if how == "hang":
        started[1].kill()
    return [started[0].returncode, started[1].wait(60)], first, started[1].communicate()[1], seconds


def steps_kept(folder):
    path = checkpoint.newest(folder)
    return checkpoint.load(path).step


@pytest.mark.parametrize(
    ("how", "sign"), [("die", "DEAD"), ("hang", "alive; when last heard at step 4, data"), ("raise", "rank 1")]
)
def test_lost_rank_ends_the_run_and_is_named(loaded_python, tmp_path, how, sign):
    codes, first, second, seconds = ranks(loaded_python, tmp_path / "run", how)
    assert codes[0] == 2, first
    assert "contact to another rank was lost" in first
    named = next(line for line in first.splitlines() if line.startswith("  rank 1:"))
    assert sign in named, first
    assert "Traceback" not in first
    assert seconds < worker("lost_worker").TIMEOUT + 60  # starting takes most of it
    assert steps_kept(tmp_path / "run") == 4
    if how == "raise":
        assert "this rank has no more of it" in second


def test_torchrun_ends_when_a_rank_dies(tmp_path):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*launcher, str(HERE / "lost_worker.py"), str(tmp_path / "run"), "die"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, env=ENVIRONMENT)
    assert done.returncode != 0
    assert "Signal 9 (SIGKILL)" in done.stderr
    assert steps_kept(tmp_path / "run") == 4


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_torchrun_told_to_stop_saves_and_goes_on(tmp_path, number):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "mim_core"]
    run = ["pretrain", "image:mae-vit-tiny", "--twin", "--train.workers", "1", "--out", str(tmp_path / "run")]
    command = [*launcher, *run, "--train.epochs", "40", "--train.log-every", "1"]
    process = subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True, start_new_session=True)
    log = tmp_path / "run/metrics.jsonl"
    until = time.monotonic() + 90
    while not (log.exists() and log.read_text().count("\n") > 3) and time.monotonic() < until:
        time.sleep(0.2)
    os.kill(process.pid, number)
    said = process.communicate(timeout=90)[1]
    assert f"Stopped by {number.name}" in said or "Stopped by SIGTERM" in said, said
    stopped = steps_kept(tmp_path / "run")
    assert stopped > 3
    last = json.loads(log.read_text().splitlines()[-1])
    assert last["step"] == stopped


# ---- losses that are not finite --------------------------------------------------------------------------------------


def make_run(folder, **changes):
    config = load_recipe("image:mae-vit-tiny", installed(), twin=True)
    options = {"epochs": 20 * 16 / 10_000, "checkpoint_every": 4, "log_every": 10, "workers": 0, **changes}
    return start(replace(config, train=replace(config.train, **options)), folder, installed())


def poison(run, index):
    """One sample's pixels become infinite where the batch is finished."""
    real = run.source.finish

    def finish(sample):
        ready = real(sample)
        bad = (sample["index"] == index)[:, None, None, None]
        return {**ready, "image": ready["image"].masked_fill(bad, torch.inf)}

    run.source.finish = finish


def index_of(run, step, place):
    from mim_core.data.loading import KeyedBatches

    batch = run.train.batch_size
    requests = KeyedBatches(len(run.source), batch, run.train.seed, step * batch, (step + 1) * batch)
    return next(iter(requests))[place].index


@pytest.mark.parametrize("micro", [None, 4])
def test_the_update_is_left_out_and_the_batch_is_kept(tmp_path, micro):
    run = make_run(tmp_path / "run", micro_batch=micro)
    index = index_of(run, 6, 3)
    poison(run, index)
    weights = []
    after = run.method.after_step
    run.method.after_step = lambda progress: (
        weights.append({n: p.detach().clone() for n, p in run.method.named_parameters()}),
        after(progress),
    )
    with pytest.raises(MimError, match=r"loss of step 6, or its gradient, is not finite.*themselves not finite"):
        train(run, quiet=True)
    for name, value in weights[6].items():
        assert torch.equal(value, weights[5][name]), name
    # steps 7 and on went on with good weights until the metrics were read
    assert any(not torch.equal(value, weights[6][name]) for name, value in weights[7].items())
    assert all(torch.isfinite(value).all() for value in weights[-1].values())
    about = json.loads((tmp_path / "run/not_finite.json").read_text())
    batch = load_file(tmp_path / "run/not_finite.safetensors")
    assert about["step"] == 6
    assert about["not_finite"] == [run.source.name_of(index)]
    assert len(about["names"]) == len(batch["image"]) == 16
    assert batch["index"].tolist() == about["indices"]
    assert batch["key"].tolist() == about["keys"]
    assert torch.isinf(batch["image"][about["indices"].index(index)]).all()
    assert steps_kept(tmp_path / "run") == 4


def test_moments_are_left_alone_too(tmp_path, monkeypatch):
    """A step whose update is left out leaves AdamW as it was before."""
    made, make = [], loop.make_optimizer
    monkeypatch.setattr(loop, "make_optimizer", lambda *given: made.append(make(*given)) or made[-1])
    run = make_run(tmp_path / "run", log_every=100, checkpoint_every=100)
    poison(run, index_of(run, 6, 3))
    states = []
    after = run.method.after_step

    def note(progress):
        moments = enumerate(made[0].state.values())
        states.append({f"{i} {key}": value.clone() for i, moment in moments for key, value in moment.items()})
        after(progress)

    run.method.after_step = note
    with pytest.raises(MimError, match="not finite"):
        train(run, quiet=True)
    assert len(states[6]) > 10
    for name, value in states[6].items():
        assert torch.equal(value, states[5][name]), name
    assert any(not torch.equal(value, states[6][name]) for name, value in states[7].items())


# ---- processes that read data ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["dies", "hangs"])
def test_lost_data_process_is_named(tmp_path, how):
    run = make_run(tmp_path / "run", workers=1, timeout=4.0)
    real = run.source.read
    bad = index_of(run, 12, 0)

    def read(index, key):
        if index == bad:
            if how == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(3600)
        return real(index, key)

    run.source.read = read
    # the loader's error may come at any place, also within a check of shapes, which would hide it
    with unchecked(), pytest.raises(MimError, match="a process that reads data is gone, or gave nothing for 4 s"):
        train(run, quiet=True)
    assert steps_kept(tmp_path / "run") in (4, 8, 12)  # the loader reads two batches ahead
