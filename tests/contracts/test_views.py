"""Views of a sample: how a source makes them, where they lie, and the masks and scores that go by them."""

import pytest
import torch
from mim_core import View, Viewed, carried, unpaired
from mim_core.data.noise import Noise
from mim_core.data.viewed import viewed
from mim_core.data.views import entries
from mim_core.errors import MimError
from mim_core.evaluation.reconstruction import held_out_samples
from mim_core.host.loading import installed
from mim_core.methods.build import build_method, make_source
from mim_core.parts.layout import Layout, Patches
from mim_core.parts.mask import Draw
from mim_core.parts.masker_guided import GuidedMasker
from mim_core.parts.masker_region import RegionMasker
from mim_core.parts.scorer import OverlapScorer
from mim_core.recipes.resolve import load_recipe, override
from mim_image.data import Images
from mim_image.views import ImageViews
from PIL import Image

TARGET, PAIR, PLACE = View("target"), View("pair"), View("place")
LOCAL = View("local", 3, (14, 14))
PLAIN = {"view_colour": 0.0, "view_blur": 0.0, "view_grey": 0.0}


def ramp(height=96, width=128):
    """An image whose red says how far to the right a pixel lies, and whose green how far down."""
    y = torch.linspace(0, 255, height)[:, None].expand(height, width)
    x = torch.linspace(0, 255, width)[None].expand(height, width)
    return Image.fromarray(torch.stack([x, y, torch.zeros_like(x)], dim=-1).round().to(torch.uint8).numpy())


def views_of(*views, **options):
    return ImageViews(Images.Config(**{**PLAIN, **options}), (56, 56), 3, views)


def expected(place, size=56):
    """Red and green of each pixel of a view, by where it should lie."""
    share = (torch.arange(size) + 0.5) / size
    y = place[0, 0] + share * (place[1, 0] - place[0, 0])
    x = place[0, 1] + share * (place[1, 1] - place[0, 1])
    return torch.stack([x[None].expand(size, size), y[:, None].expand(size, size)]) * 255


@pytest.mark.parametrize("where", ["own", "shift"])
def test_a_place_says_where_each_pixel_lies(where):
    views = views_of(TARGET, PLACE, view_place=where, view_shift=15, crop=(0.1, 0.8))
    mirrored = 0
    for key in range(24):
        found = views(ramp(), key)
        for name in ("image", "image_target"):
            place = found[f"{name}.place"]
            mirrored += int(place[0, 1] > place[1, 1])
            # 255 over 96 rows: a pixel is about 2.7 values; edges of a resized crop are blurred
            apart = (found[name][:2].float() - expected(place))[:, 2:-2, 2:-2].abs()
            assert float(apart.max()) < 4, (key, name)
    assert 8 < mirrored < 40, "some are mirrored, some not"


def test_boxes_are_carried_through_crop_and_flip():
    """The pixels inside a box of one view are those inside the carried box of the other."""
    views = views_of(TARGET, PLACE, view_place="own", crop=(0.3, 0.8))
    tried = 0
    for key in range(40):
        found = views(ramp(), key)
        box = torch.tensor([[[0.25, 0.5], [0.5, 0.75]]])[None]
        there = carried(box, found["image.place"][None], found["image_target.place"][None])[0, 0]
        if bool((there < 0.02).any() | (there > 0.98).any()):
            continue
        tried += 1
        for corner, other in ((box[0, 0, 0], there[0]), (box[0, 0, 1], there[1])):
            assert bool((other[0] > 0) & (other[1] > 0)), corner
        inside = [_mean(found["image"], box[0, 0]), _mean(found["image_target"], there)]
        torch.testing.assert_close(inside[0], inside[1], atol=4.0, rtol=0.0)
    assert tried > 8


def _mean(image, box):
    """Mean red and green of the pixels in a box of shares."""
    top, left, bottom, right = (box.flatten() * 56).round().int().tolist()
    return image[:2, top:bottom, left:right].float().mean(dim=(1, 2))


def test_carried_by_hand():
    place = torch.tensor([[[0.0, 0.0], [0.5, 0.5]]])
    other = torch.tensor([[[0.0, 1.0], [1.0, 0.0]]])  # the whole, mirrored
    box = torch.tensor([[[[0.5, 0.5], [1.0, 1.0]]]])
    wanted = torch.tensor([[[[0.25, 0.5], [0.5, 0.75]]]])
    torch.testing.assert_close(carried(box, place, other), wanted)
    torch.testing.assert_close(carried(wanted, other, place), box)


