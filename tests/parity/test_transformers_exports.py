"""export --to hf-vitmae and hf-videomae: transformers reads the folder and gives what the run gives, and the folder
comes back by import."""

import json

import pytest
import torch
from mim_core import Part, RunConfig, exporters
from mim_core.errors import MimError
from mim_core.host.loading import installed
from mim_core.interop.weights import import_checkpoint
from mim_core.methods.build import build_method
from mim_core.methods.classifier import Classifier
from mim_core.recipes.resolve import resolve
from mim_core.testing import keys, seeded

transformers = pytest.importorskip("transformers")


def stirred(method):
    """The method with all weights moved away from their initial values, so that no bias or norm is trivial."""
    with seeded(3), torch.no_grad():
        for parameter in method.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape))
    return method.eval()


def built(**changes):
    """A small masked autoencoder of pictures; changes are options by role."""
    parts = {
        "tokenizer": ("image:patch", {"size": (24, 24), "patch": (8, 8), "channels": 3}),
        "masker": ("core:random", {"ratio": 0.6}),
        "encoder": ("core:vit", {"width": 48, "depth": 2, "heads": 3, "mlp_ratio": 3.0}),
        "decoder": ("core:transformer", {"width": 32, "depth": 1, "heads": 2}),
        "target": ("core:values", {"normalize": True}),
    }
    return _stirred(parts, changes)


def filmed(**changes):
    """A small masked autoencoder of clips."""
    parts = {
        "tokenizer": ("video:tubelet", {"size": (6, 16, 24), "patch": (3, 8, 8), "channels": 3}),
        "masker": ("video:tube", {"ratio": 0.5}),
        "encoder": ("core:vit", {"width": 48, "depth": 2, "heads": 3, "class_token": False, "position": "flat"}),
        "decoder": (
            "core:transformer",
            {"width": 32, "depth": 1, "heads": 2, "position": "flat", "embed_bias": False, "final_norm_eps": 1e-5},
        ),
        "target": ("video:cubes", {"normalize": True}),
    }
    return _stirred(parts, changes)


def _stirred(parts, changes):
    made = {role: Part.of(name, **{**options, **changes.get(role, {})}) for role, (name, options) in parts.items()}
    return stirred(build_method(resolve(RunConfig(parts=made), installed())))


def sorting(**changes):
    """A small classifier of clips as VideoMAE's fine-tuning has it."""
    parts = {
        "tokenizer": ("video:tubelet", {"size": (6, 16, 16), "patch": (3, 8, 8), "channels": 3}),
        "encoder": (
            "core:vit",
            {"width": 48, "depth": 2, "heads": 3, "class_token": False, "position": "flat", "norm_eps": 1e-5},
        ),
        "method": ("core:classifier", {"classes": 3, "names": ("a", "b", "c")}),
    }
    return _stirred(parts, changes)


def folder_of(method, name, path, **inputs):
    """The folder, and transformers' model by the line that export prints."""
    exported = exporters.convert(method, name, installed(), inputs, ())
    line = exporters.write_folder(exported, path)
    return eval(line, {"transformers": transformers}).eval(), exported


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"encoder": {"position": "learned", "norm_eps": 1e-5}, "decoder": {"norm_eps": 1e-5, "position": "learned"}},
        {"tokenizer": {"channels": 1}, "masker": {"ratio": 0.75}, "target": {"normalize": False}},
    ],
)
def test_pictures_there_and_back(tmp_path, changes):
    ours = built(**changes)
    model, _ = folder_of(ours, "hf-vitmae", tmp_path / "f")
    shape, count = ours.tokenizer.shapes["image"], ours.tokenizer.layout.count
    sample = {"image": torch.randn(3, *shape, generator=torch.Generator().manual_seed(1)), "key": keys(3)}
    with torch.no_grad():
        prepared = ours.prepare(sample)
        outcome = ours(prepared)
        noise = prepared.mask.hidden.float() + torch.arange(count) / (2 * count)
        theirs = model(sample["image"], noise=noise)
        latent = model.vit(sample["image"], noise=noise).last_hidden_state
    assert torch.equal(theirs.mask.bool(), prepared.mask.hidden)
    torch.testing.assert_close(latent, outcome.latent, rtol=0, atol=1e-5)
    asked = prepared.mask.take(theirs.logits, prepared.mask.query_ids)
    torch.testing.assert_close(asked, outcome.prediction, rtol=0, atol=1e-5)
    assert theirs.loss.item() == pytest.approx(outcome.loss.item(), abs=1e-5)
    back = import_checkpoint(tmp_path / "f", format="hf-vitmae")
    for name, value in back.state_dict().items():
        torch.testing.assert_close(value, ours.state_dict()[name], rtol=0, atol=1e-6)
    assert back.masker.count(back.tokenizer.layout) == ours.masker.count(ours.tokenizer.layout)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"encoder": {"final_norm": False, "qkv_bias": False}, "decoder": {"qkv_bias": False}},
        {"tokenizer": {"channels": 1}},
        {"target": {"normalize": False}},
    ],
)
def test_clips_there_and_back(tmp_path, changes):
    ours = filmed(**changes)
    model, _ = folder_of(ours, "hf-videomae", tmp_path / "f")
    shape = ours.tokenizer.shapes["video"]
    sample = {"video": torch.randn(2, *shape, generator=torch.Generator().manual_seed(1)), "key": keys(2)}
    turned = sample["video"].transpose(1, 2)
    with torch.no_grad():
        prepared = ours.prepare(sample)
        outcome, features = ours(prepared), ours.encode(sample).tokens
        theirs = model(turned, bool_masked_pos=prepared.mask.hidden)
        whole = model.videomae(turned).last_hidden_state
    torch.testing.assert_close(theirs.logits, outcome.prediction, rtol=0, atol=1e-5)
    torch.testing.assert_close(whole, features, rtol=0, atol=1e-5)
    assert theirs.loss.item() == pytest.approx(outcome.loss.item(), abs=1e-5)
    back = import_checkpoint(tmp_path / "f", format="hf-videomae")
    with torch.no_grad():
        again = back(back.prepare(sample, mask=prepared.mask.hidden))
    torch.testing.assert_close(again.prediction, outcome.prediction, rtol=0, atol=1e-6)


