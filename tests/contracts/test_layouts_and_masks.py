"""`Layout`, `take` and `Mask` on their own."""

import pytest
import torch
from mim_core.errors import MimError
from mim_core.parts.layout import Layout, Patches, take
from mim_core.parts.mask import Draw, Mask
from mim_core.parts.masker import RandomMasker
from mim_core.testing import keys, unchecked
from torch.utils import _pytree as pytree


def rows(*texts):
    """A mask from text: x is hidden."""
    return torch.tensor([[letter == "x" for letter in text] for text in texts])


JOINED = Layout.join({"rgb": Layout.on_grid(2, 3), "depth": Layout.on_grid(2, 2), "points": Layout(count=5)})


def test_join_counts_and_finds_segments():
    assert JOINED.count == 15
    assert JOINED.grid is None
    assert [name for name, _ in JOINED.segments] == ["rgb", "depth", "points"]
    starts = {name: JOINED.span(name)[0] for name in ("rgb", "depth", "points")}
    assert starts == {"rgb": 0, "depth": 6, "points": 10}
    assert JOINED.span("depth")[1].grid == (2, 2)
    with pytest.raises(KeyError, match="no segment 'semseg'; there are: rgb, depth, points"):
        JOINED.span("semseg")


def test_join_fills_valid_for_segments_without():
    valid = torch.tensor([[True, False], [False, False]])
    layout = Layout.join({"a": Layout.on_grid(3), "b": Layout(count=2, valid=valid)})
    assert layout.valid.tolist() == [[True] * 4 + [False], [True] * 3 + [False] * 2]


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"count": 5, "grid": (2, 3)}, "holds 6 units, not 5"),
        ({"count": 5, "positions": torch.zeros(4, 3)}, "positions has 4 units, not 5"),
        ({"count": 5, "positions": torch.zeros(2, 6, 3)}, "positions has 6 units, not 5"),
        ({"count": 5, "valid": torch.ones(2, 4, dtype=torch.bool)}, "valid has 4 units, not 5"),
        ({"count": 5, "segments": (("a", Layout(count=4)),)}, "segments hold 4 units, not 5"),
    ],
)
def test_layouts_that_contradict_themselves(fields, text):
    with pytest.raises(ValueError, match=text):
        Layout(**fields)


def test_coordinates_of_a_grid_are_row_major():
    assert Layout.on_grid(2, 3).coordinates().tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
    assert Layout(count=1, positions=torch.tensor([[4.0]])).coordinates().tolist() == [[4.0]]
    with pytest.raises(ValueError, match="neither positions nor a grid"):
        Layout(count=3).coordinates()


def test_layout_is_a_tree_of_its_tensors():
    layout = Layout.join({"a": Layout(count=2, positions=torch.zeros(3, 2, 3)), "b": Layout.on_grid(2)})
    moved = pytree.tree_map_only(torch.Tensor, lambda tensor: tensor + 1, layout)
    assert moved.segments[0][1].positions.eq(1).all()
    assert moved.span("b")[1].grid == (2,)
    assert moved.count == 4


def test_patches_of_a_segment():
    patches = Patches({"rgb": torch.zeros(1, 6, 3), "depth": torch.ones(1, 4, 1), "points": torch.zeros(1, 5)}, JOINED)
    assert patches.segment("depth").values.eq(1).all()
    assert patches.segment("depth").layout.grid == (2, 2)
    with pytest.raises(KeyError, match="single modality"):
        Patches(torch.zeros(1, 4, 3), Layout.on_grid(4)).segment("rgb")


