"""Labels of images from a table: by columns of any of the usual names, from a list, with splits, and what is wrong."""

import shutil
import tarfile

import pytest
import torch
from mim_core import MimError, read_label_table
from mim_image.data import Images
from PIL import Image

SHAPES = {"image": (1, 8, 8)}


@pytest.fixture
def folder(tmp_path):
    for number in range(20):
        path = tmp_path / "pics" / "all" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 100 + 60 * (number % 2)).save(path)
    return tmp_path / "pics"


def written(path, rows):
    path.write_text("\n".join(rows))
    return path


def images(root, table=None, **options):
    return Images(Images.Config(root=root, labels_from=table, **options), SHAPES)


def truth(source, split):
    """Whether each label is that of the number in the file's name."""
    found = source.labelled(split)
    numbers = [int(name.split("/")[-1][:-4]) for name in found.names]
    return [found.classes[label] == "ab"[n % 2] for n, label in zip(numbers, found.labels, strict=True)]


ROWS = [f"all/{i}.png,{'ab'[i % 2]}" for i in range(20)]


@pytest.mark.parametrize(
    "rows",
    [
        ["path,label", *ROWS],
        ["label;ignored;FileName", *(f"{'ab'[i % 2]};x;{i}.png" for i in range(20))],
        ["image_id\tclass", *(f"{i}\t{'ab'[i % 2]}" for i in range(20))],
        [f"all/{i}.png {'ab'[i % 2]}" for i in range(20)],
        [f"all/{i}.png 16 {'ab'[i % 2]}" for i in range(20)],
    ],
    ids=["csv", "names", "stems", "list", "frames"],
)
def test_tables(folder, tmp_path, rows):
    source = images(folder, written(tmp_path / "t.csv", rows))
    assert source.labelled("train").classes == ("a", "b")
    assert len(source) == 20
    assert all(truth(source, "train"))
    assert all(truth(source, "test"))
    assert len(source.labelled("test").labels) == 4  # every fifth of a class
    item = source.read_labelled(3, 1)
    assert int(item["label"]) == int(source.labelled("train").labels[3])


def test_a_table_beside_the_images(folder):
    written(folder / "labels.csv", ["path,label", *ROWS])
    assert all(truth(images(folder), "train"))
    assert all(truth(images(folder, labels=4), "train"))


def test_splits_of_the_table(folder, tmp_path):
    rows = ["path,label,split", *(f"{row},{'val' if i < 6 else 'train'}" for i, row in enumerate(ROWS[:18]))]
    source = images(folder, written(tmp_path / "t.csv", rows))
    assert source.labelled("test").labels.bincount().tolist() == [3, 3]
    assert len(source.labelled("train").labels) == 12
    assert len(source) == 14  # the two without a label are for pre-training, what is held out is not
    assert any("2 files have no label" in line for line in source.advice())
    held = set(source.labelled("test").names)
    assert not held & {source.name_of(i) for i in range(len(source))}


@pytest.mark.parametrize("known", [True, False])
def test_rows_of_the_test_without_a_label_are_not_trained_on(folder, tmp_path, known):
    rows = [f"all/{i}.png,{'ab'[i % 2] if i < 12 or (known and i < 16) else ''},{'test' if i >= 12 else 'train'}"
            for i in range(20)]  # fmt: skip
    source = images(folder, written(tmp_path / "t.csv", ["path,label,split", *rows]))
    seen = {int(source.name_of(i).split("/")[-1][:-4]) for i in range(len(source))}
    assert seen == set(range(12))
    assert f"8 held out, {4 if known else 8} of them without a label" in source.contents()["splits"]
    held = {int(name.split("/")[-1][:-4]) for name in source.labelled("test").names}
    assert held == set(range(12, 16)) if known else held < set(range(12))
    assert all(truth(source, "train"))
    assert all(truth(source, "test"))


def test_splits_alone_beside_the_images(folder):
    written(folder / "labels.csv", ["file,phase", *(f"all/{i}.png,{'test' if i > 14 else 'train'}" for i in range(20))])
    source = images(folder)
    assert len(source) == 15
    assert source.contents()["splits"] == "as labels.csv (column phase) says: 5 held out, 15 for training"


def test_a_table_beside_the_images_that_is_passed_over_is_told(folder):
    written(folder / "labels.csv", ["path,label", *ROWS, "all/0.png,b"])
    assert any("labels.csv is ignored" in line for line in images(folder).advice())


def test_a_table_beside_shards_is_told(folder):
    with tarfile.open(folder / "a.tar", "w") as shard:
        shard.add(folder / "all", "all")
    shutil.rmtree(folder / "all")
    written(folder / "labels.csv", ["path,label", *ROWS])
    assert any("labels.csv is not read" in line for line in images(folder).advice())


def test_another_column(folder, tmp_path):
    rows = ["path,label,kind", *(f"all/{i}.png,same,{'ab'[i % 2]}" for i in range(20))]
    source = images(folder, written(tmp_path / "t.csv", rows), labels_column="kind")
    assert all(truth(source, "train"))


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (["path,label", "no.png,a", "none.png,b"], "names a file of"),
        (["path,label", "all/0.png,a", "all/1.png,a"], "two classes"),
        (["path,label", "all/0.png,a", "all/0.png,b"], "one label"),
        (["just text"], "names a file of"),
        ([""], "is empty"),
        (["lonely"], "a path and a label"),
    ],
)
def test_tables_that_do_not_fit(folder, tmp_path, rows, said):
    with pytest.raises(MimError, match=said):
        images(folder, written(tmp_path / "t.csv", rows))


def test_a_file_that_is_no_text(folder, tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(MimError, match="cannot be read"):
        images(folder, path)
    with pytest.raises(MimError, match="no column 'kind'"):
        read_label_table(written(path, ["path,label", "a,b"]), "kind")


def test_strong_augmentation_follows_from_the_key(folder):
    written(folder / "labels.csv", ["path,label", *ROWS])
    source = images(folder, rand_augment="rand-m9-mstd0.5-inc1", erase=1.0)
    one, again, other = (source.read_labelled(0, key)["image"] for key in (5, 5, 6))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert torch.equal(source.read(0, 5)["image"], images(folder).read(0, 5)["image"])  # of pre-training: unchanged
    with pytest.raises(MimError, match="rand_augment"):
        images(folder, rand_augment="nonsense")
    with pytest.raises(MimError, match="'foo' is no setting"):  # timm passes it over
        images(folder, rand_augment="rand-m9-foo")
