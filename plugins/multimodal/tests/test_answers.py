"""predict and embed where modalities are missing: others are made of those that are there, as files of their kind."""

import csv
import io
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mim_core.cli import main
from mim_core.data.collections import split_of
from mim_core.errors import MimError
from mim_core.evaluation.reconstruction import across
from mim_core.runs.load import load_run
from mim_multimodal import predicted_files
from mim_multimodal.data import SAMPLE, Aligned
from PIL import Image, ImageOps

sys.path.insert(0, str(Path(__file__).parent))
from aligned_items import items, save


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of few steps on the bundled frames."""
    folder = tmp_path_factory.mktemp("answers") / "run"
    start = ["pretrain", "multimodal:multimae-vit-tiny", "--twin", "--train.steps", "2", "--train.workers", "0"]
    assert main([*start, "--train.warmup-epochs", "0", "--quiet", "--out", str(folder)]) == 0
    return folder


def predicted(run, root, out, *options):
    return main(["predict", str(run), str(root), "--out", str(out), "--quiet", *options])


def test_colour_alone_gives_depth_and_classes(run, tmp_path):
    for number in range(3):
        save(tmp_path / "new", str(number), depth=None, semseg=None, split="test")
    assert predicted(run, tmp_path / "new", tmp_path / "p", "--given", "rgb") == 0
    with open(tmp_path / "p/predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == [f"test/rgb/{n}.jpg" for n in range(3)]
    method = load_run(run).method.eval()
    source = Aligned(Aligned.Config(root=tmp_path / "new", splits=False), {"rgb": method.tokenizer.shapes["rgb"]})
    sample = source.finish({"rgb": source.plain().items[0]["rgb"][None]})
    answers = method.predict(sample)
    assert set(answers) == {"depth", "semseg"}
    with Image.open(tmp_path / "p" / rows[0]["depth"]) as image:
        depth = (np.asarray(image).astype(np.float64) - predicted_files.MIDDLE) / predicted_files.STEP
    np.testing.assert_allclose(depth, answers["depth"][0, 0].clamp(-7.99, 7.99), rtol=0, atol=1e-3)
    with Image.open(tmp_path / "p" / rows[0]["semseg"]) as image:
        np.testing.assert_array_equal(np.asarray(image), answers["semseg"][0])


def test_the_table_says_which_part_of_a_turned_photo_the_maps_are_of(run, tmp_path):
    """Cut out of the upright photo and resized by Pillow alone, it is what the run sees."""
    exif = Image.Exif()
    exif[0x0112] = 6
    ramp = np.linspace(0, 255, 200)[None, :, None] * np.linspace(0.3, 1, 120)[:, None, None] * np.ones(3)
    (tmp_path / "new/rgb").mkdir(parents=True)
    Image.fromarray(ramp.astype(np.uint8)).save(tmp_path / "new/rgb/a.png", exif=exif)
    assert predicted(run, tmp_path / "new", tmp_path / "p", "--given", "rgb") == 0
    with open(tmp_path / "p/predictions.csv", newline="") as file:
        row = next(csv.DictReader(file))
    left, top, width, height = (float(row[f"crop {side}"]) for side in ("left", "top", "width", "height"))
    assert (left, top, width, height) == (0, 40, 120, 120)
    shape = load_run(run).method.tokenizer.shapes["rgb"]
    source = Aligned(Aligned.Config(root=tmp_path / "new", splits=False), {"rgb": shape})
    with Image.open(tmp_path / "new/rgb/a.png") as image:
        upright = ImageOps.exif_transpose(image)
    box = (left, top, left + width, top + height)
    again = np.asarray(upright.resize(shape[:0:-1], Image.Resampling.BICUBIC, box=box), np.int64)
    np.testing.assert_allclose(source.plain().items[0]["rgb"].permute(1, 2, 0).long(), again, rtol=0, atol=1)


def test_they_are_what_the_report_shows(run):
    """`across` makes them of the same mask, with the truth of the others in the batch: it is not looked at."""
    method = load_run(run).method.eval()
    source = Aligned(Aligned.Config(root=SAMPLE), method.tokenizer.shapes)
    held = source.held_out()
    sample = source.finish({name: torch.stack([held[i][name] for i in (0, 5)]) for name in method.tokenizer.shapes})
    shown = across(method, {**sample, "key": torch.arange(2)})
    for name, value in method.predict({"rgb": sample["rgb"]}).items():
        torch.testing.assert_close(value.float(), shown[name]["rgb"].float(), rtol=1e-5, atol=1e-5)


def test_two_of_three_are_given(run, tmp_path):
    items(tmp_path / "new")
    assert predicted(run, tmp_path / "new", tmp_path / "p", "--given", "rgb", "depth", "--data.classes", "64") == 0
    made = sorted(path.name for path in (tmp_path / "p").rglob("*-*.png"))
    assert made == sorted(f"{n}-semseg.png" for _ in range(2) for n in ("1", "2", "1"))


def test_every_sample_has_files_of_its_own(run, tmp_path, capsys):
    long = "x" * 240
    names = ("photo", "photo (1)", "photo (2)", long)
    for name in names:
        save(tmp_path / "new", name, depth=None, semseg=None)
    assert predicted(run, tmp_path / "new", tmp_path / "p", "--given", "rgb") == 0
    assert {path.name for path in (tmp_path / "p").rglob("*-depth.png")} == {
        f"{name[:180]}-depth.png" for name in names
    }
    before = sorted((tmp_path / "new").rglob("*.*"))
    assert predicted(run, tmp_path / "new", tmp_path / "new/made", "--given", "rgb") == 2
    assert "lies in" in capsys.readouterr().err
    assert not (tmp_path / "new/made").exists()
    assert not list((tmp_path / "new").rglob("*-depth.png"))
    assert predicted(run, tmp_path / "new", tmp_path / "new", "--given", "rgb") == 2
    assert "is the folder that is read" in " ".join(capsys.readouterr().err.split())
    assert [path for path in sorted((tmp_path / "new").rglob("*.*")) if ".parts" not in path.parts] == before


def test_features_of_some_modalities(run, tmp_path):
    save(tmp_path / "new", "1", semseg=None)
    out = tmp_path / "f.npz"
    for given in (["rgb"], ["depth"], ["rgb", "depth"]):
        assert main(["embed", str(run), str(tmp_path / "new"), "--out", str(out), "--given", *given, "--quiet"]) == 0
        assert np.load(out)["features"].shape[0] == 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "Which modalities are given? --given names some of"),
        (["--given", "rgb", "depth", "semseg"], "leaves out one that can be predicted: depth, rgb, semseg"),
        (["--given", "rbg"], "Did you mean 'rgb'"),
    ],
)
def test_what_is_given_must_be_said(run, tmp_path, capsys, options, says):
    items(tmp_path / "new")
    assert predicted(run, tmp_path / "new", tmp_path / "p", *options) == 2
    assert says in " ".join(capsys.readouterr().err.split())


def test_pictures_that_lie_there_themselves(run, tmp_path, capsys):
    save(tmp_path / "new", "1", depth=None, semseg=None)
    pictures = tmp_path / "new/train/rgb"
    assert predicted(run, pictures, tmp_path / "p", "--given", "rgb") == 2
    assert "If its files lie there themselves: --data.folders rgb ." in " ".join(capsys.readouterr().err.split())
    assert predicted(run, pictures, tmp_path / "p", "--given", "rgb", "--data.folders", "rgb", ".") == 0


def test_files_are_read_again_as_what_they_are(tmp_path):
    """Written depth and class maps are those that `Aligned` reads."""
    depth = torch.linspace(-3, 3, 64 * 64).reshape(1, 64, 64)
    ids = torch.arange(64).reshape(8, 8).repeat_interleave(2, 0).repeat_interleave(2, 1)
    save(tmp_path, "1", depth=Image.open(io.BytesIO(predicted_files.depth(depth))),
         semseg=Image.open(io.BytesIO(predicted_files.class_map(ids))))  # fmt: skip
    source = Aligned(Aligned.Config(root=tmp_path, splits=False, classes=64),
                     {"rgb": (3, 64, 64), "depth": (1, 64, 64), "semseg": (16, 16)})  # fmt: skip
    item = source.plain().items[0]
    torch.testing.assert_close(item["depth"], depth * predicted_files.STEP + predicted_files.MIDDLE, rtol=0, atol=0.5)
    torch.testing.assert_close(item["semseg"].long(), ids)


def test_without_splits_every_item_counts(tmp_path):
    items(tmp_path)
    whole = Aligned(Aligned.Config(root=tmp_path, splits=False), {"rgb": (3, 64, 64)})
    assert len(whole) == 6
    assert {split_of(name.split("/")[0]) for name in whole.plain().names} == {"train", "test"}
    with pytest.raises(MimError):
        whole.labelled("test")


def test_what_a_sample_lacks_is_not_seen(run, tmp_path):
    """Beside samples that have it, a sample without depth is answered as from colour alone."""
    for number in range(4):
        save(tmp_path / "new", str(number), semseg=None, split="test")
    (tmp_path / "new/test/depth/1.png").unlink()
    assert predicted(run, tmp_path / "new", tmp_path / "rgb", "--given", "rgb") == 0
    both = ["--given", "rgb", "depth", "--data.missing", "mask"]
    assert predicted(run, tmp_path / "new", tmp_path / "both", *both) == 0
    with open(tmp_path / "both/predictions.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 4
    maps = {n: [(tmp_path / d / f"test/rgb/{n}-semseg.png").read_bytes() for d in ("rgb", "both")] for n in range(4)}
    assert maps[1][0] == maps[1][1]
    assert any(one != other for one, other in maps.values()), "depth tells nothing here, so the test shows nothing"
    method = load_run(run).method.eval()
    sample = {name: torch.randn(3, *method.tokenizer.shapes[name]) for name in ("rgb", "depth")}
    seen = method.predict({**sample, "depth.present": torch.tensor([True, False, True])})["semseg"]
    torch.testing.assert_close(seen[[0, 2]], method.predict({n: v[[0, 2]] for n, v in sample.items()})["semseg"])
    torch.testing.assert_close(seen[1:2], method.predict({"rgb": sample["rgb"][1:2]})["semseg"])
