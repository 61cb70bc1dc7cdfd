"""The image source keeps the contract of data sources."""

import json
from pathlib import Path

import pytest
from mim_core.testing import DataContract, uncovered
from mim_image.data import Images
from PIL import Image


class TestSample(DataContract):
    part = "image:images"
    options = {"root": Path("sample"), "flip": 0.5}
    shapes = {"image": (1, 28, 28)}
    unsuitable = ({"image": (2, 8, 8)}, {"video": (3, 8, 8)}, {"image": (3, 8)})


class TestOneClass(DataContract):
    part = "image:anomalies"
    options = {"root": Path("sample"), "normal": "bag"}
    shapes = {"image": (1, 28, 28)}
    unsuitable = TestSample.unsuitable


class TestFolder(DataContract):
    """Colour pictures of odd sizes in a folder, one of which is cut short."""

    part = "image:images"
    shapes = {"image": (3, 24, 20)}

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path):
        for name, colour in (("cat", (200, 30, 9)), ("dog", (10, 90, 200))):
            (tmp_path / name).mkdir()
            for number in range(5):
                picture = Image.new("RGB", (30 + 7 * number, 41), colour)
                picture.paste((255, 255, 255), (number, 5, number + 9, 30))
                picture.save(tmp_path / name / f"{number}.png")
        whole = (tmp_path / "dog/4.png").read_bytes()
        self.bad = tmp_path / "dog/9.png"
        self.root, self.options = tmp_path, {"root": tmp_path}
        self.cut = whole[: len(whole) // 2]

    def make_broken(self):
        self.bad.write_bytes(self.cut)
        source = Images(Images.Config(root=self.root), self.shapes)
        names = [source.name_of(index) for index in range(len(source))]
        return source, next(i for i, name in enumerate(names) if name.endswith("9.png")), "9.png"


class TestObjects(DataContract):
    """A folder with a json of instances, as pre-training reads it; boxes are in test_coco_files.py."""

    part = "image:coco"
    shapes = {"image": (3, 24, 20)}
    labels = False
    unsuitable = TestSample.unsuitable

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path):
        images, rows = [], []
        for number in range(6):
            picture = Image.new("RGB", (30 + 7 * number, 41), (200, 30 * number, 9))
            picture.paste((255, 255, 255), (number, 5, number + 9, 30))
            picture.save(tmp_path / f"{number}.png")
            images.append({"id": number, "file_name": f"{number}.png"})
            rows.append({"id": number, "image_id": number, "category_id": 1, "bbox": [number, 5, 9, 25]})
        made = {"images": images, "annotations": rows, "categories": [{"id": 1, "name": "bar"}]}
        (tmp_path / "instances.json").write_text(json.dumps(made))
        self.options = {"root": tmp_path}


def test_every_source_has_a_contract():
    assert not uncovered("data", globals().values(), "image")
