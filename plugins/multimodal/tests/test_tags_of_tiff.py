"""The tags of TIFF files."""

import os
import struct

import pytest
from mim_multimodal.files import open_picture
from PIL import Image


def test_tags_of_a_tiff_are_counted_before_they_are_read(tmp_path):
    """In a sparse file of 900 MB, of which Pillow would make gigabytes."""
    kinds = {"text": (270, 2, 900_000_000), "offsets": (273, 4, 200_000_000), "fractions": (33432, 5, 30_000_000)}
    rest = [(256, 4, 1, 8), (257, 4, 1, 8), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (277, 3, 1, 1)]
    for name, many in kinds.items():
        entries = sorted([*rest, (*many, 500)])
        head = b"II" + struct.pack("<HIH", 42, 8, len(entries))
        head += b"".join(struct.pack("<HHII", *entry) for entry in entries) + bytes(4)
        path = tmp_path / f"{name}.tif"
        path.write_bytes(head)
        os.truncate(path, 900_001_000)
        with pytest.raises(ValueError, match="its tags hold"):
            open_picture(path)
    Image.new("L", (8, 8)).save(tmp_path / "small.tif", description="x" * 1000)
    with open_picture(tmp_path / "small.tif") as image:
        assert image.size == (8, 8)
