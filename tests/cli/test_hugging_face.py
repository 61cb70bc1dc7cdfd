"""export --to hf: transformers reads the folder and gives what the run gives."""

import json

import numpy as np
import pytest
import torch
from mim_core.cli import main
from mim_core.inference.inputs import open_inputs
from mim_core.runs.load import load_run
from PIL import Image

transformers = pytest.importorskip("transformers")


@pytest.fixture
def runs(small_classifiers):
    return small_classifiers


def test_the_encoder_is_the_same(runs, capsys):
    assert main(["export", str(runs), "--to", "hf"]) == 0
    path, line = capsys.readouterr().out.splitlines()[:2]
    model = eval(line, {"transformers": transformers}).eval()
    x = torch.randn(3, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found, wanted = model(x).last_hidden_state, load_run(runs).method.eval().encode({"image": x})
    torch.testing.assert_close(found[:, 1:], wanted.tokens, rtol=0, atol=1e-5)
    torch.testing.assert_close(found[:, :1], wanted.prefix, rtol=0, atol=1e-5)
    assert json.loads((runs / "hf/config.json").read_text())["architectures"] == ["ViTModel"]
    assert path == str(runs / "hf")


def test_the_classifier_is_the_same_from_the_picture_on(runs, capsys):
    assert main(["export", str(runs / "prefix"), "--to", "hf"]) == 0
    line = capsys.readouterr().out.splitlines()[1]
    model = eval(line, {"transformers": transformers}).eval()
    assert model.config.id2label == {0: "round", 1: "square"}
    about = json.loads((runs / "prefix/hf/preprocessor_config.json").read_text())
    pixels = np.random.default_rng(5).integers(0, 256, (4, 1, 28, 28), dtype=np.uint8)
    mean, std = about["image_mean"][0], about["image_std"][0]
    x = torch.from_numpy(((pixels * about["rescale_factor"]) - mean) / std).float()
    run = load_run(runs / "prefix")
    sample = run.source().finish({"image": torch.from_numpy(pixels)})
    with torch.no_grad():
        found, wanted = model(x).logits.softmax(dim=1), run.method.eval().predict(sample)["class"]
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


def test_a_photo_becomes_the_input_as_in_the_run(runs, capsys, tmp_path):
    """Resized, its centre cut, as predict reads it. Twice as wide as high: the two round other sides differently."""
    assert main(["export", str(runs), "--to", "hf"]) == 0
    values = np.random.default_rng(7).integers(0, 256, (9, 11), dtype=np.uint8)
    Image.fromarray(values).resize((100, 50), Image.Resampling.BICUBIC).save(tmp_path / "photo.png")
    processor = transformers.AutoImageProcessor.from_pretrained(runs / "hf")
    found = processor(Image.open(tmp_path / "photo.png"), return_tensors="pt").pixel_values
    run = load_run(runs)
    inputs = open_inputs(run.recipe, run.method, tmp_path)
    wanted = inputs.source.finish({"image": inputs.items.items[0]["image"][None]})["image"]
    assert found.shape == wanted.shape
    step = 1 / 255 / processor.image_std[0]  # one level of grey
    torch.testing.assert_close(found, wanted, rtol=0, atol=2 * step)


def test_pre_training_with_its_decoder(runs, capsys):
    assert main(["export", str(runs), "--to", "hf-vitmae"]) == 0
    path, line = capsys.readouterr().out.splitlines()[:2]
    assert path == str(runs / "hf-vitmae")
    assert eval(line, {"transformers": transformers}).config.mask_ratio == 0.75
    start = ["pretrain", "image:mae-vit-tiny", "--twin", "--init", path, "--init-format", "hf-vitmae", "--dry-run"]
    start += ["--train.steps", "2"]
    assert main([*start, "--data.root", str(runs.parent / "data"), "--out", str(runs / "again")]) == 0


def test_formats_that_nobody_writes_are_named(runs, capsys):
    assert main(["export", str(runs), "--to", "hf-vitmea"]) == 2
    assert "Did you mean 'hf-vitmae'" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("run", "says"),
    [("finetune", "puts its head on the class token. Fine-tune with --method.pool prefix")],
)
def test_what_transformers_has_not_is_one_line(runs, capsys, run, says):
    assert main(["export", str(runs / run), "--to", "hf"]) == 2
    assert says in " ".join(capsys.readouterr().err.split())
    assert not (runs / run / "hf").exists()


def test_other_encoders_are_named():
    from mim_core.errors import MimError
    from mim_core.host.loading import installed
    from mim_core.interop.hugging_face import export_hf_vit
    from mim_core.methods.build import build_method
    from mim_core.recipes.resolve import load_recipe

    for recipe, says in (("image:ijepa-vit-tiny", "without a class token"), ("image:simmim-vit-base", "no BeitEncoder"),
                         ("multimodal:multimae-vit-tiny", "beside each other")):  # fmt: skip
        method = build_method(load_recipe(recipe, installed(), twin=True))
        with pytest.raises(MimError, match=says):
            export_hf_vit(method, {}, ())
