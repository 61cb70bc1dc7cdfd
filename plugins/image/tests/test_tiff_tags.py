"""The limits of pictures' headers are asked for, of files and of what lies in a shard."""

import io
import struct

import pytest
from mim_image.formats import open_image

BOMB = b"II" + struct.pack("<HIH", 42, 8, 1) + struct.pack("<HHII", 270, 2, 900_000_000, 500) + bytes(500)


def test_a_tiff_of_endless_tags(tmp_path):
    (tmp_path / "a.tif").write_bytes(BOMB)
    for file in (tmp_path / "a.tif", io.BytesIO(BOMB)):
        with pytest.raises(ValueError, match="its tags hold"):
            open_image(file)
