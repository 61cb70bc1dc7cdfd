"""Aligned files that cannot be used, or whose values need care: sizes, class ids, depth, damaged files."""

import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from mim_core.data.loading import KeyedBatches, KeyedDataset, collate, loader
from mim_core.errors import BadSample, MimError
from mim_core.host.loading import installed
from mim_core.methods.build import build_method, make_source
from mim_core.recipes.resolve import load_recipe, override
from mim_multimodal import maps
from mim_multimodal.depth import standardise
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))

from aligned_items import DEPTH, IDS, RGB, SHAPES, SIDE, batch, items, save, source


@pytest.fixture
def root(tmp_path):
    return items(tmp_path)


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
