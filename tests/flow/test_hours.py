"""Epochs that fit into so many hours, and hours on devices that are not here."""

from dataclasses import replace

import pytest
from mim_core import build_method
from mim_core.cli import main
from mim_core.data.labelled import LabelledSource
from mim_core.errors import MimError
from mim_core.host.loading import installed
from mim_core.methods.build import make_source
from mim_core.recipes.resolve import load_recipe
from mim_core.training import hours
from mim_core.training.hours import Elsewhere
from mim_core.training.loop import start, train
from mim_core.training.pace import Pace
from mim_core.training.plan import plan_rows


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


def test_many_more_epochs_than_the_recipe_s_are_said(begin, capsys):
    """And the plan has the hours that were asked for, not those of another measurement."""
    found = begin(1e4, 1e-3)
    assert "Without --train.hours there are 100 epochs, which take about" in capsys.readouterr().out
    assert plan_rows(found, timed=True)["time"].startswith("about 396 days, what --train.hours 10000 leaves")


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
    assert "about 2 h" in device.time(3600 * 989e12 * 8 * hours.EFFICIENCY, 2, 8)
    assert "about 33 min on 8 x H100: assuming 20 ms a step" in device.time(1e9, 100_000, 8)
    assert "for 4 of the devices" in device.time(1e9, 100_000, 4)
    assert "which is too much: --train.micro-batch" in device.memory(10**6, 1e9, 8 * 4096)
    assert "too much" not in device.memory(10**6, 1e6, 8)


@pytest.mark.parametrize("text", ["abacus:8", "h100:0", "h100:x"])
def test_a_device_that_makes_no_sense_is_refused(text):
    with pytest.raises(MimError, match="--plan-for takes DEVICE:COUNT"):
        Elsewhere.of(text)


def test_devices_to_plan_for_need_a_plan(tmp_path, capsys):
    out = tmp_path / "run"
    assert main(["pretrain", "image:mae-vit-tiny", "--twin", "--plan-for", "h100:8", "--out", str(out)]) == 2
    assert "--plan-for h100:8 goes with --dry-run" in capsys.readouterr().err
    assert not out.exists()


def test_labelled_items_have_no_rows_of_pretraining():
    """A clip is read twice an epoch in pre-training, and a labelled one once."""
    run = load_recipe("video:videomae-vit-tiny", installed(), twin=True)
    source = make_source(run, build_method(run))
    rows = {"an epoch", "repeats"}
    assert rows <= {*source.contents(), *source.plan()}
    labelled = LabelledSource(source)
    assert not rows & {*labelled.contents(), *labelled.plan()}
    assert {"splits", "frames", "labels"} <= {*labelled.contents(), *labelled.plan()}
