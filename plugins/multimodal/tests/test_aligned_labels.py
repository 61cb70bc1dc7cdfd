"""Aligned data beyond reading: labels, dense items, captions, pictures, the bundled sample."""

import io
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mim_core.data.loading import Readable
from mim_core.errors import BadSample, MimError
from mim_core.host.loading import installed
from mim_multimodal import captions, pictures
from mim_multimodal.data import SAMPLE, Aligned
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))

from aligned_items import DEPTH, RGB, SHAPES, batch, items, save, source


@pytest.fixture
def root(tmp_path):
    return items(tmp_path)


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
