"""Surface normals: read as they lie, cut as colour is, and their x negated where a picture is flipped."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mim_core.errors import BadSample
from mim_multimodal import normals
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
from aligned_items import X, Y, save, source

SHAPES = {"rgb": (3, 64, 64), "normal": (3, 64, 64)}
NORMAL = np.stack([4 * X, 4 * Y, 0 * X + 200], axis=2).astype(np.uint8)


def normal(root, stem, values=NORMAL, split="train"):
    path = root / split / "normal" / f"{stem}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


@pytest.fixture
def root(tmp_path):
    for split in ("train", "test"):
        for stem in ("a", "b", "c"):
            save(tmp_path, stem, split=split)
            normal(tmp_path, stem, split=split)
    return tmp_path


def test_a_flip_turns_x_around(root):
    """What points right on the left side points left on the right side; y and z only move."""
    plain, flipped = (source(root, SHAPES, flip=chance, area=(1.0, 1.0)).read(0, 5) for chance in (0.0, 1.0))
    assert torch.equal(flipped["rgb"], plain["rgb"].flip(2))
    assert torch.equal(flipped["normal"][1:], plain["normal"][1:].flip(2))
    assert torch.equal(flipped["normal"][0], 255 - plain["normal"][0].flip(1))
    vectors = normals.vectors(torch.stack([plain["normal"], flipped["normal"]]))
    torch.testing.assert_close(vectors[1, 0], -vectors[0, 0].flip(1))


def test_they_show_the_part_that_colour_shows(root):
    sample = source(root, SHAPES, flip=0.0).read(1, 9)
    apart = (sample["rgb"][:2].int() - sample["normal"][:2].int()).abs()
    assert float(apart.float().mean()) < 3, "colour is a JPEG of the same coordinates"


def test_finish_and_the_way_back(root):
    own = source(root, SHAPES)
    read = own.read(0, 1)["normal"]
    done = own.finish({"normal": read[None]})["normal"][0]
    assert -1 <= float(done.min()) < float(done.max()) <= 1
    assert torch.equal(normals.pixels_of(done), read)
    assert own.picture("normal", done).media_type == "image/png"
    ending, content = own.file("normal", done)
    assert (ending, content[:4]) == (".png", b"\x89PNG")


def test_other_files_are_refused(root):
    Image.fromarray(NORMAL[..., 0]).save(root / "train/normal/a.png")
    with pytest.raises(BadSample, match=r"normal/a\.png.*three channels of 8 bits, and this has mode L"):
        source(root, SHAPES).read(0, 0)


def test_what_is_no_normal_is_said(root):
    own = source(root, SHAPES)
    assert "normal 8 bits, 64 x 64, vectors" in own.contents()["files hold"]
    for stem in ("a", "b", "c"):
        normal(root, stem, np.full((64, 64, 3), 128, np.uint8))
    assert any("0.01 long on average" in line for line in source(root, SHAPES).advice())


def test_items_without_normals_are_masked(root):
    (root / "train/normal/b.png").unlink()
    own = source(root, SHAPES, missing="mask")
    samples = [own.read(index, 0) for index in range(3)]
    assert [bool(sample["normal.present"]) for sample in samples] == [True, False, True]
    assert not samples[1]["normal"].any()