def test_views_follow_from_the_key_alone():
    views = views_of(TARGET, PAIR, PLACE, LOCAL, view_place="own", view_changes="all", view_colour=0.4, view_blur=0.5)
    torch.manual_seed(1)
    one = views(ramp(), 5)
    torch.manual_seed(2)
    other = views(ramp(), 5)
    assert set(one) == {"image", "image_target", "image_local", "image.place", "image_target.place"}
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert one["image_local"].shape == (2, 3, 3, 14, 14)
    assert not torch.equal(one["image"][0], one["image"][1])
    assert not torch.equal(one["image"][0], one["image_target"][0])
    assert len({tuple(x.flatten().tolist()) for x in one["image_local"].flatten(0, 1)}) == 6


def test_the_first_view_keeps_its_colours_unless_told():
    plain = views_of(view_place="own")(ramp(), 3)["image"]
    strong = {"view_place": "own", "view_colour": 0.8, "view_solarize": 1.0, "view_blur": 0.0}
    second = views_of(TARGET, **strong)(ramp(), 3)
    both = views_of(TARGET, **strong, view_changes="all")(ramp(), 3)
    assert torch.equal(second["image"], plain)
    assert not torch.equal(both["image"], plain)
    assert torch.equal(both["image_target"], second["image_target"])


def test_entries_have_the_shapes_that_are_given():
    shapes = {"image": (3, 56, 56)}
    views = (TARGET, PAIR, PLACE, LOCAL)
    found = views_of(*views, view_place="own")(ramp(), 3)
    assert {name: tuple(value.shape[1:]) for name, value in found.items()} == entries(shapes, views)


@pytest.mark.parametrize("size", [(57, 14), (3, 3, 56, 56), (0, 4)])
def test_local_views_that_do_not_fit(size):
    with pytest.raises(ValueError, match="local views"):
        views_of(View("local", 2, size))


# ---- any source ------------------------------------------------------------------------------------------------------


def noise(*views):
    return viewed(Noise(Noise.Config(items=8), {"image": (1, 28, 28), "depth": (1, 28, 28)}), views)


def test_views_of_any_source_are_other_readings():
    source = noise(TARGET, LOCAL)
    item = source.read(2, 17)
    assert isinstance(source, Viewed)
    assert set(item) == {f"{name}{view}" for name in ("image", "depth") for view in ("", "_target", "_local")}
    assert item["depth_local"].shape == (3, 1, 14, 14)
    assert not torch.equal(item["image"], item["image_target"])
    assert torch.equal(item["image"], source.source.read(2, 17)["image"])
    assert all(torch.equal(value, source.read(2, 17)[name]) for name, value in item.items())


def test_a_pair_is_two_samples_with_keys_of_their_own():
    source = noise(PAIR)
    assert source.samples_per_item == 2
    items = [source.read(n, 5 + n) for n in range(3)]
    batch = {name: torch.stack([item[name] for item in items]) for name in items[0]}
    done = source.finish({**batch, "index": torch.arange(3), "key": torch.arange(5, 8)})
    assert done["image"].shape == (6, 1, 28, 28)
    assert done["index"].tolist() == [0, 0, 1, 1, 2, 2]
    assert len(set(done["key"].tolist())) == 6
    assert torch.equal(done["image"], batch["image"].flatten(0, 1))
    assert torch.equal(done["key"], unpaired({"key": torch.arange(5, 8)})["key"])


@pytest.mark.parametrize(
    ("recipe", "name"),
    [
        ("video:videomae-vit-tiny", "video"),
        ("pointcloud:point-mae-vit-tiny", "points"),
        ("multimodal:multimae-vit-tiny", "rgb"),
    ],
)
def test_clips_clouds_and_frames_give_second_views(recipe, name):
    run = load_recipe(recipe, installed(), twin=True)
    if name == "video":
        run = override(run, {"data": {"repeat": 1}}, "test", installed())
    source = viewed(make_source(run, build_method(run)), (TARGET, PAIR))
    one, again = source.read(1, 9), source.read(1, 9)
    assert all(torch.equal(value, again[key]) for key, value in one.items())
    assert one[name].shape[0] == 2
    assert one[name].shape == one[f"{name}_target"].shape
    batch = {key: torch.stack([one[key], source.read(2, 10)[key]]) for key in one}
    done = source.finish({**batch, "index": torch.tensor([1, 2]), "key": torch.tensor([9, 10])})
    for key, shape in entries(source.shapes, (TARGET,)).items():
        assert tuple(done[key].shape) == (4, *shape), key
    assert not torch.equal(done[name], done[f"{name}_target"])
    held_out, _ = held_out_samples(source, 3)  # no pairs
    assert tuple(held_out[name].shape) == (3, *source.shapes[name])


