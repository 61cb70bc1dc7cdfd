"""Folders of images, made as people have them."""

import pytest
from mim_core.cli import main
from mim_image.data import Images
from PIL import Image


@pytest.fixture
def images(tmp_path):
    """``images(size=(8, 8), channels=3, root=..., **options)``: the data source, on the test's own folder."""

    def make(root=tmp_path, size=(8, 8), channels=3, **options):
        return Images(Images.Config(root=root, **options), {"image": (channels, *size)})

    return make


@pytest.fixture
def photo(tmp_path):
    """``photo("deep/a.jpg", colour, size)`` saves a picture below the test's folder."""

    def make(name, colour=(200, 100, 50), size=(20, 16), mode="RGB", **options):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new(mode, size, colour).save(path, **options)
        return path

    return make


@pytest.fixture
def pretrain(tmp_path, capsys):
    """Runs a twin on the test's folder; returns exit code, standard error and the run's folder."""

    def run(*arguments, recipe="mae-vit-tiny", root=tmp_path, steps=5):
        folder = tmp_path / ".run"
        count = len(Images(Images.Config(root=root), {"image": (1, 8, 8)}))
        epochs = ["--train.epochs", str(steps * 16 / count)]
        data = ["--data.root", str(root), "--out", str(folder), "--quiet"]
        capsys.readouterr()
        code = main(["pretrain", recipe, "--twin", *data, *epochs, *map(str, arguments)], plugin="image")
        return code, capsys.readouterr().err, folder

    return run
