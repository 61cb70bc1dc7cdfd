"""The recipes carry the papers' numbers, typed here by hand from the papers' and the official scripts' own."""

import pytest
from mim_core.host.loading import installed
from mim_core.recipes.resolve import load_recipe

VIDEOMAE = {  # width, depth, heads; decoder's width and heads
    "videomae-vit-small": ((384, 12, 6), (192, 3)),
    "videomae-vit-base": ((768, 12, 12), (384, 6)),
    "videomae-vit-large": ((1024, 24, 16), (512, 8)),
    "videomae-vit-huge": ((1280, 32, 16), (640, 8)),
    "videomae-vit-base-ssv2": ((768, 12, 12), (384, 6)),
    "videomae-vit-base-ucf101": ((768, 12, 12), (384, 6)),
}
RUNS = {  # stride, ratio, epochs, batch, learning rate
    "videomae-vit-base-ssv2": (2, 0.9, 2400, 2048, 1.5e-4),
    "videomae-vit-base-ucf101": (4, 0.75, 3200, 192, 3e-4),
}
RECIPES = [entry.full_name for entry in installed().of_kind("recipes", "video")]


def recipe(name):
    run = load_recipe(f"video:{name}", installed())
    return run, {role: part.options for role, part in run.parts.items()}


def sizes(options):
    return options.width, options.depth, options.heads


@pytest.mark.parametrize("name", VIDEOMAE)
def test_videomae_has_the_papers_numbers(name):
    run, options = recipe(name)
    encoder, decoder = VIDEOMAE[name]
    assert sizes(options["encoder"]) == encoder
    assert sizes(options["decoder"]) == (decoder[0], 4, decoder[1])
    assert (options["encoder"].class_token, options["decoder"].embed_bias) == (False, False)
    assert options["encoder"].position == options["decoder"].position == "flat"
    assert (options["tokenizer"].size, options["tokenizer"].patch) == ((16, 224, 224), (2, 16, 16))
    data = options["data"]
    assert (data.crop, data.scales, data.flip) == ("multi-scale", (1.0, 0.875, 0.75, 0.66), 0)
    target = options["target"]
    assert target.normalize
    assert (target.mean, target.std) == (data.mean, data.std)
    assert data.mean is None, "ImageNet's"
    train = run.train
    found = (data.stride, options["masker"].ratio, train.epochs, train.batch_size, train.base_lr)
    assert found == RUNS.get(name, (4, 0.9, 1600, 2048, 1.5e-4))
    assert (train.lr_batch, train.warmup_epochs, train.warmup_lr, train.min_lr) == (256, 40, 1e-6, 1e-5)
    assert (train.betas, train.weight_decay, train.clip_grad) == ((0.9, 0.95), 0.05, None)


def test_videomae_v2_has_the_papers_numbers():
    run, options = recipe("videomae-v2-vit-giant")
    assert sizes(options["encoder"]) == (1408, 40, 16)
    assert int(1408 * options["encoder"].mlp_ratio) == 6144
    assert sizes(options["decoder"]) == (512, 4, 8)
    assert options["tokenizer"].patch == (2, 14, 14)
    assert (options["masker"].ratio, options["masker"].decoder_ratio) == (0.9, 0.5)
    assert (options["data"].repeat, options["data"].repeat_start) == (4, "same")
    train = run.train
    assert (train.epochs, train.base_lr, train.warmup_epochs, train.clip_grad) == (300, 6e-4, 30, 0.02)


def test_mae_st_has_the_papers_numbers():
    run, options = recipe("mae-st-vit-large")
    assert sizes(options["encoder"]) == (1024, 24, 16)
    assert sizes(options["decoder"]) == (512, 4, 16)
    assert options["encoder"].position == options["decoder"].position == "separable"
    assert (options["encoder"].class_token, options["decoder"].prefix) == (True, "own")
    assert run.parts["masker"].name == "core:random"
    assert options["masker"].ratio == 0.9
    assert (options["data"].repeat, options["data"].crop, options["data"].area) == (4, "resized", (0.5, 1.0))
    assert options["data"].repeat_start == "own"  # as its code has it: each clip of a file draws its place
    train = run.train
    assert (train.epochs, train.base_lr, train.warmup_epochs, train.clip_grad) == (100, 1.6e-3, 5, 0.02)
    assert train.betas == (0.9, 0.95)


@pytest.mark.parametrize("name", RECIPES)
def test_a_twin_has_its_recipes_parts(name):
    """That it learns, and along which curve: tests/flow/test_curves.py."""
    twin, whole = (load_recipe(name, installed(), twin=twin) for twin in (True, False))
    assert {role: part.name for role, part in twin.parts.items()} == {r: p.name for r, p in whole.parts.items()}
