"""Tar files of images as webdataset names them: what is found, its classes and its splits."""

import io
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from mim_core.data.collections import split_in
from mim_core.errors import MimError
from mim_core.testing import DataContract
from mim_image.data import Images
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))

from shard_files import add, names, picture, samples, write


class TestShardContract(DataContract):
    part = "image:images"
    shapes = {"image": (3, 24, 20)}

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path):
        for shard in range(2):
            write(tmp_path / f"{shard}.tar", samples(range(shard * 10, shard * 10 + 10)))
        self.root, self.options = tmp_path, {"root": tmp_path}

    def make_broken(self):
        write(self.root / "2.tar", [("a.png", picture()[:300]), ("a.cls", b"1")])
        return Images(Images.Config(root=self.root), self.shapes), 20, "2.tar/a.png"


# ---- what is read ----------------------------------------------------------------------------------------------------


def test_the_same_pixels_as_loose_files(tmp_path, images):
    """Whatever the format, the names and the mode, large JPEGs too, which are decoded small."""
    kinds = {"a.png": "png", "deep/b.JPG": "jpeg", "c.webp": "webp", "d.tif": "tiff"}
    contents = {name: picture(i, (1300, 900), kind) for i, (name, kind) in enumerate(kinds.items())}
    write(tmp_path / "tars/x.tar", contents.items())
    for name, content in contents.items():
        path = tmp_path / "loose/x.tar" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    tars, loose = images(root=tmp_path / "tars"), images(root=tmp_path / "loose")
    assert sorted(names(tars)) == sorted(names(loose)) == sorted(f"x.tar/{name}" for name in kinds)
    for i, name in enumerate(names(tars)):
        other = names(loose).index(name)
        assert torch.equal(tars.read(i, 7)["image"], loose.read(other, 7)["image"])


def test_large_jpegs_are_decoded_small(tmp_path, images, monkeypatch):
    write(tmp_path / "x.tar", [("a.jpg", picture(0, (2048, 2048), "jpeg"))])
    sizes = []
    source = images(size=(64, 64), crop=(0.25, 1.0))
    monkeypatch.setattr(
        "mim_image.data.convert_mode", lambda image, *rest: sizes.append(image.size) or image.convert("RGB")
    )
    source.read(0, 1)
    assert sizes == [(256, 256)]


def test_nested_shards_in_the_order_of_names_and_members(tmp_path, images):
    write(tmp_path / "b.tar", [("2.png", picture()), ("1.png", picture())])
    write(tmp_path / "a/z.TAR", [("./x/1.png", picture()), ("/1.v2/2.png", picture())])
    write(tmp_path / "empty.tar", [])
    write(tmp_path / ".hidden.tar", [("1.png", picture())])
    source = images()
    assert names(source) == ["a/z.TAR/x/1.png", "a/z.TAR/1.v2/2.png", "b.tar/2.png", "b.tar/1.png"]
    assert source.plan()["data"] == f"{tmp_path}: 4 images in 3 shards for training, no classes"
    (said,) = source.advice()
    assert "without any file in it, though perhaps of the right size (empty.tar)" in said


def test_one_tar_file_as_the_root(tmp_path, images):
    path = write(tmp_path / "one.tar", samples(range(10)))
    write(tmp_path / "other.tar", samples(range(3)))
    source = images(root=path)
    assert names(source) == [f"one.tar/{i:03}.png" for i in range(10)]
    assert source.plan()["data"] == f"{path}: 10 images in 1 shard for training, 2 classes"
    assert source.read(9, 1)["image"].shape == (3, 8, 8)


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_of_every_kind(tmp_path, images, kind):
    long = "d" * 90 + "/" + "n" * 90 if kind == tarfile.USTAR_FORMAT else "é" * 40 + "n" * 150
    write(tmp_path / "x.tar", [(f"{long}.png", picture(1)), ("2.png", picture(2))], format=kind)
    write(tmp_path / "y.tar", [(f"{long}.png", picture(1))], format=kind)
    source = images(size=(30, 40), crop=(1.0, 1.0))
    assert names(source) == [f"x.tar/{long}.png", "x.tar/2.png", f"y.tar/{long}.png"]  # equal keys both count
    assert torch.equal(source.read(0, 1)["image"], source.read(2, 1)["image"])


def test_folders_hidden_members_links_and_other_files(tmp_path, images):
    with tarfile.open(tmp_path / "x.tar", "w") as file:
        add(file, "deep", type=tarfile.DIRTYPE)
        add(file, "folder.png", type=tarfile.DIRTYPE)
        add(file, "deep/1.png", picture(1))
        add(file, "deep/._1.png", b"a Mac's")
        add(file, ".thumbs/1.png", picture(2))
        add(file, "hard.png", type=tarfile.LNKTYPE, linkname="deep/1.png")
        add(file, "soft.png", type=tarfile.SYMTYPE, linkname="deep/1.png")
        add(file, "holes.png", picture(3), pax_headers={"GNU.sparse.map": "0,512"})
        add(file, "text.txt", type=tarfile.SYMTYPE, linkname="deep/1.png")
        add(file, "deep/1.json", b"{}")
        add(file, "readme.txt", b"none")
    source = images()
    assert names(source) == ["x.tar/deep/1.png"]
    (said,) = source.advice()
    assert said == (
        f"left out of the shards in {tmp_path}: 3 links and sparse files (the first: x.tar/hard.png), "
        "1 sample without an image (the first: x.tar/readme)."
    )