def test_clips_do_not_say_where_they_lie():
    run = load_recipe("video:videomae-vit-tiny", installed(), twin=True)
    with pytest.raises(ValueError, match="does not tell"):
        viewed(make_source(run, build_method(run)), (TARGET, PLACE))


def test_repeated_clips_make_no_pairs():
    run = override(
        load_recipe("video:videomae-vit-tiny", installed(), twin=True), {"data": {"repeat": 2}}, "test", installed()
    )
    source = make_source(run, build_method(run))
    with pytest.raises(ValueError, match=r"--data\.repeat 1"):
        viewed(source, (PAIR,))


def test_clouds_have_no_local_views():
    run = load_recipe("pointcloud:point-mae-vit-tiny", installed(), twin=True)
    with pytest.raises((ValueError, MimError), match=r"local views"):
        viewed(make_source(run, build_method(run)), (View("local", 2, (16, 16)),))


# ---- masks and scores that go by them --------------------------------------------------------------------------------


def test_the_least_attended_are_hidden():
    """Of an attention map by hand: only units of its lower half are hidden, all of them sooner or later."""
    masker = GuidedMasker(
        GuidedMasker.Config(ratio=0.125, direction="low", among=0.5, share_from=1.0, share_to=1.0, every="step")
    )
    layout = Layout.on_grid(4, 4)
    attention = torch.arange(16.0).flip(0).expand(64, 16)  # the last eight units are attended to least
    hidden = masker(layout, Draw(torch.arange(64)), attention).hidden
    assert bool((hidden.sum(dim=1) == 2).all())
    assert not bool(hidden[:, :8].any())
    assert bool(hidden[:, 8:].any(dim=0).all())


def test_without_a_pool_the_least_attended_are_hidden_themselves():
    masker = GuidedMasker(GuidedMasker.Config(ratio=0.25, direction="low", share_from=1.0, share_to=1.0, every="step"))
    hidden = masker(Layout.on_grid(4, 4), Draw(torch.arange(3)), torch.arange(16.0).expand(3, 16)).hidden
    assert hidden.nonzero()[:, 1].reshape(3, 4).tolist() == [[0, 1, 2, 3]] * 3


def test_a_region_is_one_rectangle_anywhere():
    masker = RegionMasker(RegionMasker.Config(size=(2, 3)))
    hidden = masker(Layout.on_grid(4, 5), Draw(torch.arange(400)), None).hidden.reshape(-1, 4, 5)
    seen = set()
    for row in hidden:
        y, x = row.nonzero().T
        assert len(y) == 6
        assert (int(y.max() - y.min()), int(x.max() - x.min())) == (1, 2)
        seen.add((int(y.min()), int(x.min())))
    assert len(seen) == 9, "every place comes up"


def test_a_region_lies_where_the_scores_are():
    masker = RegionMasker(RegionMasker.Config(size=(2, 2)))
    scores = torch.zeros(50, 4, 4)
    scores[:, 1:, 1:] = 1.0
    hidden = masker(Layout.on_grid(4, 4), Draw(torch.arange(50)), scores.flatten(1)).hidden.reshape(-1, 4, 4)
    assert not bool(hidden[:, 0].any() | hidden[:, :, 0].any())
    assert len({tuple(row.flatten().tolist()) for row in hidden}) == 4


@pytest.mark.parametrize("grid", [None, (2, 2), (4, 4, 4)])
def test_regions_that_do_not_fit(grid):
    layout = Layout(64) if grid is None else Layout.on_grid(*grid)
    with pytest.raises(ValueError, match="region of"):
        RegionMasker(RegionMasker.Config(size=(3, 3))).count(layout)


def test_overlap_by_hand():
    """The target view shows the right half of the view, mirrored: units of the right half are in it."""
    from mim_core.parts.teacher import Student

    method = build_method(load_recipe("image:maskco-resnet-tiny", installed()))
    scorer = OverlapScorer(OverlapScorer.Config(), Student(method.tokenizer, method.encoder))
    layout = Layout.on_grid(2, 4)
    sample = {
        "image.place": torch.tensor([[[0.0, 0.0], [1.0, 1.0]]]),
        "image_target.place": torch.tensor([[[0.0, 1.0], [1.0, 0.5]]]),
    }
    scores = scorer(sample, Patches(torch.zeros(1, 8, 1), layout))
    assert scores.reshape(2, 4).tolist() == [[0, 0, 1, 1], [0, 0, 1, 1]]
