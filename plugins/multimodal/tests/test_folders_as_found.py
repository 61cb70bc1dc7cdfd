"""Folders as users have them: names with suffixes, splits of every name and place, endings that are not read."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from mim_core.errors import MimError
from mim_core.runs.inventory import digest_of
from mim_multimodal.data import Aligned
from mim_multimodal.layouts import find_items
from mim_multimodal.tables import class_names, rows_of
from PIL import Image

SHAPES = {"rgb": (3, 8, 8), "depth": (1, 8, 8), "semseg": (8, 8)}
GREY = np.arange(64, dtype=np.uint8).reshape(8, 8) % 5
VALUES = {"rgb": np.stack([GREY * 50] * 3, axis=2), "depth": GREY.astype(np.uint16) + 1000, "semseg": GREY}


def frames(root, names=None, stems=range(10), folder="{modality}", modalities=tuple(VALUES)):
    """A file of each modality for every item; ``names`` is what each one's names end in."""
    for modality in modalities:
        inside = root / folder.format(modality=modality)
        inside.mkdir(parents=True, exist_ok=True)
        for stem in stems:
            Image.fromarray(VALUES[modality]).save(inside / f"{stem}{(names or {}).get(modality, '')}.png")
    return root


def source(root, shapes=None, **options):
    return Aligned(Aligned.Config(root=root, **options), SHAPES if shapes is None else shapes)


def refused(root, shapes=None, **options):
    with pytest.raises(MimError) as error:
        source(root, shapes, **options)
    return str(error.value)


# ---- names -----------------------------------------------------------------------------------------------------------

SUFFIXES = {"rgb": "_rgb", "depth": "_depth", "semseg": "_seg"}


@pytest.mark.parametrize("missing", ["refuse", "skip", "mask"])
@pytest.mark.parametrize(
    ("names", "told"),
    [
        (SUFFIXES, "rgb _rgb depth _depth semseg _seg"),
        ({"depth": "-d", "semseg": "-s"}, "depth -d semseg -s"),
        ({"semseg": "_mask"}, "semseg _mask"),
        ({"rgb": "_leftImg8bit", "depth": "_disparity", "semseg": "_gtFine_labelIds"}, "semseg _gtFine_labelIds"),
    ],
)
def test_names_that_differ_by_a_suffix_are_told_and_can_be_read(tmp_path, names, told, missing):
    text = refused(frames(tmp_path, names), missing=missing)
    assert "Names must be equal in every folder" in text
    assert f"rgb/0{names.get('rgb', '')}.png" in text
    assert told in text
    assert "--data.missing" not in text
    data = source(tmp_path, suffixes=names)
    assert len(data.collection.train) + len(data.collection.test) == 10
    assert not data.collection.missing
    assert data.name_of(0) == f"rgb/{data.collection.train.stems[0]}{names.get('rgb', '')}.png"
    data.read(0, 0)


def test_names_that_have_nothing_in_common_are_shown(tmp_path):
    frames(tmp_path, modalities=("rgb", "semseg"))
    frames(tmp_path, stems=[f"d{number}x{number}" for number in range(10)], modalities=("depth",))
    for missing in ("refuse", "skip", "mask"):
        text = refused(tmp_path, missing=missing)
        assert "0 of 10 depth files have the same name" in text
        assert "rgb/0.png, depth/d0x0.png" in text
        assert "Rename them; or" in text


def test_few_items_with_two_modalities_are_a_warning_where_masking_is_asked_for(tmp_path):
    frames(tmp_path, SUFFIXES, range(40))
    frames(tmp_path, stems=["x"])
    assert "1 of 41 rgb files" in refused(tmp_path)
    lines = source(tmp_path, missing="mask").advice()
    assert any("do not come together" in line for line in lines)


def test_a_modality_of_few_items_is_no_fault_of_names(tmp_path):
    frames(tmp_path, modalities=("rgb", "semseg"), stems=range(60))
    frames(tmp_path, modalities=("depth",), stems=range(3))
    text = refused(tmp_path)
    assert "57 files are missing" in text
    assert len(source(tmp_path, missing="mask").collection.train) > 40


