"""The papers' fine-tuning recipes: each builds at its full size; its twin is planned, trained, tested and resumed."""

import json

import pytest
import torch
from mim_core.cli import main
from mim_core.host.loading import installed
from mim_core.methods.build import build_method
from mim_core.methods.supervised import Supervised
from mim_core.recipes.resolve import load_recipe
from mim_core.runs.load import load_run

NAMES = [entry.full_name for entry in installed().of_kind("finetunings")]
QUICK = ("--train.workers", "0", "--train.device", "cpu", "--quiet")


def test_there_are_recipes():
    assert {"image:mae-finetune-vit-base", "video:videomae-finetune-vit-base"} <= set(NAMES)
    assert "pointcloud:point-mae-finetune-vit-small" in NAMES


@pytest.mark.parametrize("name", NAMES)
def test_whole_recipes_build(name):
    run = load_recipe(name, installed(), kind="finetunings")
    with torch.device("meta"):
        method = build_method(run, installed())
    assert isinstance(method, Supervised)
    assert sum(p.numel() for p in method.parameters()) > 2e7


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith(("base", "small"))])
def test_twins_train_and_are_tested(name, tmp_path, capsys):
    out = tmp_path / "run"
    command = ["finetune", name, "--twin", "--train.steps", "3", "--train.log-every", "1", *QUICK, "--out", str(out)]
    assert main([*command, "--dry-run"]) == 0
    assert "3 steps" in capsys.readouterr().out
    assert not out.exists()
    assert main(command) == 0
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    scores = json.loads((out / "scores.json").read_text())["scores"]
    controls = {"mean box", "untrained detector"} if "vitdet" in name else {"majority class"}
    assert {score["row"] for score in scores} == {*controls, "trained from scratch"}
    assert main(command) == 0  # it is complete


@pytest.mark.slow
def test_a_run_is_trained_as_a_recipe_says(tmp_path):
    run = tmp_path / "run"
    common = ("--train.steps", "2", *QUICK)
    assert main(["pretrain", "image:mae-vit-base", "--twin", *common, "--out", str(run)]) == 0
    assert (
        main(["finetune", str(run), "--recipe", "image:mae-finetune-vit-base", *common, "--train.batch-size", "8"]) == 0
    )
    config, method, _ = load_run(run / "finetune", installed())
    assert config.train.layer_decay == 0.65
    assert config.parts["encoder"].options.drop_path == 0.1
    assert config.parts["encoder"].options.position == "learned"
    assert config.parts["method"].options.norm == "pooled"
    assert method.fc_norm is not None
    assert method.classes == 10
    # its weights are from there
    start = load_run(run, installed())[1].state_dict()["encoder.blocks.0.attn.qkv.weight"]
    now = method.state_dict()["encoder.blocks.0.attn.qkv.weight"]
    assert torch.allclose(start, now, atol=1e-2)


@pytest.mark.slow
def test_weights_of_another_code_base(tmp_path, capsys):
    import timm

    torch.manual_seed(0)
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=64, depth=2, num_heads=1, num_classes=5
    )
    weights = tmp_path / "vit.pth"
    torch.save(model.state_dict(), weights)
    out = tmp_path / "run"
    command = ["finetune", "image:mae-finetune-vit-base", "--twin", "--init", str(weights), "--data.labels", "40"]
    command += ["--train.steps", "2", "--train.batch-size", "8", "--train.workers", "0", "--train.device", "cpu"]
    assert main([*command, "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert "starts fresh" in said.out + said.err
    assert "40 labelled training samples" in said.out
    config = load_run(out, installed())[0]
    assert (config.parts["encoder"].options.width, config.parts["encoder"].options.depth) == (64, 2)
    assert config.parts["method"].options.init == weights
    scores = json.loads((out / "scores.json").read_text())["scores"]
    assert "fine-tuned" in {score["row"] for score in scores}
    assert main([*command, "--out", str(out)]) == 0


def test_a_name_that_is_no_recipe(capsys):
    assert main(["finetune", "image:mae-finetune-vit-bas"]) == 2
    assert "image:mae-finetune-vit-bas" in capsys.readouterr().err
