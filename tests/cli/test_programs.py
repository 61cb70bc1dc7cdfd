"""export --to torch and onnx: programs that run without mim-core give what the run gives."""

import csv
import json

import numpy as np
import pytest
import torch
from mim_core.cli import main
from mim_core.commands.export import _chosen
from mim_core.errors import MimError
from mim_core.host.loading import installed
from mim_core.interop import program_export
from mim_core.interop.hugging_face import export_hf_vit
from mim_core.methods.build import build_method
from mim_core.recipes.resolve import load_recipe
from mim_core.runs.load import load_run
from PIL import Image


@pytest.fixture
def runs(small_classifiers):
    return small_classifiers


def exported(run, kind, capsys, *options):
    assert main(["export", str(run), "--to", kind, *options]) == 0
    return capsys.readouterr().out.splitlines()


def of_the_file(kind, path, **inputs):
    """What a program answers to numpy arrays, and its metadata; mim-core is not asked."""
    if kind == "torch":
        files = {"about.json": ""}
        program = torch.export.load(path, extra_files=files).module()
        with torch.no_grad():
            found = program(*(torch.from_numpy(value) for value in inputs.values()))
        return {name: value.numpy() for name, value in found.items()}, json.loads(files["about.json"])
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(path)
    names = [each.name for each in session.get_outputs()]
    found = dict(zip(names, session.run(names, inputs), strict=True))
    return found, {name: plain(value) for name, value in session.get_modelmeta().custom_metadata_map.items()}


def plain(text):
    try:
        return json.loads(text)
    except ValueError:
        return text


@pytest.mark.parametrize("kind", ["torch", "onnx"])
@pytest.mark.parametrize("rows", [1, 5])
def test_features_are_the_runs(runs, capsys, kind, rows):
    path, line = exported(runs, kind, capsys)[:2]
    assert path in line
    x = np.random.default_rng(1).normal(size=(rows, 1, 28, 28)).astype(np.float32)
    found, about = of_the_file(kind, path, image=x)
    with torch.no_grad():
        wanted = load_run(runs).method.eval().encode({"image": torch.from_numpy(x)}).pooled
    np.testing.assert_allclose(found["features"], wanted, rtol=0, atol=1e-5)
    assert (about["inputs"], about["outputs"]) == ({"image": [1, 28, 28]}, ["features"])
    assert about["recipe"] == "image:mae-vit-tiny"