def test_files_without_the_suffix_are_left_out_and_said(tmp_path):
    frames(tmp_path, SUFFIXES)
    Image.fromarray(GREY).save(tmp_path / "semseg" / "0_color.png")
    data = source(tmp_path, suffixes=SUFFIXES)
    assert "semseg/: 1 file with endings that are not read: 1 x .png without _seg" in data.contents()["left out"]
    with pytest.raises(ValueError, match="suffixes are ends of names"):
        source(tmp_path, suffixes={"normals": "_n"})
    (tmp_path / "rgb" / "3_rgb.png").unlink()
    assert "rgb/3_rgb.jpg" in refused(tmp_path, suffixes=SUFFIXES)


def test_tables_may_name_files_by_their_suffix(tmp_path):
    frames(tmp_path, SUFFIXES)
    (tmp_path / "captions.csv").write_text("path,caption\n" + "".join(f"rgb/{i}_rgb.png,text {i}\n" for i in range(10)))
    rows = [f"rgb/{i}_rgb.png,{'ab'[i % 2]}\n" for i in range(10)]
    (tmp_path / "labels.csv").write_text("path,label\n" + "".join(rows))
    found = find_items(tmp_path, ["rgb", "caption"], suffixes=SUFFIXES)
    assert found.train.captions[found.train.stems.index("7")] == ("text 7",)
    assert not found.missing
    assert source(tmp_path, suffixes=SUFFIXES).labels.classes == ("a", "b")


def test_names_that_are_no_utf_8_are_items_as_others_are(tmp_path):
    frames(tmp_path, stems=range(6))
    try:
        for modality in VALUES:
            (tmp_path / modality / "1.png").rename(tmp_path / modality / os.fsdecode(b"caf\xe9.png"))
    except OSError:
        pytest.skip("this disk takes no such names")
    found = source(tmp_path).collection
    assert len(found.train) + len(found.test) == 6


# ---- endings ---------------------------------------------------------------------------------------------------------


def test_a_folder_of_other_endings_is_no_missing_file(tmp_path):
    frames(tmp_path, modalities=("depth", "semseg"))
    (tmp_path / "rgb").mkdir()
    for stem in range(10):
        (tmp_path / "rgb" / f"{stem}.heic").touch()
    for missing in ("refuse", "skip", "mask"):
        text = refused(tmp_path, missing=missing)
        assert "rgb: it has 10 x .heic" in text
        assert ".jpg .jpeg .png .webp .bmp" in text
        assert "--data.missing" not in text


def test_endings_that_are_not_read_are_said(tmp_path):
    frames(tmp_path)
    (tmp_path / "rgb" / "readme.txt").touch()
    (tmp_path / "depth" / "0.exr").touch()
    (tmp_path / "normals").mkdir()
    data = source(tmp_path)
    text = data.contents()["left out"]
    assert "rgb/: 1 file with endings that are not read: 1 x .txt" in text
    assert "depth/: 1 file with endings that are not read: 1 x .exr" in text
    assert "folders of no modality: normals/" in text
    assert [line for line in data.advice() if "left out" in line] == [
        "left out of depth/: 1 file with endings that are not read: 1 x .exr"
    ]
    (tmp_path / "depth" / "0.png").unlink()
    text = refused(tmp_path)
    assert "depth/0.png" in text
    assert "Left out of depth/: 1 file with endings that are not read: 1 x .exr; convert these" in text


