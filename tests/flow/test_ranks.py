"""One rank equals two, FSDP2 equals DDP, and a run goes on under any of them. Two gloo processes on the CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from mim_core import checkpoint
from safetensors.torch import load_file

WORKER = Path(__file__).with_name("ranks_worker.py")
METHODS = ["mae", "simmim", "varying", "normed", "distilled"]
VARIANTS = [
    "strategy=ddp",
    "strategy=fsdp2",
    "strategy=ddp,compile=1",
    "strategy=fsdp2,compile=1",
    "strategy=ddp,activation_checkpointing=1",
    "strategy=fsdp2,compile=1,activation_checkpointing=1,ema=0.9",
]
MIXED = [
    "mae,strategy=ddp,micro_batch=4,compile=1",
    "mae,strategy=fsdp2,micro_batch=4",
    "simmim,strategy=fsdp2,micro_batch=4",
]
BF16 = ["mae,precision=bf16,strategy=ddp", "mae,precision=bf16,strategy=fsdp2"]
STOPPED = [f"mae,strategy={s},stop=1,into=stopped-{s}" for s in ("ddp", "fsdp2")]


def launch(ranks, folder, cases):
    command = [sys.executable, str(WORKER), str(folder), *cases]
    if ranks > 1:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        command += [str(WORKER), str(folder), *cases]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, env=env)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]


def column(folder, name="loss"):
    return [json.loads(line)[name] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    launch(1, folder, [*METHODS, "mae,precision=bf16", "mae,compile=1", "simmim,compile=1"])
    return folder


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    launch(2, folder, [*(f"{m},{v}" for m in METHODS for v in VARIANTS), *MIXED, *BF16, *STOPPED])
    return folder


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("method", METHODS)
def test_two_ranks_equal_one(alone, two, method, variant):
    one, other = alone / method, two / f"{method},{variant}"
    assert len(column(one)) == 8
    assert column(other) == pytest.approx(column(one), rel=2e-5)
    assert column(other, "grad_norm") == pytest.approx(column(one, "grad_norm"), rel=1e-3)


def test_the_cases_are_hard_enough(alone):
    """The methods differ, and the loss moves: equal losses above mean something."""
    assert len({round(column(alone / method)[-1], 5) for method in METHODS}) == len(METHODS)
    for method in METHODS:
        first, *_, last = column(alone / method)
        assert abs(last - first) > 1e-3 * first


@pytest.mark.parametrize("case", MIXED)
def test_accumulation_over_two_ranks(alone, two, case):
    assert column(two / case) == pytest.approx(column(alone / case.split(",")[0]), rel=2e-5)


@pytest.mark.parametrize("case", BF16)
def test_bf16(alone, two, case):
    assert column(two / case) == pytest.approx(column(alone / "mae,precision=bf16"), rel=2e-3)
    assert column(two / case) != pytest.approx(column(alone / "mae"), rel=1e-6)


@pytest.mark.parametrize("method", ["mae", "simmim"])
def test_compiled_equals_eager(alone, method):
    assert column(alone / f"{method},compile=1") == pytest.approx(column(alone / method), rel=1e-5)


def test_nothing_is_compiled_after_the_first_step(alone, two):
    compiled = [alone / "mae,compile=1", alone / "simmim,compile=1"]
    compiled += [two / f"{m},{v}" for m in METHODS for v in VARIANTS if "compile" in v]
    for folder in compiled:
        graphs = [int(line) for line in (folder / "graphs.txt").read_text().split()]
        assert len(graphs) == 8
        assert graphs[0] == graphs[-1] > 0, (folder.name, graphs)
    assert (alone / "mae/graphs.txt").read_text().split() == ["0"] * 8


def test_every_strategy_writes_the_same_files(alone, two):
    plain = load_file(checkpoint.newest(alone / "distilled") / "weights.safetensors")
    for variant in VARIANTS:
        path = checkpoint.newest(two / f"distilled,{variant}")
        state = json.loads((path / "state.json").read_text())
        assert (state["ranks"], state["step"]) == (2, 8)
        found = load_file(path / "weights.safetensors")
        assert {name: value.shape for name, value in found.items()} == {n: v.shape for n, v in plain.items()}
        assert any(name.startswith("teacher.") for name in found)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
@pytest.mark.parametrize("ranks", [1, 2])
def test_goes_on_with_any_number_of_ranks(alone, two, tmp_path, strategy, ranks):
    """Stopped by a signal to one of two ranks; both stop at the same step, and one or two others go on."""
    before = two / f"stopped-{strategy}"
    stopped = json.loads((checkpoint.newest(before) / "state.json").read_text())["step"]
    assert 4 <= stopped < 8
    folder = tmp_path / "run"
    folder.symlink_to(_copy(before, tmp_path / "copy"))
    other = {"ddp": "fsdp2", "fsdp2": "ddp"}[strategy]
    launch(ranks, tmp_path, [f"mae,strategy={other},into=run"])
    assert column(folder) == pytest.approx(column(alone / "mae"), rel=2e-5)


def _copy(source, target):
    import shutil

    return shutil.copytree(source, target)
