"""--init from encoders of other code bases: equal features at their own size, and what becomes of other sizes."""

import json
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from mim_core.commands.starting import fitted
from mim_core.errors import MimError
from mim_core.host.loading import installed
from mim_core.interop.encoders import Found, encoder_in, find_encoder, timm_file
from mim_core.interop.importers import build
from mim_core.methods.method import encode_all
from mim_core.parts.position import sincos_table
from mim_core.recipes.config import Part
from mim_core.recipes.resolve import load_recipe
from safetensors.torch import save_file

FILE = Path("weights.pth")
SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 96}


def method_for(found, size=(32, 32), patch=(8, 8), channels=3, **encoder):
    options = {**found.encoder_options(), **encoder}
    return build(
        tokenizer=Part.of("core:patch", modality="image", size=size, patch=patch, channels=channels),
        encoder=Part.of("core:vit", **options),
        method=Part.of("core:classifier", classes=3),
    ).eval()


def timm_vit(**options):
    torch.manual_seed(0)
    given = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 1, "num_classes": 5, **options}
    model = timm.create_model("vit_tiny_patch16_224", **given).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return model


def close(one, other):
    assert float((one - other).abs().max()) < 1e-5 * max(1.0, float(other.abs().max()))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"class_token": False, "global_pool": "avg"},
        {"init_values": 0.1},
        {"reg_tokens": 3},
        {"reg_tokens": 3, "no_embed_class": True},
    ],
)
def test_timm(options):
    model = timm_vit(**options)
    found = encoder_in(model.state_dict(), FILE)
    method = method_for(found)
    said = found.fill(method)
    image = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        close(
            encode_all(method.tokenizer, method.encoder, {"image": image}).tokens,
            model.forward_features(image)[:, model.num_prefix_tokens :],
        )
    assert any("left out" in line and "head.weight" in line for line in said)
    assert any(line.startswith("starts fresh: head") for line in said)


@pytest.mark.parametrize("kind", ["ViTModel", "Dinov2Model", "Dinov2WithRegistersModel", "ViTMAEModel"])
def test_transformers(kind, tmp_path):
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, kind.replace("Model", "Config"))(**SIZES, image_size=32, patch_size=8)
    torch.manual_seed(0)
    model = getattr(transformers, kind)(config).eval()
    for name, parameter in model.named_parameters():
        if "position" not in name:
            torch.nn.init.normal_(parameter, std=0.05)
    model.save_pretrained(tmp_path)
    found = find_encoder(tmp_path)
    method = method_for(found)
    found.fill(method)
    image = torch.randn(2, 3, 32, 32)
    more = {"noise": torch.arange(16.0).expand(2, -1)} if kind == "ViTMAEModel" else {}
    with torch.no_grad():
        if kind == "ViTMAEModel":
            model.config.mask_ratio = 0.0
        theirs = model(image, **more).last_hidden_state[:, -16:]
        close(encode_all(method.tokenizer, method.encoder, {"image": image}).tokens, theirs)


