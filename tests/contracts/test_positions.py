"""Positions against the formula, written out in plain Python."""

import math

import pytest
import torch
from mim_core.parts.layout import Layout
from mim_core.parts.position import (
    CoordinatePosition,
    LearnedPosition,
    SinCosPosition,
    make_position,
    moved_positions,
    quarter_table,
    sincos_table,
)
from torch import nn
from torch.nn import functional as F


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


# ---- another grid than the one built for -----------------------------------------------------------------------------

GRIDS = {"one axis": ((4,), (8,)), "two axes": ((2, 3), (4, 5)), "three axes": ((2, 3, 4), (4, 3, 6))}
MODES = {1: "linear", 2: "bicubic", 3: "trilinear"}


def interpolated(table, own, new):
    """[1, N, D] through torch's own interpolation: as timm's on two axes, linear on others."""
    values = table.transpose(1, 2).reshape(1, -1, *own)
    found = F.interpolate(values, size=new, mode=MODES[len(own)], antialias=len(own) == 2)
    return found.flatten(2).transpose(1, 2)


@pytest.mark.parametrize("kind", ["sincos", "sincos-first", "learned"])
@pytest.mark.parametrize(("own", "new"), GRIDS.values(), ids=[name.replace(" ", "-") for name in GRIDS])
def test_another_grid_interpolates_the_trained_table(kind, own, new):
    position = make_position(kind, Layout.on_grid(*own), 12)
    table = position.table.detach().clone()
    assert torch.equal(position(Layout.on_grid(*own)), table), "its own grid: as it is"
    found = position(Layout.on_grid(*new))
    assert found.shape == (1, math.prod(new), 12)
    torch.testing.assert_close(found, interpolated(table, own, new))
    assert not torch.allclose(found[0], sincos_table(new, 12), atol=1e-2), "and is not computed anew"
    assert torch.equal(position.table, table), "the table itself stays"


@pytest.mark.parametrize("kind", ["sincos", "learned"])
def test_as_many_units_on_another_grid(kind):
    position = make_position(kind, Layout.on_grid(2, 3), 8)
    torch.testing.assert_close(position(Layout.on_grid(3, 2)), interpolated(position.table, (2, 3), (3, 2)))
    assert not torch.equal(position(Layout.on_grid(3, 2)), position.table)


def test_learned_positions_refuse_what_has_no_rule():
    position = LearnedPosition(Layout.on_grid(2, 3), 8)
    with pytest.raises(ValueError, match=r"for 6 units \(grid \(2, 3\)\); this input has 12 \(grid \(3, 2, 2\)\)"):
        position(Layout.on_grid(3, 2, 2))
    free = LearnedPosition(Layout(count=5), 8)
    assert free(Layout(count=5)).shape == (1, 5, 8)
    with pytest.raises(ValueError, match="for 5 units"):
        free(Layout(count=6))


def test_learned_positions_learn_at_another_grid():
    position = LearnedPosition(Layout.on_grid(2, 3), 8)
    position(Layout.on_grid(4, 6)).sum().backward()
    assert position.table.grad.abs().min() > 0


def test_each_segment_is_interpolated_on_its_own_grid():
    own = {"a": Layout.on_grid(2, 3), "b": Layout.on_grid(4)}
    position = SinCosPosition(Layout.join(own), 8)
    a, b = position.table[:, :6], position.table[:, 6:]
    found = position(Layout.join({"a": Layout.on_grid(4, 6), "b": Layout.on_grid(2)}))
    wanted = torch.cat([interpolated(a, (2, 3), (4, 6)), interpolated(b, (4,), (2,))], dim=1)
    torch.testing.assert_close(found, wanted)
    assert torch.equal(position(Layout.join({"b": own["b"]})), b), "alone: the share of the same name"
    turned = position(Layout.join({"b": own["b"], "a": own["a"]}))
    assert torch.equal(turned, torch.cat([b, a], dim=1)), "by name, not by place"
    new = position(Layout.join({**own, "c": Layout.on_grid(3, 3)}))
    assert torch.equal(new[0, 10:], sincos_table((3, 3), 8)), "a segment that was not there is computed"


def test_learned_segments_are_interpolated_by_name():
    position = make_position("learned", Layout.join({"a": Layout.on_grid(2, 3), "b": Layout.on_grid(2, 2, 2)}), 8)
    found = position(Layout.join({"b": Layout.on_grid(4, 2, 2), "a": Layout.on_grid(2, 3)}))
    wanted = interpolated(position.parts["b"].table, (2, 2, 2), (4, 2, 2))
    torch.testing.assert_close(found, torch.cat([wanted, position.parts["a"].table], dim=1))


def test_flat_positions_of_two_axes_are_interpolated_over_both():
    position = make_position("flat", Layout.on_grid(4, 4), 8)
    torch.testing.assert_close(position(Layout.on_grid(8, 4)), interpolated(position.table, (4, 4), (8, 4)))


def test_flat_positions_that_were_moved_do_not_count_on():
    """A run that began at another grid has a table that is no longer the formula's."""
    first = make_position("flat", Layout.on_grid(2, 4, 4), 8)
    second = make_position("flat", Layout.on_grid(2, 6, 6), 8)
    assert torch.equal(second(Layout.on_grid(3, 6, 6))[0, :72], second.table[0])
    second.load_state_dict(first.tables_at(second.units))
    torch.testing.assert_close(second(Layout.on_grid(4, 6, 6)), interpolated(second.table, (2, 6, 6), (4, 6, 6)))


@pytest.mark.parametrize(
    ("kind", "grids", "said"),
    [
        ("sincos", ((2, 2), (4, 4)), "its positions are interpolated to that grid"),
        ("learned", ((2, 2), (4, 4)), "its positions are interpolated to that grid"),
        ("sincos", ((2, 2), (2, 2)), ""),
        ("flat", ((2, 2, 2), (4, 2, 2)), "its positions are counted on along the first axis"),
        ("flat", ((2, 2, 2), (4, 4, 2)), "counted on along the first axis and interpolated over the others"),
        ("flat", ((2, 2), (4, 2)), "its positions are interpolated to that grid"),
        ("separable", ((2, 2), (4, 2)), "its positions are interpolated to that grid"),
        ("coordinates", ((2, 2), (4, 2)), "its positions follow from the units' coordinates"),
        ("none", ((2, 2), (4, 2)), ""),
    ],
)
def test_what_becomes_of_positions_is_told(kind, grids, said):
    own, new = (Layout.on_grid(*grid) for grid in grids)
    module = nn.Module()
    module.position = make_position(kind, own, 12)
    found = moved_positions(module, new)
    assert said in found
    assert bool(said) == bool(found)


def test_a_quarter_of_the_channels_for_the_first_axis():
    """By hand: 2 x 1 x 3 units, 16 channels, of which 4 are time's and 6 each the column's and the row's."""
    table = quarter_table((2, 1, 3), 16)
    assert table.shape == (6, 16)
    frequencies = [1.0, 10000.0**-0.5]
    unit = table[1 * 3 + 2].tolist()  # the second frame, third column
    time = [math.sin(f) for f in frequencies] + [math.cos(f) for f in frequencies]
    assert unit[:4] == pytest.approx(time[:4], abs=1e-6)
    column = [10000.0 ** -(k / 3) for k in range(3)]
    assert unit[4:10] == pytest.approx([math.sin(2 * f) for f in column] + [math.cos(2 * f) for f in column], abs=1e-6)
    assert unit[10:] == pytest.approx([0.0] * 3 + [1.0] * 3, abs=1e-6)
    with pytest.raises(ValueError, match="three axes"):
        quarter_table((2, 3), 16)
