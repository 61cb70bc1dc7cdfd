"""The papers' fine-tuning recipes, on files laid out as the papers' data sets: each is planned at its full size; its
twin is trained, tested and taken for complete."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from mim_core.cli import main
from mim_core.host.loading import installed
from mim_core.runs.load import load_run
from mim_core.training import plan

sys.path.insert(0, str(Path(__file__).parent))
import papers_data

NAMES = [entry.full_name for entry in installed().of_kind("finetunings")]
QUICK = ("--train.workers", "0", "--train.device", "cpu", "--quiet")
COLOURS = ("--tokenizer.channels", "3", "--data.mean", "0.485", "0.456", "0.406", "--data.std", "0.229", "0.224")
COLOURS = (*COLOURS, "0.225")
"""Twins of recipes for images are for the bundled grey ones."""
ADE20K = ("--data.folders", "rgb", "images", "semseg", "annotations", "--data.classes", "150")
MODELNET = "pointcloud:point-mae-finetune-vit-small"
DATA = {
    "image:mae-finetune-vit-base": ("imagenet", (), COLOURS),
    "image:mae-finetune-vit-large": ("imagenet", (), ()),
    "image:mae-finetune-vit-huge": ("imagenet", (), ()),
    "image:mae-linprobe-vit-base": ("imagenet", (), COLOURS),
    "image:vitdet-vit-base": ("coco", (), COLOURS),
    "video:videomae-finetune-vit-base": ("kinetics", (), ()),
    "video:videomae-finetune-vit-base-ssv2": ("ssv2", (), ()),
    "video:videomae-finetune-vit-base-ucf101": ("ucf101", (), ()),
    MODELNET: ("modelnet40", (), ()),
    f"{MODELNET}-scanobjectnn": ("scanobjectnn", (), ()),
    "pointcloud:point-mae-partseg-vit-small": ("shapenetpart", (), ()),
    "multimodal:multimae-semseg-vit-base": ("ade20k", ADE20K, ("--data.void", "0")),
    "multimodal:multimae-semseg-vit-base-nyu": ("nyu", ("--data.classes", "40"), ("--data.void", "0")),
    "multimodal:multimae-depth-vit-base": ("nyu", (), ()),
}
"""Recipe -> the layout of its data, what it needs to be told of it, and what its twin is told besides."""
CONTROLS = {
    "image:vitdet-vit-base": {"mean box", "untrained detector"},
    "pointcloud:point-mae-partseg-vit-small": {"majority part"},
    "multimodal:multimae-depth-vit-base": {"mean depth"},
}
"""The rows that scores stand beside, where they are others than the most frequent class."""

MAPS = ("What is taken for what", "Worst answers", "<div>truth</div>", "<div>answer</div>", "<div>wrong</div>")
REPORTED = {
    "image:vitdet-vit-base": (),
    "pointcloud:point-mae-partseg-vit-small": (*MAPS, "Airplane 0"),
    "multimodal:multimae-semseg-vit-base": (*MAPS, "class 149", "<div>rgb</div>"),
    "multimodal:multimae-semseg-vit-base-nyu": (*MAPS, "<div>depth</div>"),
    "multimodal:multimae-depth-vit-base": MAPS[1:],
}
"""What the reports of others than classifiers show."""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The folder of a layout, made once."""
    made = {}

    def folder(layout):
        if layout not in made:
            made[layout] = tmp_path_factory.mktemp("papers") / layout
            getattr(papers_data, layout)(made[layout])
        return str(made[layout])

    return folder


@pytest.fixture
def undrawn(monkeypatch):
    """Weights are not drawn and no step is timed: of a plan neither tells anything about a recipe."""
    for name in ("_no_grad_uniform_", "_no_grad_normal_", "kaiming_uniform_"):
        monkeypatch.setattr(torch.nn.init, name, lambda tensor, *given, **named: tensor)
    monkeypatch.setattr(plan, "time_of", lambda *given: "not measured")


