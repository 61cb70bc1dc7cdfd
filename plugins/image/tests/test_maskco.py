"""MaskCo's rules one by one: where regions lie, which negatives count, the loss against a plain loop, the queue."""

import math

import pytest
import timm
import torch
from mim_core import Keys, Layout, Lesson, Mask, MimError, Patches, build_method
from mim_core.data.views import entries
from mim_core.host.loading import installed
from mim_core.interop.timm import export_timm
from mim_core.recipes.resolve import load_recipe, override
from mim_core.testing import noise
from mim_image.maskco import RegionContrastTarget, Regions, box_of, cut
from mim_image.resnet import ResNetEncoder
from torch.nn import functional as F

GRID = Layout.on_grid(7, 7)


def hidden_at(*corners, side=3):
    hidden = torch.zeros(len(corners), 7, 7, dtype=torch.bool)
    for row, (y, x) in zip(hidden, corners, strict=True):
        row[y : y + side, x : x + side] = True
    return Mask.with_count(hidden.flatten(1), side * side).keep_all()


def places(*pairs):
    """A batch of views; each pair is the view's box and the target view's: top, left, bottom, right."""
    view, other = (torch.tensor([pair[n] for pair in pairs]).reshape(-1, 2, 2) for n in (0, 1))
    return {"image.place": view, "image_target.place": other}


WHOLE = [0.0, 0.0, 1.0, 1.0]


def test_the_box_around_what_is_hidden():
    found = box_of(hidden_at((0, 0), (2, 4)), GRID)
    wanted = torch.tensor([[[[0, 0], [3, 3]]], [[[2, 4], [5, 7]]]]) / 7
    torch.testing.assert_close(found, wanted)


def test_regions_by_hand():
    """The target view is the mirrored image: the box at the left is found at the right."""
    regions = Regions.of(places((WHOLE, [0.0, 1.0, 1.0, 0.0])), hidden_at((0, 0)), GRID, 3)
    torch.testing.assert_close(regions.found, torch.tensor([[[[0, 4], [3, 7]]]]) / 7)
    assert regions.inside.tolist() == [True]
    torch.testing.assert_close(regions.others[0, :, 1] - regions.others[0, :, 0], torch.full((9, 2), 3 / 7))
    # starts at 0, 2 and 4 sevenths; a box of three units from 2 on meets the one from 4 on, that from 0 does not
    apart = [True, False, False, True, False, False, True, True, True]
    assert regions.apart.reshape(3, 3).tolist() == [
        [True, False, False], [True, False, False], [True, True, True]
    ], apart  # fmt: skip


def test_a_region_out_of_sight():
    """The target view shows the lower right quarter; the hidden region lies at the upper left."""
    regions = Regions.of(places((WHOLE, [0.5, 0.5, 1.0, 1.0])), hidden_at((0, 0)), GRID, 3)
    assert regions.inside.tolist() == [False]
    assert bool(regions.apart.all())


def test_no_negative_of_the_same_image_overlaps_its_positive():
    torch.manual_seed(0)
    rows = 64
    first, size = torch.rand(2, rows, 2) * 0.5, 0.3 + torch.rand(2, rows, 2) * 0.2
    views = torch.stack([first, first + size], dim=2)
    sample = {"image.place": views[0], "image_target.place": views[1]}
    corners = torch.randint(0, 5, (rows, 2)).tolist()
    regions = Regions.of(sample, hidden_at(*corners), GRID, 4)
    low = torch.maximum(regions.others[:, :, 0], regions.found[:, :, 0])
    high = torch.minimum(regions.others[:, :, 1], regions.found[:, :, 1])
    area = (high - low).clamp(min=0).prod(dim=2)
    assert bool((area[regions.apart] < 1e-6).all())
    assert bool((area[~regions.apart] > 0).all())
    assert 0 < int(regions.apart.sum()) < regions.apart.numel()


