"""export and evaluate by their commands: what timm gets is what the run was judged by."""

import json

import pytest
import timm
import torch
from mim_core.evaluation.features import prepare_study
from mim_core.host.loading import installed
from mim_core.recipes.config import EvaluateConfig
from mim_core.runs.load import load_run
from PIL import Image

QUICK = ("--train.epochs", "1", "--train.warmup-epochs", "0", "--quiet")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Two classes, 32 and 8 images."""
    root = tmp_path_factory.mktemp("pictures")
    for name, count in (("healthy", 32), ("sick", 8)):
        (root / name).mkdir()
        for number in range(count):
            values = torch.randint(256, (28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(number))
            Image.fromarray(values.numpy()).save(root / name / f"{number:02}.png")
    return root


@pytest.fixture
def run(mim, pictures, tmp_path):
    """A run on them, of statistics and a crop of its own."""
    data = ("--data.root", pictures, "--data.mean", "0.4", "--data.std", "0.2", "--data.evaluate-crop", "0.9")
    said = mim("pretrain", "image:mae-vit-small", "--twin", "--out", "r", *data, *QUICK)
    assert said.code == 0, said.err
    return tmp_path / "r"


def loaded(said, more=""):
    """timm's model by the printed line, where the command was given."""
    line = next(line for line in said.out.splitlines() if line.startswith("timm."))
    return eval(line[:-1] + more + ")", {"timm": timm}).eval()


def test_an_encoder_says_all_to_timm_and_is_read_back(mim, run):
    said = mim("export", run)
    assert said.code == 0, said.err
    assert said.err == ""
    other = mim("pretrain", "image:mae-vit-small", "--twin", "--out", "s", "--init", "r/encoder-timm.safetensors",
                "--dry-run")  # fmt: skip
    assert other.code == 0, other.err
    assert "starts fresh: heads" in other.all
    assert "position" not in other.err
    judged = mim("evaluate", run, "--on", "knn", "--size", "56", "56", "--evaluate.k", "3")
    assert "Inputs of 56 x 56; the encoder was trained at 28 x 28, its positions are interpolated" in judged.all
    study = prepare_study(run, installed(), EvaluateConfig(), size=(56, 56))
    model = loaded(said, ", dynamic_img_size=True")
    source = study.source
    items = [source.labelled("test").items[i]["image"] for i in range(4)]
    with torch.no_grad():
        found = model(source.finish({"image": torch.stack(items)})["image"])
    torch.testing.assert_close(study.rows["pre-trained encoder"].test[:4], found, rtol=1e-4, atol=1e-5)
    config = timm.data.resolve_model_data_config(model)
    assert config["input_size"] == (1, 28, 28)
    assert (config["mean"], config["std"], config["crop_pct"]) == ((0.4,), (0.2,), 0.9)
    assert config["interpolation"] == "bicubic"


def test_a_fine_tuned_run_keeps_its_head(mim, run):
    said = mim("finetune", run, "--tokenizer.size", "56", "56", "--method.balance", *QUICK[:-1])
    assert said.code == 0, said.err
    assert "encoder.position: trained at a grid of 4 x 4, here 8 x 8; they are interpolated to that grid" in said.all
    said = mim("export", run / "finetune")
    assert said.err == ""
    model = loaded(said)
    _, method, _ = load_run(run / "finetune", installed())
    assert method.config.class_weights[0] < 1 < method.config.class_weights[1]
    sample = {"image": torch.randn(3, 1, 56, 56), "label": torch.zeros(3, dtype=torch.int64)}
    with torch.no_grad():
        wanted = method.eval()(method.prepare(sample)).predictions["class"]
        torch.testing.assert_close(model(sample["image"]), wanted, rtol=1e-4, atol=1e-5)
    config = timm.data.resolve_model_data_config(model)
    assert config["input_size"] == (1, 56, 56)
    assert (config["mean"], config["std"], config["crop_pct"]) == ((0.4,), (0.2,), 0.9)


def test_what_timm_does_not_hold_is_named(mim, run):
    assert mim("finetune", run, "--method.head", "mlp", "--method.pool", "mean-max", *QUICK).code == 0
    said = mim("export", run / "finetune")
    assert "timm has no head like this run's, mlp on pool 'mean-max'" in said.all
    assert "num_classes=0" in said.out


def test_data_that_are_gone_are_said(mim, run, pictures):
    pictures.rename(pictures.with_name("gone"))
    try:
        said = mim("export", run)
    finally:
        pictures.with_name("gone").rename(pictures)
    assert said.code == 0, said.err
    assert "does not say how inputs are normalised" in said.all
    assert "'mean'" not in said.out


def test_uneven_classes_by_the_command(mim, tmp_path):
    """36 test samples, 32 and 4 of a class: fewer might be uneven by chance, and nothing would be said."""
    for name, count in (("healthy", 160), ("sick", 20)):
        (tmp_path / "d" / name).mkdir(parents=True)
        for number in range(count):
            Image.new("L", (28, 28), 40 + number % 160).save(tmp_path / "d" / name / f"{number:03}.png")
    said = mim("pretrain", "image:mae-vit-small", "--twin", "--out", "r", "--data.root", tmp_path / "d", *QUICK)
    assert said.code == 0, said.err
    run = tmp_path / "r"
    said = mim("evaluate", run, "--on", "knn,linear", "--evaluate.k", "3", "--evaluate.few-labels", "10")
    assert said.code == 0, said.err
    assert "The classes are uneven: the largest has" in said.all
    assert "<h2>Probes of frozen features</h2>" in (run / "report.html").read_text()
    assert "--evaluate.balance" in said.all
    balanced = mim("evaluate", run, "--on", "linear", "--evaluate.balance")
    assert balanced.code == 0, balanced.err
    assert "mean class accuracy" in balanced.all


@pytest.mark.parametrize(("name", "pool"), [("finetune", "avg"), ("prefix", "token")])
def test_timm_answers_as_predict_from_the_photo_on(mim, small_classifiers, tmp_path, name, pool):
    """With nothing but what timm reads off the file: size, crop, normalisation, channels, pooling and head."""
    run = small_classifiers / name
    values = torch.randint(256, (50, 100), dtype=torch.uint8, generator=torch.Generator().manual_seed(7))
    (tmp_path / "new").mkdir()
    photo = Image.fromarray(values.numpy()).resize((7, 4)).resize((100, 50), Image.Resampling.BICUBIC)
    photo.save(tmp_path / "new/photo.png")
    said = mim("export", run, "--out", tmp_path / "e.safetensors")
    assert said.code == 0, said.err
    model = loaded(said)
    config = timm.data.resolve_model_data_config(model)
    assert (config["input_size"], config["mean"], config["std"]) == ((1, 28, 28), (0.286,), (0.353,))
    assert model.global_pool == pool
    transform = timm.data.create_transform(**config, is_training=False)
    with torch.no_grad():
        found = model(transform(Image.open(tmp_path / "new/photo.png"))[None]).softmax(dim=1)
    assert mim("predict", run, tmp_path / "new", "--out", tmp_path / "p", "--quiet").code == 0
    (row,) = json.loads((tmp_path / "p/predictions.json").read_text())
    assert [row["p(round)"], row["p(square)"]] == pytest.approx(found[0].tolist(), abs=2e-3)  # levels are rounded