def test_every_recipe_has_data():
    assert set(DATA) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_whole_recipes_are_planned_on_their_data(name, files, tmp_path, capsys, undrawn):
    layout, told, _ = DATA[name]
    out = tmp_path / "run"
    command = ["finetune", name, "--data.root", files(layout), *told, *QUICK, "--out", str(out), "--dry-run"]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert sum(map(float, re.findall(r"([\d.]+) M\b", said.partition("parameters")[2].partition("\nsteps")[0]))) > 20
    assert f"{2 * papers_data.TRAIN} " in said.partition("labels")[2].partition("\n")[0]
    assert not out.exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if not name.endswith(("large", "huge"))])
def test_twins_train_on_their_data_and_are_tested(name, files, tmp_path, capsys):
    layout, *told = DATA[name]
    out = tmp_path / "run"
    command = ["finetune", name, "--twin", "--data.root", files(layout), *told[0], *told[1]]
    command += ["--train.steps", "3", "--train.log-every", "1", *QUICK, "--out", str(out)]
    assert main(command) == 0
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert not (out / "skipped.jsonl").exists()
    scores = json.loads((out / "scores.json").read_text())["scores"]
    rows = CONTROLS.get(name, {"majority class"}) | {"trained from scratch"}
    assert {score["row"] for score in scores} == rows
    report = (out / "report.html").read_text()
    assert all(text in report for text in REPORTED.get(name, ("Wrong, and surest of it", "What is taken for what")))
    assert main(command) == 0  # it is complete


@pytest.mark.slow
def test_a_run_is_trained_as_a_recipe_says(files, tmp_path, capsys):
    run = tmp_path / "run"
    common = ("--train.steps", "2", *QUICK)
    data = ("--data.root", files("imagenet"), *COLOURS)
    assert main(["pretrain", "image:mae-vit-base", "--twin", *data, *common, "--out", str(run)]) == 0
    assert main(["finetune", str(run), "--recipe", "image:mae-finetune-vit-base", *common]) == 0
    config, method, _ = load_run(run / "finetune", installed())
    assert config.train.layer_decay == 0.65
    assert config.parts["encoder"].options.drop_path == 0.1
    assert config.parts["encoder"].options.position == "learned"
    assert config.parts["method"].options.norm == "pooled"
    assert method.fc_norm is not None
    assert method.classes == 2
    # its weights are from there
    start = load_run(run, installed())[1].state_dict()["encoder.blocks.0.attn.qkv.weight"]
    now = method.state_dict()["encoder.blocks.0.attn.qkv.weight"]
    assert torch.allclose(start, now, atol=1e-2)
    # named as where weights are from, it gives the recipe its tokenizer and its encoder too; the size may be told
    command = ["finetune", "image:mae-finetune-vit-base", *data[:2], "--tokenizer.size", "56", "56", *common]
    capsys.readouterr()
    assert main([*command, "--init", str(run), "--out", str(tmp_path / "other"), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "image 3 x 56 x 56" in said
    assert "64 on a grid of 8 x 8" in said
    assert main([*command, "--init", str(tmp_path / "nowhere"), "--out", str(tmp_path / "other")]) == 2
    assert "nowhere: there is no such file or folder." in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
def test_weights_of_another_code_base(files, tmp_path, capsys):
    import timm

    torch.manual_seed(0)
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=64, depth=2, num_heads=1, num_classes=5
    )
    weights = tmp_path / "vit.pth"
    torch.save(model.state_dict(), weights)
    out = tmp_path / "run"
    command = ["finetune", "image:mae-finetune-vit-base", "--twin", "--init", str(weights), "--data.labels", "6"]
    command += ["--data.root", files("imagenet"), *COLOURS, "--train.steps", "2", "--train.batch-size", "6"]
    command += ["--train.workers", "0", "--train.device", "cpu"]
    assert main([*command, "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert "starts fresh" in said.out + said.err
    assert "6 labelled training samples" in said.out
    config = load_run(out, installed())[0]
    assert (config.parts["encoder"].options.width, config.parts["encoder"].options.depth) == (64, 2)
    assert config.parts["method"].options.init == weights
    scores = json.loads((out / "scores.json").read_text())["scores"]
    assert "fine-tuned" in {score["row"] for score in scores}
    assert main([*command, "--out", str(out)]) == 0


def test_a_name_that_is_no_recipe(capsys):
    assert main(["finetune", "image:mae-finetune-vit-bas"]) == 2
    assert "image:mae-finetune-vit-bas" in capsys.readouterr().err
