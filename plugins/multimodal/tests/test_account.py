"""What is said of folders and runs that are allowed and rarely meant, and of files that cannot be used."""

import os

import numpy as np
import pytest
from mim_core.cli import main
from mim_core.errors import BadSample, MimError
from mim_core.evaluation.input_size import tokenizer_at
from mim_core.evaluation.reconstruction import held_out_samples
from mim_core.host.loading import installed
from mim_core.methods.build import build_method, check_data, make_source
from mim_core.recipes.resolve import load_recipe, override
from mim_multimodal.data import Aligned
from mim_multimodal.plugin import main as own_main
from PIL import Image

SHAPES = {"rgb": (3, 32, 32), "depth": (1, 32, 32), "semseg": (8, 8)}
GREY = np.tile(np.arange(32, dtype=np.uint8) * 4 + 1, (32, 1))


@pytest.fixture
def root(tmp_path):
    """Nine items for training and three for testing, without classes; colour says the split."""
    for split, count in (("train", 9), ("test", 3)):
        for number in range(count):
            colour = np.full((32, 32, 3), 200 if split == "test" else 10, np.uint8)
            for name, values in (("rgb", colour), ("depth", GREY), ("semseg", GREY[:8, :8] // 16)):
                path = tmp_path / split / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(values).save(path)
    return tmp_path


def source(root, **options):
    return Aligned(Aligned.Config(root=root, **options), SHAPES)


def tiny(**tables):
    return override(load_recipe("multimodal:multimae-vit-tiny", installed(), twin=True), tables, "test", installed())


def test_depth_maps_of_several_kinds_are_named_once(root, capsys):
    assert source(root).advice() == []
    Image.fromarray(GREY.astype(np.uint16) * 256).save(root / "train/depth/4.png")
    Image.fromarray(GREY.astype(np.uint16) * 256).save(root / "train/depth/5.png")
    run = tiny(data={"root": str(root)})
    method = build_method(run)
    data = make_source(run, method)
    assert not capsys.readouterr().err
    check_data(run, method, data)
    said = capsys.readouterr().err
    assert "train/depth/0.png has 8 bits, train/depth/4.png has 16 bits" in said
    assert "5.png" not in said
    assert "--data.depth-bits" in said
    assert data.plan()["depth maps"] == "8 bits in train/depth/0.png; 16 bits in train/depth/4.png; each file's own"
    assert source(root, depth_bits=8).advice() == []


def test_a_colour_picture_in_place_of_ids_asks_for_the_folder(root):
    data = source(root, folders={"semseg": "rgb"})
    with pytest.raises(BadSample, match=r"this is a colour picture \(mode RGB\): is it another modality's folder"):
        data.read(0, 0)


@pytest.mark.parametrize("name", ["rgb", "depth", "semseg"])
def test_an_empty_file_is_called_empty(root, name):
    (root / "train" / name / "0.png").write_bytes(b"")
    with pytest.raises(BadSample, match="the file is empty") as error:
        source(root).read(0, 0)
    assert error.value.path == f"train/{name}/0.png"


def test_data_without_classes_still_show_held_out_samples(root):
    data = source(root)
    with pytest.raises(MimError, match="no classes of items"):
        data.labelled("test")
    sample, where = held_out_samples(data, 2)
    assert where == "held-out samples"
    assert sample["index"].tolist() == [0, 2]
    shown = sample["rgb"].mean(dim=(1, 2, 3))
    trained = data.finish({"rgb": data.read(0, 0)["rgb"][None]})["rgb"].mean()
    assert (shown > trained + 1).all(), "of the other split"


def test_a_run_of_no_step_is_refused_and_one_of_one_is_named(root, tmp_path, capsys):
    run = [
        "pretrain",
        "multimae-vit-tiny",
        "--twin",
        "--dry-run",
        "--data.root",
        str(root),
        "--out",
        str(tmp_path / "r"),
    ]
    assert main([*run, "--train.epochs", "0.1667"], "multimodal") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "0.1667 epochs of 9 items are 0.19 steps of 8 samples: nothing to train" in said
    assert "--train.epochs 17.8 gives 20 steps" in said
    assert "warning" not in said, "what is wrong comes first, and alone"
    assert main([*run, "--train.epochs", "1"], "multimodal") == 0
    assert "the whole run is 1 step" in " ".join(capsys.readouterr().err.split())
    assert main([*run, "--train.epochs", "17.8"], "multimodal") == 0
    said = capsys.readouterr()
    assert "the whole run" not in said.err
    assert "20 steps" in said.out


def test_size_is_that_of_the_finest_tokenizer():
    run = tiny()
    assert tokenizer_at(run, (64, 48)).shapes == {"rgb": (3, 64, 48), "depth": (1, 64, 48), "semseg": (16, 12)}
    with pytest.raises(MimError, match=r"semseg.tokenizer would have no whole size, at 32 x 32 it has 8 x 8"):
        tokenizer_at(run, (34, 34))
    points = load_recipe("multimodal:points-depth-vit-tiny", installed(), twin=True)
    with pytest.raises(MimError, match=r"has the points.tokenizer pointcloud:groups, which has no input size"):
        tokenizer_at(points, (32, 32))


def test_export_is_a_command_of_this_plugin_too(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["mim-multimodal", "--help"])
    assert own_main() == 0
    said = capsys.readouterr().out
    assert "evaluate" in said
    assert "export" in said


def test_help_has_an_example_of_folders(capsys):
    assert main(["pretrain", "multimae-vit-tiny", "--help-all"], "multimodal") == 0
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "--data.folders semseg semseg_coco depth depth_dpt" in said
    assert "--use depth.tokenizer=none" in said


@pytest.mark.parametrize("modality", ["rgb", "depth", "semseg"])
def test_a_plan_of_unusable_files_is_refused_as_the_run_is(root, tmp_path, capsys, modality):
    for path in (root / "train" / modality).iterdir():
        path.write_bytes(b"no picture")
    run = ["pretrain", "multimae-vit-tiny", "--twin", "--data.root", str(root), "--train.epochs", "17.8"]
    assert main([*run, "--dry-run", "--out", str(tmp_path / "r")], "multimodal") == 2
    said = capsys.readouterr()
    assert "9 of 9 files cannot be used" in said.err
    assert f"train/{modality}/" in said.err
    assert "warning" not in said.err
    assert "Nothing was written" not in said.out


def test_a_depth_map_of_another_kind_that_is_met_later_is_said_once(root, capsys):
    few = root / "train"
    for number in range(9, 410):
        for name in ("rgb", "depth", "semseg"):
            os.link(few / name / "0.png", few / name / f"{number}.png")
    data = source(root)
    assert data.advice() == []
    at = 5  # of every two the first is looked at
    file = few / "depth" / data.name_of(at).rpartition("/")[2]
    file.unlink()
    Image.fromarray(GREY.astype(np.uint16) * 256).save(file)
    data = source(root)
    assert data.advice() == []
    for key in range(3):
        data.read(at, key)
        data.read(0, key)
    said = capsys.readouterr().err
    assert said.count(f"train/depth/{file.name} holds depth of 16 bits") == 1
    assert said.count("warning") == 1
