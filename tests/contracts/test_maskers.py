"""Every registered masker keeps the contract; the papers' counts are exact."""

import math

import pytest
import torch
from mim_core.parts.layout import Layout
from mim_core.parts.mask import Draw
from mim_core.parts.masker import BlockMasker, GridMasker, RandomMasker
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
    partitions = exact = False
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