@pytest.mark.parametrize(
    ("kind", "left"),
    [
        ("VideoMAEModel", ""),
        ("VideoMAEForVideoClassification", "classifier.weight, fc_norm.bias"),
        ("VideoMAEForPreTraining", "decoder.head"),
    ],
)
def test_clips_of_transformers(kind, left, tmp_path):
    """The encoder alone, with a head, or with a decoder. A file alone knows its heads by the config beside it."""
    transformers = pytest.importorskip("transformers")
    decoder = {"decoder_hidden_size": 32, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
    config = transformers.VideoMAEConfig(**SIZES, **decoder, image_size=32, patch_size=8, num_frames=4)
    torch.manual_seed(0)
    model = getattr(transformers, kind)(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    model.save_pretrained(tmp_path)
    found = find_encoder(tmp_path / "model.safetensors")
    method, pooled = (
        build(
            tokenizer=Part.of("core:patch", modality="video", size=(4, 32, 32), patch=(2, 8, 8), channels=3),
            encoder=Part.of("core:vit", **found.encoder_options(), position="flat"),
            method=Part.of("core:classifier", classes=3, norm=norm),
        ).eval()
        for norm in ("encoder", "pooled")
    )
    assert found.heads == 2
    assert left in " ".join(found.fill(method)).partition("left out: ")[2]
    found.fill(pooled)  # there is no norm at the encoder's end that this one takes the place of
    clip = torch.randn(1, 4, 3, 32, 32)
    with torch.no_grad():
        theirs = getattr(model, "videomae", model)(clip).last_hidden_state
        close(encode_all(method.tokenizer, method.encoder, {"video": clip.transpose(1, 2)}).tokens, theirs)


def test_mae_after_fine_tuning(tmp_path):
    """The norm behind the pool, and the head, are the file's own and left out; the encoder has none at its end."""
    model = timm_vit(global_pool="avg", class_token=True, fc_norm=True)
    path = tmp_path / "mae.pth"
    torch.save({"model": model.state_dict(), "epoch": 3, "args": Namespace(lr=1.0)}, path)
    found = find_encoder(path)
    method = method_for(found, class_position=True)
    said = " ".join(found.fill(method))
    assert "left out: fc_norm.weight, fc_norm.bias, head.weight, head.bias" in said
    assert "heads: 1, of 64 channels each; nothing beside the weights tells" in said
    image = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        close(
            encode_all(method.tokenizer, method.encoder, {"image": image}).tokens, model.forward_features(image)[:, 1:]
        )
    assert found.encoder_options()["final_norm"] is False


@pytest.mark.parametrize(("width", "heads"), [(192, 3), (768, 12), (1280, 16), (1408, 16), (1664, 16)])
def test_heads_of_released_sizes(width, heads):
    """Huge and giant ones have not 64 channels a head."""
    assert Found(FILE, "", {"patch_embed.proj.weight": torch.empty(width, 3, 1, 1, device="meta")}).heads == heads


def test_what_a_recipe_follows_and_what_it_is_told(tmp_path, capsys):
    """Heads that nothing tells are the recipe's where it is as wide; other statistics of the pictures are said."""
    save_file(timm_vit().state_dict(), tmp_path / "model.safetensors")
    half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(half))
    run = load_recipe("image:mae-vit-base", installed())
    own = replace(run.parts["encoder"], options=replace(run.parts["encoder"].options, width=64, heads=4))
    run = replace(run, parts={**run.parts, "encoder": own})
    options = fitted(run, tmp_path, installed()).parts["encoder"].options
    assert (options.heads, options.depth, options.position) == (4, 2, "learned")
    said = " ".join(capsys.readouterr().err.split())
    assert "To have the same: --data.mean 0.5 0.5 0.5 --data.std 0.5 0.5 0.5" in said
    same = replace(run.parts["data"], options=replace(run.parts["data"].options, mean=(0.5,) * 3, std=(0.5,) * 3))
    fitted(replace(run, parts={**run.parts, "data": same}), tmp_path, installed())
    assert "To have the same" not in " ".join(capsys.readouterr().err.split())
    (tmp_path / "preprocessor_config.json").unlink()
    fitted(run, tmp_path, installed())
    assert "does not say how its inputs were normalised" in " ".join(capsys.readouterr().err.split())


def test_a_grid_that_is_no_square():
    found = encoder_in(timm_vit(img_size=(16, 48)).state_dict(), FILE)
    assert found.encoder_options()["position"] == "learned"
    found.fill(method_for(found, size=(16, 48)))
    with pytest.raises(MimError, match=r"13 positions lie on no square grid.*--tokenizer\.size HEIGHT WIDTH"):
        found.fill(method_for(found, size=(32, 32)))


def test_a_group_of_a_training(tmp_path):
    """DINO's file: a student and a teacher, with a prefix and a head."""
    model = timm_vit()
    state = {f"backbone.{name}": value for name, value in model.state_dict().items() if not name.startswith("head")}
    state["head.mlp.0.weight"] = torch.zeros(3, 3)
    path = tmp_path / "dino.pth"
    torch.save({"teacher": state, "student": {}, "epoch": 3}, path)
    found = find_encoder(path)
    assert found.width == 64
    method = method_for(found)
    assert any("left out" in line for line in found.fill(method))


def test_another_size_and_other_channels():
    found = encoder_in(timm_vit().state_dict(), FILE)
    method = method_for(found, size=(48, 24), patch=(4, 4), channels=13)
    said = " ".join(found.fill(method))
    assert "13 here" in said
    assert "kernel is resized" in said
    assert "interpolated" in said
    assert method.tokenizer.proj.weight.shape == (64, 13, 4, 4)
    assert encode_all(method.tokenizer, method.encoder, {"image": torch.randn(1, 13, 48, 24)}).tokens.isfinite().all()


def test_positions_that_are_computed_stay_computed():
    state = timm_vit().state_dict()
    table = torch.cat([torch.zeros(1, 64), sincos_table((4, 4), 64)])[None]
    found = encoder_in({**state, "pos_embed": table}, FILE)
    assert "position" not in found.encoder_options()
    found.fill(method_for(found, position="sincos"))
    trained = encoder_in(state, FILE)
    with pytest.raises(MimError, match=r"--encoder\.position learned"):
        trained.fill(method_for(trained, position="sincos"))


def test_an_encoder_of_pictures_for_clips():
    found = encoder_in(timm_vit(class_token=False, global_pool="avg").state_dict(), FILE)
    method = build(
        tokenizer=Part.of("core:patch", modality="video", size=(4, 32, 32), patch=(2, 8, 8), channels=3),
        encoder=Part.of("core:vit", **found.encoder_options()),
        method=Part.of("core:classifier", classes=3),
    ).eval()
    said = " ".join(found.fill(method))
    assert "shared by 2 frames" in said
    still = torch.randn(1, 3, 1, 32, 32).expand(-1, -1, 4, -1, -1)
    plain = method_for(found)
    found.fill(plain)
    one = method.tokenizer.embed(method.tokenizer.split({"video": still}).values)
    other = plain.tokenizer.embed(plain.tokenizer.split({"image": still[:, :, 0]}).values)
    close(one[:, :16], other)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda state: {"a": torch.zeros(2)}, "no plain ViT"),
        (lambda state: {**state, "norm.weight": torch.full((64,), torch.nan)}, "NaN or infinite: norm.weight"),
        (lambda state: {**state, "rel_pos_bias.table": torch.zeros(2)}, "does not have: rel_pos_bias"),
        (
            lambda state: {k: v for k, v in state.items() if k != "blocks.1.mlp.fc2.bias"},
            "blocks.1.mlp.fc2.bias is not",
        ),
    ],
)
def test_what_cannot_be_read(change, said):
    state = change(timm_vit().state_dict())

    def take():
        found = encoder_in(state, FILE)
        found.fill(method_for(found))

    with pytest.raises(MimError, match=said):
        take()


