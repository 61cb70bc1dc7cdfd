"""The source of clouds keeps the contract of data sources."""

from pathlib import Path

import pytest
import torch
from mim_core.testing import DataContract, uncovered
from mim_pointcloud.data import Clouds


class TestSample(DataContract):
    part = "pointcloud:clouds"
    options = {"root": Path("sample"), "rotate": True}
    shapes = {"points": (256, 3)}
    unsuitable = ({"image": (256, 3)}, {"points": (256,)})


class TestNotAugmented(DataContract):
    """The points are drawn by key all the same."""

    part = "pointcloud:clouds"
    options = {"root": Path("sample"), "augment": False}
    shapes = {"points": (128, 3)}


class TestFolder(DataContract):
    part = "pointcloud:clouds"
    shapes = {"points": (64, 3)}

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path):
        generator = torch.Generator().manual_seed(0)
        for name in ("chair", "table"):
            (tmp_path / name).mkdir()
            for number in range(5):
                rows = torch.randn(100, 3, generator=generator).tolist()
                self.write(tmp_path / name / f"{number}.xyz", rows)
        self.options = {"root": tmp_path}

    def write(self, path, rows):
        path.write_text("".join(f"{x} {y} {z}\n" for x, y, z in rows))

    def make_broken(self):
        root = self.options["root"]
        self.write(root / "table/9.xyz", [(1.0, float("nan"), 0.0)] * 80)
        source = Clouds(Clouds.Config(root=root), self.shapes)
        names = [source.name_of(index) for index in range(len(source))]
        return source, next(i for i, name in enumerate(names) if "9.xyz" in name), "9.xyz"


def test_every_source_has_a_contract():
    assert not uncovered("data", globals().values(), "pointcloud")
