"""What a finished run carries on: the student's encoder, or the teacher's where the recipe says so."""

import shutil

import pytest
import timm
import torch
from mim_core.cli import main
from mim_core.runs import checkpoint
from mim_core.runs.load import load_run
from safetensors.torch import load_file

QUICK = ["--twin", "--quiet", "--train.epochs", "0.02", "--train.warmup-epochs", "0.002"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("carried") / "run"
    assert main(["pretrain", "image:ijepa-vit-tiny", *QUICK, "--teacher.start", "0.5", "--out", str(out)]) == 0
    return out


def test_the_teacher_is_judged_exported_and_gone_on_with(run, tmp_path, capsys, monkeypatch):
    weights = load_file(checkpoint.newest(run) / "weights.safetensors")
    method = load_run(run).method.eval()
    own, student = "teachers.main.encoder.blocks.0.attn.qkv.weight", "encoder.blocks.0.attn.qkv.weight"
    assert not torch.equal(weights[own], weights[student])
    assert torch.equal(method.encoder.blocks[0].attn.qkv.weight, weights[own])
    assert main(["export", str(run)]) == 0
    exported = load_file(run / "encoder-timm.safetensors")
    assert torch.equal(exported["blocks.0.attn.qkv.weight"], weights[own])
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("timm."))
    monkeypatch.chdir(run)
    model = eval(line, {"timm": timm}).eval()
    image = torch.randn(2, 1, 28, 28)
    with torch.no_grad():
        torch.testing.assert_close(model(image), method.encode({"image": image}).pooled, rtol=1e-4, atol=1e-5)
    other = tmp_path / "tuned"
    given = ["--train.epochs", "0.02", "--train.warmup-epochs", "0", "--quiet", "--out", str(other)]
    assert main(["finetune", str(run), *given]) == 0


def test_training_goes_on_with_the_student(run, tmp_path):
    """A checkpoint has both, and a resumed run does not carry the teacher over."""
    out = tmp_path / "whole"
    assert main(["pretrain", "image:ijepa-vit-tiny", *QUICK, "--teacher.start", "0.5", "--out", str(out)]) == 0
    one, other = (load_file(checkpoint.newest(folder) / "weights.safetensors") for folder in (run, out))
    assert all(torch.equal(one[name], value) for name, value in other.items())


def test_the_student_where_the_recipe_says_so(run, tmp_path):
    out = tmp_path / "student"
    given = [*QUICK, "--teacher.start", "0.5", "--method.carries", "student", "--out", str(out)]
    assert main(["pretrain", "image:ijepa-vit-tiny", *given]) == 0
    weights = load_file(checkpoint.newest(out) / "weights.safetensors")
    name = "encoder.blocks.0.attn.qkv.weight"
    assert torch.equal(load_run(out).method.encoder.blocks[0].attn.qkv.weight, weights[name])


def test_no_teacher_to_carry(capsys):
    assert main(["pretrain", "image:mae-vit-tiny", "--twin", "--method.carries", "teacher", "--dry-run"]) == 2
    assert "this run has no teacher that all heads share" in " ".join(capsys.readouterr().err.split())


def test_an_encoder_that_takes_values_is_fine_tuned(tmp_path):
    out = tmp_path / "run"
    assert main(["pretrain", "image:mcmae-tiny", *QUICK, "--out", str(out)]) == 0
    given = ["--train.epochs", "0.02", "--train.warmup-epochs", "0", "--quiet", "--out", str(tmp_path / "tuned")]
    assert main(["finetune", str(out), *given]) == 0


def test_a_frozen_teacher_by_the_command_line(run, tmp_path, capfd):
    frozen = ["--use", "teacher=core:frozen", "--teacher.run", str(run), "--method.carries", "student"]
    given = ["pretrain", "image:ijepa-vit-tiny", *QUICK, *frozen, "--out", str(tmp_path / "taught")]
    assert main([*given, "--dry-run"]) == 0
    assert main(given) == 0
    assert "no-op" not in capfd.readouterr().err
    wanted = load_run(run).method.encoder.blocks[0].attn.qkv.weight
    assert torch.equal(load_run(tmp_path / "taught").method.teachers["main"].encoder.blocks[0].attn.qkv.weight, wanted)


def test_the_first_command_resumes_where_the_teachers_run_is_gone(run, tmp_path, capsys):
    source, out = tmp_path / "source", tmp_path / "taught"
    shutil.copytree(run, source)
    frozen = ["--use", "teacher=core:frozen", "--teacher.run", str(source), "--method.carries", "student"]
    given = ["pretrain", "image:ijepa-vit-tiny", *QUICK, *frozen, "--train.checkpoint-every", "1"]
    assert main([*given, "--out", str(out)]) == 0
    wanted = load_run(out).method.state_dict()
    shutil.rmtree(source)
    shutil.rmtree(checkpoint.newest(out))
    assert main([*given, "--out", str(out)]) == 0
    assert all(torch.equal(value, wanted[name]) for name, value in load_run(out).method.state_dict().items())
    capsys.readouterr()
    assert main([*given, "--out", str(tmp_path / "another")]) == 2
    assert "source" in capsys.readouterr().err


def test_a_teacher_is_taken_out(capsys):
    plain = ["--use", "target=core:values", "--method.carries", "student", "--dry-run"]
    assert main(["pretrain", "image:ijepa-vit-tiny", "--twin", "--use", "teacher=none", *plain]) == 0
    capsys.readouterr()
    assert main(["pretrain", "image:sdae-vit-tiny", "--twin", "--use", "teacher=none", "--dry-run"]) == 2
    assert "reads what a teacher says, and this run has none" in " ".join(capsys.readouterr().err.split())


def test_a_run_may_be_counted_in_steps(tmp_path):
    """As many steps as are asked for, whatever the data; epochs follow, and the run goes on under the same words."""
    recipe = ["pretrain", "image:mae-vit-tiny", "--twin", "--quiet"]
    words = [*recipe, "--train.steps", "7", "--out", str(tmp_path / "run")]
    assert main(words) == 0
    opened = load_run(tmp_path / "run").recipe
    assert opened.train.steps == 7
    assert opened.train.epochs == pytest.approx(7 * 16 / 10_000)
    assert checkpoint.newest(tmp_path / "run").name == "step-00000007"
    assert main(words) == 0, "the same command finds the run finished"
    assert main([*recipe, "--train.steps", "0", "--out", str(tmp_path / "no")]) == 2
