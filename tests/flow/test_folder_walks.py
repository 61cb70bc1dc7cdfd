"""Folders of a collection: each real one once, whatever links there are."""

import os

import pytest
from mim_core.data.folders import walk_folders
from mim_core.text import counted


def visited(root, **options):
    return [(str(folder.relative_to(root)), names) for folder, names, _ in walk_folders(root, **options)]


@pytest.fixture
def tree(tmp_path):
    for name in ("a/1.txt", "b/2.txt", "b/c/3.txt", ".hidden/4.txt"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).touch()
    return tmp_path / "in"


def test_real_folders_in_order(tree):
    assert visited(tree) == [(".", []), ("a", ["1.txt"]), ("b", ["2.txt"]), ("b/c", ["3.txt"])]
    assert (".hidden", ["4.txt"]) in visited(tree, hidden=True)


def test_links_back_are_passed_over(tree):
    plain = visited(tree)
    (tree / "a/up").symlink_to("..")
    (tree / "a/beside").symlink_to("../b")  # visited before b, it would give b's files another place
    (tree / "b/c/self").symlink_to(".")
    assert visited(tree) == plain


def test_links_to_other_places_are_followed_once(tree, tmp_path):
    (tmp_path / "elsewhere/deep").mkdir(parents=True)
    (tmp_path / "elsewhere/deep/5.txt").touch()
    (tmp_path / "elsewhere/deep/home").symlink_to(tree)
    for name in ("link", "same"):
        (tree / "a" / name).symlink_to(tmp_path / "elsewhere")
    (tree / "a/6.txt").symlink_to(tmp_path / "elsewhere/deep/5.txt")
    found = visited(tree)
    assert ("a", ["1.txt", "6.txt"]) in found
    assert found[-2:] == [("a/link", []), ("a/link/deep", ["5.txt"])]


def test_links_to_nothing_and_to_themselves(tree):
    (tree / "a/gone").symlink_to("nowhere")
    (tree / "a/loop").symlink_to("loop")
    assert ("a", ["1.txt", "gone", "loop"]) in visited(tree)


def test_the_caller_may_leave_folders_out(tree):
    seen = []
    for folder, _, inner in walk_folders(tree):
        inner[:] = [name for name in inner if name != "b"]
        seen.append(folder.name)
    assert seen == ["in", "a"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list every folder")
def test_a_folder_that_cannot_be_listed_is_told(tree, capsys):
    (tree / "a").chmod(0)
    try:
        assert ("a", ["1.txt"]) not in visited(tree)
    finally:
        (tree / "a").chmod(0o700)
    assert f"the folder {tree / 'a'} cannot be listed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("number", "said"),
    [(0, "no classes"), (1, "1 class"), (1.0, "1 class"), (1200, "1,200 classes"), (0.5, "0.5 classes")],
)
def test_numbers_with_their_nouns(number, said):
    assert counted(number, "class", "classes") == said