def test_take_repeats_samples_and_shares_a_single_row():
    values = torch.arange(12.0).reshape(2, 3, 2)
    ids = torch.tensor([[2, 0], [1, 1], [0, 1], [2, 2]])  # two rows per sample, adjacent
    found = take(values, ids)
    assert found.shape == (4, 2, 2)
    for row, picks in enumerate(ids.tolist()):
        assert torch.equal(found[row], values[row // 2, picks])
    assert torch.equal(take(values[:1], ids)[3], values[0, [2, 2]])


def test_from_bool_with_equal_counts_partitions():
    mask = Mask.from_bool(rows("x..x.", ".xx.."))
    assert mask.query_ids.tolist() == [[0, 3], [1, 2]]
    assert mask.kept_ids.tolist() == [[1, 2, 4], [0, 3, 4]]
    assert mask.weight.tolist() == [[1, 1], [1, 1]]


def test_from_bool_with_unequal_counts_keeps_and_asks_all():
    mask = Mask.from_bool(rows("x..x.", ".xxx."))
    assert mask.query_ids.tolist() == mask.kept_ids.tolist() == [[0, 1, 2, 3, 4]] * 2
    assert mask.weight.tolist() == [[1, 0, 0, 1, 0], [0, 1, 1, 1, 0]]
    assert torch.equal(mask.kept_hidden(), mask.hidden)


def test_from_bool_takes_visible_queries_that_weigh_nothing():
    mask = Mask.from_bool(rows("x..x.", ".xx.."), queries=rows("xx...", "..xx."))
    assert mask.query_ids.tolist() == [[0, 1], [2, 3]]
    assert mask.weight.tolist() == [[1, 0], [1, 0]]
    assert mask.kept_ids.tolist() == [[1, 2, 4], [0, 3, 4]]


def test_from_bool_may_hide_everything():
    mask = Mask.from_bool(rows("xxx", "xxx"))
    assert mask.kept_ids.shape == mask.query_ids.shape == (2, 3)


@pytest.mark.parametrize(
    ("hidden", "options", "text"),
    [
        (torch.zeros(2, 4), {}, r"hidden must be bool \[rows, units\], got torch.float32 \(2, 4\)"),
        (torch.ones(4, dtype=torch.bool), {}, r"got torch.bool \(4,\)"),
        (rows("x.", ".."), {}, "a row of the mask hides nothing"),
        (rows("x.", ".x", "x."), {"per_sample": 2}, "3 rows are not a multiple of 2"),
        (rows("x.", ".x"), {"queries": rows("xx.", "xx.")}, "differ in shape"),
        (rows("x.", ".x"), {"queries": rows("x.", "x.")}, "a row asks for no hidden unit"),
        (rows("x..", ".x."), {"queries": rows("x..", "xx.")}, "rows hold 1 to 2 queries"),
        (rows("x.", ".x"), {"queries": torch.ones(2, 2)}, "queries must be bool"),
    ],
)
def test_masks_that_are_refused(hidden, options, text):
    with unchecked(), pytest.raises(ValueError, match=text):  # the message that users see, without shape checks
        Mask.from_bool(hidden, **options)


def test_keep_all():
    mask = Mask.from_bool(rows("x..x")).keep_all()
    assert mask.kept_ids.tolist() == [[0, 1, 2, 3]]
    assert mask.query_ids.tolist() == [[0, 3]]
    assert mask.kept_hidden().tolist() == [[True, False, False, True]]


def test_asking_a_segment():
    mask = Mask.from_bool(rows("x....." + "..x." + "....x"))
    asked = mask.ask_segment(JOINED, "depth")
    assert asked.query_ids.tolist() == [[6, 7, 8, 9]]
    assert asked.weight.tolist() == [[0, 0, 1, 0]]
    assert torch.equal(asked.kept_ids, mask.kept_ids)
    local = mask.ask_segment(JOINED, "depth", local=True)
    assert local.query_ids.tolist() == [[0, 1, 2, 3]]
    assert local.weight.tolist() == [[0, 0, 1, 0]]


def test_nothing_hidden():
    mask = Mask.nothing_hidden(2, Layout.on_grid(2, 2), torch.device("cpu"))
    assert not mask.hidden.any()
    assert mask.kept_ids.tolist() == [[0, 1, 2, 3]] * 2
    assert mask.query_ids.shape == mask.weight.shape == (2, 0)


# ---- a masker's promise is kept, whatever the masker ----


class Broken(RandomMasker):
    """Hides what a test gives it."""

    given = None

    def hide(self, layout, draw, scores):
        return self.given(super().hide(layout, draw, scores))


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (
            lambda hidden: hidden.index_fill(0, torch.tensor([1]), True),
            r"rows hide \[5, 10\] of 10 units; count says 5",
        ),
        (torch.zeros_like, r"rows hide \[0\] of 10 units; count says 5"),
        (lambda hidden: hidden.float(), r"gives torch.float32; it must give a bool tensor"),
        (lambda hidden: hidden[:, :-1], r"hide gives \(3, 9\); of 3 masks on 10 units it must give \(3, 10\)"),
        (lambda hidden: hidden[:1], r"hide gives \(1, 10\)"),
    ],
)
def test_hiding_otherwise_than_counted_is_refused(given, text):
    masker = Broken(RandomMasker.Config(ratio=0.5))
    masker.given = given
    with unchecked(), pytest.raises(MimError, match=text):
        masker(Layout(count=10), Draw(keys(3)))


def test_what_is_hidden_later_in_a_run_is_counted_too():
    class Later(RandomMasker):
        def hide(self, layout, draw, scores):
            hidden = super().hide(layout, draw, scores)
            return hidden if draw.step < 11 else torch.ones_like(hidden)

    masker = Later(RandomMasker.Config(ratio=0.5))
    masker(Layout(count=10), Draw(keys(3), 10))
    with pytest.raises(MimError, match=r"rows hide \[10\] of 10 units"):
        masker(Layout(count=10), Draw(keys(3), 11))


def test_a_layout_is_refused_before_anything_is_hidden():
    class OnGrids(RandomMasker):
        def count(self, layout):
            if layout.grid is None:
                raise ValueError("it needs a grid")
            return super().count(layout)

        def hide(self, layout, draw, scores):
            return torch.zeros(len(draw.key), layout.grid[0])

    with pytest.raises(ValueError, match="it needs a grid"):
        OnGrids(RandomMasker.Config())(Layout(count=10), Draw(keys(3)))
