"""Which folders are splits, and what a class is: one rule for every plugin."""

from pathlib import PurePath

import pytest
from mim_core.data.collections import arrange, every_fifth, left_out, split_in, split_of
from mim_core.errors import MimError

ROOT = PurePath("ROOT")
CLASSES = ("cat", "dog")


def two(*folders):
    """A file of each class in each folder; CLASS stands for the class."""
    return [f"{folder.replace('CLASS', name)}/1.x" for folder in folders for name in CLASSES]


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train/CLASS", "test/CLASS"),
        ("training/CLASS", "testing/CLASS"),
        ("Train/CLASS", "Test/CLASS"),
        ("TRAIN/CLASS", "valid/CLASS"),
        ("train/CLASS", "Val/CLASS"),
        ("train/CLASS", "validation/CLASS"),
        ("training_set/training_set/CLASS", "test_set/test_set/CLASS"),
        ("train2017/CLASS", "val2017/CLASS"),
        ("data/train/CLASS", "data/test/CLASS"),
        ("CLASS/train", "CLASS/test"),
        ("CLASS/Training/more", "CLASS/Validation"),
    ],
)
def test_the_split_is_the_first_folder_named_like_one_and_the_class_the_first_that_is_not(train, test):
    found = arrange(two(train, test), ROOT)
    assert found.pretrain == found.train == (0, 1)
    assert found.test == (2, 3)
    assert found.classes == CLASSES
    assert found.labels == (0, 1, 0, 1)
    assert found.splits.count("(2)") == 2
    assert not found.advice


def test_of_two_held_out_splits_the_test_split_counts_and_the_other_is_trained_on_by_nobody():
    found = arrange(two("train/CLASS", "valid/CLASS", "test/CLASS"), ROOT)
    assert (found.pretrain, found.test) == ((0, 1), (4, 5))
    assert "valid/ not used (2)" in found.splits


def test_what_has_no_labels_is_for_pretraining_alone():
    found = arrange([*two("train/CLASS"), "unlabeled/2.x"], ROOT)
    assert (found.pretrain, found.train, found.test) == ((0, 1, 2), (0, 1), None)
    assert found.classes == CLASSES


def test_class_folders_without_splits_stay_classes():
    found = arrange(two("CLASS"), ROOT)
    assert (found.pretrain, found.test, found.classes, found.splits) == ((0, 1), None, CLASSES, "")


def test_loose_files_beside_splits_are_left_out_and_told():
    found = arrange([*two("train/CLASS", "test/CLASS"), "logo.x"], ROOT, "image")
    assert found.pretrain == (0, 1)
    assert "1 image" in found.advice[0]
    assert "logo.x" in found.advice[0]


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (two("test/CLASS"), "only held-out files"),
        (two("val/CLASS", "test/CLASS"), "only held-out files"),
        (["train/1.x", "run/1.x"], "If it is the training split"),
        (["train/cat/1.x", "train/dog/1.x", "test/cat/1.x", "test/cow/1.x"], "differ, in: cow, dog"),
        (["train/cat/1.x", "train/dog/1.x", "test/1.x"], "and test none"),
    ],
)
def test_what_can_be_read_in_two_ways_is_refused(files, words):
    with pytest.raises(MimError, match=words):
        arrange(files, ROOT)


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("seg_train/seg_train/CLASS", "seg_test/seg_test/CLASS"),
        ("ILSVRC2012_img_train/CLASS", "ILSVRC2012_img_val/CLASS"),
        ("trainA/CLASS", "testA/CLASS"),
        ("train.v2/CLASS", "test.v2/CLASS"),
        ("data/x_train/CLASS", "data/x_test/CLASS"),
    ],
)
def test_folders_that_differ_in_the_word_for_a_split_only_are_splits(train, test):
    found = arrange(two(train, test), ROOT)
    assert (found.pretrain, found.test, found.classes) == ((0, 1), (2, 3), CLASSES)
    assert found.splits.count("(2)") == 2


@pytest.mark.parametrize("names", [("01_train", "02_test"), ("1. Train", "2. Val"), ("part1-train", "part2-test")])
def test_folders_that_differ_in_numbers_too_are_splits(names):
    found = arrange(two(*(f"{name}/CLASS" for name in names)), ROOT)
    assert (found.pretrain, found.test, found.classes) == ((0, 1), (2, 3), CLASSES)


@pytest.mark.parametrize("outer", ["train", "Training_Set", "unlabeled"])
def test_a_held_out_folder_below_another_split_is_never_trained_on(outer):
    found = arrange(two(f"{outer}/train/CLASS", f"{outer}/test/CLASS"), ROOT)
    assert (found.pretrain, found.test, found.classes) == ((0, 1), (2, 3), CLASSES)
    assert "test/ held out (2)" in found.splits


def test_what_lies_beside_such_folders_is_left_out_and_told():
    found = arrange([*two("seg_train/CLASS", "seg_test/CLASS"), "seg_pred/1.x"], ROOT)
    assert (found.pretrain, found.test) == ((0, 1), (2, 3))
    assert "seg_pred/1.x" in found.advice[0]


