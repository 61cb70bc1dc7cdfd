"""Numbers that nothing can compute with, and what a part refuses while it works: one message, exit code 2."""

import pytest
import torch
from mim_core.errors import MimError, too_much
from mim_core.methods.build import build_method, working
from mim_core.parts.masker import RandomMasker
from mim_core.recipes.config import TrainConfig
from mim_core.text import counted, option
from mim_core.training.engine import share

DRY = ("pretrain", "mae-vit-tiny", "--twin", "--use", "data=core:noise", "--out", "run", "--dry-run")
ABSURD = {
    "--train.seed 100000000000000000000": "'seed' must fit into 64 bits",
    "--train.timeout 1e9": "'timeout' must be 1 to 2,000,000 seconds",
    "--train.workers 100000": "'workers' must be 0 to 1,024, got 100000",
    "--train.device meta": "--train.device meta cannot be used",
    "--encoder.width 1000000000000": "more memory is asked for than there is",
    "--encoder.width 100000000000000000000": "a number is larger than can be computed with",
    "--encoder.depth 1000000000": "beyond the 10,000 blocks",
    "--encoder.mlp-ratio -1": "a size would be negative",
    "--encoder.mlp-ratio inf": "encoder (core:vit): a number is larger",
    "--encoder.layer-scale 1e300": "encoder (core:vit): a number is larger",
    "--decoder.width 1000000000000": "decoder (core:transformer): ",
    "--tokenizer.size 1000000000 1000000001": "does not divide",
    "--tokenizer.channels 1000000000000": "tokenizer (image:patch): more memory is asked for than there is",
    "--masker.masks 1000000000": "masks must be at most 10,000",
    f"--out {'x' * 300}": "the name is too long",
    f"--use data=image:images --data.root {'x' * 300}": "the name is too long",
}


@pytest.mark.parametrize("line", ABSURD, ids=lambda line: line[:40])
def test_an_absurd_number_is_refused_in_one_line(refused, line):
    assert ABSURD[line] in refused(*DRY, *line.split(), plugin="image")


def test_divisors_of_a_huge_batch_take_no_time():
    with pytest.raises(MimError, match=r"would do: .*1000000000000\."):
        share(TrainConfig(batch_size=10**12, micro_batch=7), 1)


@pytest.fixture
def choosy(monkeypatch):
    def hide(self, *arguments, **named):
        raise ValueError("there is nothing here that I like")

    monkeypatch.setattr(RandomMasker, "hide", hide)


@pytest.mark.parametrize("command", ["pretrain", "pretrain --dry-run", "bench --seconds 1"])
def test_what_a_part_refuses_at_work_is_one_line_with_its_role(choosy, refused, command):
    name, *more = command.split()
    run = (name, *DRY[1:-1], *more, "--quiet", "--train.workers", "0", "--train.epochs", "0.0005")
    assert "masker (core:random): there is nothing here that I like." in refused(*run, plugin="image")


def test_what_is_a_bug_stays_one():
    method = build_method("image:mae-vit-tiny")
    with pytest.raises(ValueError, match="elsewhere"), working(method):
        raise ValueError("elsewhere")
    with pytest.raises(RuntimeError, match="a bug"), working(method):
        raise RuntimeError("a bug")
    assert too_much(ValueError("a bug")) is None
    assert too_much(KeyError("overflow")) is None


def test_what_torch_says_of_too_much_is_known():
    for work in (lambda: torch.empty(10**16), lambda: torch.empty(10**30), lambda: int(float("inf"))):
        with pytest.raises(Exception) as met:  # noqa: PT011
            work()
        assert too_much(met.value)


def test_numbers_are_rounded_and_counted():
    told = [counted(value, "epoch") for value in (0, 1, 1.0, 2, 29.9755, 0.016, 12345.6, 1_000_000)]
    assert told == ["no epochs", "1 epoch", "1 epoch", "2 epochs", "29.98 epochs", "0.016 epochs", "12,346 epochs",
                    "1,000,000 epochs"]  # fmt: skip
    assert len(counted(1e300, "epoch")) < 20


def test_advice_has_no_powers_of_ten():
    told = [option(value) for value in (0, 1, 12_800, 12_845.3, 999.6, 2.3456, 1.5e-4, 3.754e-5, 4e7)]
    assert told == ["0", "1", "12800", "12800", "1000", "2.35", "0.00015", "0.0000375", "40000000"]