def test_of_several_images_the_shortest_ending(tmp_path, images):
    members = [("1.seg.png", picture(1)), ("1.jpg", picture(2, kind="jpeg")), ("1.webp", picture(3, kind="webp"))]
    write(tmp_path / "x.tar", [*members, ("2.b.png", picture(4)), ("3.png", picture(5)), ("3.png", picture(6))])
    source = images(size=(30, 40), crop=(1.0, 1.0), flip=0.0)
    assert names(source) == ["x.tar/1.jpg", "x.tar/2.b.png", "x.tar/3.png"]
    assert "3 second images of a sample (the first: x.tar/1.seg.png)" in source.advice()[0]
    later = np.asarray(Image.open(io.BytesIO(picture(6)))).transpose(2, 0, 1)
    assert np.array_equal(source.read(2, 1)["image"], later)  # as unpacking would leave it


# ---- classes ---------------------------------------------------------------------------------------------------------


def test_numbers_are_sorted_as_numbers(tmp_path, images):
    texts = ["10", "9", "2\n", "9", "010"]
    write(
        tmp_path / "x.tar",
        [m for i, t in enumerate(texts) for m in ((f"{i}.png", picture()), (f"{i}.CLS", t.encode()))],
    )
    train = images().splits.pretrain
    assert train.classes == ("2", "9", "10")
    assert list(train.labels) == [2, 1, 0, 1, 2]


def test_words_are_sorted_as_words(tmp_path, images):
    members = [("1.cls", b"10"), ("1.png", picture()), ("2.png", picture()), ("2.cls", "zwölf".encode())]
    write(tmp_path / "x.tar", [*members, ("3.cls", b"9"), ("4.cls", b"other")])  # samples without an image
    source = images()
    assert source.splits.pretrain.classes == ("10", "zwölf")
    assert "2 samples without an image (the first: x.tar/3)" in source.advice()[0]


def test_a_fifth_of_each_class_is_held_out(tmp_path, images):
    write(tmp_path / "a.tar", samples(range(13)))
    write(tmp_path / "b.tar", samples(range(13, 20)))
    source = images(size=(30, 40), evaluate_crop=1.0)
    test, train = source.labelled("test"), source.labelled("train")
    assert source.splits.test.files == ("a.tar/008.png", "a.tar/009.png", "b.tar/018.png", "b.tar/019.png")
    assert (test.labels.tolist(), len(train.labels), len(source)) == ([0, 1, 0, 1], 16, 20)
    for number, item in ((8, 0), (19, 3)):  # the pixels are those of the names
        wanted = np.asarray(Image.open(io.BytesIO(picture(number)))).transpose(2, 0, 1)
        assert np.array_equal(test.items[item]["image"], wanted)
    assert source.read_labelled(15, 3)["label"] == train.labels[15]


def test_without_classes(tmp_path, images):
    write(tmp_path / "x.tar", samples(range(6), classes=0))
    assert len(images()) == 6
    with pytest.raises(
        MimError, match=r"no classes to evaluate with: looked in its shards for a \.cls beside each image"
    ):
        images().labelled("test")
    write(tmp_path / "x.tar", samples(range(6), classes=1))
    with pytest.raises(MimError, match="at least two classes"):
        images().labelled("test")


def test_some_without_a_class_are_refused(tmp_path, images):
    write(tmp_path / "x.tar", samples(range(4)))
    write(tmp_path / "y.tar", samples(range(4, 7), classes=0))
    with pytest.raises(
        MimError, match=r"3 images of 7 without a class; the first is y\.tar/004\.png, which has no \.cls"
    ):
        images()


@pytest.mark.parametrize("content", [b"", b" \n", b"1\n2", b"\xff\xfe", b"1" * 2000])
def test_a_class_is_one_line_of_text(tmp_path, images, content):
    write(tmp_path / "x.tar", [("1.png", picture()), ("1.cls", content)])
    with pytest.raises(MimError, match=r"x\.tar/1\.cls holds no class: it should be one line"):
        images()


# ---- splits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("held_out", ["test", "val", "validation"])
def test_folders_of_shards_are_splits(tmp_path, images, held_out):
    write(tmp_path / "train/0.tar", samples(range(6)))
    write(tmp_path / held_out / "0.tar", samples(range(6, 10)))
    source = images()
    assert names(source) == [f"train/0.tar/{i:03}.png" for i in range(6)]
    assert source.labelled("test").labels.tolist() == [0, 1, 0, 1]
    assert source.labelled("test").note == ""


