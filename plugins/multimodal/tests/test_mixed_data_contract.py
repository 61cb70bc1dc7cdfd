"""The sources of several modalities keep the contract of data sources."""

from pathlib import Path

import pytest
from mim_core.testing import DataContract, uncovered
from mim_multimodal.data import Aligned
from PIL import Image


class TestSample(DataContract):
    part = "multimodal:aligned"
    options = {"root": Path("sample"), "flip": 0.5}
    shapes = {"rgb": (3, 32, 32), "depth": (1, 32, 32), "semseg": (8, 8)}
    ids = {"semseg": 14}


class TestCaptions(DataContract):
    part = "multimodal:aligned"
    options = {"root": Path("sample")}
    shapes = {"rgb": (3, 16, 16), "caption": (24,)}
    ids = {"caption": 49408}


class TestRendered(DataContract):
    part = "multimodal:rendered"
    options = {"root": Path("sample"), "source": "pointcloud:clouds"}
    shapes = {"points": (128, 3), "depth": (1, 16, 16)}


class TestABadFile(DataContract):
    part = "multimodal:aligned"
    shapes = {"rgb": (3, 16, 16), "depth": (1, 16, 16)}
    labels = False

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path):
        for name in ("near", "far"):
            for number in range(6):
                for folder, mode, value in (("rgb", "RGB", (9 * number, 90, 8)), ("depth", "I;16", 700 + 50 * number)):
                    path = tmp_path / folder / name / f"{number}.png"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    picture = Image.new(mode, (24, 20), value)
                    picture.putpixel((3 + number, 4), value if mode == "RGB" else 300)
                    picture.save(path)
        self.options = {"root": tmp_path}

    def make_broken(self):
        root = self.options["root"]
        path = root / "depth/near/3.png"
        path.write_bytes(path.read_bytes()[:60])
        source = Aligned(Aligned.Config(root=root), self.shapes)
        names = [source.name_of(index) for index in range(len(source))]
        return source, next(i for i, name in enumerate(names) if "near" in name and "3" in name), "near"


def test_every_source_has_a_contract():
    """All but `paired`, which needs a folder for each of its sources; test_mixed.py makes them."""
    assert uncovered("data", globals().values(), "multimodal") == ["multimodal:paired"]
