"""Boxes and masks follow their picture to the pixel: scaled, cut, mirrored, filled up, and back."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mim_image import scenes
from mim_image.boxes import Jitter, Objects, back, fitted, mask_of, objects_of, unpacked
from mim_image.coco_data import BoxSource, CocoImages
from mim_image.coco_files import Object
from mim_image.data import SAMPLE
from pycocotools import mask as codes


def blocks(size, *boxes):
    """A dark picture [1, H, W] with a bright block in each box, and the objects."""
    image = torch.zeros(1, *size, dtype=torch.uint8)
    masks = torch.zeros(len(boxes), *size, dtype=torch.uint8)
    for number, (left, top, right, bottom) in enumerate(boxes):
        image[:, top:bottom, left:right] = 200 + number
        masks[number, top:bottom, left:right] = 1
    return image, Objects(torch.tensor(boxes).float().reshape(-1, 4), torch.arange(len(boxes)), masks)


def bounds(flags):
    rows, columns = flags.nonzero(as_tuple=True)
    return [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1]


@pytest.mark.parametrize("key", range(6))
def test_cut_and_mirrored_to_the_pixel(key):
    image, objects = blocks((32, 48), (4, 6, 20, 14), (30, 16, 44, 30))
    shown, found = Jitter((32, 32), (1.5, 1.5), 0.5, [9.0])(image, objects, key)  # 1.5 x 2/3: every pixel as it was
    assert shown.shape == (1, 32, 32)
    for box, number, mask in zip(found.boxes, found.classes, found.masks, strict=True):
        there = shown[0] == 200 + number
        assert box.tolist() == bounds(there) == bounds(mask)
        assert torch.equal(mask.bool(), there)
    visible = {int(value) - 200 for value in shown.unique() if value >= 200}
    assert set(found.classes.tolist()) == visible


@pytest.mark.parametrize("key", range(6))
def test_scaled_within_a_pixel(key):
    image, objects = blocks((40, 60), (10, 8, 40, 30))
    shown, found = Jitter((64, 64), (0.4, 1.7), 0.5, [0.0])(image, objects, key)
    assert len(found.boxes) == 1
    there = shown[0] > 100
    assert torch.allclose(found.boxes[0], torch.tensor(bounds(there)).float(), atol=1.01)
    assert torch.allclose(found.boxes[0], torch.tensor(bounds(found.masks[0])).float(), atol=1.01)


def test_beside_the_picture_it_is_filled_and_keys_alone_decide():
    image, objects = blocks((20, 20), (0, 0, 20, 20))
    jitter = Jitter((32, 32), (0.5, 0.5), 0.0, [77.0])
    before = torch.random.get_rng_state()
    one, other, third = (jitter(image, objects, key)[0] for key in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(one, other)
    assert not torch.equal(one, third)
    assert (one == 77).sum() == 32 * 32 - 16 * 16


def test_a_picture_without_objects():
    image, objects = blocks((20, 20))
    _, found = Jitter((16, 16), (0.5, 1.5), 0.5, [0.0])(image, objects, 3)
    assert (found.boxes.shape, found.masks.shape) == ((0, 4), (0, 16, 16))


@pytest.mark.parametrize("size", [(20, 50), (50, 20), (7, 7), (300, 100)])
def test_whole_pictures_and_back(size):
    image, objects = blocks(size, (1, 2, 6, 7))
    shown, sides = fitted(image, (32, 24), [5.0])
    assert shown.shape == (1, 32, 24)
    assert sides[:2].tolist() == list(size)
    now = objects.boxes * torch.stack([sides[3] / sides[1], sides[2] / sides[0]]).repeat(2)
    assert torch.allclose(back(now, sides), objects.boxes, atol=1e-4)
    assert back(torch.tensor([[-5.0, -5, 99, 99]]), sides).tolist() == [[0, 0, size[1], size[0]]]


def test_masks_are_packed_without_loss():
    masks = torch.from_numpy(np.random.default_rng(0).integers(0, 2, (3, 5, 13), dtype=np.uint8))
    found = Objects(torch.rand(3, 4), torch.arange(3), masks).padded(5)
    assert found["classes"].tolist() == [0, 1, 2, -1, -1]
    assert found["masks"].shape == (5, 5, 2)
    assert torch.equal(unpacked(found["masks"], 13)[:3], masks)


def test_masks_from_polygons_and_run_lengths():
    drawn = torch.zeros(6, 8, dtype=torch.uint8)
    drawn[1:4, 2:6] = 1
    packed = codes.encode(np.asfortranarray(drawn.numpy()))
    for given in ([[2, 1, 6, 1, 6, 4, 2, 4]], scenes.run_lengths(drawn.numpy().astype(bool)), packed):
        assert torch.equal(mask_of(given, (8, 6)), drawn)
    crowd = Object(1, (0, 0, 2, 2), 7, True, None, 4.0)
    own = Object(2, (2, 1, 6, 4), 7, False, packed, 12.0)
    found = objects_of([crowd, own], (5, 7), (8, 6), True)
    assert found.classes.tolist() == [1]
    assert torch.equal(found.masks[0], drawn)


def test_scenes_are_what_their_json_says():
    images, found = scenes.compose(SAMPLE, "test", 8)
    again, _ = scenes.compose(SAMPLE, "test", 4)
    assert np.array_equal(images[:4], again)
    objects = list(found.objects())
    assert len(objects) > 8
    for each in objects:
        mask = mask_of(each.segmentation, (64, 64))
        assert bounds(mask) == list(each.box)
        assert mask.sum() == each.area
    assert json.loads(json.dumps(found.as_coco()))["annotations"]


def test_items_of_a_source_are_keyed(monkeypatch):
    monkeypatch.setattr(scenes, "COUNTS", {"train": 8, "test": 4})
    source = CocoImages(CocoImages.Config(root=Path("sample")), {"image": (1, 64, 64)})
    boxes = BoxSource(source, masks=True)
    one, other = boxes.read(3, 1), boxes.read(3, 1)
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert {name: value.shape[0] for name, value in one.items()} == {
        "image": 1, "boxes": boxes.rows, "classes": boxes.rows, "masks": boxes.rows
    }  # fmt: skip
    item = source.plain().items[3]
    assert item["picture"].tolist() == [64, 64, 64, 64]
