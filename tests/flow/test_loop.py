"""What the loop's options do: sharing a batch, averages of weights, teachers, probes during training, time."""

import json
import math
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from mim_core import build_method
from mim_core.errors import MimError
from mim_core.host.loading import installed
from mim_core.parts.teacher import EmaTeacher, Student, Teacher
from mim_core.ranks.launch import Launch
from mim_core.ranks.tensors import follow
from mim_core.ranks.world import World
from mim_core.recipes.config import TrainConfig
from mim_core.recipes.resolve import load_recipe
from mim_core.runs import checkpoint
from mim_core.runs import load as run_load
from mim_core.runs.average import WeightAverage
from mim_core.runs.run import PHASES
from mim_core.text import speed
from mim_core.training.cost import peak_of
from mim_core.training.engine import chosen, share
from mim_core.training.loop import start, train
from mim_core.training.stopwatch import Stopwatch
from safetensors.torch import load_file
from torch import nn


def make_run(folder, steps=10, evaluate=None, depth=None, **changes):
    config = load_recipe("image:mae-vit-tiny", installed(), twin=True)
    if depth is not None:
        some = {role: config.parts[role] for role in ("encoder", "decoder")}
        some = {role: replace(part, options=replace(part.options, depth=depth)) for role, part in some.items()}
        config = replace(config, parts={**config.parts, **some})
    options = {"epochs": steps * 16 / 10_000, "checkpoint_every": 5, "log_every": 1, "workers": 0, **changes}
    config = replace(config, train=replace(config.train, **options))
    config = replace(config, evaluate=replace(config.evaluate, **(evaluate or {})))
    return start(config, folder, installed())


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


# ---- who takes part --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Launch(0, 1, 0)),
        ({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, Launch(3, 8, 1)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, Launch(0, 1, 0)),  # the batch script itself, or salloc's shell
        (
            {
                "SLURM_PROCID": "5",
                "SLURM_LOCALID": "1",
                "SLURM_STEP_NUM_TASKS": "8",
                "MASTER_ADDR": "node1",
                "MASTER_PORT": "29500",
            },
            Launch(5, 8, 1),
        ),
    ],
)
def test_launchers_are_recognised(environment, expected):
    assert Launch.from_environment(environment) == expected


def test_srun_without_an_address_is_refused():
    with pytest.raises(MimError, match=r"MASTER_PORT is not set.*docs/cluster.md"):
        Launch.from_environment({"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2", "MASTER_ADDR": "node1"})


@pytest.mark.parametrize(
    ("batch", "micro", "ranks", "expected"),
    [(64, None, 1, (64, 1)), (64, None, 4, (16, 1)), (64, 8, 4, (8, 2)), (64, 32, 4, (16, 1)), (96, 8, 3, (8, 4))],
)
def test_a_batch_is_shared(batch, micro, ranks, expected):
    micro_batch, accumulation = share(TrainConfig(batch_size=batch, micro_batch=micro), ranks)
    assert (micro_batch, accumulation) == expected
    assert micro_batch * accumulation * ranks == batch


@pytest.mark.parametrize(
    ("batch", "micro", "ranks", "said"),
    [
        (64, None, 3, r"--train.batch-size 63 or 66.*alid rank counts: 1, 2, 4"),
        (2, None, 4, r"--train.batch-size 4\. .*alid rank counts: 1, 2\."),
        (48, 6, 4, None),
        (48, 8, 4, r"12 samples.*micro-batches of 8.*would do: 1, 2, 3, 4, 6, 12"),
    ],
)
def test_a_batch_that_does_not_divide_names_the_numbers_that_would(batch, micro, ranks, said):
    config = TrainConfig(batch_size=batch, micro_batch=micro)
    if said is None:
        assert share(config, ranks) == (6, 2)
        return
    with pytest.raises(MimError, match=said):
        share(config, ranks)


