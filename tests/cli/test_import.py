"""import: weights of other code bases become runs that every other command takes."""

import json
from dataclasses import replace

import pytest
import torch
from mim_core.host.loading import installed
from mim_core.interop.weights import import_checkpoint
from mim_core.methods.build import build_method
from mim_core.recipes.resolve import load_recipe
from mim_core.runs.load import load_run
from mim_image.interop import _mae_name
from PIL import Image
from safetensors.torch import save_file

HEADS = ("--sizes", "num_heads=4", "decoder_num_heads=4")


def official(method):
    """A MaskedAutoencoder's weights as MAE's code names and lays them out."""
    state = {}
    for name, value in method.state_dict().items():
        if name.endswith("position.table"):  # MAE's tables have a slot for the class token
            value = torch.cat([torch.zeros_like(value[:, :1]), value], dim=1)
        state[_mae_name(name)] = value.clone()
    return state


@pytest.fixture(scope="module")
def method():
    torch.manual_seed(3)
    made = build_method(load_recipe("image:mae-vit-tiny", installed()))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return made.eval()


@pytest.fixture
def weights(method, tmp_path):
    torch.save({"model": official(method), "epoch": 7}, tmp_path / "official.pth")
    return tmp_path / "official.pth"


def images(count=5):
    return {"image": torch.randn(count, 1, 28, 28), "key": torch.arange(count)}


def test_a_file_becomes_a_run_with_the_same_outputs(mim, method, weights, tmp_path):
    said = mim("import", "image:mae-vit-tiny", weights, "--format", "mae", *HEADS)
    assert said.code == 0, said.err
    run, found, checkpoint = load_run(tmp_path / "runs/official", installed())
    assert checkpoint.name == "step-00000000"
    sample = images()
    assert torch.equal(found.eval().encode(sample).tokens, method.encode(sample).tokens)
    mask = torch.zeros(5, 16, dtype=torch.bool)
    mask[:, ::2] = True
    # norm_pix_loss is MAE's default, and the recipe's target is raw pixels: what the weights were trained for is kept
    assert run.parts["target"].options.normalize
    with torch.no_grad():
        ours, theirs = (m(m.prepare(sample, mask=mask)).prediction for m in (found.eval(), method))
    assert torch.equal(ours, theirs)
    imported = json.loads((checkpoint / "state.json").read_text())["imported"]
    assert imported == {
        "file": str(weights),
        "format": "mae",
        "sizes": [*HEADS[1:]],
    }
    assert (
        f"imported, mae: {weights} num_heads=4 decoder_num_heads=4"
        in (tmp_path / "runs/official/report.html").read_text()
    )


def test_the_recipe_gives_data_and_training(mim, weights, tmp_path):
    options = ("--data.flip", "0", "--train.epochs", "3", "--out", "here")
    assert mim("import", "mae-vit-tiny", weights, "--format", "mae", *HEADS, *options, plugin="image").code == 0
    run, _, _ = load_run(tmp_path / "here", installed())
    assert (run.parts["data"].options.flip, run.train.epochs) == (0, 3)


def test_another_normalisation_than_the_weights_is_said(mim, weights, tmp_path):
    """Of folders that tell it: features would be others than their model's."""
    start = ("import", "image:mae-vit-tiny", weights, "--format", "mae", *HEADS)
    assert mim(*start, "--data.mean", "0.25", "--data.std", "0.125", "--out", "own").code == 0
    assert mim("export", "own", "--to", "hf-vitmae", "--out", "theirs").code == 0
    back = ("import", "image:mae-vit-tiny", "theirs", "--format", "hf-vitmae")
    said = mim(*back, "--out", "a")
    assert said.code == 0
    assert "theirs: its inputs were normalised by mean 0.25 and deviation 0.125" in said.err
    same = ("--data.mean", "0.25", "--data.std", "0.125")
    assert "normalised" not in mim(*back, *same, "--out", "b").err
    short = ("--twin", "--train.steps", "1", "--train.warmup-epochs", "0", "--train.workers", "0", "--dry-run")
    said = mim("pretrain", "image:mae-vit-tiny", "--init", "theirs", "--init-format", "hf-vitmae", *short)
    assert "--init theirs: its inputs were normalised by mean 0.25" in said.err


def test_what_the_weights_decide_is_no_option(mim, weights):
    said = mim("import", "image:mae-vit-tiny", weights, "--format", "mae", "--encoder.depth", "2")
    assert said.code == 2
    assert "encoder.depth" in said.all


def pictures(folder):
    """Two classes of ten small pictures each: the bundled sample has 12,000, and here it is the words that count."""
    for number in range(20):
        path = folder / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (28, 28), 10 * number).save(path)
    return folder