def test_nothing_is_said_of_the_bundled_sample_but_what_it_holds(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = source(Path("sample"))
    assert set(data.contents()) == {"splits", "classes", "files hold"}
    assert data.advice() == []


# ---- splits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train", "valid"),
        ("Training", "Testing"),
        ("TRAIN", "Val"),
        ("train2017", "val2017"),
        ("train_set", "test_set"),
    ],
)
@pytest.mark.parametrize("layout", ["{split}/{{modality}}", "{{modality}}/{split}", "{{modality}}/{split}/cat"])
def test_splits_of_every_name_and_place(tmp_path, train, test, layout):
    frames(tmp_path, stems=range(6), folder=layout.format(split=train))
    frames(tmp_path, stems=range(6, 9), folder=layout.format(split=test))
    data = source(tmp_path)
    assert sorted(stem[-1] for stem in data.collection.train.stems) == list("012345")
    assert sorted(stem[-1] for stem in data.collection.test.stems) == list("678")
    assert not data.labels.classes
    assert not data.collection.note
    assert f"{train}/ for training" in data.contents()["splits"]
    assert f"{test}/ held out" in data.contents()["splits"]
    data.take(data.collection.test, 0, SHAPES)


def test_a_held_out_folder_below_one_for_training_is_never_trained_on(tmp_path):
    frames(tmp_path, stems=range(6), folder="{modality}/training/train")
    frames(tmp_path, stems=range(6, 9), folder="{modality}/training/test")
    contents = source(tmp_path).contents()
    assert "training/ for training (6)" in contents["splits"]
    assert "test/ held out (3)" in contents["splits"]


def test_classes_lie_above_or_below_splits_and_are_never_splits(tmp_path):
    for split, stems in (("train", range(3)), ("valid", range(3, 5))):
        for name in ("cat", "dog"):
            frames(tmp_path / "1", stems=stems, folder=f"{{modality}}/{split}/{name}")
            frames(tmp_path / "2", stems=stems, folder=f"{{modality}}/{name}/{split}")
    for root in (tmp_path / "1", tmp_path / "2"):
        data = source(root)
        assert data.labels.classes == ("cat", "dog")
        assert (len(data.collection.train), len(data.collection.test)) == (6, 4)
        assert data.contents()["classes"].startswith("2 of items (cat, dog)")


def test_a_second_held_out_split_is_not_used_and_said(tmp_path):
    for split, stems in (("train", range(4)), ("val", range(4, 6)), ("test", range(6, 8))):
        frames(tmp_path / "1", stems=stems, folder=f"{split}/{{modality}}")
        frames(tmp_path / "2", stems=stems, folder=f"{{modality}}/{split}")
    for root in (tmp_path / "1", tmp_path / "2"):
        data = source(root)
        assert (len(data.collection.train), len(data.collection.test)) == (4, 2)
        assert "val/ not used" in data.contents()["splits"]


def test_splits_that_can_be_read_in_two_ways_are_refused(tmp_path):
    frames(tmp_path / "1", folder="{modality}/train", stems=range(4))
    frames(tmp_path / "1", folder="{modality}/cat", stems=range(4, 8))
    assert "rgb/cat/4.png in none" in refused(tmp_path / "1")
    frames(tmp_path / "1", folder="{modality}/test", stems=range(8, 9))
    data = source(tmp_path / "1")
    assert len(data.collection.train) == 4
    assert any("4 items of" in line and "in no split" in line for line in data.advice())
    frames(tmp_path / "2", folder="{modality}/test")
    assert "held-out items only" in refused(tmp_path / "2")
    frames(tmp_path / "3", folder="train/{modality}")
    frames(tmp_path / "3", folder="Training/{modality}")
    assert "two folders that are named like one split, Training/ and train/" in refused(tmp_path / "3")


def test_a_lone_training_split_has_a_fifth_drawn_from_it(tmp_path):
    frames(tmp_path, folder="{modality}/train", stems=range(20))
    data = source(tmp_path)
    assert 0 < len(data.collection.test) < 12
    assert len(data.collection.train) + len(data.collection.test) == 20
    assert "drawn by their names" in data.collection.note


def test_captions_of_a_split_by_any_of_its_names(tmp_path):
    frames(tmp_path, folder="train/{modality}", stems=[1])
    frames(tmp_path, folder="valid/{modality}", stems=[1])
    (tmp_path / "captions.csv").write_text("path,caption\ntrain/rgb/1.png,one\nval/1,two\n")
    found = find_items(tmp_path, ["rgb", "caption"])
    assert found.train.captions == (("one",),)
    assert found.test.captions == (("two",),)


