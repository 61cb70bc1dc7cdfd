"""MVD's teachers: images and clips of other runs, and a run that is opened where those are gone."""

import json
import shutil

import pytest
import torch
from mim_core import build_method, installed, load_recipe, load_run
from mim_core.cli import main

QUICK = ["--quiet", "--train.epochs", "0.05", "--train.warmup-epochs", "0"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs of a video encoder and an image encoder of the twin's sizes, and a run that they teach."""
    base = tmp_path_factory.mktemp("mvd")
    video, image, out = base / "video", base / "image", base / "mvd"
    assert main(["pretrain", "video:videomae-vit-tiny", "--twin", *QUICK, "--out", str(video)]) == 0
    size = ["--tokenizer.size", "32", "32", "--tokenizer.patch", "8", "8", "--tokenizer.channels", "3"]
    colours = ["--data.mean", "0.5", "0.5", "0.5", "--data.std", "0.5", "0.5", "0.5"]
    given = ["pretrain", "image:mae-vit-tiny", "--twin", *size, *colours, "--train.epochs", "0.01", "--quiet"]
    assert main([*given, "--train.warmup-epochs", "0", "--out", str(image)]) == 0
    teachers = ["--img-feat.teacher.run", str(image), "--vid-feat.teacher.run", str(video)]
    plain = ["--img-feat.teacher.no-random", "--vid-feat.teacher.no-random"]
    parts = ["--img-feat.teacher.parts", "", "--vid-feat.teacher.parts", ""]
    assert main(["pretrain", "video:mvd-vit-tiny", "--twin", *QUICK, *teachers, *plain, *parts, "--out", str(out)]) == 0
    return video, image, out


def test_the_teachers_are_those_of_the_runs(runs):
    video, image, out = runs
    method = load_run(out).method
    for name, run in (("vid_feat", video), ("img_feat", image)):
        wanted = load_run(run).method.encoder.state_dict()
        found = method.teachers[name].encoder.state_dict()
        assert all(torch.equal(found[key], value) for key, value in wanted.items())


def test_the_image_teacher_sees_the_first_frame_of_each_tubelet(runs):
    method = load_run(runs[2]).method.eval()
    clip = torch.randn(2, 3, 8, 32, 32)
    patches = method.tokenizer.split({"video": clip})
    said = method.teachers["img_feat"](patches).tokens.unflatten(1, (4, -1))
    image = load_run(runs[1]).method
    with torch.no_grad():
        wanted = image.encode({"image": clip[:, :, 4]}).tokens
    torch.testing.assert_close(said[:, 2], wanted, rtol=1e-4, atol=1e-5)


def test_a_run_is_opened_without_its_teachers_runs(runs, tmp_path, capsys):
    copied = tmp_path / "mvd"
    shutil.copytree(runs[2], copied)
    recipe = copied / "recipe.toml"
    text = recipe.read_text()
    for path in runs[:2]:
        text = text.replace(str(path), str(tmp_path / "gone" / path.name))
    recipe.write_text(text)
    whole, alone = load_run(runs[2]), load_run(copied)
    before, after = whole.method.state_dict(), alone.method.state_dict()
    assert all(torch.equal(before[name], value) for name, value in after.items())
    clip = {"video": torch.randn(2, 3, 8, 32, 32)}
    assert torch.equal(*(run.method.eval().encode(clip).pooled for run in (whole, alone)))
    assert len(alone.source().labelled("test").labels)
    assert main(["pretrain", str(recipe), "--out", str(tmp_path / "anew"), "--quiet"]) == 2
    assert "The teacher's weights are not at hand" in " ".join(capsys.readouterr().err.split())


def test_the_losses_are_of_both_heads(runs):
    lines = [json.loads(line) for line in (runs[2] / "metrics.jsonl").read_text().splitlines()]
    assert {"loss/img_feat", "loss/vid_feat"} <= set(lines[-1])


def test_no_teacher_is_an_error_that_tells_the_remedy(capsys):
    assert main(["pretrain", "video:mvd-vit-tiny", "--dry-run"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "img_feat.teacher (video:frames)" in said
    assert "--img-feat.teacher.run FOLDER" in said


def test_a_teacher_of_other_units_is_refused(runs, capsys):
    given = ["--vid-feat.teacher.run", str(runs[1]), "--vid-feat.teacher.no-random", "--vid-feat.teacher.parts", ""]
    assert main(["pretrain", "video:mvd-vit-tiny", "--twin", "--dry-run", *given]) == 2
    assert "give both the same size and patch" in " ".join(capsys.readouterr().err.split())


def test_the_positions_are_the_official_ones():
    method = build_method(load_recipe("video:mvd-vit-base", installed(), twin=True))
    assert method.encoder.position.kind == "sincos-quarter"
