"""Which images there are: folders with and without splits, MNIST's idx files, the bundled sample."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from mim_core.errors import MimError
from mim_image.data import SAMPLE
from mim_image.files import folder_splits
from mim_image.formats import open_image
from mim_image.idx import FASHION, idx_splits


def test_a_fifth_of_each_class_is_held_out(photo, images):
    for label, count in (("cat", 10), ("dog", 7), ("eel", 4)):
        for i in range(count):
            photo(f"{label}/{i:02}.png")
    source = images()
    train, test = source.splits.train, source.splits.test
    assert len(source) == 21
    assert test.files == ("cat/04.png", "cat/09.png", "dog/04.png")
    assert set(train.files) | set(test.files) == {source.name_of(i) for i in range(21)}
    assert not set(train.files) & set(test.files)
    assert train.classes == test.classes == ("cat", "dog", "eel")
    assert source.labelled("train").labels.bincount().tolist() == [8, 6, 4]
    assert source.labelled("test").labels.tolist() == [0, 0, 1]
    assert "has seen them, without labels" in source.labelled("test").note


@pytest.mark.parametrize("held_out", ["test", "val", "validation"])
def test_own_splits_are_kept(photo, images, held_out):
    for label in ("cat", "dog"):
        for i in range(3):
            photo(f"train/{label}/{i}.png")
        photo(f"{held_out}/{label}/0.png")
    source = images()
    assert len(source) == 6
    assert source.labelled("train").labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert source.labelled("test").labels.tolist() == [0, 1]
    assert source.labelled("test").note == ""
    assert all(source.name_of(i).startswith("train/") for i in range(6))


def test_test_stands_before_val(photo, images):
    for split, count in (("train", 3), ("test", 2), ("val", 1)):
        for label in ("cat", "dog"):
            for i in range(count):
                photo(f"{split}/{label}/{i}.png")
    assert len(images().labelled("test").labels) == 4


def test_splits_with_other_classes_are_refused(photo, tmp_path):
    for name in ("train/cat/0.png", "train/dog/0.png", "test/cat/0.png", "test/eel/0.png"):
        photo(name)
    with pytest.raises(MimError, match=r"the classes of train and test differ, in: dog, eel\."):
        folder_splits(tmp_path)


@pytest.mark.parametrize("names", [("a.png", "b.png"), ("one/a.png", "one/b.png"), ("a.png", "cat/b.png", "dog/c.png")])
def test_without_classes_there_is_nothing_to_evaluate(photo, images, names):
    for name in names:
        photo(name)
    source = images()
    assert len(source) == len(names)
    with pytest.raises(MimError, match="has no classes to evaluate with: images should lie in one folder per class"):
        source.labelled("test")


def test_empty_train_folder(tmp_path, photo):
    photo("test/cat/0.png")
    (tmp_path / "train").mkdir()
    with pytest.raises(MimError, match=r"has only held-out images \(test/\)"):
        folder_splits(tmp_path)


# ---- idx files -------------------------------------------------------------------------------------------------------


def write_idx(path, array, kind=8):
    header = struct.pack(">HBB", 0, kind, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    content = header + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.fixture
def idx(tmp_path):
    """A small MNIST: 20 + 10 images of 6 x 5 pixels, each of one shade; the labels are their numbers modulo 10."""

    def make(ending=".gz"):
        for name, count in (("train", 20), ("t10k", 10)):
            pixels = np.broadcast_to(np.arange(count)[:, None, None], (count, 6, 5))
            write_idx(tmp_path / f"{name}-images-idx3-ubyte{ending}", pixels)
            write_idx(tmp_path / f"{name}-labels-idx1-ubyte{ending}", np.arange(count) % 10)
        return tmp_path

    return make


@pytest.mark.parametrize("ending", [".gz", ""])
def test_idx_files_zipped_and_not(idx, images, ending):
    source = images(root=idx(ending), size=(6, 5), channels=1)
    assert len(source) == 20
    assert source.name_of(7) == f"train-images-idx3-ubyte{ending}[7]"
    assert source.read(7, 1)["image"].unique().tolist() == [7]
    test = source.labelled("test")
    assert test.labels.tolist() == list(range(10))
    assert test.classes == tuple("0123456789")
    assert test.items[4]["image"].unique().tolist() == [4]


def test_idx_files_need_all_four(idx, images):
    (idx() / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(MimError, match=r"No images in .*found 3 x \.gz"):
        images()
    with pytest.raises(MimError, match="lacks some of MNIST's four idx files"):
        idx_splits(idx().joinpath("nowhere"))


def test_damaged_idx_files_are_named(idx):
    folder = idx()
    path = folder / "train-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    content = gzip.decompress(whole)
    floats = struct.pack(">HBB", 0, 13, 3)
    for damaged in (
        whole[: len(whole) // 2],
        b"",
        b"no gzip",
        gzip.compress(content[:-1]),
        gzip.compress(content + b"x"),
        gzip.compress(content[:7]),
        gzip.compress(content[:2]),
        gzip.compress(floats + content[4:]),
        whole[:-30] + b"\0" * 30,
        whole[:20] + b"\xff" * 20 + whole[40:],
    ):
        path.write_bytes(damaged)
        with pytest.raises(MimError, match=r"train-images-idx3-ubyte\.gz cannot be read"):
            idx_splits(folder)
    path.write_bytes(whole)
    assert len(idx_splits(folder).pretrain) == 20
    write_idx(folder / "train-labels-idx1-ubyte.gz", np.arange(19))
    with pytest.raises(MimError, match="holds 20 images and its labels are 19"):
        idx_splits(folder)


# ---- the bundled sample ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("split", "counts", "first"),
    [  # the official order: its first 10,000 training and 2,000 test images
        ("train", [942, 1027, 1016, 1019, 974, 989, 1021, 1022, 990, 1000], [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]),
        ("test", [200, 203, 214, 190, 219, 195, 197, 200, 194, 188], [9, 2, 1, 1, 6, 1, 4, 6, 5, 7]),
    ],
)
def test_bundled_sample(images, monkeypatch, tmp_path, split, counts, first):
    monkeypatch.chdir(tmp_path)
    source = images(root=Path("sample"), size=(28, 28), channels=1)
    assert len(source) == 10_000
    labelled = source.labelled(split)
    assert labelled.labels.bincount().tolist() == counts
    assert labelled.labels[:10].tolist() == first
    assert labelled.classes == FASHION
    assert labelled.items[0]["image"].shape == (1, 28, 28)
    assert "bundled" in source.plan()["data"]


def test_bundled_pixels_have_the_recipes_statistics():
    pixels = idx_splits(SAMPLE).train.array / 255
    assert pixels.mean() == pytest.approx(0.286, abs=2e-3)
    assert pixels.std() == pytest.approx(0.353, abs=2e-3)


def test_bundled_sample_has_its_licence():
    assert "The MIT License" in (SAMPLE / "LICENSE").read_text()


def test_a_folder_called_sample_stands_before_the_bundled_one(photo, images, monkeypatch, tmp_path):
    photo("sample/a.png")
    monkeypatch.chdir(tmp_path)
    assert len(images(root=Path("sample"))) == 1


@pytest.mark.parametrize(("train", "held_out"), [("Train", "Val"), ("TRAIN", "TEST"), ("train", "valid")])
def test_splits_in_other_words(photo, images, held_out, train):
    for label in ("cat", "dog"):
        photo(f"{train}/{label}/0.png")
        photo(f"{train}/{label}/1.png")
        photo(f"{held_out}/{label}/0.png")
    source = images()
    assert (len(source), len(source.labelled("test").labels)) == (4, 2)
    assert source.labelled("train").classes == ("cat", "dog")
    assert source.plan()["held out"] == "2 images, a split of their own"


def test_the_plan_says_what_is_held_out(photo, images):
    for i in range(10):
        photo(f"{'cat' if i % 2 else 'dog'}/{i}.png")
    assert images().plan()["held out"].startswith("2 images, a fifth")


def test_a_held_out_split_without_classes_is_said(photo, images):
    photo("train/cat/0.png")
    photo("train/dog/0.png")
    photo("val/0.png")
    with pytest.raises(MimError, match="train has 2, and val none"):
        images()


@pytest.mark.parametrize(
    ("train", "held_out", "unlabelled"),
    [("training", "testing", None), ("Training_Set", "valid", None), ("train2017", "val2017", "unlabeled2017")],
)
def test_words_for_splits_are_no_classes(photo, images, train, held_out, unlabelled):
    for label in ("cat", "dog"):
        for i in range(3):
            photo(f"{train}/{label}/{i}.png")
        photo(f"{held_out}/{label}/0.png")
    if unlabelled:
        photo(f"{unlabelled}/0.png")
    source = images()
    assert len(source) == 6 + bool(unlabelled)
    assert source.labelled("train").labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert source.labelled("test").labels.tolist() == [0, 1]
    assert source.read_labelled(5, 1)["label"] == 1
    assert f"{train}/ for training (6)" in source.contents()["splits"]
    assert source.contents()["classes"] == "2: cat, dog"


DAMAGED = {
    "no images": ("train-images-idx3-ubyte.gz", np.zeros((0, 6, 5)), "0 x 6 x 5"),
    "no height": ("train-images-idx3-ubyte.gz", np.zeros((20, 0, 5)), "20 x 0 x 5"),
    "rows": ("train-images-idx3-ubyte.gz", np.zeros((20, 6)), "20 x 6"),
    "one label": ("train-labels-idx1-ubyte.gz", np.zeros(()), "a single value"),
    "table": ("t10k-labels-idx1-ubyte.gz", np.zeros((10, 2)), "10 x 2"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_idx_files_of_other_shapes_are_named(idx, images, case):
    name, array, said = DAMAGED[case]
    write_idx(idx() / name, array)
    with pytest.raises(MimError, match=f"{name} cannot be read: its header says {said}"):
        images(channels=1)


def test_idx_files_unpack_no_more_than_they_say(idx, images):
    path = idx() / "train-images-idx3-ubyte.gz"
    header = struct.pack(">HBBIII", 0, 8, 3, 20, 6, 5)
    path.write_bytes(gzip.compress(header + bytes(1 << 24)))
    with pytest.raises(MimError, match="and it has more bytes"):
        images(channels=1)
    for shape, said in (((4000, 1000, 1000), "fewer bytes"), ((2**32 - 1,) * 3, "GB are read")):
        path.write_bytes(gzip.compress(struct.pack(">HBBIII", 0, 8, 3, *shape)))
        with pytest.raises(MimError, match=said):
            images(channels=1)


def test_only_some_files_are_opened(photo, images, monkeypatch):
    for i in range(80):
        photo(f"{i}.png")
    opened = []
    source = images()
    monkeypatch.setattr("mim_image.files.open_image", lambda path: opened.append(path) or open_image(path))
    source.advice()
    source.contents()
    assert len(opened) == 64