# ---- tables ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a/1.png,cat\nb/1.png,dog\n", "its first line is 'a/1.png,cat'"),
        (b"", "its first line is ''"),
        (b"path,label\na\n", "after line 1, .*1 column"),
        (b"path,label\ncaf\xe9,x\n", "not UTF-8"),
        ("path,label\na,b\n".encode("utf-16"), "not UTF-8"),
        (b"path,label\na,b\0c\n", "NUL"),
        (b"path,label\na," + b"x" * 200_000 + b"\n", "field larger"),
        (b'path,label\n"a,cat\nb,dog\n', "a quote is left open|1 column"),
    ],
)
def test_tables_that_cannot_be_read_are_named(tmp_path, content, words):
    path = tmp_path / "labels.csv"
    path.write_bytes(content)
    with pytest.raises(MimError, match=words) as error:
        rows_of(path, "label")
    assert str(path) in str(error.value)


def test_columns_are_found_by_their_names(tmp_path):
    path = tmp_path / "captions.csv"
    path.write_bytes(b"\xef\xbb\xbfCaption,Path,size\na cat,1.jpg,3\n\n")
    assert rows_of(path, "caption") == [("1.jpg", "a cat")]
    path.write_text("wall\0\nfloor\n")
    shutil.move(path, tmp_path / "classes.txt")
    with pytest.raises(MimError, match="NUL"):
        class_names(tmp_path)


def test_items_without_labels_are_for_pre_training_alone(tmp_path):
    for label in ("cat", "dog"):
        frames(tmp_path, folder=f"train/{{modality}}/{label}", stems=range(3))
        frames(tmp_path, folder=f"test/{{modality}}/{label}", stems=range(2))
    frames(tmp_path, folder="unlabeled/{modality}", stems=range(4))
    data = source(tmp_path)
    assert (len(data), len(data.collection.train), len(data.collection.test)) == (10, 6, 4)
    assert data.contents()["splits"].endswith("unlabeled/ without labels (4)")
    assert "not used" not in data.contents()["splits"]
    assert [data.name_of(i) for i in (0, 6, 9)] == [
        "train/rgb/cat/0.png",
        "unlabeled/rgb/0.png",
        "unlabeled/rgb/3.png",
    ]
    assert data.items_named({"unlabeled/depth/2.png"}) == {"unlabeled/depth/2.png": 8}
    assert list(data.files_of())[6][1] == str(tmp_path / "unlabeled" / "depth" / "0.png")
    assert len(list(data.files_of("train"))) == 6
    data.read(8, 0)
    assert len(data.labelled("train").labels) == 6
    for path in (tmp_path / "unlabeled" / "depth").iterdir():
        path.unlink()
    (tmp_path / "unlabeled" / "depth").rmdir()
    assert "no folder 'depth'" in refused(tmp_path)
    assert "Without normal: --use normal.tokenizer=none" in refused(
        tmp_path, shapes={**SHAPES, "normal": (3, 32, 32)}, missing="mask"
    )
    masked, skipped = (source(tmp_path, missing=missing) for missing in ("mask", "skip"))
    assert (len(masked), len(skipped)) == (10, 6)
    assert not masked.read(8, 0)["depth.present"]


def test_several_captions_of_an_item_are_choices(tmp_path):
    pytest.importorskip("open_clip")
    from mim_multimodal import captions

    frames(tmp_path, folder="train/{modality}", stems=range(2))
    frames(tmp_path, folder="test/{modality}", stems=range(2))
    rows = "0,a red cat\nrgb/0.png,a small cat\n0,a red cat\n1,a dog\ntest/0,none\n"
    (tmp_path / "captions.csv").write_text(f"path,caption\n{rows}")
    data = source(tmp_path, {"rgb": (3, 8, 8), "caption": (8,)})
    assert data.collection.train.captions == (("a red cat", "a small cat"), ("a dog",))
    drawn = [captions.decode_caption(data.read(0, key)["caption"].tolist()) for key in range(40)]
    assert {*drawn} == {"a red cat", "a small cat"}
    assert 5 < drawn.count("a red cat") < 35
    assert drawn[:5] == [captions.decode_caption(data.read(0, key)["caption"].tolist()) for key in range(5)]
    fixed = data.take(data.collection.train, 0, data.shapes)["caption"].tolist()
    assert captions.decode_caption(fixed) == "a red cat"
    assert "up to 2 for an item, of which one is drawn" in data.contents()["files hold"]


