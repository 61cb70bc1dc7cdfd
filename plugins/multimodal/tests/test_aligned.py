"""Aligned files: which items there are, and that all modalities of an item show the same part."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mim_core.data.loading import KeyedBatches, KeyedDataset, collate, loader
from mim_core.errors import BadSample, MimError
from mim_multimodal import files
from mim_multimodal.crops import Cut, centred, nearest, random_resized
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))

from aligned_items import DEPTH, IDS, RGB, SHAPES, SIDE, batch, items, save, source


@pytest.fixture
def root(tmp_path):
    return items(tmp_path)


# ---- alignment -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [1, 4])
@pytest.mark.parametrize("key", range(12))
def test_all_modalities_show_the_same_part_after_crop_and_flip(root, key, factor):
    save(root, "a/1", semseg=IDS[::factor, ::factor])
    data = source(root)
    read = data.read(0, key)
    assert read["rgb"].dtype == torch.uint8
    assert read["semseg"].dtype == torch.uint8
    place = read["depth"][0].long() - 1
    y, x = place // SIDE, place % SIDE
    inside = slice(2, -2)  # bicubic weights reach beyond the picture's edge nowhere else
    for channel, where in ((0, x), (1, y)):
        off = (read["rgb"][channel].float() - 4 * where.float()).abs()
        assert off[inside, inside].max() <= 8  # two pixels of 64; JPEG, bicubic and nearest together
    here = (y // 8 * 8 + x // 8).reshape(16, 4, 16, 4)[:, 1:3, :, 1:3].transpose(1, 2).flatten(2)
    if factor == 1:
        assert (here == read["semseg"].long()[..., None]).any(dim=2).all()
    else:  # a coarse map's pixel may lie up to four pixels off where an id ends
        assert (here == read["semseg"].long()[..., None]).any(dim=2).float().mean() > 0.7


def test_some_draws_flip_and_crops_differ(root):
    reads = [source(root).read(0, key)["depth"][0] for key in range(16)]
    flipped = [bool(depth[0, 0] > depth[0, -1]) for depth in reads]
    assert 2 < sum(flipped) < 14
    assert len({tuple(depth[[0, -1], [0, -1]].tolist()) for depth in reads}) > 12
    for option, wanted in ((0.0, 0), (1.0, 16)):
        reads = [source(root, flip=option).read(0, key)["depth"][0] for key in range(16)]
        assert sum(bool(depth[0, 0] > depth[0, -1]) for depth in reads) == wanted


def test_a_coarse_output_shows_the_same_region(root):
    """At every resolution the corners of what is shown are the same, to half an output pixel."""
    fine, coarse = source(root), source(root, {"depth": (1, 16, 16)})
    for key in range(6):
        a, b = fine.read(0, key)["depth"][0].long() - 1, coarse.read(0, key)["depth"][0].long() - 1
        blocks = a.reshape(16, 4, 16, 4)
        for part in (lambda v: v // SIDE, lambda v: v % SIDE):
            assert (part(blocks[:, 1:3, :, 1:3]).amin(dim=(1, 3)) <= part(b)).all()
            assert (part(blocks[:, 1:3, :, 1:3]).amax(dim=(1, 3)) >= part(b)).all()


def test_evaluation_is_centred_and_never_flipped(root):
    wide = np.tile(np.arange(96, dtype=np.uint8), (64, 1))
    save(root, "a/1", rgb=np.stack([wide * 2] * 3, axis=2), depth=wide, semseg=wide, split="test")
    shapes = {**SHAPES, "semseg": (64, 64)}
    item = source(root, shapes, missing="refuse", classes=None).labelled("test").items[0]
    assert item["depth"][0, 0].tolist() == list(range(16, 80))
    assert item["semseg"][0].tolist() == list(range(16, 80))
    assert (item["rgb"][0, 5].float() / 2 - item["depth"][0, 5]).abs().max() <= 2
    half = source(root, shapes, evaluate_crop=0.5).labelled("test").items[0]
    assert half["depth"].unique().tolist() == list(range(32, 64))


def test_random_boxes_have_the_area_and_the_ratio_that_are_asked():
    generator = np.random.default_rng(0)
    for _ in range(200):
        box = random_resized((90, 120), (30, 40), (0.3, 0.5), (0.8, 1.25), generator.random(41).tolist())
        assert 0.28 < box.height * box.width / (90 * 120) < 0.52
        assert 0.77 < box.width / box.height / (40 / 30) < 1.3
        assert 0 <= box.top <= box.top + box.height <= 90
        assert 0 <= box.left <= box.left + box.width <= 120
    assert random_resized((4, 400), (8, 8), (0.9, 1), (0.9, 1.1), [0.5] * 41) == centred((4, 400), (8, 8))


def test_nearest_takes_the_pixel_under_the_middle():
    values = np.arange(16, dtype=np.float32).reshape(4, 4)
    whole = centred((4, 4), (4, 4))
    assert torch.equal(nearest(values, Cut((4, 4), whole), (4, 4)), torch.from_numpy(values))
    assert nearest(values, Cut((4, 4), whole, flip=True), (4, 4))[0].tolist() == [3, 2, 1, 0]
    assert nearest(values, Cut((8, 8), centred((8, 8), (8, 8))), (2, 2)).tolist() == [[5, 7], [13, 15]]


def test_exif_turns_colour_upright_before_sizes_are_compared(root):
    tall = Image.fromarray(RGB[:, :32])
    turned = tall.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[files.ORIENTATION] = 6  # shown turned by 270 degrees against the clock
    path = root / "train" / "rgb" / "a" / "1.jpg"
    turned.save(path, exif=exif, quality=95, subsampling=0)
    save(root, "a/1", rgb=None, depth=DEPTH[:, :32], semseg=IDS[:, :32])
    item = source(root, area=(1.0, 1.0), ratio=(0.5, 0.5), flip=0.0).read(0, 0)
    where = item["depth"][0].long() - 1
    assert (item["rgb"][1].float() - 4 * (where // SIDE)).abs()[2:-2, 2:-2].max() <= 8
    save(root, "a/1", rgb=None)
    with pytest.raises(BadSample, match="32 x 64 pixels after its EXIF turn"):
        source(root).read(0, 0)


# ---- draws -----------------------------------------------------------------------------------------------------------


def test_draws_follow_from_the_key_alone(root):
    a, b = source(root), source(root)
    b.read(1, 99)
    torch.manual_seed(123)
    first, again = a.read(0, 7), b.read(0, 7)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["depth"], a.read(0, 8)["depth"])


@pytest.mark.parametrize("missing", [False, True])
def test_workers_change_nothing(root, missing):
    if missing:
        (root / "train" / "depth" / "b" / "1.png").unlink()
    data = source(root, missing="mask")
    runs = []
    for workers in (0, 2):
        batches = KeyedBatches(len(data), 4, seed=3, first=0, last=16)
        runs.append([found.sample for found in loader(KeyedDataset(data), batches, workers, collate, wait=60)])
    assert len(runs[0]) == len(runs[1]) == 4
    for a, b in zip(*runs, strict=True):
        assert list(a) == list(b)
        assert all(torch.equal(a[n].nan_to_num(-1), b[n].nan_to_num(-1)) for n in a)


# ---- which items there are -------------------------------------------------------------------------------------------


def test_items_of_splits_in_the_order_of_names(root):
    data = source(root)
    assert len(data) == 3
    assert [data.name_of(i) for i in range(3)] == [f"train/rgb/{stem}.jpg" for stem in ("a/1", "a/2", "b/1")]
    (root / "test").rename(root / "val")
    assert source(root).collection.test.file("depth", 2) == "val/depth/b/1.png"


def test_folders_may_have_other_names(root):
    for split in ("train", "test"):
        (root / split / "semseg").rename(root / split / "semseg_coco")
    with pytest.raises(MimError) as error:
        source(root)
    assert "no folder 'semseg'" in str(error.value)
    assert "--data.folders semseg semseg_coco" in str(error.value)
    assert len(source(root, folders={"semseg": "semseg_coco"})) == 3
    with pytest.raises(ValueError, match="not for normals"):
        source(root, folders={"normals": "x"})


def test_only_wanted_modalities_count(root):
    (root / "train" / "depth" / "a" / "1.png").unlink()
    data = source(root, {"rgb": (3, 32, 32)})
    assert set(data.read(0, 0)) == {"rgb"}
    assert len(data) == 3
    assert set(source(root, {"semseg": (16, 16)}).read(0, 0)) == {"semseg"}


@pytest.mark.parametrize("inside", ["", "train"])
def test_without_a_held_out_split_one_is_drawn_by_names(tmp_path, inside):
    for number in range(40):
        save(tmp_path, f"{'ab'[number % 2]}/{number}", split=inside)
    found = source(tmp_path).collection
    train, test = set(found.train.stems), set(found.test.stems)
    assert 2 <= len(test) <= 16
    assert not train & test
    assert len(train | test) == 40
    assert f"{len(test)} of its 40 items" in found.note
    assert "drawn by their names" in source(tmp_path).plan()["split"]
    assert found.note in source(tmp_path).labelled("test").note
    save(tmp_path, "a/new", split=inside)
    again = source(tmp_path).collection
    assert train <= set(again.train.stems)
    assert test <= set(again.test.stems)


def test_two_items_still_have_a_split(tmp_path):
    for number in range(2):
        save(tmp_path, f"{number}", split="")
    found = source(tmp_path).collection
    assert len(found.train) == len(found.test) == 1


def test_what_cannot_be_found_is_said(tmp_path, root):
    with pytest.raises(MimError, match="Which files"):
        source(None)
    with pytest.raises(MimError, match="does not exist"):
        source(root / "nowhere")
    (root / "train").rename(root / "other")
    with pytest.raises(MimError, match="test/ but no train/"):
        source(root)
    (root / "train" / "rgb").mkdir(parents=True)
    (root / "train" / "rgb" / "x.heic").touch()
    with pytest.raises(MimError, match=r"No rgb in .*rgb: it has 1 x .heic. Read there are .jpg"):
        source(root, {"rgb": (3, 8, 8)})


def test_two_files_for_one_item_are_refused(root):
    Image.fromarray(RGB).save(root / "train" / "rgb" / "a" / "1.webp")
    with pytest.raises(MimError, match="two files for the item 'a/1'"):
        source(root)


# ---- a missing file --------------------------------------------------------------------------------------------------


def test_a_missing_file_is_refused_and_named(root):
    (root / "train" / "depth" / "a" / "2.png").unlink()
    with pytest.raises(MimError) as error:
        source(root)
    text = str(error.value)
    assert "train/depth/a/2.png" in text
    assert "--data.missing skip" in text
    assert "--data.missing mask" in text


def test_an_item_with_a_missing_file_is_left_out_and_counted(root):
    (root / "train" / "depth" / "a" / "2.png").unlink()
    (root / "test" / "rgb" / "b" / "1.jpg").unlink()
    data = source(root, missing="skip")
    assert data.collection.train.stems == ("a/1", "b/1")
    assert data.collection.test.stems == ("a/1", "a/2")
    assert data.plan()["missing files"] == "rgb of 1, depth of 1; 2 items are left out"
    assert not any(name.endswith("present") for name in data.read(0, 0))


def test_an_item_with_a_missing_file_is_kept_with_the_modality_hidden(root):
    (root / "train" / "depth" / "a" / "2.png").unlink()
    (root / "train" / "semseg" / "a" / "1.png").unlink()
    data = source(root, missing="mask")
    assert len(data) == 3
    assert data.name_of(1) == "train/rgb/a/2.jpg"
    assert data.plan()["missing files"] == "depth of 1, semseg of 1; these items are kept, and what they lack is hidden"
    sample = data.finish(batch([data.read(i, i) for i in range(3)]))
    assert sample["depth.present"].tolist() == [True, False, True]
    assert sample["semseg.present"].tolist() == [False, True, True]
    assert "rgb.present" not in sample
    assert (sample["depth"][1] == 0).all()
    assert (sample["semseg"][0] == 255).all()
    assert sample["depth"].isfinite().all()
    assert len(data.dense("train")) == 1  # both are needed there


def test_a_split_without_a_modality_is_hidden_or_refused(root):
    (root / "test" / "depth").rename(root / "test" / "other")
    for missing in ("refuse", "skip"):
        with pytest.raises(MimError, match="no folder 'depth'"):
            source(root, missing=missing)
    item = source(root, missing="mask").labelled("test").items[0]
    assert not item["depth.present"]
    assert item["depth_raw"].isnan().all()
    (root / "train" / "depth").rename(root / "train" / "other")
    with pytest.raises(MimError, match="no folder 'depth'"):
        source(root, missing="mask")


def test_nothing_that_is_whole(root):
    for path in (root / "train" / "depth").glob("*/*.png"):
        path.unlink()
    for missing in ("refuse", "skip"):
        with pytest.raises(MimError, match="No depth in") as error:
            source(root, missing=missing)
        assert "--data.missing" not in str(error.value)