def test_a_last_norm_that_nothing_sets_is_told(tmp_path):
    ours = filmed(decoder={"final_norm_eps": None})
    model, exported = folder_of(ours, "hf-videomae", tmp_path / "f")
    assert "last norm of its decoder has the small number 1e-05, this run's 1e-06" in exported.notes[0]
    clips = torch.randn(2, *ours.tokenizer.shapes["video"], generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        outcome = ours(prepared := ours.prepare({"video": clips, "key": keys(2)}))
        theirs = model(clips.transpose(1, 2), bool_masked_pos=prepared.mask.hidden)
    torch.testing.assert_close(theirs.logits, outcome.prediction, rtol=0, atol=1e-4)


@pytest.mark.skipif(not hasattr(Classifier.Config, "norm"), reason="core:classifier has no norm behind its pool yet")
@pytest.mark.parametrize("eps", [1e-5, 1e-6])
def test_classes_of_clips(tmp_path, eps):
    ours = sorting(method={"norm": "pooled"}, encoder={"norm_eps": eps})
    exported = exporters.convert(ours, "hf", installed(), {}, ("a", "b", "c"))
    line = exporters.write_folder(exported, tmp_path / "f")
    model = eval(line, {"transformers": transformers}).eval()
    assert model.config.id2label == {0: "a", 1: "b", 2: "c"}
    clips = torch.randn(2, *ours.tokenizer.shapes["video"], generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found, wanted = model(clips.transpose(1, 2)).logits.softmax(dim=1), ours.predict({"video": clips})["class"]
    exact = eps == 1e-5
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5 if exact else 1e-3)
    assert any("small number" in note for note in exported.notes) != exact


def test_a_classifier_without_that_norm_is_told(tmp_path):
    with pytest.raises(MimError, match=r"no norm behind the pool\. .*xport to torch or onnx"):
        folder_of(sorting(), "hf-videomae", tmp_path / "f")


def test_hf_takes_the_first_that_fits(tmp_path):
    assert folder_of(built(), "hf", tmp_path / "a")[1].config["architectures"] == ["ViTModel"]
    assert folder_of(filmed(), "hf", tmp_path / "b")[1].config["architectures"] == ["VideoMAEForPreTraining"]
    oblong = built(tokenizer={"size": (16, 24)})
    assert folder_of(oblong, "hf", tmp_path / "c")[1].config["image_size"] == [16, 24]
    bare = built(encoder={"class_token": False})
    with pytest.raises(MimError) as error:
        folder_of(bare, "hf", tmp_path / "d")
    for words in ("hf-vit: transformers' ViT does not have", "hf-vitmae: ", "hf-videomae: "):
        assert words in str(error.value)
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize(
    ("name", "make", "changes", "says"),
    [
        ("hf-vitmae", built, {"tokenizer": {"size": (16, 24)}}, "oblong pictures"),
        ("hf-vitmae", built, {"target": {"loss": "l1"}}, "loss l1"),
        ("hf-vitmae", built, {"decoder": {"norm_eps": 1e-5}}, "another small number"),
        ("hf-vitmae", built, {"decoder": {"position": "none"}}, "without a table of positions"),
        ("hf-videomae", filmed, {"encoder": {"position": "sincos"}}, "positions of the kind sincos"),
        ("hf-videomae", filmed, {"encoder": {"class_token": True}}, "class token"),
        ("hf-videomae", filmed, {"decoder": {"embed_bias": True}}, "bias in the layer in front of the decoder"),
        ("hf-videomae", filmed, {"target": {"normalize": False, "mean": (0.5,), "std": (0.5,)}}, "raw pixels"),
        ("hf-videomae", built, {}, "takes tubelets of clips"),
        ("hf-vitmae", filmed, {}, "two-dimensional patches"),
    ],
)
def test_what_transformers_has_not_is_named(tmp_path, name, make, changes, says):
    with pytest.raises(MimError, match=says):
        folder_of(make(**changes), name, tmp_path / "f")


def test_pixels_become_inputs_as_in_the_run(tmp_path):
    known = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4), "crop_pct": 0.8}
    folder_of(filmed(tokenizer={"size": (6, 16, 16)}), "hf-videomae", tmp_path / "f", **known)
    processor = transformers.VideoMAEImageProcessor.from_pretrained(tmp_path / "f")
    frames = torch.randint(256, (6, 3, 20, 20), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
    found = processor(list(frames.numpy()), return_tensors="pt").pixel_values[0]
    mean, std = (torch.tensor(known[name])[:, None, None] for name in ("mean", "std"))
    torch.testing.assert_close(found, (frames[:, :, 2:-2, 2:-2] / 255 - mean) / std, rtol=0, atol=1e-5)
    assert json.loads((tmp_path / "f/config.json").read_text())["num_frames"] == 6