def test_the_other_commands_take_it(mim, weights, tmp_path):
    assert mim("import", "image:mae-vit-tiny", weights, "--format", "mae", *HEADS, "--out", "run").code == 0
    said = mim("evaluate", "run", "--data-root", pictures(tmp_path / "some"), "--on", "knn")
    assert said.code == 0
    assert "pre-trained encoder" in said.out
    assert mim("export", "run").code == 0
    assert mim("show", "run").code == 0
    before = load_run(tmp_path / "run", installed())[1].state_dict()
    # 64 of 10,000 samples a step, so 2 steps
    assert mim("import", "image:mae-vit-tiny", weights, "--format", "mae", *HEADS, "--out", "on",
               "--train.epochs", "0.0128", "--train.warmup-epochs", "0", "--train.workers", "0").code == 0  # fmt: skip
    said = mim("pretrain", "on/recipe.toml", "--out", "on", "--quiet")
    assert said.code == 0, said.err
    _, after, checkpoint = load_run(tmp_path / "on", installed())
    assert checkpoint.name == "step-00000002"
    moved = {name for name, value in after.state_dict().items() if not torch.equal(value, before[name])}
    assert "encoder.blocks.0.attn.qkv.weight" in moved
    # two steps of AdamW move a weight by a little more than twice the rate: it went on from these weights
    rate = 4e-3 * 64 / 256
    assert all((after.state_dict()[name] - before[name]).abs().max() < 3 * rate for name in moved)


def test_an_average_starts_from_the_weights(mim, weights, tmp_path):
    said = mim("import", "image:mae-vit-tiny", weights, "--format", "mae", *HEADS, "--train.ema", "0.9", "--out", "run")
    assert said.code == 0
    _, found, checkpoint = load_run(tmp_path / "run", installed())
    assert (checkpoint / "average.safetensors").exists()
    plain = import_checkpoint(weights, format="mae", num_heads=4, decoder_num_heads=4).state_dict()
    assert all(torch.equal(value, plain[name]) for name, value in found.state_dict().items())


def test_an_encoder_alone(mim, method, tmp_path):
    state = official(method)
    encoder = {n: v for n, v in state.items() if not n.startswith("decoder") and n != "mask_token"}
    save_file(encoder, tmp_path / "encoder.safetensors")
    start = ("import", "image:mae-vit-tiny", "encoder.safetensors", "--format", "mae", "--sizes", "num_heads=4")
    said = mim(*start)
    assert said.code == 2
    assert "fresh_decoder=true" in said.err
    assert not (tmp_path / "runs").exists()
    said = mim(*start, "fresh_decoder=true", "decoder_depth=1", "decoder_embed_dim=64", "decoder_num_heads=4")
    assert said.code == 0, said.err
    assert "the decoder is not in these weights" in said.err
    _, found, _ = load_run(tmp_path / "runs/encoder", installed())
    sample = images()
    assert torch.equal(found.eval().encode(sample).tokens, method.encode(sample).tokens)
    assert found.heads["main"].decoder.embed.weight.std() > 0


def test_a_decoder_that_is_there_is_not_drawn(refused, weights):
    said = refused("import", "image:mae-vit-tiny", weights, "--format", "mae", *HEADS, "fresh_decoder=true")
    assert "leave fresh_decoder out" in said


def test_without_data_it_says_what_evaluate_needs(mim, weights, tmp_path):
    said = mim("import", "image:mae-vit-base", weights, "--format", "mae", *HEADS, "--data.mean", "0.5", "--data.std",
               "0.5")  # fmt: skip
    assert said.code == 0, said.err
    assert "--data.root FOLDER" in said.out
    assert not (tmp_path / "runs/official/report.html").exists()
    assert mim("evaluate", "runs/official", "--data-root", pictures(tmp_path / "some"), "--on", "knn").code == 0


