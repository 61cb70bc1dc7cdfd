"""Recipes on collections that are smaller than, or unlike, those that they were made for."""

from dataclasses import replace

import numpy as np
import pytest
from mim_core.cli import main
from mim_core.host.loading import installed
from mim_core.recipes.config import TrainConfig
from mim_core.recipes.toml import from_toml
from mim_core.training.collection_size import fitted, fitting_batch
from PIL import Image

PAPER = TrainConfig(epochs=1600, batch_size=4096, micro_batch=128, base_lr=1.5e-4, warmup_epochs=40)
TINY = TrainConfig(epochs=20, batch_size=64, base_lr=4e-3, warmup_epochs=1)
QUICK = ("--train.workers", "0", "--train.device", "cpu", "--quiet")


@pytest.mark.parametrize(
    ("items", "batch", "fits"),
    [
        (1_281_167, 4096, 4096),
        (20_000, 4096, 4096),  # an epoch has 4.9 steps
        (16_000, 4096, 512),  # 3.9: the largest power of two that gives 16
        (9_537, 192, 192),  # VideoMAE on UCF101
        (795, 128, 128),
        (490, 4096, 64),
        (60, 64, 8),
        (6, 32, 4),
        (3, 32, 2),
        (1, 32, 1),
    ],
)
def test_an_epoch_has_four_steps(items, batch, fits):
    assert fitting_batch(items, batch) == fits


def test_a_batch_can_be_shared():
    assert fitting_batch(490, 4096, 3) == 63
    assert fitting_batch(5, 32, 8) == 8


def test_what_nobody_stated_fits_and_is_said():
    new, said = fitted(PAPER, 490, frozenset())
    assert (new.batch_size, new.epochs, new.micro_batch) == (64, 1600, 64)
    assert new.base_lr == pytest.approx(PAPER.base_lr * 8), "the rate falls with the root of the batch, by 8"
    assert said[0] == "batch 64 in place of 4,096: an epoch of 490 items had 0.12 steps, now 7.7"
    new, said = fitted(TINY, 60, frozenset())
    assert (new.batch_size, round(new.epochs * 60 / 8)) == (8, 1000)
    assert new.warmup_epochs / new.epochs == pytest.approx(TINY.warmup_epochs / TINY.epochs, rel=1e-3)
    assert "the run had 150 steps, now 1,000" in said[2]


def test_training_on_labels_keeps_its_epochs():
    new, said = fitted(TINY, 60, frozenset(), least=0)
    assert (new.batch_size, new.epochs) == (8, TINY.epochs)
    assert len(said) == 2, "batch and rate"


def test_what_fits_already_is_left_alone():
    assert fitted(TINY, 10_000, frozenset()) == (TINY, ())
    assert fitted(PAPER, 0, frozenset()) == (PAPER, ())


def test_what_is_stated_stays():
    told = {"train.batch_size", "train.epochs", "train.warmup_epochs", "train.base_lr", "train.milestones"}
    assert fitted(PAPER, 490, told) == (PAPER, ())
    assert fitted(PAPER, 490, {"train.base_lr"})[0].base_lr == PAPER.base_lr
    new, _ = fitted(PAPER, 490, {"train.batch_size"})
    assert new.batch_size == 4096
    assert round(new.epochs * 490 / 4096) == 1000


def test_a_warm_up_that_nobody_stated_is_no_longer_than_a_fifth():
    new, said = fitted(replace(PAPER, epochs=50.0), 490, {"train.epochs"})
    assert (new.epochs, new.warmup_epochs) == (50.0, 2.5)
    assert "a twentieth" in said[-1]
    new, _ = fitted(replace(PAPER, steps=490), 490, {"train.steps"})
    assert new.warmup_epochs == pytest.approx(64 / 20, rel=1e-3)


def test_micro_batches_divide_the_smaller_batch():
    assert fitted(replace(PAPER, micro_batch=24), 490, frozenset())[0].micro_batch == 16
    assert fitted(replace(PAPER, micro_batch=24), 490, {"train.micro_batch"})[0].micro_batch == 24


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """40 colour photos of 80 x 72 pixels in two classes."""
    root = tmp_path_factory.mktemp("photos")
    draw = np.random.default_rng(0)
    for number in range(40):
        folder = root / ["cat", "dog"][number % 2]
        folder.mkdir(exist_ok=True)
        values = draw.integers(0, 255, (9, 10, 3), dtype=np.uint8)
        Image.fromarray(values).resize((80, 72)).save(folder / f"{number}.png")
    return root


