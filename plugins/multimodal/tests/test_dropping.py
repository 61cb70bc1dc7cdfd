"""Heads and whole modalities that are taken out of a recipe, and the weights of heads."""

import pytest
from mim_core.cli import main
from mim_core.errors import MimError
from mim_core.host.loading import installed
from mim_core.methods.build import build_method
from mim_core.recipes.resolve import drop, load_recipe, override
from mim_core.recipes.toml import from_toml, read_file, to_toml


def recipe(name="multimae-vit-tiny"):
    return load_recipe(f"multimodal:{name}", installed(), twin=True)


def test_a_head_is_taken_out():
    run = drop(recipe(), "depth.target")
    method = build_method(run)
    assert set(method.heads) == {"rgb", "norm_rgb", "semseg"}
    assert set(method.tokenizer.parts) == {"rgb", "depth", "semseg"}


def test_a_tokenizer_takes_every_head_with_it_that_asks_for_it():
    run = override(recipe(), {"method": {"weights": {"norm_rgb": 2.0, "depth": 0.5}}}, "test", installed())
    run = drop(run, "rgb.tokenizer")
    method = build_method(run)
    assert set(method.tokenizer.parts) == {"depth", "semseg"}
    assert set(method.heads) == {"depth", "semseg"}
    assert run.parts["method"].options.weights == {"depth": 0.5}
    assert run.dropped == ("rgb.tokenizer", "rgb.target", "norm_rgb.target")


def test_what_cannot_go_is_refused():
    run = recipe()
    for role, words in (
        ("dept.target", r"no role 'dept.target' to take out. Did you mean 'depth.target'\?"),
        ("masker", "cannot do without 'masker'"),
        ("decoder", "cannot do without 'decoder'"),
    ):
        with pytest.raises(MimError, match=words):
            drop(run, role)
    one = drop(drop(run, "semseg.tokenizer"), "depth.tokenizer")
    with pytest.raises(MimError, match=r"Without rgb.tokenizer this run has no tokenizer left"):
        drop(one, "rgb.tokenizer")
    with pytest.raises(MimError, match=r"Without rgb.target this run has no target left"):
        drop(drop(one, "norm_rgb.target"), "rgb.target")
    with pytest.raises(MimError, match=r"Without target this run has no target left"):
        drop(load_recipe("image:mae-vit-tiny", installed(), twin=True), "target")


def test_a_file_takes_out_and_remembers(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('recipe = "multimodal:multimae-vit-tiny"\n[semseg.tokenizer]\nuse = "none"\n')
    run = read_file(path, installed())
    assert "semseg.target" not in run.parts
    again = tmp_path / "recipe.toml"
    again.write_text(to_toml(run, installed()))
    for other in (read_file(again, installed()), from_toml(again.read_text(), installed())):
        assert other == run
        assert to_toml(other, installed()) == again.read_text()
    back = override(run, {"semseg": {"tokenizer": {"use": "multimodal:class-map"}}}, "test", installed())
    assert back.dropped == ("semseg.target",)


def test_colour_and_depth_alone_train_and_go_on(tmp_path, capsys):
    run = [
        "pretrain",
        "multimae-vit-tiny",
        "--twin",
        "--quiet",
        "--out",
        str(tmp_path / "run"),
        "--train.epochs",
        "0.02",
    ]
    run += ["--train.warmup-epochs", "0"]
    assert main([*run, "--use", "semseg.tokenizer=none"], "multimodal") == 0
    assert main([*run, "--use", "semseg.tokenizer=none"], "multimodal") == 0, "it is complete"
    capsys.readouterr()
    assert main([*run, "--use", "semsg.tokenizer=none"], "multimodal") == 2
    assert "Did you mean 'semseg.tokenizer'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ({"weights": {"depht": 2.0}}, "weights names depht; the heads are .*; did you mean 'depth'"),
        ({"segments": {"norm_rbg": "rgb"}}, "segments names norm_rbg; .*did you mean 'norm_rgb'"),
        ({"weights": {"depth": -1.0}}, "weights must be finite and not negative"),
        ({"weights": {"depth": float("nan")}}, "weights must be finite"),
        ({"weights": dict.fromkeys(("rgb", "norm_rgb", "depth", "semseg"), 0.0)}, "and one positive"),
    ],
)
def test_weights_of_heads_are_checked(method, words):
    segments = {"segments": {"norm_rgb": "rgb"}}
    tables = {"method": {**segments, **{k: {**segments.get(k, {}), **v} for k, v in method.items()}}}
    with pytest.raises(MimError, match=words):
        build_method(override(recipe(), tables, "test", installed()))
