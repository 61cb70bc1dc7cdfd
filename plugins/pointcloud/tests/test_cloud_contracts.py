"""Every part of the method keeps its contract; the paper's counts and formulas are exact."""

import pytest
import torch
from mim_core.host.loading import installed
from mim_core.methods.build import build_method
from mim_core.parts.layout import Layout
from mim_core.parts.mask import Draw, Mask
from mim_core.recipes.resolve import load_recipe
from mim_core.testing import MaskerContract, MethodContract, TargetContract, TokenizerContract, keys, noise, uncovered
from mim_pointcloud.masker import CentreBlockMasker
from mim_pointcloud.tokenizer import GroupTokenizer


def free(count, rows=None, seed=0):
    places = torch.rand(count, 3, generator=torch.Generator().manual_seed(seed))
    return Layout(count=count, positions=places if rows is None else places.expand(rows, -1, -1))


class TestGroups(TokenizerContract):
    part = "pointcloud:groups"
    options = {"points": 24, "groups": 24, "size": 5, "channels": 4}

    def restore(self, tokenizer, patches):
        """Every point is a centre here, and its own first neighbour; centres come in another order than points."""
        own = tokenizer.join(patches.values[:, :, :1], patches.layout)
        sample = self.make_sample(tokenizer, 3)["points"]
        place = torch.cdist(sample, own, compute_mode="donot_use_mm_for_euclid_dist").argmin(dim=2)
        return {"points": own.take_along_dim(place[:, :, None], dim=1)}

    def wrong_samples(self, tokenizer):
        yield noise({"points": (24, 3)}, 2), ["B, P, 4", "24, 3"]
        yield noise({"points": (23, 4)}, 2), ["23 points", "24 centres"]


class TestCentreBlock(MaskerContract):
    """A quarter: of more than half, units in the middle would be among the nearest to every other."""

    part = "pointcloud:centre-block"
    options = {"ratio": 0.25}
    layouts = [free(64), free(10), Layout.on_grid(4, 7)]
    unsuitable = [Layout(count=12)]


class TestCentreBlockTwice(MaskerContract):
    part = "pointcloud:centre-block"
    options = {"masks": 2, "ratio": 0.3, "rounding": "up"}
    layouts = [free(20)]


class _Chamfer(TargetContract):
    inverse = False  # a set has no order, and channels beside the coordinates are not predicted

    def make_tokenizer(self):
        return GroupTokenizer(GroupTokenizer.Config(points=40, groups=12, size=6, channels=5), 8)

    def truth(self, values):
        return values.flatten(2)


class TestChamfer(_Chamfer):
    part = "pointcloud:chamfer"


class TestChamferL1(_Chamfer):
    part = "pointcloud:chamfer"
    options = {"norm": "l1"}


class TestTiny(MethodContract):
    recipe = "pointcloud:point-mae-vit-tiny"


class TestSmall(MethodContract):
    recipe = "pointcloud:point-mae-vit-small"


@pytest.mark.parametrize("kind", ["tokenizers", "maskers", "targets"])
def test_every_part_has_a_contract(kind):
    assert not uncovered(kind, globals().values(), plugin="pointcloud")


def test_26_of_64_groups_are_visible():
    run = load_recipe("pointcloud:point-mae-vit-small", installed())
    masker, groups = run.parts["masker"], run.parts["tokenizer"].options.groups
    for found in (masker.cls(masker.options), CentreBlockMasker(CentreBlockMasker.Config())):
        mask = found(free(groups), Draw(keys(4)))
        assert mask.kept_ids.shape == (4, 26)
        assert mask.query_ids.shape == (4, 38)


def test_a_block_is_the_neighbourhood_of_one_unit():
    """Some unit has all hidden ones nearer to it than all visible ones; it is not the same for all keys."""
    layout = free(32, 40)
    hidden = CentreBlockMasker(CentreBlockMasker.Config(ratio=0.4))(layout, Draw(keys(40))).hidden
    away = torch.cdist(layout.positions.double(), layout.positions.double())
    inner = away.masked_fill(~hidden[:, None], -1).amax(dim=2)
    outer = away.masked_fill(hidden[:, None], 9).amin(dim=2)
    centres = (inner < outer) & hidden
    assert bool(centres.any(dim=1).all())
    assert len(hidden.unique(dim=0)) > 10


def test_units_that_are_not_there_are_always_hidden():
    valid = torch.ones(30, 16, dtype=torch.bool)
    valid[:, 3:6] = False
    layout = Layout(count=16, positions=free(16, 30).positions, valid=valid)
    mask = CentreBlockMasker(CentreBlockMasker.Config())(layout, Draw(keys(30)))
    assert bool(mask.hidden[:, 3:6].all())
    assert float(mask.weight.sum()) == 30 * (9 - 3)