def test_classes_with_such_words_that_differ_in_more_are_classes():
    assert arrange(["training_shoes/1.x", "test_tubes/1.x"], ROOT).classes == ("test_tubes", "training_shoes")


def test_folders_with_a_word_for_a_split_in_each_name_are_splits():
    names = ("train-clean-100", "train-clean-360", "dev-clean", "test-clean", "test-other")
    found = arrange([f"{name}/{speaker}/1.x" for name in names for speaker in CLASSES], ROOT)
    assert (found.pretrain, found.test, found.classes) == ((0, 1, 2, 3), (6, 7, 8, 9), CLASSES)
    found = arrange([f"{name}/1.x" for name in ("seg_train", "seg_test", "val")], ROOT)
    assert (found.pretrain, found.test) == ((0,), (1,))


def test_folders_that_may_be_held_out_are_told():
    (advice,) = arrange(["train_a/1.x", "test_b/1.x", "more/1.x"], ROOT).advice
    assert "1 file in folders that may be held out, by a word in their names (test_b/), are trained on" in advice
    (advice,) = arrange(["test_b/1.x", "val/1.x"], ROOT).advice
    assert "test_b/" in advice
    assert not arrange(["test_tube/1.x", "cat/1.x"], ROOT).advice


@pytest.mark.parametrize("lists", [("train.txt", "test.txt"), ("meta/train.json", "meta/val.json"),
                                   ("train_test_split.txt",)])  # fmt: skip
def test_lists_that_nobody_reads_are_told(tmp_path, lists):
    for name in ("train.py", *lists):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (advice,) = arrange(["cat/1.x", "dog/1.x"], tmp_path).advice
    assert f"named like splits ({', '.join(sorted(lists))})" in advice
    assert not arrange(["train/1.x", "test/1.x"], tmp_path).advice


def test_splits_in_the_names_of_files_are_told():
    (advice,) = arrange(["train_0.x", "train_1.x", "test_0.x"], ROOT).advice
    assert "ROOT has 1 file named like the split test (test_0.x)" in advice
    assert not arrange(["train_0.x", "training.x", "cat.x"], ROOT).advice


def test_spaces_wide_letters_and_training_with_validation():
    names = (" train", "TEST ", "ｔｅｓｔ", "trainval", "train_val", "Training+Validation", "trainer_val", "held out")
    assert [split_of(name) for name in names] == ["train", "test", "test", "train", "train", "train", None, "test"]


def test_words_in_names():
    assert [
        split_of(name) for name in ("Train", "VALID", "test-set", "tests", "trainer", "contrast", "Unlabelled")
    ] == [
        "train",
        "val",
        "test",
        None,
        None,
        None,
        "unlabelled",
    ]
    assert [split_in(name) for name in ("cats-train-0.tar", "testing_3.tar", "latest.tar")] == ["train", "test", None]


def test_every_fifth_of_each_class_is_held_out():
    assert every_fifth([0] * 5 + [1] * 6, range(11)) == ([0, 1, 2, 3, 5, 6, 7, 8, 10], [4, 9])


def test_endings_that_are_not_read_are_counted_and_data_among_them_is_a_warning():
    everything, data = left_out({".heic": 30, ".txt": 2}, "image")
    assert everything == "32 images with endings that are not read: 30 x .heic, 2 x .txt"
    assert data == "30 images with endings that are not read: 30 x .heic"
    assert left_out({".csv": 1})[1] == ""


@pytest.mark.parametrize(
    ("train", "test"),
    [("mytrain", "mytest"), ("traincats", "testcats"), ("trn", "tst"), ("trainA", "testA"), ("img_train", "img_val")],
)
def test_folders_that_differ_in_a_word_for_a_split_are_splits(train, test):
    found = arrange(two(f"{train}/CLASS", f"{test}/CLASS"), ROOT)
    assert (found.pretrain, found.test, found.classes) == ((0, 1), (2, 3), CLASSES)


@pytest.mark.parametrize("held_out", ["dev", "eval", "Evaluation", "holdout", "held-out", "hold_out"])
def test_other_words_for_what_is_held_out(held_out):
    found = arrange(two("CLASS", f"{held_out}/CLASS"), ROOT)
    assert (found.pretrain, found.test, found.classes) == ((0, 1), (2, 3), CLASSES)


@pytest.mark.parametrize("names", [("strain", "contest"), ("value", "oval"), ("rest", "trainer")])
def test_words_that_hold_such_a_word_by_chance_are_classes(names):
    files = [f"{name}/1.x" for name in names]
    assert arrange(files, ROOT).classes == tuple(sorted(names))


def test_without_splits_all_files_are_one_collection():
    found = arrange(two("train/CLASS", "test/CLASS"), ROOT, splits=False)
    assert (found.pretrain, found.test, found.classes) == ((0, 1, 2, 3), None, None)
