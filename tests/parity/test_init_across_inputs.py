"""--init from a plain ViT into recipes that read something else: clips, several modalities, clouds; and our own runs
and exports read so."""

from pathlib import Path

import pytest
import torch
from mim_core import build_method, load_run
from mim_core.cli import main
from mim_core.commands.finetune_recipes import as_pretrained
from mim_core.commands.starting import fitted, read_as_plain
from mim_core.errors import MimError
from mim_core.host.loading import installed
from mim_core.interop.encoders import find_encoder
from mim_core.interop.own_encoders import encoder_within
from mim_core.methods.method import encode_all
from mim_core.recipes.resolve import load_recipe
from mim_core.runs.initial_weights import take_weights
from PIL import Image
from timm.models.vision_transformer import VisionTransformer

IMAGE = {"image": torch.linspace(-1, 1, 2 * 784).view(2, 1, 28, 28)}


@pytest.fixture(scope="module")
def foreign_vit(tmp_path_factory):
    """A ViT of timm on disk, and the model."""
    torch.manual_seed(0)
    model = VisionTransformer(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=1, num_classes=3).eval()
    path = tmp_path_factory.mktemp("foreign") / "vit.pth"
    torch.save(model.state_dict(), path)
    return path, model


def started(recipe, path, twin=True):
    """The method of a recipe with these weights, and what was said."""
    run = fitted(load_recipe(recipe, installed(), twin), Path(path), installed())
    method = build_method(run).eval()
    return method, read_as_plain(run, Path(path), installed()).fill(method)


def test_several_modalities(foreign_vit):
    """Blocks, positions and the kernel of the modality with the most channels are taken; the others start fresh."""
    path, model = foreign_vit
    method, said = started("multimodal:multimae-vit-tiny", path)
    same = dict(method.encoder.blocks.state_dict())
    assert all(torch.equal(same[name], value) for name, value in model.blocks.state_dict().items())
    assert torch.equal(method.tokenizer.part("rgb").proj.weight, model.patch_embed.proj.weight)
    for name, part in method.encoder.position.parts.items():
        assert torch.allclose(part.table, model.pos_embed[:, 1:], atol=1e-6), name
    assert torch.allclose(method.encoder.cls_token, model.cls_token + model.pos_embed[:, :1])
    fresh = next(line for line in said if line.startswith("starts fresh"))
    assert "tokenizer.parts.depth" in fresh
    assert "tokenizer.parts.rgb" not in fresh
    assert "patches: those of rgb" in said


def test_clouds_have_no_patches(foreign_vit):
    run = load_recipe("pointcloud:point-mae-vit-tiny", installed(), True)
    with pytest.raises(MimError, match="units are none"):
        fitted(run, foreign_vit[0], installed())


@pytest.fixture(scope="module")
def own_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own") / "run"
    assert main(["pretrain", "image:mae-vit-tiny", "--twin", "--out", str(folder), "--quiet"]) == 0
    return folder


def test_an_export_under_another_name(own_run, tmp_path):
    """A file of safetensors is known by its first bytes."""
    path = tmp_path / "export.bin"
    assert main(["export", str(own_run), "--out", str(path)]) == 0
    run = load_recipe("image:mae-vit-tiny", installed(), True)
    assert read_as_plain(run, path, installed()) is None
    assert "patch_embed.proj.weight" in find_encoder(path).weights


@pytest.mark.parametrize("kind", ["run", "export"])
def test_a_run_on_images_starts_one_on_clips(own_run, kind, tmp_path):
    path = own_run
    if kind == "export":
        path = tmp_path / "export.safetensors"
        assert main(["export", str(own_run), "--out", str(path)]) == 0
    method, said = started("video:videomae-vit-tiny", path)
    own = load_run(own_run).method
    assert torch.equal(method.encoder.blocks[1].attn.qkv.weight, own.encoder.blocks[1].attn.qkv.weight)
    assert said[0].startswith("read as a plain ViT of ours that reads image")
    assert any("shared by" in line for line in said)


def test_what_is_read_of_a_run_gives_its_features(own_run):
    """Into the same recipe, the plain ViT of a run is the run's encoder."""
    opened = load_run(own_run)
    found = encoder_within(opened.method.eval(), opened.recipe, own_run)
    fresh = build_method(opened.recipe, seed=5).eval()
    found.fill(fresh)
    with torch.no_grad():
        one, other = (encode_all(m.tokenizer, m.encoder, IMAGE).tokens for m in (fresh, opened.method))
    assert torch.allclose(one, other, atol=1e-6)


def test_no_plain_vit_to_take_over(own_run):
    run = load_recipe("multimodal:multimae-vit-tiny", installed(), True)
    method = build_method(run)
    with pytest.raises(MimError, match=r"reads depth, rgb, semseg.*Start from a run that reads"):
        encoder_within(method, run, own_run)


def test_a_teacher_that_begins_as_a_copy_is_one_of_what_was_taken(foreign_vit, own_run):
    """Of foreign weights, and of a run without a teacher."""
    for path in (foreign_vit[0], own_run):
        if path == own_run:
            method = build_method(load_recipe("image:ijepa-vit-tiny", installed(), True))
            said = take_weights(method, load_run(own_run).method, path)
        else:
            method, said = started("image:ijepa-vit-tiny", path)
        ours, theirs = method.encoder.state_dict(), method.teachers["main"].encoder.state_dict()
        assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
        assert any(line.startswith("teachers.main: a copy of the student") for line in said)
        assert not any("starts fresh" in line and "teachers" in line for line in said)


@pytest.mark.parametrize("recipe", ["image:mcmae-tiny", "image:maskco-resnet-tiny", "image:ssmctb-autoencoder-tiny"])
def test_recipes_without_a_plain_vit_refuse(recipe, foreign_vit):
    with pytest.raises(MimError, match=r"--init .*(units are none|this recipe's encoder is)"):
        fitted(load_recipe(recipe, installed(), True), foreign_vit[0], installed())


def test_a_recipe_keeps_the_channels_that_are_stated(own_run, tmp_path):
    """Beside the sizes of the run that it starts from; those alone where nothing is stated."""
    base = load_run(own_run).recipe
    run = load_recipe("image:mae-finetune-vit-base", installed(), kind="finetunings")
    assert as_pretrained(run, base, []).parts["tokenizer"].options.channels == 1
    stated = as_pretrained(run, base, ["--tokenizer.channels", "3"]).parts["tokenizer"].options
    assert (stated.channels, tuple(stated.patch)) == (3, tuple(base.parts["tokenizer"].options.patch))


def test_a_run_starts_one_of_other_channels_and_patches(own_run, tmp_path, capsys):
    out, root = tmp_path / "run", tmp_path / "pictures"
    root.mkdir()
    for number in range(8):
        Image.new("RGB", (32, 32), (number * 20, 0, 90)).save(root / f"{number}.png")
    colour = ("--tokenizer.channels", "3", "--data.mean", "0.5", "0.5", "0.5", "--data.std", "0.5", "0.5", "0.5")
    size = ("--tokenizer.size", "32", "32", "--tokenizer.patch", "8", "8", "--data.root", str(root))
    given = ["image:mae-vit-tiny", "--twin", "--init", str(own_run), *colour, *size, "--out", str(out)]
    assert main(["pretrain", *given, "--train.workers", "0", "--train.epochs", "40"]) == 0
    said = capsys.readouterr().err
    assert "channels: 1 there, 3 here" in said
    assert "(7, 7) there, (8, 8) here" in said