def groups_of(points, **options):
    tokenizer = GroupTokenizer(GroupTokenizer.Config(points=points.shape[1], channels=points.shape[2], **options), 8)
    return tokenizer, tokenizer.split({"points": points})


def test_groups_are_neighbours_less_their_centre():
    points = noise({"points": (50, 4)}, 2)["points"]
    _, patches = groups_of(points, groups=7, size=9)
    centres = patches.layout.positions
    assert torch.equal(centres[:, 0], points[:, 0, :3]), "sampling starts at the first point"
    for row in range(2):
        for group in range(7):
            away = (points[row, :, :3] - centres[row, group]).square().sum(dim=1)
            near = away.argsort(stable=True)[:9]
            wanted = points[row, near].clone()
            wanted[:, :3] -= centres[row, group]
            assert torch.equal(patches.values[row, group], wanted)


def test_equal_points_and_other_counts():
    """A cloud of one place, and more or fewer points than configured."""
    _, patches = groups_of(torch.ones(2, 12, 3), groups=4, size=5)
    assert not patches.values.any()
    tokenizer, _ = groups_of(torch.rand(1, 30, 3), groups=4, size=5)
    assert tokenizer.split({"points": torch.rand(2, 77, 3)}).values.shape == (2, 4, 5, 3)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"points": 16, "groups": 32, "size": 4}, "16 points"),
        ({"points": 16, "groups": 4, "size": 20}, "20 points each"),
        ({"channels": 2}, "at least 3"),
        ({"groups": 0}, "0 different centres"),
    ],
)
def test_options_that_do_not_fit(options, text):
    with pytest.raises(ValueError, match=text):
        GroupTokenizer(GroupTokenizer.Config(**options), 8)


def test_pictures_show_nothing_where_hidden():
    tokenizer, patches = groups_of(torch.rand(2, 40, 3), groups=6, size=5)
    hidden = torch.zeros(2, 6, dtype=torch.bool)
    hidden[:, 2:4] = True
    seen = tokenizer.join(tokenizer.blank(patches.values, hidden), patches.layout).unflatten(1, (6, 5))
    assert torch.equal(seen.isnan().all(dim=(2, 3)), hidden)
    whole = tokenizer.join(patches.values, patches.layout).unflatten(1, (6, 5))
    assert torch.equal(seen[~hidden], whole[~hidden])


def test_positions_enter_every_block():
    """With the blocks' attention and layers silenced, the tokens gain the position once per block."""
    method = build_method(load_recipe("pointcloud:point-mae-vit-small", installed(), twin=True)).eval()
    for name, value in method.encoder.named_parameters():
        if "proj" in name or "fc2" in name:
            torch.nn.init.zeros_(value)
    sample = noise(method.tokenizer.shapes, 2)
    patches = method.tokenizer.split(sample)
    tokens = method.tokenizer.embed(patches.values)
    found = method.encoder(tokens, patches.layout, Mask.nothing_hidden(2, patches.layout, tokens.device)).tokens
    wanted = tokens + len(method.encoder.blocks) * method.encoder.position(patches.layout)
    torch.testing.assert_close(found, method.encoder.norm(wanted))


def test_the_recipe_has_the_papers_numbers():
    run = load_recipe("pointcloud:point-mae-vit-small", installed())
    options = {role: part.options for role, part in run.parts.items()}
    encoder, decoder = options["encoder"], options["decoder"]
    assert (encoder.width, encoder.depth, encoder.heads, encoder.drop_path) == (384, 12, 6, 0.1)
    assert (decoder.width, decoder.depth, decoder.heads, decoder.embed) == (384, 4, 6, False)
    assert (encoder.qkv_bias, decoder.qkv_bias, encoder.class_token) == (False, False, False)
    assert (options["tokenizer"].points, options["tokenizer"].groups, options["tokenizer"].size) == (1024, 64, 32)
    assert (options["masker"].ratio, options["masker"].rounding, options["target"].norm) == (0.6, "down", "l2")
    train = run.train
    assert (train.base_lr * train.batch_size / train.lr_batch, train.batch_size) == (1e-3, 128)
    assert (train.epochs, train.warmup_epochs, train.min_lr, train.weight_decay) == (300, 10, 1e-6, 0.05)
    parameters = sum(p.numel() for p in build_method(run).encoder.parameters())
    assert 21e6 < parameters < 22e6, "22M in the paper, the embedding of groups included"
