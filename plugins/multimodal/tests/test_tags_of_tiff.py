"""The limits of pictures' headers are asked for."""

import struct

import pytest
from mim_multimodal.files import open_picture


def test_a_tiff_of_endless_tags(tmp_path):
    entry = struct.pack("<HHII", 270, 2, 900_000_000, 500)
    (tmp_path / "a.tif").write_bytes(b"II" + struct.pack("<HIH", 42, 8, 1) + entry + bytes(500))
    with pytest.raises(ValueError, match="its tags hold"):
        open_picture(tmp_path / "a.tif")
