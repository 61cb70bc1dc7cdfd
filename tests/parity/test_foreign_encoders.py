"""--init from encoders of other code bases: equal features at their own size, and what becomes of other sizes."""

from pathlib import Path

import pytest
import timm
import torch
from mim_core.errors import MimError
from mim_core.interop.encoders import encoder_in, find_encoder, timm_file
from mim_core.interop.importers import build
from mim_core.methods.method import encode_all
from mim_core.parts.position import sincos_table
from mim_core.recipes.config import Part

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


@pytest.mark.parametrize("options", [{}, {"class_token": False, "global_pool": "avg"}, {"init_values": 0.1}])
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


@pytest.mark.parametrize("kind", ["ViTModel", "Dinov2Model", "ViTMAEModel"])
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
        theirs = model(image, **more).last_hidden_state[:, 1:]
        close(encode_all(method.tokenizer, method.encoder, {"image": image}).tokens, theirs)


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
