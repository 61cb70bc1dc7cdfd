"""A head that asks about samples, and the target that tells them apart; the second view of an image."""

import math

import pytest
import torch
from mim_core.errors import MimError
from mim_core.host.loading import installed
from mim_core.methods.build import build_method, make_source
from mim_core.parts.layout import Layout, Patches
from mim_core.parts.mask import Mask
from mim_core.parts.target_contrast import ContrastTarget, Keys
from mim_core.parts.tokenizer import PatchTokenizer
from mim_core.recipes.resolve import load_recipe, override, swap
from mim_core.testing import seeded
from PIL import Image


def target(**options):
    cut = PatchTokenizer(PatchTokenizer.Config(size=(4,), patch=(1,), channels=1), 4)
    return ContrastTarget(ContrastTarget.Config(size=2, **options), cut)


def test_the_loss_is_that_of_a_plain_loop():
    keys = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 1.0]]), dim=1)
    asked = torch.tensor([[[2.0, 0.0]], [[1.0, 1.0]]])
    own = torch.tensor([0, 2])
    for doubled in (False, True):
        found = target(temperature=0.5, doubled=doubled).loss(asked, Keys(keys, own))
        for row in range(2):
            x = asked[row, 0] / asked[row, 0].norm()
            scores = [float(x @ key) / 0.5 for key in keys]
            wanted = math.log(sum(math.exp(s) for s in scores)) - scores[int(own[row])]
            assert float(found[row, 0]) == pytest.approx(wanted, rel=1e-5)


def test_twice_the_temperature():
    keys, own = torch.eye(2), torch.arange(2)
    asked = torch.randn(2, 1, 2)
    one = target(temperature=0.1, doubled=False).loss(asked, Keys(keys, own))
    other = target(temperature=0.1).loss(asked, Keys(keys, own))
    torch.testing.assert_close(other, 0.2 * one)


def test_rows_of_several_masks_have_the_key_of_their_sample():
    from mim_core.parts.teacher import Lesson

    answers = torch.randn(3, 1, 2)
    hidden = torch.zeros(6, 4, dtype=torch.bool)
    hidden[:, 0] = True
    mask = Mask.with_count(hidden, 1, per_sample=2)
    lesson = Lesson(torch.zeros(3, 4, 2), torch.zeros(3, 0, 2), answers={"contrast": answers})
    patches = Patches(torch.zeros(3, 4, 1, 1), Layout.on_grid(4))
    values = target().make({}, patches, mask, lesson)
    assert values.own.tolist() == [0, 0, 1, 1, 2, 2]
    torch.testing.assert_close(values.keys, torch.nn.functional.normalize(answers[:, 0], dim=1))


def twin():
    return load_recipe("image:cmae-vit-tiny", installed(), twin=True)


def test_such_a_batch_is_not_accumulated():
    assert build_method(twin()).couples_batch
    assert not build_method("image:mae-vit-tiny").couples_batch


def test_the_teacher_follows_the_projector_alone():
    method = build_method(twin())
    names = {name for name, _ in method.teachers["main"].decoders.named_parameters()}
    assert names == {
        f"contrast.mlp.{rest}" for rest in ("fc0.weight", "fc0.bias", "bn0.weight", "bn0.bias", "fc1.weight")
    }


def test_data_without_views_are_refused():
    clips = swap(twin(), "data", "video:clips", installed())
    with pytest.raises(MimError, match=r"data \("):
        make_source(clips, build_method(twin()))


@pytest.fixture
def source():
    run = override(twin(), {"data": {"view_shift": 3, "crop": [1.0, 1.0], "flip": 0.0}}, "test", installed())
    return make_source(run, build_method(run))


def test_views_follow_from_the_key(source):
    with seeded(1):
        one = source.read(5, 17)
    with seeded(2):
        other = source.read(5, 17)
    assert set(one) == {"image", "image_target"}
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert one["image"].shape == one["image_target"].shape == (1, 28, 28)
    assert any(not torch.equal(source.read(5, key)["image_target"], one["image_target"]) for key in range(4))


def test_the_second_view_is_the_first_one_shifted():
    from mim_core import View
    from mim_image.data import Images
    from mim_image.views import ImageViews

    config = Images.Config(view_shift=3, view_colour=0.0, view_blur=0.0, flip=0.0, crop=(1.0, 1.0))
    views = ImageViews(config, (28, 28), 1, (View("target"),))
    picture = Image.fromarray((torch.arange(64 * 64).reshape(64, 64) % 251).to(torch.uint8).numpy())
    shifts = set()
    for key in range(64):
        found = views(picture, key)
        one, two = found["image"][0], found["image_target"][0]
        fits = [(y, x) for y in range(4) for x in range(4) if torch.equal(one[y:, x:], two[: 28 - y, : 28 - x])]
        assert len(fits) == 1, key
        shifts.add(fits[0])
    assert len(shifts) > 12, "all shifts up to 3 come up"


@pytest.mark.parametrize(("name", "value"), [("view_shift", -1), ("view_blur", 2.0), ("view_grey", -1.0)])
def test_options_that_make_no_view(name, value):
    run = override(twin(), {"data": {name: value}}, "test", installed())
    with pytest.raises(MimError, match=name):
        make_source(run, build_method(run))