@pytest.mark.parametrize("kind", ["torch", "onnx"])
def test_an_evening_ends_with_the_same_answers(runs, tmp_path, capsys, kind):
    """A stranger's program, with what the file itself says, gives the rows of predict."""
    path = exported(runs / "finetune", kind, capsys)[0]
    for number in range(3):
        values = np.random.default_rng(100 + number).integers(0, 256, (28, 28), dtype=np.uint8)
        (tmp_path / "new").mkdir(exist_ok=True)
        Image.fromarray(values).save(tmp_path / "new" / f"{number}.png")
    assert (
        main(["predict", str(runs / "finetune"), str(tmp_path / "new"), "--out", str(tmp_path / "p"), "--quiet"]) == 0
    )
    with open(tmp_path / "p/predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    pictures = [np.asarray(Image.open(tmp_path / "new" / row["name"]))[None] for row in rows]
    _, about = of_the_file(kind, path, image=np.zeros((1, 1, 28, 28), np.float32))
    x = (np.stack(pictures) / 255 - about["mean"][0]) / about["std"][0]
    found, _ = of_the_file(kind, path, image=x.astype(np.float32))
    assert about["classes"] == ["round", "square"]
    for row, share in zip(rows, found["class"], strict=True):
        assert row["class"] == about["classes"][int(share.argmax())]
        assert float(row["probability"]) == pytest.approx(float(share.max()), abs=1e-5)


def test_it_runs_where_mim_core_is_not_imported(loaded_python, runs, capsys, tmp_path):
    path = exported(runs, "torch", capsys)[0]
    text = (
        "import sys, torch; program = torch.export.load(sys.argv[1]).module();"
        "print(tuple(program(torch.zeros(2, 1, 28, 28))['features'].shape));"
        "print([name for name in sys.modules if name.startswith('mim_')])"
    )
    done = loaded_python.run(["-c", text, path], tmp_path)
    assert done.stdout.split("\n")[:2] == ["(2, 32)", "[]"], done.stderr


@pytest.mark.parametrize(("recipe", "given"), [("video:videomae-vit-tiny", ()), ("multimodal:multimae-vit-tiny", ()),
                                               ("multimodal:multimae-vit-tiny", ("rgb", "depth"))])  # fmt: skip
@pytest.mark.parametrize("kind", ["torch", "onnx"])
def test_other_modalities(recipe, given, kind, tmp_path):
    from mim_core.host.loading import installed
    from mim_core.methods.build import build_method
    from mim_core.recipes.resolve import load_recipe

    if kind == "onnx":
        pytest.importorskip("onnxscript")
    method = build_method(load_recipe(recipe, installed(), twin=True)).eval()
    line, notes = program_export.export_program(method, tmp_path / "program", kind, {}, given)
    assert notes == []
    assert all(name in line for name in given or method.tokenizer.shapes)


@pytest.fixture
def clouds():
    from mim_core.host.loading import installed
    from mim_core.methods.build import build_method
    from mim_core.recipes.resolve import load_recipe

    return build_method(load_recipe("pointcloud:point-mae-vit-tiny", installed(), twin=True)).eval()


def test_clouds_take_any_batch(clouds, tmp_path):
    """Also one so large that distances are computed part by part outside a program."""
    _, notes = program_export.export_program(clouds, tmp_path / "program.pt2", "torch", {})
    assert notes == []
    for rows in (1, 5, 150):
        points = np.random.default_rng(rows).normal(size=(rows, *clouds.tokenizer.shapes["points"])).astype(np.float32)
        found, _ = of_the_file("torch", tmp_path / "program.pt2", points=points)
        with torch.no_grad():
            wanted = clouds.encode({"points": torch.from_numpy(points)}).pooled
        np.testing.assert_allclose(found["features"], wanted, rtol=0, atol=1e-5)


def test_steps_that_depend_on_the_batch_take_one_sample_at_a_time(clouds, tmp_path, monkeypatch):
    from mim_pointcloud import geometry

    monkeypatch.setattr(geometry, "_traced", lambda: False)
    _, notes = program_export.export_program(clouds, tmp_path / "program.pt2", "torch", {})
    assert notes == ["The program takes one sample at a time: this method's steps depend on the batch."]


def test_an_operator_that_onnx_lacks_is_named(clouds, tmp_path, monkeypatch):
    from mim_pointcloud import geometry

    pytest.importorskip("onnxscript")
    monkeypatch.setattr(geometry, "scaled", lambda points: points * torch.frexp(points).mantissa)
    with pytest.raises(MimError, match=r"no operator for torch's prims\.frexp.* --to torch"):
        program_export.export_program(clouds, tmp_path / "program.onnx", "onnx", {})
    assert not (tmp_path / "program.onnx").exists()


def test_a_program_of_other_answers_is_not_kept(runs, tmp_path, monkeypatch):
    method, path = load_run(runs).method.eval(), tmp_path / "program.pt2"
    program_export.export_program(method, path, "torch", {})
    before, real = path.read_bytes(), program_export._run_torch

    def spoiled(*arguments):
        return [value + 0.01 for value in real(*arguments)]

    monkeypatch.setattr(program_export, "_run_torch", spoiled)
    with pytest.raises(MimError, match=r"gives other features than the run, 0\.01 apart, and was not kept"):
        program_export.export_program(method, path, "torch", {})
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["program.pt2"]


@pytest.mark.parametrize(
    "recipe", ["video:videomae-vit-tiny", "pointcloud:point-mae-vit-tiny", "multimodal:multimae-vit-tiny"]
)
def test_without_a_format_it_is_the_one_that_fits(recipe):
    method = build_method(load_recipe(recipe, installed(), twin=True))
    to, why = _chosen("auto", method)
    assert to == "torch"
    assert "(--to torch), for timm holds encoders of two-dimensional patches of one picture" in why[0]
    assert _chosen("timm", method) == ("timm", [])
    with pytest.raises(MimError, match="transformers' ViT holds encoders of two-dimensional patches"):
        export_hf_vit(method, {}, ())


def test_without_a_format_pictures_go_to_timm(runs):
    assert _chosen("auto", load_run(runs).method) == ("timm", [])


def test_answers_of_a_program_are_arrays_without_further_ado(runs, tmp_path, capsys):
    path = exported(runs, "torch", capsys, "--out", str(tmp_path / "a.pt2"))[0]
    assert torch.export.load(path).module()(torch.zeros(2, 1, 28, 28))["features"].numpy().shape == (2, 32)


def test_the_name_of_a_program_is_one_that_torch_reads(runs, tmp_path, capsys):
    assert main(["export", str(runs), "--to", "torch", "--out", str(tmp_path / "a.bin")]) == 2
    assert f"end in .pt2: --out {tmp_path / 'a.pt2'}" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (("model.py", "model.safetensors", "about.json"), "is a plain model, which export wrote"),
        (("config.json", "model.safetensors"), "is a folder of weights, not a run. Start a run from it"),
    ],
)
def test_an_exported_folder_is_no_run(tmp_path, capsys, files, said):
    for name in files:
        (tmp_path / name).touch()
    for command in ("finetune", "evaluate", "export"):
        assert main([command, str(tmp_path)], plugin="image") == 2
        assert said in capsys.readouterr().err
    if "model.py" in files:
        assert main(["pretrain", "mae-vit-tiny", "--init", str(tmp_path)], plugin="image") == 2
        assert said in capsys.readouterr().err


def test_a_program_is_no_start_of_a_training(runs, tmp_path, capsys):
    path = tmp_path / "a.pt2"
    path.touch()
    for command in (["pretrain", "image:mae-vit-tiny", "--init"], ["finetune"]):
        assert main([*command, str(path)]) == 2
        said = capsys.readouterr().err
        assert "is a program, which can be run and not trained from" in said
        assert "finetune RUN, or pretrain RECIPE --init RUN" in said
    assert main(["finetune", "mae-vit-tiny", "--init", str(path)], plugin="image") == 2
    assert "mim-image pretrain mae-vit-tiny --init WEIGHTS" in capsys.readouterr().err
