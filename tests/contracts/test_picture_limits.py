"""Small files of pictures that would take minutes or gigabytes."""

import io
import os
import struct

import pytest
from mim_core import check_picture
from PIL import Image

KINDS = {"text": (270, 2, 900_000_000), "offsets": (273, 4, 200_000_000), "fractions": (33432, 5, 30_000_000)}


def tiff(*more):
    """A TIFF file's head with another tag: its number, the type of its values, and how many it says it has."""
    rest = [(256, 4, 1, 8), (257, 4, 1, 8), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (277, 3, 1, 1)]
    entries = sorted([*rest, (*more, 500)])
    return b"II" + struct.pack("<HIH", 42, 8, len(entries)) + b"".join(struct.pack("<HHII", *e) for e in entries)


@pytest.mark.parametrize("kind", KINDS)
def test_tags_of_a_tiff_are_counted_before_they_are_read(tmp_path, kind):
    """In a sparse file of 900 MB, of which Pillow would make gigabytes; also where it is cut short."""
    (tmp_path / "a.tif").write_bytes(tiff(*KINDS[kind]) + bytes(4))
    os.truncate(tmp_path / "a.tif", 900_001_000)
    with open(tmp_path / "a.tif", "rb") as file, pytest.raises(ValueError, match="its tags hold"):
        check_picture(file)


def encoded(**options):
    content = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(content, **options)
    return content.getvalue()


def test_passes_of_a_jpeg_are_counted_before_it_is_decoded():
    """A progressive one that says one pass again and again; 92 seconds were seen of a file of 20 MB."""
    good = encoded(format="JPEG", progressive=True)
    start = good.rindex(b"\xff\xda")
    bad = good[:start] + good[start:-2] * 101 + good[-2:]
    with Image.open(io.BytesIO(bad)) as image:
        image.load()  # Pillow takes it
    with pytest.raises(ValueError, match=r"a JPEG of 1\d\d passes, and at most 100 are read"):
        check_picture(io.BytesIO(bad))


@pytest.mark.parametrize(
    "options",
    [{"format": "JPEG"}, {"format": "JPEG", "progressive": True}, {"format": "TIFF", "description": "x" * 1000},
     {"format": "PNG"}, {"format": "WEBP"}],
)  # fmt: skip
def test_others_are_taken_and_their_place_is_kept(options):
    file = io.BytesIO(encoded(**options))
    file.seek(3)
    check_picture(file)
    assert file.tell() == 3
    for cut in range(0, 64, 7):  # a file cut short is told by who decodes it
        check_picture(io.BytesIO(file.getvalue()[:cut]))