@pytest.mark.parametrize(
    ("asked", "ranks", "expected"),
    [("auto", 1, "single"), ("auto", 2, "ddp"), ("ddp", 1, "single"), ("fsdp2", 1, "fsdp2"), ("fsdp2", 4, "fsdp2")],
)
def test_strategies(asked, ranks, expected):
    assert chosen(TrainConfig(strategy=asked), ranks) == expected


class Ranks(World):
    """Three ranks as the first of them would meet them: what the others give is known beforehand."""

    others: tuple = ()

    def gather(self, value):
        return [value, *self.others]


def ranks(*others):
    world = Ranks(Launch(0, 3, 0), torch.device("cpu"))
    world.others = others
    return world


def test_ranks_that_see_other_data_are_refused():
    same = {"items": "64", "files": "abc"}
    ranks(same, same).compare(same)
    with pytest.raises(MimError, match="Ranks disagree on items: rank 0: 64, rank 1: 64, rank 2: 60") as caught:
        ranks(same, {**same, "items": "60"}).compare(same)
    assert caught.value.everywhere


def test_an_error_of_one_rank_is_one_of_all():
    assert ranks(None, None).together(lambda: 5) == 5
    with pytest.raises(MimError, match=r"^rank 2: no such folder$") as caught:
        ranks(None, "no such folder").together(lambda: 5)
    assert caught.value.everywhere

    def fail():
        raise MimError("no such folder")

    with pytest.raises(MimError, match=r"^no such folder$"):
        ranks("no such folder", "no such folder").together(fail)
    with pytest.raises(MimError, match=r"^rank 0: no such folder$"):
        ranks(None, None).together(fail)


def test_a_folder_is_locked_while_a_run_trains_into_it(tmp_path):
    code = "import sys, time, pathlib; from mim_core.runs import folder as folders\n"
    code += "with folders.locked(pathlib.Path(sys.argv[1])): print('locked', flush=True); time.sleep(60)"
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "locked\n"
    with pytest.raises(MimError, match=f"Another process trains into .*run .process {other.pid} on"):
        train(make_run(tmp_path / "run"), quiet=True)
    other.kill()
    other.wait()
    assert train(make_run(tmp_path / "run"), quiet=True)
    assert train(make_run(tmp_path / "run"), quiet=True)


def test_torn_checkpoints_do_not_push_out_whole_ones(tmp_path):
    first = make_run(tmp_path / "run", steps=20, keep_checkpoints=4)
    assert train(first, quiet=True)
    steps = checkpoint.folder_of(tmp_path / "run")
    for step in (15, 20):
        (steps / f"step-{step:08d}/weights.safetensors").write_bytes(b"torn")
    assert not train(make_run(tmp_path / "run", steps=20, keep_checkpoints=1, max_hours=1e-9), quiet=True)
    assert [path.name for path in steps.iterdir()] == ["step-00000011"]
    assert checkpoint.load(checkpoint.newest(tmp_path / "run")).step == 11


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA RTX A1000", None),
        ("NVIDIA RTX A4000", None),
        ("NVIDIA A10G", 70e12),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
    ],
)
def test_peaks_are_known_by_whole_words(name, peak):
    assert peak_of(name) == peak


# ---- averages and teachers -------------------------------------------------------------------------------------------


def test_follow_is_the_formula():
    averages, current = [torch.tensor([1.0, 2.0])], [torch.tensor([3.0, 6.0])]
    follow(averages, current, 0.75)
    assert averages[0].tolist() == [1.5, 3.0]
    with pytest.raises(ValueError, match="1 averages cannot follow 0"):
        follow(averages, [], 0.5)


def test_weight_average_follows_and_swaps():
    module = nn.Linear(2, 1)
    module.bias.requires_grad_(False)
    average = WeightAverage(module, 0.9)
    assert list(average.tensors) == ["weight"]
    expected = module.weight.detach().clone()
    for step in range(200):
        with torch.no_grad():
            module.weight += 1
        momentum = min(0.9, (1 + step) / (10 + step))
        expected = momentum * expected + (1 - momentum) * module.weight.detach()
        average.update(step)
    torch.testing.assert_close(average.tensors["weight"], expected)
    last = module.weight.detach().clone()
    with average.applied():
        torch.testing.assert_close(module.weight.detach(), expected)
    assert torch.equal(module.weight, last)
    torch.testing.assert_close(average.tensors["weight"], expected)


