"""What a GPU must give: the same draws to the bit, the same loss, and no synchronisation in `prepare` and `forward`."""

import json
from dataclasses import replace

import pytest
import torch
from mim_core import build_method, randomness
from mim_core.parts.layout import Layout
from mim_core.parts.mask import Draw
from mim_core.parts.masker import BlockMasker, GridMasker, RandomMasker

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

KEYS = randomness.make_key(3, 1, torch.arange(256))


def test_draws_are_equal_to_the_bit():
    assert torch.equal(randomness.bits(KEYS.cuda(), "mask", 1000).cpu(), randomness.bits(KEYS, "mask", 1000))
    assert torch.equal(randomness.uniform(KEYS.cuda(), "u", 1000).cpu(), randomness.uniform(KEYS, "u", 1000))
    assert torch.equal(randomness.permutation(KEYS.cuda(), "p", 196).cpu(), randomness.permutation(KEYS, "p", 196))


@pytest.mark.parametrize(
    "masker",
    [RandomMasker(RandomMasker.Config()), GridMasker(GridMasker.Config()), BlockMasker(BlockMasker.Config())],
    ids=lambda m: type(m).__name__,
)
def test_masks_are_equal_to_the_bit(masker):
    layout = Layout.on_grid(14, 14)
    here, there = masker(layout, Draw(KEYS)), masker.cuda()(layout, Draw(KEYS.cuda()))
    for name in ("hidden", "kept_ids", "query_ids", "weight"):
        assert torch.equal(getattr(there, name).cpu(), getattr(here, name)), name


@pytest.mark.parametrize("recipe", ["image:mae-vit-tiny", "image:simmim-vit-base"])
def test_a_step_equals_the_cpu_and_does_not_synchronise(recipe):
    from mim_core.host.loading import installed
    from mim_core.recipes.resolve import load_recipe

    method = build_method(load_recipe(recipe, installed(), twin=True)).eval()
    sample = {"image": torch.randn(16, 1, 28, 28), "key": KEYS[:16]}
    expected = method(method.prepare(sample)).loss
    method.cuda()
    moved = {name: value.cuda() for name, value in sample.items()}
    method(method.prepare(moved))  # first use may build kernels
    torch.cuda.set_sync_debug_mode("error")
    try:
        outcome = method(method.prepare(moved))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(outcome.loss.cpu(), expected, rtol=1e-4, atol=1e-5)


# ---- the loop --------------------------------------------------------------------------------------------------------


def make_run(folder, **changes):
    from mim_core.host.loading import installed
    from mim_core.recipes.resolve import load_recipe
    from mim_core.training.loop import start

    config = load_recipe("image:mae-vit-tiny", installed(), twin=True)
    options = {"epochs": 24 * 16 / 10_000, "checkpoint_every": 12, "log_every": 8, "workers": 0, **changes}
    return start(replace(config, train=replace(config.train, **options)), folder, installed())


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def no_group():
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def test_a_whole_step_does_not_synchronise(tmp_path, monkeypatch):
    """Data to the device, prepare, forward, backward, clipping, the masked update, the weight average."""
    from mim_core.training.loop import train
    from mim_core.training.trainer import Trainer

    real, checked = Trainer._step, []

    def step(self, batches):
        if self.run.step < 3:  # first use may build kernels and allocate
            return real(self, batches)
        torch.cuda.set_sync_debug_mode("error")
        try:
            checked.append(self.run.step)
            return real(self, batches)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(Trainer, "_step", step)
    assert train(make_run(tmp_path / "run", ema=0.99, micro_batch=8), quiet=True)
    assert checked == list(range(3, 24))


def test_metrics_of_a_gpu(tmp_path):
    from mim_core.training.loop import train

    assert train(make_run(tmp_path / "run"), quiet=True)
    for line in metrics(tmp_path / "run"):
        phases = sum(value for name, value in line.items() if name.startswith("time/"))
        assert 0.2 < phases <= 1.05
        assert line["memory"] > 1e6
        assert line["flops_per_second"] > 0


def test_fsdp2_compile_and_bf16_on_one_device(tmp_path, no_group):
    from mim_core.training.loop import train

    assert train(make_run(tmp_path / "plain", precision="bf16"), quiet=True)
    both = make_run(
        tmp_path / "both", precision="bf16", strategy="fsdp2", compile=True, activation_checkpointing=True, ema=0.99
    )
    assert train(both, quiet=True)
    losses = [[line["loss"] for line in metrics(tmp_path / name)] for name in ("plain", "both")]
    assert losses[1] == pytest.approx(losses[0], rel=2e-2)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_deterministic_runs_resume_to_the_bit(tmp_path, precision):
    from mim_core.runs import checkpoint
    from mim_core.training.loop import train
    from safetensors.torch import load_file

    options = {"precision": precision, "deterministic": True, "checkpoint_every": 12}
    try:
        assert train(make_run(tmp_path / "whole", **options), quiet=True)
        first = make_run(tmp_path / "parts", **options)
        first.steps = 12  # as if it had been stopped there
        first.config = replace(first.config)
        assert train(first, quiet=True)
        assert train(make_run(tmp_path / "parts", **options), quiet=True)
    finally:
        torch.use_deterministic_algorithms(False)
    one, other = (checkpoint.newest(tmp_path / name) / "weights.safetensors" for name in ("whole", "parts"))
    a, b = load_file(one), load_file(other)
    assert all(torch.equal(value, b[name]) for name, value in a.items())


def test_loss_that_is_not_finite_leaves_the_weights_alone(tmp_path):
    from mim_core.errors import MimError
    from mim_core.training.loop import train

    run = make_run(tmp_path / "run", log_every=24)
    finish, weights = run.source.finish, []
    calls = iter(range(1000))
    run.source.finish = lambda sample: (
        {**finish(sample), "image": finish(sample)["image"] * torch.nan} if next(calls) == 6 else finish(sample)
    )
    run.method.after_step = lambda progress: weights.append([p.detach().clone() for p in run.method.parameters()])
    with pytest.raises(MimError, match="loss of step 6, or its gradient, is not finite"):
        train(run, quiet=True)
    assert all(torch.equal(a, b) for a, b in zip(weights[6], weights[5], strict=True))
    assert all(torch.isfinite(value).all() for value in weights[-1])
