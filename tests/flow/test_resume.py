"""A run that was stopped, in whatever way, ends as the run that was not: to the bit on a CPU."""

import json
import os
import signal
import time
from dataclasses import replace

import pytest
import torch
from mim_core.host.loading import installed
from mim_core.recipes.resolve import load_recipe
from mim_core.runs import checkpoint
from mim_core.training.loop import start, train
from safetensors.torch import load_file

STEPS = 10


def make_run(folder, recipe="image:mae-vit-tiny", **changes):
    config = load_recipe(recipe, installed(), twin=True)
    options = replace(config.train, epochs=STEPS * 16 / 10_000, checkpoint_every=5, **changes)
    return start(replace(config, train=options), folder, installed())


def weights(folder):
    path = checkpoint.newest(folder)
    assert path is not None
    assert path.name == f"step-{STEPS:08d}"
    return {**load_file(path / "weights.safetensors"), **load_file(path / "optimizer.safetensors")}


def losses(folder):
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_same(one, other):
    assert losses(one) == losses(other)
    a, b = weights(one), weights(other)
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert torch.equal(value, b[name]), name


class Stopper:
    """An observer that sends this process a signal once the first checkpoint is whole."""

    def __init__(self, hooks, number):
        self.hooks, self.number = hooks, number

    def __getattr__(self, name):
        return getattr(self.hooks, name)

    def mim_checkpoint_saved(self, run, path):
        if run.step == 5:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("recipe", ["image:mae-vit-tiny", "image:simmim-vit-base"])
@pytest.mark.parametrize(("first", "second"), [(0, 0), (2, 0), (0, 2)], ids=lambda n: f"{n}workers")
def test_five_steps_stop_five_steps_equals_ten(tmp_path, recipe, first, second):
    assert train(make_run(tmp_path / "whole", recipe), quiet=True)
    stopped = make_run(tmp_path / "parts", recipe, workers=first)
    registry = installed()
    stopped.registry = type(registry)(registry.entries, registry.plugins, Stopper(registry.hooks, signal.SIGTERM))
    assert not train(stopped, quiet=True)
    assert stopped.step in (5, 6)
    assert train(make_run(tmp_path / "parts", recipe, workers=second), quiet=True)
    assert_same(tmp_path / "whole", tmp_path / "parts")


def test_accumulation_gives_the_same_run(tmp_path):
    assert train(make_run(tmp_path / "whole"), quiet=True)
    assert train(make_run(tmp_path / "micro", micro_batch=4), quiet=True)
    assert losses(tmp_path / "micro") == pytest.approx(losses(tmp_path / "whole"), rel=1e-4)


def test_dropout_and_masks_do_not_depend_on_the_global_generator(tmp_path):
    torch.manual_seed(1)
    assert train(make_run(tmp_path / "one", "image:simmim-vit-base"), quiet=True)
    torch.manual_seed(2)
    assert train(make_run(tmp_path / "two", "image:simmim-vit-base"), quiet=True)
    assert_same(tmp_path / "one", tmp_path / "two")


def test_another_seed_is_another_run(tmp_path):
    assert train(make_run(tmp_path / "one"), quiet=True)
    assert train(make_run(tmp_path / "two", seed=1), quiet=True)
    assert losses(tmp_path / "one") != losses(tmp_path / "two")


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, {here!r})
import torch
torch.set_num_threads(1)
from test_resume import make_run
from mim_core.training.loop import train
train(make_run(Path({folder!r}), workers={workers}), quiet=True)
"""


def test_kill_nine_at_any_moment(loaded_python, tmp_path):
    """Killed again and again, once it has begun, with all that it started; it always goes on from a whole checkpoint.
    test_faults.py kills the run alone."""
    assert train(make_run(tmp_path / "whole"), quiet=True)
    folder = tmp_path / "killed"
    script = SCRIPT.format(here=os.path.dirname(__file__), folder=str(folder), workers=2)
    kills = 0
    for attempt in range(12):
        process = loaded_python.start(["-c", script])
        seen = len(losses(folder)) if (folder / "metrics.jsonl").exists() else 0
        while kills < 3 and process.poll() is None:
            now = len(losses(folder)) if (folder / "metrics.jsonl").exists() else 0
            if now > seen or (attempt == 1 and (folder / "checkpoints").exists()):
                os.killpg(process.pid, signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.005)
        if process.wait(timeout=120) == 0:
            break
    assert kills == 3
    assert_same(tmp_path / "whole", folder)
