"""The source of clips keeps the contract of data sources."""

import shutil
from pathlib import Path

import mim_video
import pytest
from mim_core.testing import DataContract, uncovered
from mim_video.data import Clips
from PIL import Image

SAMPLE = Path(mim_video.__file__).parent / "sample"


class TestSample(DataContract):
    part = "video:clips"
    options = {"root": Path("sample"), "stride": 2, "flip": 0.5}
    shapes = {"video": (3, 4, 32, 32)}
    unsuitable = ({"video": (2, 4, 32, 32)}, {"image": (3, 4, 32, 32)}, {"video": (3, 32, 32)})


class TestRepeatedGreyClips(DataContract):
    part = "video:clips"
    options = {"root": Path("sample"), "repeat": 2, "repeat_start": "own"}
    shapes = {"video": (1, 4, 24, 32)}
    items = 2


class TestCentredViews(DataContract):
    part = "video:clips"
    options = {"root": Path("sample"), "segments": False, "crop": "centre", "views": (2, 3)}
    shapes = {"video": (3, 2, 16, 16)}
    items = 2


class TestACutFile(DataContract):
    part = "video:clips"
    shapes = {"video": (3, 4, 16, 16)}
    items = 2

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path):
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
        for number, path in enumerate(sorted(SAMPLE.rglob("*.mp4"))[:12]):
            shutil.copy(path, tmp_path / "ab"[number % 2] / f"{number}.mp4")
        self.options = {"root": tmp_path}

    def make_broken(self):
        root = self.options["root"]
        content = (root / "a/0.mp4").read_bytes()
        (root / "b/9.mp4").write_bytes(content[: len(content) // 3])
        source = Clips(Clips.Config(root=root), self.shapes)
        names = [source.name_of(index) for index in range(len(source))]
        return source, next(i for i, name in enumerate(names) if "9.mp4" in name), "9.mp4"


class TestSurveillance(DataContract):
    """UCSD Ped's folders of frames; the others are in test_surveillance.py."""

    part = "video:anomalies"
    shapes = {"video": (3, 4, 16, 16)}

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path):
        for folder, count in (("Train/Train001", 9), ("Test/Test001", 6)):
            (tmp_path / folder).mkdir(parents=True)
            for number in range(count):
                picture = Image.new("L", (20, 18), 40 + 9 * number + len(folder))
                picture.save(tmp_path / folder / f"{number:03}.tif")
        (tmp_path / "Test/UCSDped2.m").write_text("TestVideoFile{end+1}.gt_frame = [2:3];")
        self.options = {"root": tmp_path}


def test_every_source_has_a_contract():
    assert not uncovered("data", globals().values(), "video")
