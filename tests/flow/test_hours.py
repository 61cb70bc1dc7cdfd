"""Epochs that fit into so many hours, and hours on devices that are not here."""

from dataclasses import replace

import pytest
from mim_core.errors import MimError
from mim_core.host.loading import installed
from mim_core.recipes.resolve import load_recipe
from mim_core.training import hours
from mim_core.training.hours import Elsewhere
from mim_core.training.loop import start, train
from mim_core.training.pace import Pace


@pytest.fixture
def begin(tmp_path, monkeypatch):
    """A run that may take so many hours, on a machine of so many seconds for a sample."""

    def run(allowed, seconds):
        monkeypatch.setattr(hours, "pace", lambda *given: Pace(seconds, 16, 16))
        config = load_recipe("image:mae-vit-tiny", installed(), twin=True)
        options = replace(config.train, hours=allowed, workers=0, epochs=100.0, warmup_epochs=10.0)
        return start(replace(config, train=options), tmp_path / "run", installed())

    return run


def test_the_steps_fit_and_the_warm_up_keeps_its_share(begin):
    found = begin(1.0, 0.1)
    per_step = 0.1 * found.samples_per_step
    assert found.steps == int(0.95 * 3600 / per_step)
    assert found.train.warmup_epochs / found.train.epochs == pytest.approx(0.1, rel=1e-3)


def test_a_run_that_goes_on_keeps_what_was_chosen(begin):
    first = begin(0.01, 1.0)
    assert 0 < first.steps < 10
    assert train(first, quiet=True)
    assert begin(0.01, 1e-3).steps == first.steps


def test_hours_without_a_step_are_refused(begin):
    with pytest.raises(MimError, match="is less than one step takes here"):
        begin(1e-9, 1.0)


def test_hours_elsewhere_follow_from_the_operations():
    device = Elsewhere.of("h100:8")
    assert (device.name, device.count) == ("H100", 8)
    assert "about 2 h" in device.time(2 * 3600 * 989e12 * 8 * hours.EFFICIENCY)
    assert "which is too much: --train.micro-batch" in device.memory(10**6, 1e9, 8 * 4096)
    assert "too much" not in device.memory(10**6, 1e6, 8)


@pytest.mark.parametrize("text", ["abacus:8", "h100:0", "h100:x"])
def test_a_device_that_makes_no_sense_is_refused(text):
    with pytest.raises(MimError, match="--plan-for takes DEVICE:COUNT"):
        Elsewhere.of(text)
