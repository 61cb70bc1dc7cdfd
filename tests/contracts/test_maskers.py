"""Every registered masker keeps the contract; the papers' counts are exact."""

import math
from dataclasses import replace

import pytest
import torch
from mim_core.errors import MimError
from mim_core.parts.layout import Layout
from mim_core.parts.mask import Draw
from mim_core.parts.masker import BlockMasker, GridMasker, RandomMasker
from mim_core.parts.masker_guided import GuidedMasker, hide_guided
from mim_core.parts.schedule import Progress
from mim_core.testing import MaskerContract, keys, uncovered

FREE = Layout(count=64, positions=torch.rand(64, 3))


class TestRandom(MaskerContract):
    part = "core:random"
    options = {"ratio": 0.75}
    layouts = [Layout.join({"a": Layout.on_grid(3, 4), "b": Layout(count=5)})]
    expected_hidden = {(14, 14): 147, (7,): 6, (3, 5): 12, (2, 3, 4): 18}  # MAE keeps 49 of 196, and int(1.75) of 7


class TestRandomPoints(MaskerContract):
    part = "core:random"
    options = {"ratio": 0.6, "rounding": "down"}
    layouts = [FREE]
    expected_hidden = {64: 64 - 26}


class TestRandomDense(MaskerContract):
    part = "core:random"
    options = {"ratio": 0.9}
    expected_hidden = {(10,): 9, (8, 14, 14): 1412}  # int(10 * (1 - 0.9)) is 0 in floats, int(10 - 9.0) is 1


class TestRandomInFloats(MaskerContract):
    part = "core:random"
    options = {"ratio": 0.9}
    expected_hidden = {(100,): 91, (10, 10): 91, (10,): 9}  # MAE keeps int(100 * (1 - 0.9)) = int(9.999999999999998)


class TestRandomFourMasks(MaskerContract):
    part = "core:random"
    options = {"ratio": 0.5, "masks": 4}
    layouts = [FREE]
    expected_hidden = {(4, 6): 12}


class TestGrid(MaskerContract):
    part = "core:grid"
    options = {"ratio": 0.6, "block": (2, 2)}
    expected_hidden = {(14, 14): 30 * 4, (4, 8): 5 * 4}  # SimMIM: 30 of 49 blocks
    unsuitable = [FREE, Layout.on_grid(8), Layout.on_grid(2, 4, 4), Layout.on_grid(7, 14)]


