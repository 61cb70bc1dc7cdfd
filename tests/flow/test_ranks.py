"""One rank equals two, FSDP2 equals DDP, and a run goes on under any of them. Two gloo processes on the CPU, started
one by one; the launcher of torch starts them in the test of what all ranks refuse, and in test_faults.py."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mim_core.host.loading import installed
from mim_core.interop.timm import export_timm
from mim_core.runs import checkpoint
from mim_core.runs.load import load_run
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer

WORKER = Path(__file__).with_name("ranks_worker.py")
STEPS = 6
"""Of every run; a checkpoint lies in the middle."""
METHODS = [
    "mae",
    "simmim",
    "varying",
    "normed",
    "distilled",
    "ijepa",
    "sdae",
    "hpm",
    "tied",
    "cmae",
    "apart",
    "mst",
    "maskco",
    "mcmae",
    "mvd",
    "fourm",
    "vq",
]
VARIANTS = [
    "strategy=ddp",
    "strategy=fsdp2",
    "strategy=ddp,compile=1",
    "strategy=fsdp2,compile=1",
    "strategy=ddp,activation_checkpointing=1",
    "strategy=fsdp2,compile=1,activation_checkpointing=1,ema=0.9",
]
EVERY = {"distilled": VARIANTS, "hpm": VARIANTS, "maskco": VARIANTS[:3]}
"""Some methods are trained in every way, the others under DDP and in all ways at once; those that are resumed under
FSDP2 under it alone too. A ResNet names no blocks, for its batch statistics would be taken twice where they are
computed again."""
SHARDED = ("mae", "ijepa", "sdae", "cmae", "mst", "mvd", "vq")
PAIRS = [(m, v) for m in METHODS for v in EVERY.get(m, [*VARIANTS[: 2 if m in SHARDED else 1], VARIANTS[-1]])]
MIXED = [
    "mae,strategy=ddp,micro_batch=4,compile=1",
    "mae,strategy=fsdp2,micro_batch=4",
    "simmim,strategy=fsdp2,micro_batch=4",
]
BF16 = ["mae,precision=bf16,strategy=ddp", "mae,precision=bf16,strategy=fsdp2"]
STOPPED = [f"mae,strategy={s},stop=1,into=stopped-{s}" for s in ("ddp", "fsdp2")]
RESUMED = ["mae", "hpm", "ijepa", "sdae", "cmae", "mst", "maskco", "mcmae", "mvd", "fourm", "vq"]
ALONE = [f"{m}{stop},into=again-{m}" for m in RESUMED for stop in (",stop=1", "")]
BOTH = ("ddp", "fsdp2")
UNDER = {"mae": BOTH, "hpm": BOTH, "maskco": BOTH, "mcmae": ("ddp",), "fourm": ("ddp",)}
"""How two ranks go on. Sharded where it says nothing: DDP's state is that of one rank."""
GOING_ON = [(m, s) for m in RESUMED for s in ("alone", *UNDER.get(m, ("fsdp2",)))]
AGAIN = [f"{m},strategy={s}{stop},into=again-{m}-{s}" for m, s in GOING_ON if s != "alone" for stop in (",stop=1", "")]
PROBES = [f"mae,strategy={s},probes=1" for s in ("ddp", "fsdp2")]
AVERAGED = [f"mae,strategy={s},probes=1,ema=0.9,checkpoint_every=100" for s in ("ddp", "fsdp2")]


def launch(python, ranks, folder, cases):
    command = [WORKER, STEPS, folder, *cases]
    all_done = python.ranks(command, ranks, timeout=2400) if ranks > 1 else [python.run(command, timeout=2400)]
    for done in all_done:
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]


