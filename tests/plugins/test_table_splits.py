"""Which column of a table says the splits; and the table that lies beside files, which nobody has named."""

import pytest
from mim_core import MimError, with_table_beside
from mim_core.data.label_table import read_label_table
from mim_core.data.many_labels import read_many_labels
from mim_core.data.table_splits import split_said, table_splits

FILES = ("0.x", "1.x", "2.x", "3.x")


def table(tmp_path, head, *cells, name="labels.csv"):
    rows = [f"{file},{label},{cell}" for file, label, cell in zip(FILES, "abab", cells, strict=True)]
    (tmp_path / name).write_text("\n".join([head, *rows]))
    return tmp_path / name


@pytest.mark.parametrize(
    ("name", "cells"),
    [
        ("Split", ("Training", " TRAIN", "Testing", "VAL")),
        ("phase", ("train", "train", "valid", "test")),
        ("Usage", ("Training", "Training", "PublicTest", "PrivateTest")),
        ("is_train", ("1", "1", "0", "0")),
        ("train", ("True", "True", "False", "False")),
        ("is_test", ("no", "no", "yes", "yes")),
        ("is_training_image", ("1", "1", "0", "0")),
    ],
)
def test_columns_of_splits(tmp_path, name, cells):
    found = read_label_table(table(tmp_path, f"path,label,{name}", *cells))
    assert [split for _, split in found.rows.values()] == ["train", "train", "test", "test"]
    assert found.column == ("" if name == "Split" else name.lower())


@pytest.mark.parametrize(
    ("name", "cells"),
    [
        ("note", ("train", "train", "test", "red")),  # one is no split
        ("note", ("train", "train", "train", "")),  # nothing is held out
        ("val", ("0", "1", "0", "1")),  # short for value
        ("train", ("3", "1", "0", "0")),  # not yes or no
    ],
)
def test_columns_of_something_else(tmp_path, name, cells):
    assert not table_splits(["path", "label", name], [["", "", cell] for cell in cells]).columns


def test_a_column_with_words_of_splits_counts_before_one_with_others():
    rows = [["A", "train"], ["B", "test"]]
    assert table_splits(["split", "set"], rows).rows == ("train", "test")
    assert table_splits(["fold"], [["1"], ["2"]]).strange == "1, 2"


def test_several_columns_of_yes_and_no():
    head, rows = ["is_train", "is_val"], [["1", "0"], ["0", "1"], ["0", "0"]]
    assert table_splits(head, rows).rows == ("train", "test", "test")


def test_words():
    words = ("", "train", "Unlabeled", "heldOut", "cv-test-3", "contest", "blind")
    assert [split_said(word) for word in words] == ["", "train", "train", "test", "test", "", ""]


def test_a_label_that_is_called_train_is_a_label(tmp_path):
    path = tmp_path / "many.csv"
    path.write_text("path,car,train,is_test\n0.x,1,0,0\n1.x,0,1,1\n")
    found = read_many_labels(path)
    assert found.classes == ("car", "train")
    assert [split for _, split in found.rows.values()] == ["train", "test"]


def test_a_number_of_a_row_is_not_its_file(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("id,Shown,label\n1,0.jpg,a\n0,1.jpg,b\n")
    assert list(read_label_table(path).rows) == ["0.jpg", "1.jpg"]
    path.write_text("id,label,Image Name\n1,a,0.jpg\n0,b,1.jpg\n")
    assert list(read_label_table(path).rows) == ["0.jpg", "1.jpg"]


def test_a_list_whose_last_cells_are_splits_has_no_labels(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("0.x,a,train\n1.x,b,test\n2.x,b,train\n")
    with pytest.raises(MimError, match="they name splits"):
        read_label_table(path)


def beside(root, classes=False):
    return with_table_beside(None, lambda table: table.of(FILES, root), root, "", classes)


def test_splits_alone_beside_files(tmp_path):
    (tmp_path / "labels.csv").write_text("path,split\n0.x,train\n1.x,test\n")
    found, why = beside(tmp_path)
    assert (found.classes, found.splits, why) == ((), ("train", "test", "", ""), "")


@pytest.mark.parametrize(
    "head", ["path,label,split", "path|label|split", "# note\npath,label,split", "'path','label','split'"]
)
@pytest.mark.parametrize("code", ["utf-8", "utf-16", "latin-1"])
def test_a_damaged_table_that_holds_files_out_is_refused(tmp_path, head, code):
    mark = "|" if "|" in head else ","
    rows = [mark.join(row) for row in (("0.x", "é", "train"), ("0.x", "b", "train"), ("1.x", "a", "test"))]
    (tmp_path / "labels.csv").write_bytes("\n".join([head, *rows]).encode(code))
    with pytest.raises(MimError, match="which files are held out"):
        beside(tmp_path)


def test_a_table_of_something_else_is_told(tmp_path):
    (tmp_path / "labels.csv").write_text("path,label\nno.x,a\nnone.x,b\n")
    found, why = beside(tmp_path)
    assert found is None
    assert "is ignored" in why
    _, why = beside(tmp_path, classes=True)
    assert "folders are classes" in why
    (tmp_path / "labels.csv").write_text("colour,sound\nred,loud\n")
    assert beside(tmp_path, classes=True)[1] == ""
