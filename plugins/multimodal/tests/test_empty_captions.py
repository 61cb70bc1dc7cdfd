"""A caption without a word is none: masked where that is asked for, a bad file where nothing may be missing."""

import sys
from pathlib import Path

import pytest
from mim_core.errors import BadSample, MimError

sys.path.insert(0, str(Path(__file__).parent))
from aligned_items import SHAPES, items, source

OWN = {"rgb": SHAPES["rgb"], "caption": (8,)}
EMPTY = {"a/1": b"", "a/2": b"\xef\xbb\xbf \r\n", "b/1": b"a red barrel"}


@pytest.fixture
def root(tmp_path):
    pytest.importorskip("tokenizers")
    items(tmp_path)
    for split in ("train", "test"):
        for stem, content in EMPTY.items():
            path = tmp_path / split / "caption" / f"{stem}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if split == "train" else b"one word")
    return tmp_path


def opened(root, missing):
    made = source(root, OWN, missing=missing, vocabulary="own")
    made.take_ids({"caption": 300})
    return made


def test_they_are_masked_and_told(root):
    made = opened(root, "mask")
    assert [bool(made.read(i, 7)["caption.present"]) for i in range(3)] == [False, False, True]
    assert "caption of 2" in made.plan()["missing files"]
    assert "2 x .txt without words" in " ".join(made.contents().values())


def test_they_are_left_out_or_bad(root):
    assert len(opened(root, "skip")) == 1
    made = opened(root, "refuse")
    assert len(made) == 3
    with pytest.raises(BadSample, match="empty"):
        made.read(0, 7)


def test_all_of_them(root):
    for path in (root / "train" / "caption").rglob("*.txt"):
        path.write_bytes(b"\n")
    with pytest.raises(MimError, match=r"\.txt without words"):
        opened(root, "skip")
