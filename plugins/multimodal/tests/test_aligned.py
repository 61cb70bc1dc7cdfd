"""Aligned files: which items there are, what is refused, and that all modalities of an item show the same part."""

import io
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from mim_core.data.loading import KeyedBatches, KeyedDataset, Readable, collate, loader
from mim_core.errors import BadSample, MimError
from mim_core.host.loading import installed
from mim_core.methods.build import build_method, make_source
from mim_core.recipes.resolve import load_recipe, override
from mim_multimodal import captions, files, maps, pictures
from mim_multimodal.crops import Cut, centred, nearest, random_resized
from mim_multimodal.data import SAMPLE, Aligned
from mim_multimodal.depth import standardise
from PIL import Image

SIDE = 64
SHAPES = {"rgb": (3, 64, 64), "depth": (1, 64, 64), "semseg": (16, 16)}
Y, X = np.mgrid[:SIDE, :SIDE]
RGB = np.stack([4 * X, 4 * Y, 0 * X], axis=2).astype(np.uint8)
DEPTH = (Y * SIDE + X + 1).astype(np.uint16)
IDS = (Y // 8 * 8 + X // 8).astype(np.uint8)


def save(root, stem, rgb=RGB, depth=DEPTH, semseg=IDS, split="train"):
    """An item whose pictures all tell the coordinates of their pixels."""
    for name, values, ending in (("rgb", rgb, "jpg"), ("depth", depth, "png"), ("semseg", semseg, "png")):
        if values is None:
            continue
        path = root / split / name / f"{stem}.{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = values if isinstance(values, Image.Image) else Image.fromarray(values)
        image.save(path, **({"quality": 95, "subsampling": 0} if ending == "jpg" else {}))


@pytest.fixture
def root(tmp_path):
    for split in ("train", "test"):
        for stem in ("a/1", "a/2", "b/1"):
            save(tmp_path, stem, split=split)
    return tmp_path


def source(root, shapes=None, **options):
    return Aligned(Aligned.Config(root=root, **options), SHAPES if shapes is None else shapes)


def batch(items):
    return {name: torch.stack([item[name] for item in items]) for name in items[0]}


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
    assert source(root).found.test.file("depth", 2) == "val/depth/b/1.png"


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
    found = source(tmp_path).found
    train, test = set(found.train.stems), set(found.test.stems)
    assert 2 <= len(test) <= 16
    assert not train & test
    assert len(train | test) == 40
    assert f"{len(test)} of its 40 items" in found.note
    assert "drawn by their names" in source(tmp_path).plan()["split"]
    assert found.note in source(tmp_path).labelled("test").note
    save(tmp_path, "a/new", split=inside)
    again = source(tmp_path).found
    assert train <= set(again.train.stems)
    assert test <= set(again.test.stems)


def test_two_items_still_have_a_split(tmp_path):
    for number in range(2):
        save(tmp_path, f"{number}", split="")
    found = source(tmp_path).found
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
    assert data.found.train.stems == ("a/1", "b/1")
    assert data.found.test.stems == ("a/1", "a/2")
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


# ---- what is in a file -----------------------------------------------------------------------------------------------


def test_misaligned_sizes_name_both_files_and_both_sizes(root):
    save(root, "a/1", rgb=None, depth=DEPTH[:, :60], semseg=None)
    with pytest.raises(BadSample) as error:
        source(root).read(0, 0)
    assert error.value.path == "train/depth/a/1.png"
    assert "60 x 64" in error.value.reason
    assert "train/rgb/a/1.jpg is 64 x 64" in error.value.reason
    save(root, "a/2", semseg=IDS[:30, :30])
    with pytest.raises(BadSample, match=r"30 x 30.*whole factor"):
        source(root).read(1, 0)
    save(root, "b/1", depth=DEPTH[::2], semseg=None)  # by another factor on each axis
    with pytest.raises(BadSample, match="64 x 32"):
        source(root).read(2, 0)


def test_ids_beyond_the_classes_are_refused(root):
    (root / "classes.txt").write_text("\n".join(f"class {i}" for i in range(60)) + "\n")
    with pytest.raises(BadSample) as error:
        source(root).read(0, 0)
    assert error.value.path == "train/semseg/a/1.png"
    assert "the id 63" in error.value.reason
    assert "60 classes" in error.value.reason
    (root / "classes.txt").write_text("\n".join(f"class {i}" for i in range(64)) + "\n")
    data = source(root)
    data.read(0, 0)
    assert data.classes[63] == "class 63"
    assert data.plan()["classes"] == "64"
    with pytest.raises(MimError, match=r"classes is 10, but .* names 64"):
        source(root, classes=10)


def test_names_of_classes_that_cannot_be_read(root):
    for content, words in ((b"\xff\xfe\xfa", "not UTF-8"), (b"\n\n", "is empty")):
        (root / "classes.txt").write_bytes(content)
        with pytest.raises(MimError, match=words):
            source(root)
    (root / "classes.txt").write_bytes(b"\xef\xbb\xbfwall\r\nfloor\r\n")
    assert source(root).classes == ("wall", "floor")


def test_the_number_of_classes_may_be_an_option(root):
    for classes in (20, 63):
        with pytest.raises(BadSample, match=f"the id 63, but there are {classes} classes, ids 0 to {classes - 1}"):
            source(root, classes=classes).read(0, 0)
    source(root, classes=64).read(0, 0)
    assert "not checked" in source(root).plan()["classes"]
    with pytest.raises(MimError, match="255 means no class"):
        source(root, classes=256)


def test_without_names_the_tokenizer_says_how_many_classes_there_are(root):
    """As the loop does it, which tells the source the tokenizer's ids."""
    tables = {"data": {"root": str(root)}, "semseg": {"tokenizer": {"classes": 60}}}
    run = override(load_recipe("multimodal:multimae-vit-tiny", installed(), twin=True), tables, "t", installed())
    data = make_source(run, build_method(run))
    with pytest.raises(BadSample, match="the id 63, but there are 60 classes") as error:
        data.read(0, 0)
    assert error.value.path == "train/semseg/a/1.png"
    assert data.plan()["classes"].startswith("60, as the tokenizer has")


def test_255_is_no_class_and_stays(root):
    ids = IDS.copy()
    ids[:, ::2] = 255
    save(root, "a/1", semseg=ids)
    data = source(root, {**SHAPES, "semseg": (64, 64)}, classes=64)
    done = data.finish(batch([data.read(0, 0)]))["semseg"]
    assert done.dtype == torch.int64
    assert (done == 255).float().mean() > 0.2
    assert done[done != 255].max() < 64


def test_ids_of_16_bits_and_of_palettes(root):
    palette = Image.fromarray(IDS)
    palette.putpalette([255 - i // 3 for i in range(768)])
    assert palette.mode == "P"
    shapes = {**SHAPES, "semseg": (64, 64)}
    plain = source(root, shapes).read(0, 5)["semseg"]
    for semseg in (palette, IDS.astype(np.uint16)):
        save(root, "a/1", semseg=semseg)
        assert torch.equal(source(root, shapes).read(0, 5)["semseg"], plain)
    save(root, "a/1", semseg=IDS.astype(np.uint16) + 300)
    with pytest.raises(BadSample, match="the id 363"):
        source(root, shapes).read(0, 5)
    save(root, "a/1", semseg=RGB)
    with pytest.raises(BadSample, match=r"a map of class ids .*grey .*colour picture"):
        source(root, shapes).read(0, 5)


@pytest.mark.parametrize(
    ("depth", "words"),
    [
        (RGB, "colour picture"),
        (np.dstack([RGB, RGB[..., :1]]), "colour picture"),
        (Image.fromarray(IDS).convert("P"), "palette"),
        (Image.fromarray(IDS > 9), "black and white"),
    ],
)
def test_depth_maps_are_grey(root, depth, words):
    save(root, "a/1", depth=depth)
    with pytest.raises(BadSample, match=words) as error:
        source(root).read(0, 0)
    assert error.value.path == "train/depth/a/1.png"


def test_grey_of_few_bits_is_refused_because_readers_stretch_it(tmp_path):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    path = tmp_path / "few.png"
    rows = b"".join(b"\0\x12\x34" for _ in range(4))
    head = struct.pack(">IIBBBBB", 4, 4, 4, 0, 0, 0, 0)
    parts = [chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    with pytest.raises(ValueError, match="4 bits is stretched"):
        maps.read_ids(path)


def test_depth_of_another_bit_depth_is_refused_where_one_is_asked(root):
    with pytest.raises(BadSample, match="16 bits, and depth_bits wants 8 bits") as error:
        source(root, depth_bits=8).read(0, 0)
    assert error.value.path == "train/depth/a/1.png"
    source(root, depth_bits=16).read(0, 0)
    save(root, "a/1", depth=IDS)
    with pytest.raises(BadSample, match="8 bits, and depth_bits wants 16 bits"):
        source(root, depth_bits=16).read(0, 0)
    source(root).read(0, 0)
    assert source(root, depth_bits=16).plan()["depth maps"] == "16 bits"
    assert source(root).plan()["depth maps"].startswith("8 bits in train/depth/a/1.png")
    with pytest.raises(ValueError, match="8 or 16"):
        source(root, depth_bits=12)


def test_depth_of_16_bits_keeps_every_value(root):
    """Values above 32,767 and 255 neither wrap nor are cut."""
    depth = (DEPTH.astype(np.int64) * 16 - 1).astype(np.uint16)
    save(root, "a/1", depth=depth, split="test")
    raw = source(root).dense("test")[0]["depth_raw"]
    assert raw.dtype == torch.float32
    assert torch.equal(raw[0], torch.from_numpy(depth.astype(np.float32)))


@pytest.mark.parametrize("kind", ["npy", "tif", "npy16"])
def test_depth_of_floats(root, kind):
    depth = DEPTH.astype(np.float32) / 7
    depth[0, :3] = np.nan, np.inf, -np.inf
    (root / "test" / "depth" / "a" / "1.png").unlink()
    path = root / "test" / "depth" / "a" / f"1.{kind[:3]}"
    if kind == "tif":
        Image.fromarray(depth).save(path)
    elif kind == "npy":
        np.save(path, depth[..., None])
    else:
        depth = DEPTH.astype(np.float32)
        np.save(path, DEPTH)
    raw = source(root).dense("test")[0]["depth_raw"][0]
    wanted = torch.from_numpy(np.where(np.isfinite(depth), depth, -1))
    assert torch.equal(raw.where(~raw.isnan(), -1), wanted)
    wanted = "floats, and depth_bits wants 8" if kind != "npy16" else "16 bits, and depth_bits wants 8"
    with pytest.raises(BadSample, match=wanted):
        source(root, depth_bits=8).dense("test")[0]


def test_depth_arrays_that_are_none(root):
    (root / "train" / "depth" / "a" / "1.png").unlink()
    path = root / "train" / "depth" / "a" / "1.npy"
    for values, words in (
        (RGB, r"\[64, 64, 3\]"),
        (DEPTH > 9, "bool"),
        (DEPTH * 1j, "complex128"),
        (np.zeros((0, 4)), r"\[0, 4\]"),
    ):
        np.save(path, values)
        with pytest.raises(BadSample, match=words):
            source(root).read(0, 0)
    path.write_bytes(b"no array")
    with pytest.raises(BadSample, match=r"numpy\.save"):
        source(root).read(0, 0)


@pytest.mark.parametrize("modality", ["rgb", "depth", "semseg"])
def test_a_broken_file_is_named(root, modality):
    path = next((root / "train" / modality / "a").glob("1.*"))
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(BadSample) as error:
        source(root).read(0, 0)
    assert error.value.path == f"train/{modality}/a/{path.name}"


def test_a_bad_item_is_replaced_and_reported(root):
    save(root, "a/1", rgb=None, depth=DEPTH[:, :60], semseg=None)
    data = source(root)
    runs = list(loader(KeyedDataset(data), KeyedBatches(3, 3, 0, 0, 3), 0, collate))
    assert [path for path, _ in runs[0].skipped] == ["train/depth/a/1.png"]
    assert len(runs[0].sample["rgb"]) == 3


# ---- finish ----------------------------------------------------------------------------------------------------------


def test_depth_is_standardised_by_its_middle_values():
    x = torch.randn(3, 1, 10, 10, generator=torch.Generator().manual_seed(0)) * 50 + 300
    x[1, 0, :3] = torch.nan
    done = standardise(x)
    for depth, out in zip(x, done, strict=True):
        values = depth[~depth.isnan()].double().sort().values
        middle = values[len(values) // 10 : len(values) * 9 // 10]
        wanted = (depth.double() - middle.mean()) / (middle.var(unbiased=True) + 1e-6).sqrt()
        assert torch.allclose(out.double(), wanted.nan_to_num(0.0), atol=1e-4)
    assert (done[1, 0, :3] == 0).all()


def test_depth_with_few_or_no_measurements_is_finite():
    x = torch.full((4, 1, 4, 4), torch.nan)
    x[1, 0, 0, 0] = 70
    x[2] = 5
    x[3, 0, 0, :2] = torch.tensor([1.0, 3.0])
    done = standardise(x)
    assert done.isfinite().all()
    assert (done[:3] == 0).all()


def test_no_measurement_is_zero_in_files_of_16_bits_only(root):
    depth = DEPTH.copy()
    depth[:8] = 0
    save(root, "a/1", depth=depth, split="test")
    data = source(root)
    item = data.dense("test")[0]
    assert item["depth_raw"][0, :8].isnan().all()
    assert not item["depth_raw"][0, 8:].isnan().any()
    done = data.finish(batch([item]))
    assert (done["depth"][0, 0, :8] == 0).all()
    assert done["depth"].isfinite().all()
    clean = standardise(torch.from_numpy(depth[8:].astype(np.float32))[None, None])
    assert torch.allclose(done["depth"][0, :, 8:], clean[0], atol=1e-4)
    assert torch.equal(done["depth_raw"].nan_to_num(0), item["depth_raw"][None].nan_to_num(0))
    assert not source(root, depth_invalid=-1).dense("test")[0]["depth_raw"].isnan().any()
    assert (source(root, depth_invalid=4000).dense("test")[0]["depth_raw"].isnan()).sum() == 1
    grey = np.zeros((SIDE, SIDE), np.uint8)
    grey[:4] = 9
    save(root, "a/1", depth=grey, split="test")
    assert not source(root).dense("test")[0]["depth_raw"].isnan().any()


def test_colours_are_normalised_and_come_back(root):
    data = source(root, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    read = batch([data.read(0, 1)])
    done = data.finish(read)
    wanted = (read["rgb"][0, 1].float() / 255 - 0.2) / 0.6
    assert done["rgb"].dtype == torch.float32
    assert torch.allclose(done["rgb"][0, 1], wanted, atol=1e-6)
    small = source(root, {"rgb": (3, 32, 32)})
    sample = small.finish(batch([small.read(0, 1)]))
    assert torch.allclose(small.raw(sample).reshape(3, 32, 32) * 255, small.read(0, 1)["rgb"].float(), atol=1e-3)
    assert data.raw({"rgb": done["rgb"]}).shape == (1, 3 * 32 * 32)


# ---- evaluation ------------------------------------------------------------------------------------------------------


def test_labels_by_class_folders_of_both_splits(root):
    save(root, "Z/1")
    save(root, "b/1", depth=DEPTH[::-1])
    data = source(root)
    train, test = data.labelled("train"), data.labelled("test")
    assert train.classes == test.classes == ("a", "b")
    assert train.labels.tolist() == test.labels.tolist() == [0, 0, 1]
    assert len(train.items) == 3
    assert "1 items have no label that occurs in both splits" in train.note
    item = train.items[2]
    assert {"rgb", "depth", "depth_raw", "semseg", "index"} == set(item)
    assert torch.equal(item["depth_raw"][0], torch.from_numpy(DEPTH[::-1].astype(np.float32)))
    assert data.read_labelled(2, 5)["label"] == 1
    again = data.read(3, 5)
    assert all(torch.equal(data.read_labelled(2, 5)[name], again[name]) for name in again)


def test_labels_by_a_table(root):
    lines = [
        f"{s}/rgb/{stem}.jpg,{label}"
        for s in ("train", "test")
        for stem, label in (("a/1", "monster"), ("a/2", ""), ("b/1", "barrel"))
    ]
    (root / "labels.csv").write_text("path,group\n" + "\n".join(lines) + "\n")
    split = source(root).labelled("test")
    assert split.classes == ("barrel", "monster")
    assert split.labels.tolist() == [1, 0]
    assert len(split.items) == 2
    assert "2 items have no label" in split.note
    (root / "labels.csv").write_text("path,label\na/1,x\na/2,x\nb/1,y\n")
    assert source(root).labelled("train").labels.tolist() == [0, 0, 1]
    (root / "labels.csv").write_text("path,label\nz/1,x\n")
    with pytest.raises(MimError, match="labels none of the items"):
        source(root)
    (root / "labels.csv").write_text("path\nz/1\n")
    with pytest.raises(MimError, match="cannot be read"):
        source(root)


def test_without_classes_there_are_dense_items_only(tmp_path):
    for split in ("train", "test"):
        save(tmp_path, "only/1", split=split)
        save(tmp_path, "2", split=split)
    data = source(tmp_path)
    with pytest.raises(MimError, match="no classes of items"):
        data.labelled("train")
    assert len(data.dense("train")) == 2
    with pytest.raises(MimError, match="Unknown split"):
        data.dense("val")


def test_dense_items_have_depth_and_ids_whatever_the_tokenizers_want(root):
    data = source(root, {"rgb": (3, 32, 32)})
    item = data.dense("test")[1]
    assert {"rgb", "depth", "depth_raw", "semseg", "index"} == set(item)
    assert item["depth_raw"].shape == (1, 32, 32)
    assert item["semseg"].shape == (8, 8)
    assert item["index"] == 1
    both = source(root, {"rgb": (3, 32, 32), "semseg": (8, 8)}).dense("test")[1]
    assert torch.equal(both["semseg"], item["semseg"])
    fine = source(root, {"rgb": (3, 32, 32), "semseg": (32, 32)}).dense("test")[1]
    assert fine["semseg"].shape == (32, 32)
    sample = Readable.collate([Readable(data.dense("test"))[i] for i in range(3)])
    assert data.finish(sample)["depth"].mean().abs() < 0.1
    for split in ("train", "test"):
        for name in ("depth", "semseg"):
            (root / split / name).rename(root / split / f"no {name}")
    with pytest.raises(MimError, match="no depth and no semseg"):
        data = source(root, {"rgb": (3, 32, 32)}).dense("test")


@pytest.mark.parametrize(
    "shapes",
    [
        {"rgb": (1, 8, 8)},
        {"depth": (8, 8)},
        {"video": (3, 8, 8)},
        {"caption": (8,)},
        {"rgb": (3, 8, 8), "depth": (1, 8, 4)},
    ],
)
def test_shapes_that_cannot_be_given_are_refused(root, shapes):
    with pytest.raises(ValueError, match="tokenizers want"):
        source(root, shapes)


@pytest.mark.parametrize(
    "options",
    [{"area": (0.5, 0.2)}, {"ratio": (0.0, 1.0)}, {"flip": 2.0}, {"evaluate_crop": 0.0}, {"std": (1.0, 0.0, 1.0)}],
)
def test_options_that_make_no_sense_are_refused(root, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        source(root, **options)


def test_the_source_is_found_by_its_name():
    assert installed().get("data", "multimodal:aligned").resolve() is Aligned


# ---- captions --------------------------------------------------------------------------------------------------------


def captioned(root, text="A green  monster\nin a hall"):
    for split in ("train", "test"):
        for stem in ("a/1", "a/2", "b/1"):
            path = root / split / "caption" / f"{stem}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    return root


CAPTIONED = {"rgb": (3, 32, 32), "caption": (12,)}


def test_captions_without_open_clip_say_what_to_install(root, monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(MimError, match=r"pip install \"mim-multimodal\[clip\]\""):
        source(captioned(root), CAPTIONED)
    source(root, {"rgb": (3, 32, 32)})


def test_captions_are_tokens_with_their_end_kept(root):
    open_clip = pytest.importorskip("open_clip")
    data = source(captioned(root), CAPTIONED)
    ids = data.read(0, 0)["caption"]
    wanted = open_clip.get_tokenizer("ViT-B-32")(["a green monster in a hall"], context_length=12)[0]
    assert ids.dtype == torch.int64
    assert torch.equal(ids, wanted)
    assert ids[-1] == 0
    end = ids.max()
    cut = captions.encode_caption("one two three four five six seven", 5)
    assert cut[-1] == end
    assert cut[0] == ids[0]
    assert len(cut) == 5
    assert captions.decode_caption(ids.tolist()) == "a green monster in a hall"
    assert captions.decode_caption([*ids[:3].tolist(), 49408, int(end)]) == "a green _"
    assert data.picture("caption", ids).media_type == "image/png"
    with pytest.raises(ValueError, match="room"):
        captions.encode_caption("x", 2)
    captioned(root, "  \n")
    with pytest.raises(BadSample, match="empty"):
        data.read(0, 0)


# ---- pictures --------------------------------------------------------------------------------------------------------


def pixels(picture):
    return np.asarray(Image.open(io.BytesIO(picture.content)).convert("RGB")).astype(int)


def test_pictures_of_every_modality(root):
    data = source(root, {**SHAPES, "semseg": (64, 64)})
    sample = data.finish(batch([data.dense("test")[0]]))
    rgb = pixels(data.picture("rgb", sample["rgb"][0]))
    assert rgb.shape == (128, 128, 3)
    assert abs(rgb[::2, ::2] - RGB.astype(int)).max() <= 6
    depth = pixels(data.picture("depth", sample["depth"][0]))
    assert depth[0].sum() > depth[-1].sum()  # near is bright, and depth rises downwards
    ids = sample["semseg"][0].clone()
    ids[0, :2] = torch.tensor([255, 300])
    shown = pixels(data.picture("semseg", ids))
    assert shown[0, 0].tolist() == shown[0, 2].tolist() == list(pictures.NONE)
    assert shown[10, 10].tolist() == pictures.palette()[0].tolist()
    assert len({tuple(row) for row in pictures.palette().tolist()}) > 240


# ---- the bundled sample ----------------------------------------------------------------------------------------------


def test_the_bundled_sample(tmp_path, monkeypatch):
    if not (SAMPLE / "labels.csv").exists():
        pytest.skip("the sample is not there yet")
    monkeypatch.chdir(tmp_path)
    data = source(Path("sample"))
    assert len(data) == 960
    assert len(data.dense("test")) == 240
    assert len(data.classes) == 14
    split = data.labelled("test")
    assert len(split.classes) >= 2
    assert len(split.labels) > 50
    for index in range(0, 960, 97):
        data.read(index, index)
