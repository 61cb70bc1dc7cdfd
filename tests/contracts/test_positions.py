"""Positions against the formula, written out in plain Python."""

import math

import pytest
import torch
from mim_core.parts.layout import Layout
from mim_core.parts.position import CoordinatePosition, LearnedPosition, SinCosPosition, make_position, sincos_table


def plain_axis(place, width):
    """MAE's get_1d_sincos_pos_embed_from_grid: [sines | cosines], frequency k is 10000^(-k / (width / 2))."""
    angles = [place / 10000 ** (k / (width / 2)) for k in range(width // 2)]
    return [math.sin(a) for a in angles] + [math.cos(a) for a in angles]


def plain_2d(height, width, channels):
    """MAE's get_2d_sincos_pos_embed: half of the channels for the column, then half for the row; rows run slowest."""
    half = channels // 2
    return [plain_axis(column, half) + plain_axis(row, half) for row in range(height) for column in range(width)]


@pytest.mark.parametrize(("height", "width", "channels"), [(3, 3, 8), (2, 5, 16), (7, 1, 4), (1, 1, 12), (14, 14, 64)])
def test_two_axes(height, width, channels):
    wanted = torch.tensor(plain_2d(height, width, channels), dtype=torch.float64)
    torch.testing.assert_close(sincos_table((height, width), channels).double(), wanted, rtol=0, atol=1e-7)


def test_one_axis():
    wanted = torch.tensor([plain_axis(place, 6) for place in range(9)], dtype=torch.float64)
    torch.testing.assert_close(sincos_table((9,), 6).double(), wanted, rtol=0, atol=1e-7)


def test_three_axes_with_channels_left_over():
    wanted = [
        plain_axis(c, 4) + plain_axis(b, 4) + plain_axis(a, 4) + [0.0, 0.0]
        for a in range(2)
        for b in range(3)
        for c in range(4)
    ]
    found = sincos_table((2, 3, 4), 14).double()
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64), rtol=0, atol=1e-7)


def test_too_narrow():
    with pytest.raises(ValueError, match="width of 3 is too small for sine-cosine positions on 2 axes"):
        sincos_table((2, 2), 3)


def test_segments_stand_one_after_another():
    layout = Layout.join({"a": Layout.on_grid(2, 3), "b": Layout.on_grid(4)})
    wanted = torch.cat([sincos_table((2, 3), 8), sincos_table((4,), 8)])
    assert torch.equal(SinCosPosition(layout, 8)(layout)[0], wanted)


def test_free_units_have_no_sincos():
    with pytest.raises(ValueError, match="use coordinates"):
        SinCosPosition(Layout(count=4, positions=torch.zeros(4, 3)), 8)


def test_coordinates_are_per_sample_where_positions_are():
    position = CoordinatePosition(Layout(count=5), 8)
    places = torch.randn(4, 5, 3)
    found = position(Layout(count=5, positions=places))
    assert found.shape == (4, 5, 8)
    torch.testing.assert_close(found[2], position(Layout(count=5, positions=places[2]))[0])
    assert CoordinatePosition(Layout.on_grid(2, 3), 8)(Layout.on_grid(2, 3)).shape == (1, 6, 8)


def test_kinds():
    layout = Layout.on_grid(2, 2)
    assert make_position("none", layout, 8) is None
    kinds = {kind: type(make_position(kind, layout, 8)) for kind in ("sincos", "learned", "coordinates")}
    assert kinds == {"sincos": SinCosPosition, "learned": LearnedPosition, "coordinates": CoordinatePosition}
