"""What is exported loads into timm strictly and gives the same features; timm's transformers serve by name."""

import os

import pytest
import timm
import torch
from mim_core.errors import MimError
from mim_core.host.loading import installed
from mim_core.interop.timm import export_timm, notes_on
from mim_core.methods.build import build_method
from mim_core.methods.classifier import Classifier
from mim_core.parts.encoder import Encoder
from mim_core.recipes.resolve import load_recipe, override
from mim_core.testing import noise, seeded

OBLONG = {"size": (24, 16), "patch": (8, 8), "channels": 2}


def method_of(recipe, **roles):
    """The recipe's twin with other options, and weights that are nowhere at their initial values."""
    run = override(load_recipe(recipe, installed(), twin=True), roles, "test", installed())
    method = build_method(run).eval()
    with seeded(1), torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return method


def check(method, folder, monkeypatch):
    """The file loads with the line that stands in it, and timm's features are ours."""
    line = export_timm(method, folder / "encoder.safetensors")
    monkeypatch.chdir(folder)  # the line names the file alone
    model = eval(line, {"timm": timm}).eval()
    sample = noise(method.tokenizer.shapes, 2)
    with torch.no_grad():
        wanted = model.forward_features(sample["image"])
        features = method.encode(sample)
    found = torch.cat([features.prefix, features.tokens], dim=1)
    assert found.shape == wanted.shape
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    return model


VITS = {
    "as in the twin": {},
    "oblong": {"tokenizer": OBLONG},
    "no class token": {"encoder": {"class_token": False}},
    "layer scale": {"encoder": {"layer_scale": 0.1}},
    "narrow mlp": {"encoder": {"mlp_ratio": 2.0}},
    "learned positions": {"encoder": {"position": "learned"}},
    "no positions": {"encoder": {"position": "none"}},
    "sees all": {"encoder": {"sees": "all"}},
}


@pytest.mark.parametrize("options", VITS.values(), ids=[name.replace(" ", "-") for name in VITS])
def test_vit(options, tmp_path, monkeypatch):
    check(method_of("image:mae-vit-tiny", **options), tmp_path, monkeypatch)


@pytest.mark.parametrize("options", [{}, {"tokenizer": OBLONG}, {"encoder": {"layer_scale": "none"}}])
def test_beit(options, tmp_path, monkeypatch):
    check(method_of("image:simmim-vit-base", **options), tmp_path, monkeypatch)


@pytest.mark.parametrize(
    "name",
    [
        "vit_tiny_patch16_224",
        "vit_small_patch14_reg4_dinov2",
        "deit_tiny_patch16_224",
        "vit_wee_patch16_reg1_gap_256",  # pools by the mean: its norm has another name
        "test_vit3",  # pools by attention
        "vit_xsmall_patch16_clip_224",  # a norm before the blocks, so no bias in the patch embedding
    ],
)
def test_named_vit(name, tmp_path, monkeypatch):
    options = {"tokenizer": {"size": (32, 48), "patch": (16, 16), "channels": 3}, "encoder": {"name": name}}
    method = method_of("image:mae-vit-tiny", **options)
    reference = timm.create_model(name, pretrained=False, num_classes=0)
    assert method.encoder.width == reference.embed_dim
    assert len(method.encoder.blocks) == len(reference.blocks)
    check(method, tmp_path, monkeypatch)
    sample = noise(method.tokenizer.shapes, 2)
    outcome = method(method.prepare(sample))
    outcome.loss.backward()
    assert outcome.loss.isfinite()
    kept = 6 - method.masker.count(method.tokenizer.layout)
    assert outcome.latent.shape == (2, reference.num_prefix_tokens + kept, reference.embed_dim)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("swin_tiny_patch4_window7_224", "is a timm SwinTransformer, not a plain VisionTransformer"),
        ("deit_tiny_distilled_patch16_224", "VisionTransformerDistilled, not a plain"),
        ("resnet18", "is a timm ResNet, not a plain VisionTransformer"),
        ("vit_tiny_patch16_225", "Did you mean 'vit_tiny_patch16_224'"),
    ],
)
def test_names_that_do_not_fit(name, text):
    with pytest.raises(MimError, match=text):
        method_of("image:mae-vit-tiny", encoder={"name": name})