def test_regions_are_cut_where_they_lie():
    """On a map that says where it is, the cells of a cut are the middles of the box's parts."""
    y, x = torch.meshgrid(torch.arange(7.0), torch.arange(7.0), indexing="ij")
    tokens = torch.stack([y, x], dim=-1).reshape(1, 49, 2)
    box = torch.tensor([[[[1, 2], [4, 5]]]]) / 7
    found = cut(tokens, GRID, box, 3)[0]
    torch.testing.assert_close(found[0], torch.tensor([1.0, 2.0, 3.0])[:, None].expand(3, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(found[1], torch.tensor([2.0, 3.0, 4.0])[None].expand(3, 3), atol=1e-5, rtol=0)


def target(**options):
    tokenizer = build_method(load_recipe("image:maskco-resnet-tiny", installed())).tokenizer
    return RegionContrastTarget(RegionContrastTarget.Config(size=4, **options), tokenizer)


def case():
    """Three images, the last one's region out of sight."""
    sample = places((WHOLE, WHOLE), (WHOLE, [0.0, 1.0, 1.0, 0.0]), (WHOLE, [0.5, 0.5, 1.0, 1.0]))
    mask = hidden_at((0, 0), (4, 0), (0, 0))
    torch.manual_seed(3)
    answers, asked = torch.randn(3, 10, 4), torch.randn(3, 1, 4)
    lesson = Lesson(torch.zeros(3, 49, 2), torch.zeros(3, 0, 2), answers={"regions": answers})
    return sample, mask, answers, asked, lesson


def test_the_loss_is_that_of_a_plain_loop():
    sample, mask, answers, asked, lesson = case()
    one = target(temperature=0.5)
    values = one.make(sample, Patches(torch.zeros(3, 49, 1), GRID), mask, lesson)
    assert one.told(values).flatten().tolist() == [True, True, False]
    losses = one.loss(asked, values)
    regions = Regions.of(sample, mask, GRID, 3)
    for row in range(2):
        query = F.normalize(asked[row, 0], dim=0)
        scores = {}
        for image in range(3):
            for number in range(10):
                own = image == row
                if own and number > 0 and not bool(regions.apart[row, number - 1]):
                    continue  # a region that overlaps the positive
                if not own and number == 0 and not bool(regions.inside[image]):
                    continue  # a place that its target view does not show
                scores[image, number] = float(query @ F.normalize(answers[image, number], dim=0)) / 0.5
        wanted = math.log(sum(map(math.exp, scores.values()))) - scores[row, 0]
        assert float(losses[row, 0]) == pytest.approx(wanted, rel=1e-5)


def test_what_is_out_of_sight_weighs_nothing():
    one = method().train()
    sample = noise(entries(one.tokenizer.shapes, one.views()), 4, 0, {})
    sample |= places(*[(WHOLE, WHOLE)] * 3, (WHOLE, [0.9, 0.9, 1.0, 1.0]))
    weights = one.prepare(sample).weights["regions"]
    torch.testing.assert_close(weights.flatten(), torch.tensor([1.0, 1.0, 1.0, 0.0]) / 3)


def test_the_queue_keeps_the_last_answers_after_a_step():
    sample, mask, answers, _, lesson = case()
    one = target(queue=4)
    patches = Patches(torch.zeros(3, 49, 1), GRID)
    first = one.make(sample, patches, mask, lesson)
    assert torch.equal(first.keys, one.make(sample, patches, mask, lesson).keys), "making changes nothing"
    assert first.among.shape == (3, 34)
    assert not bool(first.among[:, 30:].any()), "an empty queue is no negative"
    one.after_step()
    kept = F.normalize(answers[:, 0], dim=-1)
    second = one.make(sample, patches, mask, lesson)
    torch.testing.assert_close(second.keys[30:33], kept)
    assert second.among[:, 30:].tolist() == [[True, True, True, False]] * 3
    one.after_step()
    torch.testing.assert_close(one.past, torch.cat([kept[1:2], kept[2:3], kept[2:3], kept[0:1]])), "the oldest goes"
    assert int(one.seen) == 6


def test_in_evaluation_nothing_is_kept():
    sample, mask, _, _, lesson = case()
    one = target(queue=4).eval()
    one.make(sample, Patches(torch.zeros(3, 49, 1), GRID), mask, lesson)
    one.after_step()
    assert int(one.seen) == 0


# ---- the method ------------------------------------------------------------------------------------------------------


def method(**options):
    run = load_recipe("image:maskco-resnet-tiny", installed(), twin=True)
    return build_method(override(run, options, "test", installed()) if options else run)


def test_the_teacher_sees_the_other_view_whole_and_follows_the_projector():
    one = method().train()
    sample = noise(entries(one.tokenizer.shapes, one.views()), 4, 0, {})
    sample |= places(*[(WHOLE, WHOLE)] * 4)
    first = one.prepare(sample)
    keys = first.targets["regions"]
    assert isinstance(keys, Keys)
    changed = one.prepare({**sample, "image": torch.randn_like(sample["image"])})
    assert torch.equal(changed.targets["regions"].keys, keys.keys), "the student's view is no business of the teacher"
    names = [name for name, _ in one.teachers["main"].decoders.named_parameters()]
    assert sorted(names) == [f"regions.{part}" for part in ("conv.bias", "conv.weight", "fc.bias", "fc.weight")]


def test_hidden_pixels_are_not_seen():
    one = method().eval()
    sample = noise(entries(one.tokenizer.shapes, one.views()), 2, 0, {}) | places(*[(WHOLE, WHOLE)] * 2)
    prepared = one.prepare(sample)
    hidden = prepared.mask.hidden[:, :, None, None, None]
    other = torch.where(hidden, prepared.inputs + 5, prepared.inputs)
    encode = [one.encoder(x, prepared.layout, prepared.mask).tokens for x in (prepared.inputs, other)]
    assert torch.equal(*encode)


def test_a_resnet_is_timms():
    """The same map as timm's own network of the same weights, and the statistics of training alike."""
    torch.manual_seed(0)
    encoder = ResNetEncoder(ResNetEncoder.Config(name="resnet18"), Layout.on_grid(2, 2))
    other = timm.create_model("resnet18", num_classes=0)
    other.load_state_dict(encoder.timm_weights(), strict=True)
    image = torch.randn(3, 3, 64, 64)
    values = image.reshape(3, 3, 2, 32, 2, 32).permute(0, 2, 4, 3, 5, 1).reshape(3, 4, 32, 32, 3)
    mask = Mask.nothing_hidden(3, Layout.on_grid(2, 2), image.device)
    for mode in (True, False):
        encoder.train(mode), other.train(mode)
        ours = encoder(values, Layout.on_grid(2, 2), mask).tokens
        theirs = other.forward_features(image).flatten(2).transpose(1, 2)
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    state = other.state_dict()
    for name, value in encoder.timm_weights().items():
        torch.testing.assert_close(value, state[name], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("options", "match"), [
    ({"name": "vit_small_patch16_224"}, "no timm ResNet"),
    ({"name": None, "widths": (8,), "depths": (1, 1)}, "as many"),
    ({"name": None, "widths": (), "depths": ()}, "as many"),
])  # fmt: skip
def test_networks_that_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        ResNetEncoder(ResNetEncoder.Config(**options), Layout.on_grid(2, 2))


def test_units_that_are_no_places_of_the_map():
    run = override(
        load_recipe("image:maskco-resnet-tiny", installed(), twin=True), {"tokenizer": {"patch": (4, 4)}}, "test",
        installed(),
    )  # fmt: skip
    one = build_method(run)
    sample = noise(entries(one.tokenizer.shapes, one.views()), 2, 0, {})
    with pytest.raises(ValueError, match=r"tokenizer\.patch"):
        one(one.prepare(sample))


def test_an_encoder_goes_to_timm(tmp_path):
    """Exported, and loaded by timm alone as the line says: the same features."""
    one = method(
        encoder={"name": "resnet18", "channels": 3},
        tokenizer={"size": (64, 64), "patch": (32, 32), "channels": 3},
        masker={"size": (1, 1)},
    ).eval()
    line = export_timm(one, tmp_path / "encoder.safetensors")
    assert line.startswith('timm.create_model("resnet18"')
    model = timm.create_model("resnet18", num_classes=0, checkpoint_path=str(tmp_path / "encoder.safetensors")).eval()
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(one.encode({"image": image}).pooled, model(image), atol=1e-5, rtol=1e-4)


def test_a_small_network_has_no_name_in_timm(tmp_path):
    with pytest.raises(MimError, match="timm has no name"):
        export_timm(method(), tmp_path / "encoder.safetensors")