def test_an_activation_that_is_another():
    with pytest.raises(MimError, match="have the activation quick_gelu; those of core:vit have gelu"):
        encoder_in(timm_vit().state_dict(), FILE, {"hidden_act": "quick_gelu"})


def test_beit_is_refused_by_name():
    """Its keys have no bias, and its positions are relative."""
    state = {name: value for name, value in timm_vit().state_dict().items() if ".attn.qkv" not in name}
    for number in range(2):
        start = f"blocks.{number}.attn."
        state |= {f"{start}{part}.weight": torch.zeros(64, 64) for part in ("query", "key", "value")}
        state |= {f"{start}{part}.bias": torch.ones(64) for part in ("query", "value")}
        state[f"{start}relative_position_bias_table"] = torch.zeros(3, 1)
    found = encoder_in(state, FILE)
    assert found.weights["blocks.0.attn.qkv.bias"].reshape(3, 64).mean(dim=1).tolist() == [1, 0, 1]
    with pytest.raises(MimError, match=r"no place for: encoder\.blocks\.0\.attn\.relative_position"):
        found.fill(method_for(found))


def test_names_of_timm(tmp_path, monkeypatch):
    monkeypatch.setenv("MIM_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    name = "vit_small_patch16_224.augreg_in21k"
    with pytest.raises(MimError, match="not on this disk"):
        timm_file(name)
    cached = tmp_path / "hub" / f"models--timm--{name}" / "snapshots" / "abc" / "model.safetensors"
    cached.parent.mkdir(parents=True)
    cached.touch()
    assert timm_file(name) == cached
    (tmp_path / f"{name}.safetensors").touch()
    assert timm_file(name) == tmp_path / f"{name}.safetensors"
    with pytest.raises(MimError, match="no pretrained model"):
        timm_file("vit_smal_patch16_224")