def test_two_labels_of_an_item_are_refused(tmp_path):
    frames(tmp_path, folder="train/{modality}", stems=range(4))
    frames(tmp_path, folder="test/{modality}", stems=range(2))
    rows = "train/0,cat\ntrain/1,dog\ntrain/2,cat\ntrain/3,dog\ntest/0,cat\ntest/1,dog\n"
    table = tmp_path / "labels.csv"
    table.write_text(f"path,label\n{rows}train/rgb/2.png,cat\n")
    assert source(tmp_path).labels.classes == ("cat", "dog")
    table.write_text(f"path,label\n{rows}train/rgb/2.png,dog\n")
    assert "gives 1 item more than one label: train/2 is cat, train/rgb/2.png is dog" in refused(tmp_path)


def test_splits_of_a_table_hold(tmp_path):
    frames(tmp_path)
    table = tmp_path / "labels.csv"
    words = ["Train"] * 7 + ["VAL", "test", "sometimes"]
    table.write_text("path,split\n" + "".join(f"{i},{word}\n" for i, word in enumerate(words)) + "gone,test\n")
    data = source(tmp_path)
    found = data.collection
    assert found.test.stems == ("7", "8")
    assert found.pretrain.stems == (*"0123456", "9")
    assert (data.labels.classes, found.note) == ((), "")
    assert data.contents()["splits"] == "as labels.csv says: 2 held out, 8 for training"
    advice = " ".join(data.advice())
    assert "words that name no split: sometimes; they" in advice
    assert f"1 row of {table} name no item of {tmp_path} (gone)" in advice
    rows = [f"rgb/{i}.png,{'test' if i < 4 else 'train'},{'ab'[i % 2]}\n" for i in range(10)]
    table.write_text("path,subset,kind\n" + "".join(rows))
    data = source(tmp_path)
    assert data.labels.classes == ("a", "b")
    assert (data.collection.test.stems, len(data.labels.test)) == (tuple("0123"), 4)
    assert len(source(tmp_path, splits=False)) == 10
    table.write_text("path,split\n1,test\nrgb/1.png,train\n")
    assert "has rgb/1.png in several rows, in test and in train" in refused(tmp_path)
    table.write_text("path,split\nx,test\n")
    assert "none of its rows names an item" in refused(tmp_path)
    table.write_text("path,split\n" + "".join(f"{i},test\n" for i in range(10)))
    assert "holds out all 10 items" in refused(tmp_path)


def test_folders_of_no_split_and_lists_that_are_not_read_are_told(tmp_path):
    for split in ("train", "val", "more"):
        frames(tmp_path, folder=f"{split}/{{modality}}")
    (tmp_path / "notes").mkdir()
    assert f"{tmp_path}: more/ left out: named like no split." in source(tmp_path).advice()
    frames(tmp_path / "own")
    for name in ("train.txt", "test.txt"):
        (tmp_path / "own" / name).touch()
    assert any("lists that are named like splits (test.txt, train.txt)" in x for x in source(tmp_path / "own").advice())


def test_a_column_of_splits_is_known_by_its_cells(tmp_path):
    frames(tmp_path)
    rows = [f"{i},{'PublicTest' if i > 7 else 'Training'},{'ab'[i % 2]}\n" for i in range(10)]
    (tmp_path / "labels.csv").write_text("path,Usage,kind\n" + "".join(rows))
    data = source(tmp_path)
    assert (data.labels.classes, data.collection.test.stems) == (("a", "b"), ("8", "9"))
    (tmp_path / "labels.csv").write_text("path,is_test\n" + "".join(f"{i},{int(i > 6)}\n" for i in range(10)))
    data = source(tmp_path)
    assert (data.labels.classes, data.collection.test.stems) == ((), ("7", "8", "9"))