def test_a_folder_with_a_run_stays(mim, weights, tmp_path):
    start = ("import", "image:mae-vit-tiny", weights, "--format", "mae", *HEADS)
    assert mim(*start).code == 0
    before = (tmp_path / "runs/official/recipe.toml").read_bytes()
    said = mim(*start, "--train.epochs", "5")
    assert said.code == 2
    assert "holds a run already" in said.err
    assert (tmp_path / "runs/official/recipe.toml").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["image:mae-vit-tiny", "absent.pth", "--format", "mae"], "No weights at absent.pth"),
        (["image:mae-vit-tiny", "{file}", "--format", "mea"], "Did you mean 'mae'"),
        (["image:mae-vit-tini", "{file}", "--format", "mae"], "mae-vit-tiny"),
        (["image:mae-vit-tiny", "{file}", "--format", "mae"], "num_heads"),
        (["image:mae-vit-tiny", "{file}", "--format", "mae", "--sizes", "num_heads"], "NAME=VALUE"),
        (["image:mae-vit-tiny", "{file}", "--format", "mae", "--sizes", "num_head=4"], "num_heads"),
        (["image:mae-vit-tiny", "{file}", "--format", "simmim"], "SimMIM"),
        (["video:videomae-vit-tiny", "{file}", "--format", "mae", *HEADS], "These weights take image"),
        (["image:mae-vit-tiny", "{file}", "--format", "mae", *HEADS, "--data.root", "nowhere"], "nowhere"),
        (["image:mae-vit-tiny", "{file}", "--format", "mae", *HEADS, "--train.epochs", "-1"], "epochs"),
        ([], "Which recipe?"),
    ],
)
def test_mistakes(refused, weights, tmp_path, arguments, says):
    assert says in refused("import", *(a.format(file=weights) for a in arguments))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("size", ["28x28", "(28, 28)", "28"])
def test_sizes_as_people_write_them(mim, weights, tmp_path, size):
    start = ("import", "image:mae-vit-tiny", weights, "--format", "mae", *HEADS, f"img_size={size}")
    assert mim(*start).code == 0
    assert load_run(tmp_path / "runs/official", installed())[0].parts["tokenizer"].options.size == (28, 28)


@pytest.mark.parametrize("size", ["wide", "(28, 28, 1)", "28x", "0"])
def test_sizes_that_are_none(refused, weights, size):
    said = refused("import", "image:mae-vit-tiny", weights, "--format", "mae", *HEADS, f"img_size={size}")
    assert "height and width such as (96, 160) or 96x160" in said


def test_weights_that_are_not_finite(refused, method, tmp_path):
    state = official(method)
    state["norm.weight"][3] = torch.nan
    torch.save(state, tmp_path / "nan.pth")
    said = refused("import", "image:mae-vit-tiny", "nan.pth", "--format", "mae", *HEADS)
    assert "norm.weight has values that are not finite" in said


def test_weights_of_other_channels_name_what_the_recipe_takes(refused, tmp_path):
    run = load_recipe("image:mae-vit-tiny", installed())
    tokenizer = run.parts["tokenizer"]
    options = replace(tokenizer.options, channels=3)
    run = replace(run, parts={**run.parts, "tokenizer": replace(tokenizer, options=options)})
    torch.save(official(build_method(run)), tmp_path / "rgb.pth")
    said = refused("import", "image:mae-vit-tiny", "rgb.pth", "--format", "mae", *HEADS)
    assert "These weights take image 3 x 28 x 28, and image:mae-vit-tiny is for image 1 x 28 x 28" in said


def test_a_folder_of_weights_keeps_its_whole_name(mim, tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers")
    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    decoder = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
    config = transformers.ViTMAEConfig(
        **small, **decoder, decoder_intermediate_size=32, image_size=28, patch_size=7, num_channels=1
    )
    transformers.ViTMAEForPreTraining(config).save_pretrained(tmp_path / "vitmae-1.5")
    monkeypatch.chdir(tmp_path / "vitmae-1.5")
    assert mim("import", "image:mae-vit-tiny", ".", "--format", "hf-vitmae").code == 0
    assert load_run(tmp_path / "vitmae-1.5/runs/vitmae-1.5", installed())[0].recipe == "image:mae-vit-tiny"


def test_init_names_import_where_the_weights_do_not_tell(refused, weights):
    said = refused("pretrain", "image:mae-vit-tiny", "--init", weights, "--init-format", "mae")
    assert "num_heads" in said
    assert "mim-core import --sizes num_heads=NUMBER, which makes a run that --init takes" in said


def test_a_run_in_place_of_its_recipe(mim, refused, weights):
    assert mim("import", "image:mae-vit-tiny", weights, "--format", "mae", *HEADS, "--out", "run").code == 0
    assert "Its recipe is run/recipe.toml" in refused("pretrain", "run")


def test_a_missing_format_is_asked_for(mim, weights):
    said = mim("import", "image:mae-vit-tiny", weights)
    assert said.code == 2
    assert "--format" in said.all


def test_a_weights_file_in_place_of_a_run_names_the_command(refused, weights):
    assert "mim-core import RECIPE" in refused("evaluate", weights)


def test_help_names_recipes_and_formats(mim):
    text = mim("import", "--help", plugin="image").out
    assert "mae-vit-tiny" in text
    assert "image:hf-vitmae" in text
    assert "video" not in text
