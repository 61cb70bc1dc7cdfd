"""Positions of units in space and time against formulas written out in plain Python, and on other grids."""

import math

import pytest
import torch
from mim_core.parts.layout import Layout
from mim_core.parts.position import FlatPosition, SeparablePosition, flat_table, make_position, sincos_table


def plain(place, width):
    """VideoMAE's get_sinusoid_encoding_table: sines at even channels, cosines at odd ones."""
    angles = [place / 10000 ** (2 * (j // 2) / width) for j in range(width)]
    return [math.cos(a) if j % 2 else math.sin(a) for j, a in enumerate(angles)]


@pytest.mark.parametrize(("grid", "width"), [((8, 14, 14), 48), ((2, 3, 5), 7), ((4,), 2)])
def test_flat(grid, width):
    wanted = torch.tensor([plain(place, width) for place in range(math.prod(grid))], dtype=torch.float64)
    layout = Layout.on_grid(*grid)
    torch.testing.assert_close(FlatPosition(layout, width)(layout)[0].double(), wanted, rtol=0, atol=1e-6)


def test_flat_counts_on_with_time():
    position = FlatPosition(Layout.on_grid(4, 3, 5), 16)
    assert torch.equal(position(Layout.on_grid(7, 3, 5))[0], flat_table(105, 16))
    assert torch.equal(position(Layout.on_grid(2, 3, 5))[0], flat_table(30, 16))


def test_flat_is_interpolated_over_space():
    """Half as many places along each axis: each is the mean of the four that it stands for, at its own time."""
    position = FlatPosition(Layout.on_grid(4, 6, 8), 16)
    wanted = flat_table(2 * 48, 16).reshape(2, 3, 2, 4, 2, 16).mean(dim=(2, 4)).reshape(24, 16)
    torch.testing.assert_close(position(Layout.on_grid(2, 3, 4))[0], wanted)


def test_separable_adds_time_and_place():
    position = SeparablePosition(Layout.on_grid(4, 3, 5), 8)
    table = position(Layout.on_grid(4, 3, 5)).reshape(4, 15, 8)
    for time in range(4):
        for place in range(15):
            assert torch.equal(table[time, place], position.first[0, time] + position.rest[0, place])


def test_separable_on_another_grid():
    position = SeparablePosition(Layout.on_grid(4, 2, 4), 8)
    shorter = position(Layout.on_grid(2, 2, 4)).reshape(2, 8, 8)
    wanted = position.first[0].reshape(2, 2, 8).mean(dim=1)[:, None] + position.rest[0]
    torch.testing.assert_close(shorter, wanted)
    assert position(Layout.on_grid(8, 3, 5)).shape == (1, 120, 8)
    with pytest.raises(ValueError, match="grid of 3 axes"):
        position(Layout.on_grid(3, 5))


def test_sincos_is_separable_over_three_axes():
    table = sincos_table((2, 3, 4), 24).reshape(2, 3, 4, 24)
    assert torch.equal(table[0, 0, :, :8], table[1, 2, :, :8]), "columns"
    assert torch.equal(table[0, :, 0, 8:16], table[1, :, 3, 8:16]), "rows"
    assert torch.equal(table[:, 0, 0, 16:], table[:, 2, 3, 16:]), "times"


def test_kinds():
    layout = Layout.on_grid(2, 2, 2)
    assert type(make_position("flat", layout, 8)) is FlatPosition
    assert type(make_position("separable", layout, 8)) is SeparablePosition
    with pytest.raises(ValueError, match="two axes or more"):
        make_position("separable", Layout(count=4), 8)