def test_splits_of_a_table_count_before_those_of_folders(tmp_path):
    for label in ("cat", "dog"):
        frames(tmp_path, folder=f"train/{{modality}}/{label}", stems=range(3))
        frames(tmp_path, folder=f"test/{{modality}}/{label}", stems=range(3, 5))
    frames(tmp_path, folder="unlabeled/{modality}", stems=range(5, 7))
    (tmp_path / "labels.csv").write_text("path,split\ntrain/rgb/cat/0.png,test\ndog/0,test\nunlabeled/5,test\n")
    data = source(tmp_path)
    found = data.collection
    assert [found.test.name(i) for i in range(3)] == [
        "train/rgb/cat/0.png",
        "train/rgb/dog/0.png",
        "unlabeled/rgb/5.png",
    ]
    assert (len(found.train), len(found.pretrain)) == (8, 9)
    assert data.labels.classes == ("cat", "dog")
    assert "test/rgb/dog/4.png" in [found.train.name(i) for i in range(8)]
    data.read(8, 0)
    (tmp_path / "labels.csv").write_text("path,split\ntrain/rgb/cat/0.png,train\n")
    assert source(tmp_path).contents()["splits"].startswith("train/ for training (6)")


def test_kept_features_know_the_files_that_they_were_made_of(tmp_path):
    for split in ("train", "test"):
        frames(tmp_path, folder=f"{split}/{{modality}}", stems=range(4))
    table, captions = tmp_path / "labels.csv", tmp_path / "captions.csv"
    table.write_text("path,label\n0,cat\n1,dog\n2,cat\n3,dog\n")
    captions.write_text("path,caption\n" + "".join(f"{stem},text\n" for stem in range(4)))

    def digest(shapes):
        data = source(tmp_path, shapes)
        return digest_of(data, [data.labelled("train"), data.labelled("test")])

    wanted = {"rgb": (3, 8, 8)}  # dense evaluations read the others too
    seen = [digest(wanted)]
    assert digest(wanted) == seen[0]
    for change in (
        lambda: os.utime(tmp_path / "test/depth/3.png", (1, 1)),
        lambda: Image.fromarray(VALUES["rgb"][::2]).save(tmp_path / "train/rgb/2.png"),
        lambda: table.write_text("path,label\n0,cat\n1,dog\n2,dog\n3,dog\n"),
        lambda: captions.write_text(captions.read_text().replace("3,text", "3,other")),
    ):
        change()
        seen.append(digest(wanted))
    assert len({*seen}) == len(seen)


def test_a_folder_in_capitals_is_guessed(tmp_path):
    frames(tmp_path)
    (tmp_path / "rgb").rename(tmp_path / "RGB")
    assert "Is it 'RGB'? Say so: --data.folders rgb RGB" in refused(tmp_path)


@pytest.mark.parametrize("inner", ["test", "val/x", "a/holdout"])
def test_a_held_out_folder_below_the_modalities_of_a_split_is_never_trained_on(tmp_path, inner):
    frames(tmp_path, stems=range(6), folder="training/{modality}")
    frames(tmp_path, stems=range(6, 8), folder=f"training/{{modality}}/{inner}")
    found = source(tmp_path)
    assert len(found) == 6
    assert [found.collection.test.name(i) for i in range(len(found.collection.test))] == [
        f"training/rgb/{inner}/{i}.png" for i in (6, 7)
    ]
    frames(tmp_path, stems=range(8, 11), folder="testing/{modality}")
    frames(tmp_path, stems=range(2), folder="unlabeled/{modality}/test")
    frames(tmp_path, stems=range(3), folder="unlabeled/{modality}/b")
    found = source(tmp_path)
    assert (len(found), len(found.collection.test)) == (9, 3)
    told = " ".join(found.advice())
    assert "2 items of" in told
    assert "training left out: they lie in held-out folders inside it" in told
    assert "unlabeled left out: they lie in held-out folders inside it" in told
