"""Labels and splits of shapes from a table: beside the files, named, by any of the usual columns; and what is wrong."""

import numpy as np
import pytest
from mim_core import MimError
from mim_pointcloud.data import Clouds

SHAPES = {"points": (16, 3)}


@pytest.fixture
def folder(tmp_path):
    for number in range(12):
        path = tmp_path / "shapes" / "all" / f"{number}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.random.default_rng(number).random((32, 3), np.float32))
    return tmp_path / "shapes"


def clouds(root, **options):
    return Clouds(Clouds.Config(root=root, **options), SHAPES)


def written(path, rows):
    path.write_text("\n".join(rows))
    return path


def truth(source, split):
    """Whether each label is that of the number in the file's name."""
    found = source.labelled(split)
    numbers = [int(name.split("/")[-1][:-4]) for name in found.names]
    return [found.classes[label] == "xy"[n % 2] for n, label in zip(numbers, found.labels, strict=True)]


ROWS = [f"all/{i}.npy,{'xy'[i % 2]}" for i in range(12)]


def test_a_table_beside_the_shapes(folder):
    written(folder / "labels.csv", ["path,label", *ROWS[:10]])
    source = clouds(folder)
    assert source.labelled("train").classes == ("x", "y")
    assert all(truth(source, "train"))
    assert all(truth(source, "test"))
    assert len(source) == 12 - len(source.labelled("test").labels), "those without a label are for pre-training"
    assert any("2 files have no label" in line for line in source.advice())
    assert int(source.read_labelled(1, 5)["label"]) == int(source.labelled("train").labels[1])


def test_a_named_table_has_splits(folder, tmp_path):
    rows = [f"{i};{'xy'[i % 2]};{'test' if i < 4 else 'train'}" for i in range(12)]
    source = clouds(folder, labels_from=written(tmp_path / "t.csv", ["Shape;kind;split", *rows]), labels_column="kind")
    assert (len(source), len(source.labelled("test").labels)) == (8, 4)
    assert all(truth(source, "test"))
    assert "as t.csv says: 4 held out, 8 for training" in source.contents()["splits"]


def test_a_label_of_a_shape_that_is_not_there(folder, tmp_path):
    source = clouds(folder, labels_from=written(tmp_path / "t.csv", ["path,label", *ROWS, "all/99.npy,x"]))
    assert any("1 row of" in line and "all/99.npy" in line for line in source.advice())


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (["path,label", "no.npy,a", "none.npy,b"], "names a file of"),
        (["path,kind", *ROWS], "no column of labels .label, class, class_name., only path, kind: name it with --data"),
        (["thing,label", *ROWS], "no column of files"),
        (["path,label", *ROWS, "all/0.npy,y"], "one label"),
        (["path,label", *ROWS, "0,y"], "all/0.npy and 0, which are one file"),
        (["path,label,split", "all/0.npy,x,train", "all/0.npy,x,test"], "twice, in train and in test"),
        (["path,label", *(row.split(",")[0] + "," for row in ROWS)], "its column label is empty"),
        (["path,label", ",x"], "row 2: it names no file"),
        (["path,label,split", "all/0.npy,x,test", "all/1.npy,y,test"], "labels no shape of the training split"),
    ],
)
def test_tables_that_do_not_fit(folder, tmp_path, rows, said):
    with pytest.raises(MimError, match=said):
        clouds(folder, labels_from=written(tmp_path / "t.csv", rows))


def test_tables_of_other_encodings(folder, tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("\n".join(["path,label", *ROWS]), encoding="utf-8-sig")
    assert all(truth(clouds(folder, labels_from=path), "train"))
    for encoding in ("utf-16", "latin-1"):
        path.write_text("\n".join(["path,label", *ROWS, "all/ä.npy,x"]), encoding=encoding)
        with pytest.raises(MimError, match="it is not UTF-8; save it as UTF-8"):
            clouds(folder, labels_from=path)


def test_words_that_are_no_split_are_said(folder, tmp_path):
    rows = [f"{row},{i % 3}" for i, row in enumerate(ROWS)]
    source = clouds(folder, labels_from=written(tmp_path / "t.csv", ["path,label,fold", *rows]))
    assert any("its column fold has words that name no split: 0, 1, 2" in line for line in source.advice())


def test_layouts_have_labels_of_their_own(folder, tmp_path):
    with pytest.raises(MimError, match=r"goes with --data.layout folder"):
        clouds(folder, labels_from=written(tmp_path / "t.csv", ["path,label", *ROWS]), layout="modelnet40")
    with pytest.raises(MimError, match=r"no classes.*or in a table, --data.labels-from"):
        clouds(folder).labelled("train")
