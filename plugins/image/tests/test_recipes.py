"""The recipes carry the papers' numbers, typed here by hand from the papers' tables and official configurations."""

import pytest
import torch
from mim_core import build_method
from mim_core.host.loading import installed
from mim_core.methods.build import make_source
from mim_core.recipes.resolve import load_recipe
from mim_core.training.learning_rate import learning_rate
from mim_core.training.plan import count_parameters

# MAE, arXiv 2111.06377: section 4 and table 8; PRETRAIN.md of the official repository
SIZES = {  # patch, width, depth, heads, units, visible units
    "mae-vit-base": (16, 768, 12, 12, 196, 49),
    "mae-vit-large": (16, 1024, 24, 16, 196, 49),
    "mae-vit-huge": (14, 1280, 32, 16, 256, 64),
    "mae-vit-small": (16, 384, 12, 6, 196, 49),  # not in the paper: DeiT's S
}


def options(run, role):
    return run.parts[role].options


@pytest.mark.parametrize("name", SIZES)
def test_mae_has_the_papers_numbers(name):
    patch, width, depth, heads, units, visible = SIZES[name]
    run = load_recipe(f"image:{name}", installed())
    assert options(run, "tokenizer").size == (224, 224)
    assert options(run, "tokenizer").patch == (patch, patch)
    assert (224 // patch) ** 2 == units
    encoder, decoder = options(run, "encoder"), options(run, "decoder")
    assert (encoder.width, encoder.depth, encoder.heads) == (width, depth, heads)
    assert (decoder.width, decoder.depth, decoder.heads) == (512, 8, 16)
    assert run.parts["masker"].name == "core:random"
    assert options(run, "masker").ratio == 0.75
    assert units - run.parts["masker"].cls(options(run, "masker")).count(layout(units)) == visible
    target = options(run, "target")
    assert target.normalize is True
    assert target.loss == "l2"
    data = options(run, "data")
    assert data.crop == (0.2, 1.0)
    assert data.flip == 0.5
    train = run.train
    assert (train.epochs, train.warmup_epochs, train.batch_size) == (1600, 40, 4096)
    assert (train.base_lr, train.lr_batch, train.min_lr, train.warmup_lr) == (1.5e-4, 256, 0, 0)
    assert train.betas == (0.9, 0.95)
    assert train.weight_decay == 0.05
    assert train.decay_tokens is True
    assert train.clip_grad is None
    assert train.schedule == "cosine"


def layout(units):
    from mim_core import Layout

    side = round(units**0.5)
    return Layout.on_grid(side, side)


def test_simmim_has_the_papers_numbers():
    """arXiv 2111.09886, and configs/vit_base__800ep/simmim_pretrain__vit_base__img224__800ep.yaml."""
    run = load_recipe("image:simmim-vit-base", installed())
    assert options(run, "tokenizer").size == (224, 224)
    assert options(run, "tokenizer").patch == (16, 16)
    masker = options(run, "masker")
    assert run.parts["masker"].name == "core:grid"
    assert (masker.ratio, masker.rounding) == (0.6, "up")
    assert [16 * units for units in masker.block] == [32, 32]
    assert run.parts["masker"].cls(masker).count(layout(196)) == 30 * 4  # 30 of 49 blocks
    encoder = options(run, "encoder")
    assert run.parts["encoder"].name == "core:beit"  # shared relative positions, no absolute ones
    assert (encoder.width, encoder.depth, encoder.heads) == (768, 12, 12)
    assert (encoder.drop_path, encoder.layer_scale) == (0.1, 0.1)
    assert run.parts["decoder"].name == "core:linear"
    target = options(run, "target")
    assert target.normalize is False
    assert target.loss == "l1"
    assert options(run, "data").crop == (0.67, 1.0)
    train = run.train
    assert (train.epochs, train.warmup_epochs, train.batch_size) == (800, 10, 2048)
    assert (train.base_lr, train.lr_batch, train.warmup_lr) == (1e-4, 512, 5e-7)
    assert (train.schedule, train.milestones) == ("steps", (700,))
    assert train.betas == (0.9, 0.999)
    assert train.weight_decay == 0.05
    assert train.decay_tokens is False
    assert train.clip_grad == 5.0


def test_hpm_has_the_papers_numbers():
    """arXiv 2304.05919, section 4 and appendix: MAE's settings, 800 epochs; the official engine_pretrain.py."""
    run, mae = (load_recipe(f"image:{name}-vit-base", installed()) for name in ("hpm", "mae"))
    for role in ("data", "tokenizer", "encoder", "decoder", "target"):
        assert run.parts[role] == mae.parts[role]
    masker = options(run, "masker")
    assert (masker.ratio, masker.direction, masker.share_from, masker.share_to) == (0.75, "high", 0, 0.5)
    assert run.parts["masker"].cls(masker).count(layout(196)) == 147
    teacher = options(run, "teacher")
    assert (teacher.start, teacher.end, teacher.schedule, teacher.epochs) == (0.999, 0.9999, "linear", 100)
    assert teacher.heads == ("losses",)
    second = options(run, "losses.decoder")
    assert (second.width, second.depth, second.heads, second.input_of) == (512, 8, 16, "main")
    target = options(run, "losses.target")
    assert (target.head, target.loss, target.size) == ("main", "pairs", None)  # 16 * 16 * 3 numbers
    train = run.train
    assert (train.epochs, train.warmup_epochs, train.batch_size, train.base_lr) == (800, 40, 4096, 1.5e-4)
    assert (train.betas, train.weight_decay) == ((0.9, 0.95), 0.05)


def test_the_tiny_hpm_sees_what_the_tiny_mae_sees():
    run, mae = (load_recipe(f"image:{name}-vit-tiny", installed()) for name in ("hpm", "mae"))
    assert run.train == mae.train
    for role in ("data", "tokenizer", "encoder", "target"):
        assert run.parts[role] == mae.parts[role]


IMAGENET = 1_281_167


def rate_at(name, epoch):
    train = load_recipe(f"image:{name}", installed()).train
    steps = IMAGENET / train.batch_size
    return learning_rate(round(epoch * steps), steps, train)


@pytest.mark.parametrize(
    ("name", "epoch", "rate"),
    [
        ("mae-vit-base", 0, 0.0),
        ("mae-vit-base", 20, 1.2e-3),
        ("mae-vit-base", 40, 2.4e-3),  # 1.5e-4 * 4096 / 256
        ("mae-vit-base", 820, 1.2e-3),  # half of the cosine
        ("mae-vit-base", 1600, 0.0),
        ("simmim-vit-base", 0, 2e-6),  # 5e-7 * 2048 / 512
        ("simmim-vit-base", 10, 4e-4),  # 1e-4 * 2048 / 512
        ("simmim-vit-base", 699, 4e-4),
        ("simmim-vit-base", 701, 4e-5),
    ],
)
def test_rates_on_imagenet(name, epoch, rate):
    assert rate_at(name, epoch) == pytest.approx(rate, rel=5e-3, abs=1e-7)


@pytest.mark.parametrize(
    ("name", "millions"),
    # timm's ViT-S/B/L/H without classifier; SimMIM's has a relative bias in place of positions, and layer scale
    [("mae-vit-small", 21.6), ("mae-vit-base", 85.6), ("mae-vit-large", 303.1), ("mae-vit-huge", 630.4)],
)
def test_encoders_have_the_papers_sizes(name, millions):
    import torch

    with torch.device("meta"):
        method = build_method(load_recipe(f"image:{name}", installed()))
    found = count_parameters(method.encoder) + count_parameters(method.tokenizer)
    assert found / 1e6 == pytest.approx(millions, abs=0.2)


@pytest.mark.parametrize("entry", installed().of_kind("recipes", "image"), ids=lambda entry: entry.name)
def test_a_twin_is_its_recipe_made_small(entry):
    """The same parts, so that the twin tests the recipe's code; one step is quick and its loss is a number."""
    whole = load_recipe(entry.full_name, installed())
    twin = load_recipe(entry.full_name, installed(), twin=True)
    assert {role: part.name for role, part in twin.parts.items()} == {r: p.name for r, p in whole.parts.items()}
    smaller = {"mvp-vit-base": "target", "mst-vit-small": "method", "mst-vit-tiny": "method"}
    smaller |= dict.fromkeys(("ssmctb-autoencoder", "ssmctb-autoencoder-tiny"), "method")
    smaller |= dict.fromkeys(("amae-1", "amae-1-tiny", "amae-2", "amae-2-tiny"), "method")
    for role in {"target", "method"} & set(whole.parts) - {smaller.get(entry.name)}:  # a network, views, another run
        assert twin.parts[role].options == whole.parts[role].options
    same = ("schedule", "betas", "weight_decay", "decay_tokens", "clip_grad")
    assert [getattr(twin.train, name) for name in same] == [getattr(whole.train, name) for name in same]
    method = build_method(twin)
    assert count_parameters(method) < 300_000
    source = make_source(twin, method)
    sample = {name: value[None] for name, value in source.read(0, 1).items()}
    sample["key"] = torch.zeros(1, dtype=torch.int64)
    assert method(method.prepare(source.finish(sample))).loss.isfinite()