def test_positions_by_coordinates_are_refused(tmp_path):
    with pytest.raises(MimError, match="computed from coordinates"):
        export_timm(
            method_of("image:mae-vit-tiny", encoder={"position": "coordinates"}), tmp_path / "encoder.safetensors"
        )


def test_export_needs_a_patch_tokenizer(tmp_path):
    method = method_of("image:mae-vit-tiny")
    method.tokenizer = torch.nn.Identity()
    with pytest.raises(MimError, match="two-dimensional patches"):
        export_timm(method, tmp_path / "encoder.safetensors")
    assert not os.listdir(tmp_path)


def test_an_encoder_that_timm_has_not_is_named(tmp_path):
    class Own(Encoder):
        pass

    method = method_of("image:mae-vit-tiny")
    method.encoder = Own()
    with pytest.raises(MimError, match="timm has no model for this run's encoder, a Own"):
        export_timm(method, tmp_path / "encoder.safetensors")


def test_beits_pooling_is_said():
    (said,) = notes_on(method_of("image:simmim-vit-base"))
    assert "gives the class token" in said
    assert "evaluate judges the mean of the units" in said
    assert notes_on(method_of("image:mae-vit-tiny")) == []


@pytest.mark.parametrize("size", [(48, 32), (32, 32)])
def test_beit_at_another_size_is_as_in_timm(size, tmp_path, monkeypatch):
    tokenizer = {"size": (16, 16), "patch": (4, 4), "channels": 2}
    method = method_of("image:simmim-vit-base", tokenizer=tokenizer)
    line = export_timm(method, tmp_path / "encoder.safetensors")
    monkeypatch.chdir(tmp_path)
    model = eval(line, {"timm": timm}).eval()
    model.set_input_size(img_size=size)
    image = torch.randn(2, 2, *size)
    with torch.no_grad():
        features = method.encode({"image": image})
        found = torch.cat([features.prefix, features.tokens], dim=1)
        torch.testing.assert_close(found, model.forward_features(image), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("position", ["sincos", "learned", "flat"])
def test_another_size_and_the_mean_are_as_in_timm(position, tmp_path, monkeypatch):
    method = method_of("image:mae-vit-tiny", encoder={"position": position})
    inputs = {"mean": (0.1,) * method.tokenizer.config.channels, "crop_pct": 1.0}
    line = export_timm(method, tmp_path / "encoder.safetensors", inputs=inputs)
    monkeypatch.chdir(tmp_path)
    model = eval(line[:-1] + ", dynamic_img_size=True)", {"timm": timm}).eval()
    size = tuple(2 * n for n in method.tokenizer.config.size)
    image = torch.randn(2, method.tokenizer.config.channels, *size)
    with torch.no_grad():
        torch.testing.assert_close(method.encode({"image": image}).pooled, model(image), rtol=1e-4, atol=1e-5)
    found = timm.data.resolve_model_data_config(model)
    assert found["mean"] == inputs["mean"]
    assert found["crop_pct"] == 1.0
    assert found["input_size"][1:] == method.tokenizer.config.size


@pytest.mark.parametrize("norm", ["encoder", "pooled"])
def test_a_classifier_keeps_its_head(norm, tmp_path, monkeypatch):
    encoder = method_of("image:mae-vit-tiny")
    method = Classifier(encoder.tokenizer, encoder.encoder, Classifier.Config(classes=3, norm=norm)).eval()
    line = export_timm(method, tmp_path / "encoder.safetensors", classes=("a", "b", "c"))
    monkeypatch.chdir(tmp_path)
    model = eval(line, {"timm": timm}).eval()
    sample = {**noise(method.tokenizer.shapes, 2), "label": torch.zeros(2, dtype=torch.int64)}
    with torch.no_grad():
        wanted = method(method.prepare(sample)).predictions["class"]
        torch.testing.assert_close(model(sample["image"]), wanted, rtol=1e-4, atol=1e-5)