def recorded(out):
    return from_toml((out / "recipe.toml").read_text(), installed())


@pytest.mark.slow
def test_a_recipe_for_other_pictures_takes_their_channels_and_sizes(photos, tmp_path, capsys):
    out = tmp_path / "run"
    command = ["pretrain", "image:mae-vit-tiny", "--data.root", str(photos), "--train.steps", "3", *QUICK]
    assert main([*command, "--out", str(out), "--dry-run"]) == 0
    plan = " ".join(capsys.readouterr().out.split())
    assert "tokenizer.channels 3 in place of 1" in plan
    assert "data.mean none in place of 0.286" in plan
    assert "batch 8 in place of 64" in plan
    assert not out.exists()
    assert main([part for part in command if part != "--quiet"] + ["--out", str(out)]) == 0
    both = capsys.readouterr()
    said = " ".join((both.out + both.err).split())
    assert "sizes: the recipe was made for other pictures" in said
    assert "tokenizer.size 64 64 in place of 28 28" in said
    run = recorded(out)
    tokenizer = run.parts["tokenizer"].options
    assert (tokenizer.channels, tokenizer.size, tokenizer.patch) == (3, (64, 64), (8, 8))
    assert run.train.batch_size == 8
    assert run.parts["data"].options.mean is None
    assert main([*command, "--out", str(out)]) == 0, "it is complete, with the sizes that it recorded"
    assert main(["finetune", str(out), "--train.steps", "2", *QUICK, "--dry-run"]) == 0
    assert "image 3 x 64 x 64" in " ".join(capsys.readouterr().out.split())


@pytest.mark.slow
def test_a_twin_has_its_steps_on_any_data(photos, tmp_path):
    out = tmp_path / "run"
    assert (
        main(["pretrain", "image:mae-vit-small", "--twin", "--data.root", str(photos), "--quiet", "--out", str(out)])
        == 0
    )
    run = recorded(out)
    assert (run.train.batch_size, run.train.epochs * 40 / 16) == (16, pytest.approx(20))
    assert run.train.warmup_epochs / run.train.epochs == pytest.approx(0.2, rel=1e-3)
    assert run.parts["tokenizer"].options.size == (28, 28)


@pytest.mark.slow
def test_a_run_keeps_what_it_recorded(photos, tmp_path, monkeypatch):
    from mim_core.training import collection_size

    out = tmp_path / "run"
    command = ["pretrain", "image:mae-vit-tiny", "--data.root", str(photos), "--train.steps", "2", *QUICK]
    assert main([*command, "--out", str(out)]) == 0
    monkeypatch.setattr(collection_size, "ENOUGH", 2)
    assert main([*command, "--out", str(out)]) == 0
    assert recorded(out).train.batch_size == 8


@pytest.mark.slow
def test_stated_options_and_files_stay(photos, tmp_path):
    recipe = tmp_path / "mine.toml"
    recipe.write_text(
        f'recipe = "image:mae-vit-tiny"\n[data]\nroot = "{photos}"\n[tokenizer]\nchannels = 1\n'
        "[train]\nbatch-size = 20\n"
    )
    out = tmp_path / "run"
    sizes = ("--tokenizer.size", "28", "28", "--tokenizer.patch", "7", "7")
    assert main(["pretrain", str(recipe), *sizes, "--train.steps", "2", *QUICK, "--out", str(out)]) == 0
    run = recorded(out)
    assert (run.parts["tokenizer"].options.channels, run.train.batch_size) == (1, 20)
    assert run.parts["tokenizer"].options.size == (28, 28)


def test_a_recipe_on_its_own_data_and_a_twin_are_as_they_were(tmp_path, capsys):
    assert main(["pretrain", "image:mae-vit-tiny", *QUICK, "--out", str(tmp_path / "run"), "--dry-run"]) == 0
    plan = capsys.readouterr().out
    assert "\nsizes" not in plan
    assert "3,125 steps" in plan