def test_evaluation_takes_the_average_and_a_resumed_run_keeps_it(tmp_path):
    assert train(make_run(tmp_path / "whole", ema=0.9), quiet=True)
    first = make_run(tmp_path / "parts", ema=0.9)
    first.steps = 5
    assert train(first, quiet=True)
    assert train(make_run(tmp_path / "parts", ema=0.9), quiet=True)
    one, other = (load_file(checkpoint.newest(tmp_path / name) / "average.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    _, method, path = run_load.load_run(tmp_path / "whole", installed())
    last = load_file(path / "weights.safetensors")
    state = method.state_dict()
    assert all(torch.equal(state[name], value) for name, value in one.items())
    assert any(not torch.equal(last[name], value) for name, value in one.items())


def test_teachers_stay_in_evaluation_mode_without_gradient():
    plain = build_method("image:mae-vit-tiny")
    teacher = Teacher(None, Student(plain.tokenizer, plain.encoder))
    plain.teacher = teacher
    plain.train()
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    patches = plain.tokenizer.split({"image": torch.randn(2, 1, 28, 28)})
    assert not teacher(patches).tokens.requires_grad


def test_ema_teacher_follows_its_student():
    plain = build_method("image:mae-vit-tiny")
    teacher = EmaTeacher.of(plain.tokenizer, plain.encoder, start=0.9, end=1.0)
    before = [p.detach().clone() for p in teacher.parameters()]
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter += 1
    teacher.follow(plain, 0.0)
    own = [*plain.tokenizer.parameters(), *plain.encoder.parameters()]
    for now, old, student in zip(teacher.parameters(), before, own, strict=True):
        torch.testing.assert_close(now, 0.9 * old + 0.1 * student)
    kept = [p.detach().clone() for p in teacher.parameters()]
    teacher.follow(plain, 1.0)
    assert all(torch.equal(a, b) for a, b in zip(kept, teacher.parameters(), strict=True))


def test_a_teachers_momentum():
    plain = build_method("image:mae-vit-tiny")
    cosine = EmaTeacher.of(plain.tokenizer, plain.encoder, start=0.99, end=1.0).momentum
    assert [cosine.at(p) for p in (0, 0.5, 1)] == pytest.approx([0.99, 0.995, 1.0])
    assert cosine.at(0.25) == pytest.approx(1 - 0.01 * (math.cos(math.pi * 0.25) + 1) / 2)  # BYOL's form
    linear = EmaTeacher.of(plain.tokenizer, plain.encoder, start=0.9, schedule="linear").momentum
    assert linear.at(0.25) == pytest.approx(0.925)
    with pytest.raises(ValueError, match="must rise"):
        EmaTeacher.of(plain.tokenizer, plain.encoder, start=1.0, end=0.9)


# ---- probes during training ------------------------------------------------------------------------------------------

PROBES = {"every": 4 * 16 / 10_000, "online": ("knn", "linear"), "online_samples": 300}


def test_features_are_judged_during_training(tmp_path):
    assert train(make_run(tmp_path / "run", evaluate=PROBES), quiet=True)
    found = lines(tmp_path / "run/probes.jsonl")
    assert [line["step"] for line in found] == [0, 4, 8, 10]
    rows = {score["row"] for score in found[-1]["scores"]}
    assert rows == {"majority class", "raw input", "encoder now", "encoder at the start"}
    start_scores, last = (
        {(s["row"], s["column"]): s["value"] for s in line["scores"]} for line in (found[0], found[-1])
    )
    for column in ("k-NN", "linear"):
        assert start_scores["encoder now", column] == last["encoder at the start", column]
        assert last["encoder now", column] > last["majority class", column]


def test_judging_changes_nothing_of_the_run(tmp_path):
    assert train(make_run(tmp_path / "plain"), quiet=True)
    assert train(make_run(tmp_path / "judged", evaluate=PROBES), quiet=True)
    one, other = (checkpoint.load(checkpoint.newest(tmp_path / name)).weights for name in ("plain", "judged"))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_resumed_run_judges_each_step_once(tmp_path):
    first = make_run(tmp_path / "run", steps=16, evaluate=PROBES, checkpoint_every=4)
    first.steps = 8
    assert train(first, quiet=True)
    assert train(make_run(tmp_path / "run", steps=16, evaluate=PROBES, checkpoint_every=4), quiet=True)
    assert [line["step"] for line in lines(tmp_path / "run/probes.jsonl")] == [0, 4, 8, 12, 16]


def test_probes_need_labels(tmp_path):
    config = load_recipe("image:mae-vit-tiny", installed(), twin=True)
    from mim_core.recipes.resolve import swap

    config = swap(config, "data", "core:noise", installed())
    config = replace(config, evaluate=replace(config.evaluate, every=1.0))
    with pytest.raises(MimError, match="labels"):
        train(start(config, tmp_path / "run", installed()), quiet=True)
    assert not (tmp_path / "run").exists()


# ---- time, compilers -------------------------------------------------------------------------------------------------


@pytest.mark.counted
def test_the_time_of_a_step_is_split(tmp_path):
    assert train(make_run(tmp_path / "run"), quiet=True)
    for line in lines(tmp_path / "run/metrics.jsonl"):
        shares = [line[f"time/{phase}"] for phase in PHASES]
        assert all(0 <= value <= 1 for value in shares)
        assert 0.3 < sum(shares) <= 1.001
        assert line["flops_per_second"] > 1e6
        assert line["samples_per_second"] == pytest.approx(16 / line["seconds_per_step"], rel=1e-6)


def test_time_that_is_paused_is_none_of_the_steps(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    clock = Stopwatch(torch.device("cpu"))
    clock.read()
    clock.start("data")
    now[0] = 2.0
    clock.start("prepare")
    now[0] = 3.0
    with clock.paused():
        now[0] = 103.0
    clock.start("optimizer")
    now[0] = 107.0
    clock.start(None)
    seconds, phases = clock.read()
    assert seconds == 7.0
    assert phases == {"data": 2.0, "prepare": 1.0, "forward_backward": 0.0, "optimizer": 4.0}
    assert clock.read() == (0.0, dict.fromkeys(PHASES, 0.0))


@pytest.mark.slow
def test_inductor_gives_the_eager_losses(tmp_path):
    """The compiler itself, once; everywhere else the tests trace only."""
    from shutil import which

    if which("g++") is None and which("clang++") is None:
        pytest.skip("no C++ compiler")
    assert train(make_run(tmp_path / "eager", steps=3, depth=1), quiet=True)
    assert train(make_run(tmp_path / "compiled", steps=3, depth=1, compile=True), quiet=True)
    one, other = ([line["loss"] for line in lines(tmp_path / n / "metrics.jsonl")] for n in ("eager", "compiled"))
    assert other == pytest.approx(one, rel=1e-4)


def test_recomputing_the_blocks_keeps_the_result(tmp_path):
    assert train(make_run(tmp_path / "plain"), quiet=True)
    assert train(make_run(tmp_path / "less", activation_checkpointing=True), quiet=True)
    one, other = (checkpoint.load(checkpoint.newest(tmp_path / name)).weights for name in ("plain", "less"))
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_deterministic_is_switched_on_and_trains(tmp_path):
    try:
        assert train(make_run(tmp_path / "run", steps=2, deterministic=True), quiet=True)
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(("rate", "text"), [(0.384, "0.38"), (2.04, "2"), (12.6, "13"), (1234.5, "1,234")])
def test_a_slow_run_has_a_speed_too(rate, text):
    assert speed(rate) == text