class TestMultiBlock(MaskerContract):
    part = "core:multi-block"
    options = {"smallest": 1}
    layouts = [Layout.on_grid(14, 14), Layout.on_grid(5, 7)]
    partitions = False
    unsuitable = [FREE, Layout.on_grid(8), Layout.on_grid(2, 4, 4)]

    def fixed_units(self, layout):
        """No block touches the last row or column, as in the official code; nor the rest, where a block is small."""
        rows, columns = layout.grid
        return [unit for unit in range(layout.count) if unit // columns == rows - 1 or unit % columns == columns - 1]


class TestTube(MaskerContract):
    part = "core:grid"
    options = {"ratio": 0.9, "block": (-1, 1, 1), "rounding": "down"}
    expected_hidden = {(8, 14, 14): 1568 - 160, (2, 5, 7): 2 * 31}
    unsuitable = [FREE, Layout.on_grid(14, 14)]


class TestGridLine(MaskerContract):
    part = "core:grid"
    options = {"ratio": 0.5, "block": (3,), "rounding": "nearest"}
    expected_hidden = {(15,): 9}  # 2.5 blocks of 5 become 3


class TestBlock(MaskerContract):
    part = "core:block"
    options = {"ratio": 0.4, "smallest": 4}
    expected_hidden = {(14, 14): 78, (6, 9): 21, (40,): 16, (4, 6, 6): 57, (1, 12): 4}
    unsuitable = [FREE]


class TestBlockBeit(MaskerContract):
    part = "core:block"
    expected_hidden = {(14, 14): 78}


class _Guided(MaskerContract):
    part = "core:guided"

    def make_scores(self, layout, rows):
        return torch.randn(rows, layout.count)


class TestGuided(_Guided):
    options = {"every": "step"}
    layouts = [Layout.join({"a": Layout.on_grid(3, 4), "b": Layout(count=5)})]
    expected_hidden = {(14, 14): 147, (3, 5): 12}


class TestGuidedByEpoch(_Guided):
    options = {"ratio": 0.6, "rounding": "down"}
    layouts = [FREE]
    expected_hidden = {64: 64 - 26}


class TestGuidedLow(_Guided):
    options = {"direction": "low", "share_from": 1.0, "share_to": 1.0}
    expected_hidden = {(6, 9): 41}


class TestGuidedAmong(_Guided):
    options = {"ratio": 0.25, "direction": "low", "among": 0.5, "share_from": 1.0, "share_to": 1.0}
    expected_hidden = {(4, 4): 4}


class TestRegion(MaskerContract):
    part = "core:region"
    options = {"size": (2, 3)}
    layouts = [Layout.on_grid(7, 7), Layout.on_grid(4, 5)]
    expected_hidden = {(7, 7): 6}
    partitions = False
    unsuitable = [FREE, Layout.on_grid(8), Layout.on_grid(2, 2), Layout.on_grid(4, 4, 4)]


def test_every_masker_has_a_contract():
    assert not [part for plugin in ("core", "image") for part in uncovered("maskers", globals().values(), plugin)]


def test_mae_keeps_49_of_196():
    mask = RandomMasker(RandomMasker.Config(ratio=0.75))(Layout.on_grid(14, 14), Draw(keys(3)))
    assert mask.kept_ids.shape == (3, 49)


def test_simmim_hides_whole_blocks():
    mask = GridMasker(GridMasker.Config(ratio=0.6, block=(2, 2)))(Layout.on_grid(14, 14), Draw(keys(5)))
    blocks = mask.hidden.reshape(5, 7, 2, 7, 2).transpose(2, 3).reshape(5, 49, 4)
    assert torch.equal(blocks.any(dim=2), blocks.all(dim=2))
    assert blocks.all(dim=2).sum(dim=1).tolist() == [30] * 5


def test_tube_is_the_same_in_every_frame_pair():
    masker = GridMasker(GridMasker.Config(ratio=0.9, block=(-1, 1, 1), rounding="down"))
    mask = masker(Layout.on_grid(8, 14, 14), Draw(keys(4)))
    assert mask.kept_ids.shape == (4, 160)
    frames = mask.hidden.reshape(4, 8, 196)
    assert torch.equal(frames, frames[:, :1].expand_as(frames))


def test_random_masks_are_uniform():
    """Each of 16 units is hidden in 3/4 of 4,000 rows, within five standard deviations."""
    hidden = RandomMasker(RandomMasker.Config())(Layout.on_grid(4, 4), Draw(keys(4000))).hidden
    spread = math.sqrt(0.75 * 0.25 / 4000)
    assert hidden.double().mean(dim=0).sub(0.75).abs().max() < 5 * spread


def test_masks_of_one_sample_differ():
    hidden = RandomMasker(RandomMasker.Config(ratio=0.5, masks=4))(Layout.on_grid(8, 8), Draw(keys(3))).hidden
    for sample in hidden.reshape(3, 4, 64):
        assert len(sample.unique(dim=0)) == 4


def test_units_that_are_absent_are_hidden_first():
    valid = torch.ones(2, 20, dtype=torch.bool)
    valid[0, 3:9] = False
    layout = Layout(count=20, grid=(4, 5), valid=valid)
    mask = RandomMasker(RandomMasker.Config(ratio=0.5, masks=2))(layout, Draw(keys(2)))
    assert mask.hidden[:2, 3:9].all()
    assert mask.weight.sum(dim=1).tolist() == [4, 4, 10, 10]


@pytest.mark.parametrize("masks", [1, 2])
def test_a_masker_that_shows_absent_units_is_refused(masks):
    class Careless(RandomMasker):
        def hide(self, layout, draw, scores):
            return super().hide(replace(layout, valid=None), draw, scores)

    valid = torch.ones(16, 20, dtype=torch.bool)
    valid[3, 3:9] = False
    masker, layout = Careless(Careless.Config(ratio=0.5, masks=masks)), Layout(count=20, grid=(4, 5), valid=valid)
    with pytest.raises(MimError, match=r"Careless: shows units that are none .* layout\.valid are hidden first"):
        masker(layout, Draw(keys(16)))
    masker(replace(layout, valid=torch.ones_like(valid)), Draw(keys(16)))
    few = torch.zeros(16, 20, dtype=torch.bool)
    few[:, :2] = True  # fewer than are shown: no choice of the masker's
    RandomMasker(masker.config)(replace(layout, valid=few), Draw(keys(16)))


def _neighbours(hidden):
    """Share of neighbouring pairs of hidden units among pairs with one hidden unit at least."""
    both = (hidden[:, 1:] & hidden[:, :-1]).sum() + (hidden[:, :, 1:] & hidden[:, :, :-1]).sum()
    either = (hidden[:, 1:] | hidden[:, :-1]).sum() + (hidden[:, :, 1:] | hidden[:, :, :-1]).sum()
    return float(both / either)


def test_blocks_are_more_contiguous_than_chance():
    layout = Layout.on_grid(14, 14)
    block = BlockMasker(BlockMasker.Config(ratio=0.4))(layout, Draw(keys(64))).hidden.reshape(64, 14, 14)
    loose = RandomMasker(RandomMasker.Config(ratio=0.6))(layout, Draw(keys(64))).hidden.reshape(64, 14, 14)
    assert _neighbours(block) > 0.6
    assert _neighbours(loose) < 0.5


@pytest.mark.parametrize(
    ("cls", "options", "text"),
    [
        (RandomMasker, {"ratio": 1.0}, "ratio must lie between 0 and 1"),
        (RandomMasker, {"ratio": 0.0}, "ratio must lie between 0 and 1"),
        (RandomMasker, {"masks": 0}, "masks must be at least 1"),
        (GridMasker, {"ratio": -0.1}, "ratio must lie between 0 and 1"),
        (BlockMasker, {"aspect": 0.0}, "aspect must lie between 0 and 1"),
        (BlockMasker, {"smallest": 0}, "at least 1"),
        (BlockMasker, {"proposals": 0}, "at least 1"),
    ],
)
def test_options_that_make_no_masker(cls, options, text):
    with pytest.raises(ValueError, match=text):
        cls(cls.Config(**options))


def test_refusals_name_the_grid():
    masker = GridMasker(GridMasker.Config(block=(2, 2)))
    with pytest.raises(ValueError, match=r"\(2, 2\) does not divide the grid \(7, 14\)"):
        masker(Layout.on_grid(7, 14), Draw(keys(1)))


def guided(**options):
    return GuidedMasker(GuidedMasker.Config(**options))


@pytest.mark.parametrize(
    ("epoch", "epochs", "by_score"),
    # HPM's code: int(147 * 0.5 * (epoch + 1) / epochs)
    [(0, 200, 0), (2, 200, 1), (99, 200, 36), (149, 200, 55), (199, 200, 73), (0, 1, 73), (0.99, 2, 36), (1.0, 2, 73)],
)
def test_hard_units_by_epoch_are_hpms(epoch, epochs, by_score):
    assert guided().by_score(147, Progress(epoch / epochs, epoch=epoch, epochs=epochs)) == by_score


def test_a_share_may_follow_the_steps_and_fall():
    masker = guided(every="step", share_from=0.8, share_to=0.2)
    assert [masker.by_score(100, progress) for progress in (0.0, 0.25, 0.5, 1.0)] == [80, 65, 50, 20]


def test_scores_are_hidden_first_and_the_rest_by_rank():
    scores = torch.tensor([[0.1, 0.9, 0.5, 0.9, -2.0, 0.0]])
    rank = torch.tensor([[3, 0, 5, 4, 2, 1]])

    def hidden(chosen, count, absent=None):
        return hide_guided(scores, rank, chosen, count, absent)[0].nonzero().flatten().tolist()

    assert hidden(0, 3) == [1, 4, 5]  # at random alone
    assert hidden(1, 3) == [1, 4, 5]  # 1 comes before 3, whose score is the same
    assert hidden(2, 3) == [1, 3, 5]
    assert hidden(3, 3) == [1, 2, 3]
    absent = torch.tensor([[False, True, False, False, False, False]])
    assert hidden(1, 3, absent) == [1, 3, 5]  # an absent unit is hidden and is not one of those by score
    as_floats = hide_guided(scores, -rank.float(), 2, 3)
    assert as_floats[0].nonzero().flatten().tolist() == [1, 2, 3]


def test_without_a_share_guided_masks_are_random_ones():
    layout, draw = Layout.on_grid(7, 5), Draw(keys(32), 4, 0.7)
    plain = RandomMasker(RandomMasker.Config(ratio=0.75))(layout, draw)
    scores = torch.randn(32, 35)
    assert torch.equal(guided(share_to=0.0)(layout, draw, scores).hidden, plain.hidden)
    assert not torch.equal(guided()(layout, draw, scores).hidden, plain.hidden)


def test_low_scores_are_hidden_where_that_is_asked():
    scores = torch.arange(16.0).flip(0).expand(3, 16)
    mask = guided(direction="low", share_from=1.0, share_to=1.0)(Layout.on_grid(4, 4), Draw(keys(3)), scores)
    assert mask.hidden.tolist() == [[False] * 4 + [True] * 12] * 3


def test_shares_lie_between_none_and_all():
    for name in ("share_from", "share_to"):
        with pytest.raises(ValueError, match=f"{name} must lie in"):
            guided(**{name: 1.1})
    with pytest.raises(ValueError, match="ratio must lie between 0 and 1"):
        guided(ratio=1.0)
