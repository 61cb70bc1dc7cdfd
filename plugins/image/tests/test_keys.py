"""Crops and flips follow from the sample's key alone."""

import random

import numpy as np
import pytest
import torch
from mim_core.data.loading import KeyedBatches, KeyedDataset, collate, loader
from PIL import Image


@pytest.fixture
def noise(tmp_path):
    generator = np.random.default_rng(3)
    for i in range(12):
        pixels = generator.integers(0, 256, (40 + i, 50, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i:02}.png")
    return tmp_path


def test_same_key_same_crop_whatever_the_generators(noise, images):
    source = images()
    first = source.read(3, 11)["image"]
    for seed in range(3):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        assert torch.equal(source.read(3, 11)["image"], first)


def test_reading_leaves_torchs_generator_untouched(noise, images):
    source = images()
    torch.manual_seed(5)
    undisturbed = torch.rand(4)
    torch.manual_seed(5)
    for key in range(5):
        source.read(key, key)
    assert torch.equal(torch.rand(4), undisturbed)


def test_another_key_another_crop(noise, images):
    source = images()
    crops = [source.read(3, key)["image"] for key in range(20)]
    assert len({crop.numpy().tobytes() for crop in crops}) == 20


def test_flip_has_its_chance(noise, images):
    def flips(chance):
        source = images(size=(50, 40), crop=(1.0, 1.0), flip=chance)
        plain = images(size=(50, 40), crop=(1.0, 1.0), flip=0.0)
        pairs = [(source.read(0, key)["image"], plain.read(0, key)["image"]) for key in range(200)]
        assert all(torch.equal(a, b) or torch.equal(a, b.flip(2)) for a, b in pairs)
        return sum(not torch.equal(a, b) for a, b in pairs)

    assert flips(0.0) == 0
    assert flips(1.0) == 200
    assert 70 < flips(0.5) < 130


def test_crops_have_the_share_of_the_area(tmp_path, images):
    """On a ramp the crop's brightest less its darkest pixel tells its width."""
    ramp = np.tile(np.linspace(0, 255, 256).astype(np.uint8), (256, 1))
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    spans = {}
    for low, high in ((0.2, 1.0), (0.9, 1.0), (0.2, 0.25)):
        source = images(size=(64, 64), channels=1, crop=(low, high))
        found = [source.read(0, key)["image"].float() for key in range(60)]
        spans[low, high] = [float(image.max() - image.min()) / 255 for image in found]
    # a share of 0.2 to 0.25 with sides of 3:4 to 4:3 is 0.39 to 0.58 wide
    assert max(spans[0.2, 0.25]) < 0.6
    assert min(spans[0.2, 0.25]) > 0.35
    assert min(spans[0.9, 1.0]) > 0.8
    assert max(spans[0.2, 1.0]) - min(spans[0.2, 1.0]) > 0.3


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(noise, images, workers):
    source = images()

    def batches(count):
        sampler = KeyedBatches(len(source), 4, seed=1, first=0, last=24)
        return list(loader(KeyedDataset(source), sampler, count, collate))

    for one, other in zip(batches(0), batches(workers), strict=True):
        assert one.sample.keys() == other.sample.keys()
        for name, value in one.sample.items():
            assert torch.equal(value, other.sample[name])


def test_normalised_by_imagenets_or_what_is_asked(photo, images):
    photo("a.png", (255, 0, 128))
    sample = {"image": torch.tensor([255, 0, 128], dtype=torch.uint8).reshape(1, 3, 1, 1)}
    colour = images(size=(1, 1)).finish(sample)["image"].flatten().tolist()
    expected = [(1 - 0.485) / 0.229, (0 - 0.456) / 0.224, (128 / 255 - 0.406) / 0.225]
    assert colour == pytest.approx(expected, rel=1e-5)
    own = images(size=(1, 1), mean=(0.5, 0.5, 0.5), std=(0.25, 0.5, 1.0)).finish(sample)["image"].flatten()
    assert own.tolist() == pytest.approx([2, -1, 128 / 255 - 0.5], abs=1e-6)
    grey = images(size=(1, 1), channels=1).finish({"image": sample["image"][:, :1]})["image"]
    assert float(grey) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"crop": (0.0, 1.0)}, "crop must be two rising shares"),
        ({"crop": (0.9, 0.3)}, "crop must be two rising shares"),
        ({"crop": (0.2, 1.1)}, "crop must be two rising shares"),
        ({"flip": 1.5}, "flip must lie in"),
        ({"max_bad": -0.1}, "max_bad must lie in"),
        ({"evaluate_crop": 0.0}, "evaluate_crop must lie in"),
        ({"mean": (0.5,)}, "need 3 values each"),
        ({"std": (0.0, 1.0, 1.0)}, "std must be positive"),
        ({"channels": 2}, "1 \\(grey\\), 3 \\(colour\\) or 4"),
    ],
)
def test_options_are_checked(photo, images, options, said):
    photo("a.png")
    with pytest.raises(ValueError, match=said):
        images(**options)