def column(folder, name="loss"):
    return [json.loads(line)[name] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def alone(loaded_python, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    launch(
        loaded_python,
        1,
        folder,
        [*METHODS, "mae,precision=bf16", "mae,compile=1", "simmim,compile=1", "mae,probes=1", "mae,bad=1", *ALONE],
    )
    return folder


@pytest.fixture(scope="module")
def two(loaded_python, tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    cases = [f"{method},{variant}" for method, variant in PAIRS]
    launch(loaded_python, 2, folder, [*cases, *MIXED, *BF16, *STOPPED, *AGAIN, *PROBES, *AVERAGED, "mae,bad=1"])
    return folder


@pytest.mark.parametrize(("method", "variant"), PAIRS)
def test_two_ranks_equal_one(alone, two, method, variant):
    one, other = alone / method, two / f"{method},{variant}"
    assert len(column(one)) == STEPS
    assert column(other) == pytest.approx(column(one), rel=2e-5)
    assert column(other, "grad_norm") == pytest.approx(column(one, "grad_norm"), rel=1e-3)
    assert column(other, "effective_rank") == pytest.approx(column(one, "effective_rank"), abs=5e-3)


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
    compiled += [two / f"{m},{v}" for m, v in PAIRS if "compile" in v]
    for folder in compiled:
        graphs = [int(line) for line in (folder / "graphs.txt").read_text().split()]
        assert len(graphs) == STEPS
        assert graphs[0] == graphs[-1] > 0, (folder.name, graphs)
    assert (alone / "mae/graphs.txt").read_text().split() == ["0"] * STEPS


def test_every_strategy_writes_the_same_files(alone, two):
    plain = load_file(checkpoint.newest(alone / "distilled") / "weights.safetensors")
    for variant in VARIANTS:
        path = checkpoint.newest(two / f"distilled,{variant}")
        state = json.loads((path / "state.json").read_text())
        assert (state["ranks"], state["step"]) == (2, STEPS)
        found = load_file(path / "weights.safetensors")
        assert {name: value.shape for name, value in found.items()} == {n: v.shape for n, v in plain.items()}
        assert any(name.startswith("teachers.main.") for name in found)


@pytest.mark.parametrize(("method", "strategy"), GOING_ON)
def test_going_on_with_the_same_ranks_is_exact(alone, two, method, strategy):
    whole, again = two / f"{method},strategy={strategy}", two / f"again-{method}-{strategy}"
    if strategy == "alone":
        whole, again = alone / method, alone / f"again-{method}"
    assert column(whole) == column(again)
    for file in ("weights", "optimizer"):
        a, b = (load_file(checkpoint.newest(path) / f"{file}.safetensors") for path in (whole, again))
        assert a.keys() == b.keys()
        assert all(torch.equal(value, b[name]) for name, value in a.items())


def test_sharded_training_ends_in_timm(two, tmp_path):
    """What two ranks under FSDP2 wrote, exported and loaded by timm alone, gives our features."""
    folder = two / "mae,strategy=fsdp2"
    config, method, _ = load_run(folder, installed())
    exported = export_timm(method, tmp_path / "encoder.safetensors")
    assert exported
    sizes = {"img_size": 28, "patch_size": 7, "in_chans": 1, "num_classes": 0, "class_token": True}
    shape = config.parts["encoder"].options
    model = VisionTransformer(
        **sizes, embed_dim=shape.width, depth=shape.depth, num_heads=shape.heads, global_pool=""
    ).eval()
    model.load_state_dict(load_file(tmp_path / "encoder.safetensors"))
    image = torch.randn(4, 1, 28, 28)
    with torch.no_grad():
        expected = method.eval().encode({"image": image})
        found = model(image)
    torch.testing.assert_close(found[:, 1:], expected.tokens, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", PROBES)
def test_ranks_share_the_probes(alone, two, case):
    def scores(folder):
        lines = map(json.loads, (folder / "probes.jsonl").read_text().splitlines())
        return [(line["step"], s["row"], s["column"], s["value"]) for line in lines for s in line["scores"]]

    one, other = scores(alone / "mae,probes=1"), scores(two / case)
    assert [entry[:3] for entry in one] == [entry[:3] for entry in other]
    assert [entry[3] for entry in one] == pytest.approx([entry[3] for entry in other], abs=0.012)  # 3 of 251


@pytest.mark.parametrize("case", AVERAGED)
def test_judging_the_average_leaves_the_weights_alone(alone, two, case):
    """FSDP2 keeps whole weights after a forward pass without a backward one; they must not be the average's."""
    assert column(two / case) == pytest.approx(column(alone / "mae"), rel=2e-5)


def test_bad_files_of_all_ranks_are_listed_once(alone, two):
    listed = [
        [json.loads(line)["file"] for line in (folder / "mae,bad=1/skipped.jsonl").read_text().splitlines()]
        for folder in (alone, two)
    ]
    assert len(listed[0]) > 6
    assert sorted(listed[0]) == sorted(listed[1])
    assert column(two / "mae,bad=1") == pytest.approx(column(alone / "mae,bad=1"), rel=2e-5)


def test_what_all_ranks_refuse_is_said_once(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "mim_core"]
    command += ["pretrain", "image:mae-vit-tiny", "--twin", "--train.batch-size", "15", "--out", str(tmp_path / "run")]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode != 0
    assert done.stderr.count("A batch of 15 cannot be shared by 2 ranks") == 1
    assert "--train.batch-size 14 or 16" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("ranks", [1, 2])
def test_goes_on_with_any_number_of_ranks(loaded_python, alone, two, tmp_path, ranks):
    """Stopped by a signal to one of two ranks; both stop at the same step, and one or two others go on, under the other
    strategy."""
    cases = []
    for strategy, other in (("ddp", "fsdp2"), ("fsdp2", "ddp")):
        before = two / f"stopped-{strategy}"
        stopped = json.loads((checkpoint.newest(before) / "state.json").read_text())["step"]
        assert STEPS // 2 <= stopped < STEPS
        shutil.copytree(before, tmp_path / other)
        cases.append(f"mae,strategy={other},into={other}")
    launch(loaded_python, ranks, tmp_path, cases)
    for other in BOTH:
        assert column(tmp_path / other) == pytest.approx(column(alone / "mae"), rel=2e-5)