def test_held_out_shards_below_a_folder_for_training_are_never_trained_on(tmp_path, images):
    write(tmp_path / "training/train/0.tar", samples(range(6)))
    write(tmp_path / "training/test/0.tar", samples(range(6, 10)))
    source = images()
    assert names(source) == [f"training/train/0.tar/{i:03}.png" for i in range(6)]
    assert source.labelled("test").labels.tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("train", "held_out"),
    [("in1k-train-{}.tar", "in1k-validation-{}.tar"), ("TRAIN{}.tar", "val_{}.tar"), ("a.train.{}.tar", "{}-test.tar")],
)
def test_names_of_shards_are_splits(tmp_path, images, train, held_out):
    write(tmp_path / train.format(0), samples(range(4)))
    write(tmp_path / train.format(1), samples(range(4, 6)))
    write(tmp_path / held_out.format(0), samples(range(6, 10)))
    source = images()
    assert names(source) == [f"{train.format(i // 4)}/{i:03}.png" for i in range(6)]
    assert "6 images in 2 shards for training" in source.plan()["data"]
    assert source.labelled("test").labels.tolist() == [0, 1, 0, 1]
    assert source.advice() == []


def test_words_within_words_are_no_splits():
    tars = [
        "strain-0.tar",
        "value.tar",
        "a_train2017.tar",
        "pre-train/x.tar",
        "train-of-val-3.tar",
        "trainé.tar",
        "étrain.tar",
    ]
    said = [split_in(tar.rpartition("/")[2]) for tar in tars]
    assert said == [None, None, "train", None, "val", None, None]


def test_shards_of_a_third_split_are_said(tmp_path, images):
    for name, numbers in (
        ("train-0", range(4)),
        ("test-0", range(4, 6)),
        ("val-0", range(6, 9)),
        ("more", range(9, 11)),
    ):
        write(tmp_path / f"{name}.tar", samples(numbers))
    source = images()
    assert len(source) == 6  # those of no split are trained on
    assert len(source.labelled("test").labels) == 2
    assert source.advice() == [f"1 shard of {tmp_path} not used: test is what is held out (val-0.tar)."]


def test_one_split_alone_is_a_collection(tmp_path, images):
    write(tmp_path / "val-0.tar", samples(range(10)))
    source = images()
    assert (len(source), len(source.labelled("test").labels)) == (10, 2)


def test_splits_with_other_classes_are_refused(tmp_path, images):
    write(tmp_path / "train-0.tar", samples(range(4)))
    write(tmp_path / "test-0.tar", samples(range(6), classes=3))
    with pytest.raises(MimError, match=r"the classes of train and test differ, in: 2\."):
        images()


# ---- splits that folders within shards, or parts of names, say -------------------------------------------------------


@pytest.mark.parametrize(
    ("train", "held_out"),
    [("seg_train/0.tar", "seg_test/0.tar"), ("a/01_train/0.tar", "a/02_test/0.tar"), ("imgTrain0.tar", "imgTest0.tar"),
     ("x-train-0.tar", "x-dev-0.tar"), ("x-train-0.tar", "x-eval-0.tar")],
)  # fmt: skip
def test_shards_are_split_by_the_rule_of_loose_files(tmp_path, images, train, held_out):
    write(tmp_path / train, samples(range(6)))
    write(tmp_path / held_out, samples(range(6, 10)))
    source = images()
    assert names(source) == [f"{train}/{i:03}.png" for i in range(6)]
    assert source.labelled("test").labels.tolist() == [0, 1, 0, 1]


def within(folder, numbers):
    return [(f"{folder}/{name}", content) for name, content in samples(numbers)]


def test_folders_within_a_shard_are_splits(tmp_path, images):
    write(tmp_path / "0.tar", [*within("train", range(6)), *within("test", range(6, 10))])
    for root in (tmp_path, tmp_path / "0.tar"):
        source = images(root)
        assert names(source) == [f"0.tar/train/{i:03}.png" for i in range(6)]
        assert source.labelled("test").labels.tolist() == [0, 1, 0, 1]
        assert "test/ held out (4), all others for training (6)" in source.contents()["splits"]


def test_a_held_out_folder_within_a_shard_for_training_is_left_out_and_said(tmp_path, images):
    write(tmp_path / "train-0.tar", [*within("a", range(6)), *within("val", range(6, 8))])
    write(tmp_path / "test-0.tar", samples(range(8, 12)))
    source = images()
    assert names(source) == [f"train-0.tar/a/{i:03}.png" for i in range(6)]
    assert "2 images left out: in shards for training they lie in held-out folders" in " ".join(source.advice())


def test_all_held_out_within_a_shard_is_a_collection(tmp_path, images):
    write(tmp_path / "0.tar", within("test", range(10)))
    assert len(images()) == 10
