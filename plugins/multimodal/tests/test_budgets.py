"""Two budgets from one draw: exact, apart, and spread as a mixture of Dirichlet draws says."""

from dataclasses import replace

import pytest
import torch
from mim_core import Draw, Layout, Spans, sequence_length
from mim_core.errors import MimError
from mim_core.testing import MaskerContract, keys
from mim_multimodal.budgets import BudgetMasker, fill

GRIDS = Layout.join({"rgb": Layout.on_grid(14, 14), "depth": Layout.on_grid(14, 14), "few": Layout.on_grid(5)})
WORDS = Layout(2 * 13, (2 * 13,), sequence=True)
MIXED = Layout.join({"rgb": Layout.on_grid(4, 6), "words": WORDS, "few": Layout.on_grid(3)})


class TestBudgets(MaskerContract):
    part = "multimodal:budgets"
    layouts = [GRIDS, Layout.on_grid(14, 14)]
    partitions = False


class TestBudgetsWithASequence(MaskerContract):
    part = "multimodal:budgets"
    options = {"seen": 12, "asked": 14, "mixture": (0.5, 0.5), "seen_alpha": (0.1, 2.0), "asked_alpha": (1.0, 1.0)}
    layouts = [MIXED]
    partitions = False
    tries = 2048

    def fixed_units(self, layout):
        """Places behind the sequence's units hold none of them."""
        return range(24 + 12, 24 + 26)


def masker(**options):
    return BudgetMasker(BudgetMasker.Config(**options))


def flags(ids, valid, count):
    """Which units are among the ids that are there, [B, N]; each once."""
    found = torch.zeros(len(ids), count, dtype=torch.int64).scatter_add(1, ids, valid.to(torch.int64))
    assert int(found.max()) <= 1
    return found.bool()


def counts(found, layout):
    return torch.stack([part.sum(dim=1) for part in found.split([p.count for _, p in layout.segments], dim=1)], dim=1)


def drawn(layout, rows, **options):
    """(mask, what is seen, what is asked), bool [B, N] each."""
    mask = masker(**options)(layout, Draw(keys(rows)))
    seen, asked = (
        flags(mask.kept_ids, mask.kept_valid, layout.count),
        flags(mask.query_ids, mask.query_valid, layout.count),
    )
    assert not bool((seen & asked).any()), "what is seen is never asked"
    return mask, seen, asked


@pytest.mark.parametrize("alpha", [0.01, 0.5, 1.0, 1000.0])
def test_ten_thousand_draws_are_exact(alpha):
    """Modalities that are missing, whole or but for a handful of units: budgets are full wherever units are left."""
    rows = 10_000 // 4
    generator = torch.Generator().manual_seed(1)
    layout = replace(GRIDS, valid=None)
    valid = torch.ones(rows, layout.count, dtype=torch.bool)
    gone = torch.rand(rows, 3, generator=generator) < 0.3
    gone[gone.all(dim=1), 0] = False
    start = 0
    for number, (_, part) in enumerate(layout.segments):
        valid[:, start : start + part.count] &= ~gone[:, number : number + 1]
        start += part.count
    valid[::7, 3:196] = False  # a handful of rgb
    parts = dict(zip(("rgb", "depth", "few"), valid.split([196, 196, 5], dim=1), strict=True))
    layout = Layout.join({name: replace(part, valid=parts[name]) for name, part in GRIDS.segments})
    mask, seen, asked = drawn(layout, rows, seen=128, asked=128, seen_alpha=(alpha,), asked_alpha=(alpha,))
    there = valid.sum(dim=1)
    assert torch.equal(seen.sum(dim=1), there.clamp(max=128))
    assert torch.equal(asked.sum(dim=1), (there - seen.sum(dim=1)).clamp(max=128))
    assert not bool(((seen | asked) & ~valid).any()), "what is not there is neither seen nor asked"
    assert torch.equal(mask.weight, mask.query_valid.float())
    assert torch.equal(mask.hidden, ~seen)


@pytest.mark.parametrize("alpha", [0.01, 1000.0])
def test_fewest_and_most_are_kept(alpha):
    options = {"least": {"few": 2, "depth": 10}, "most": {"rgb": 90, "depth": 100}}
    _, seen, asked = drawn(GRIDS, 2500, seen=100, asked=120, seen_alpha=(alpha,), asked_alpha=(alpha,), **options)
    for found, budget in ((counts(seen, GRIDS), 100), (counts(asked, GRIDS), 120)):
        assert torch.equal(found.sum(dim=1), torch.full((2500,), budget))
        assert bool((found[:, 0] <= 90).all() and (found[:, 1] <= 100).all() and (found[:, 1] >= 10).all())
    assert bool((counts(seen, GRIDS)[:, 2] >= 2).all())
    left = 5 - counts(seen, GRIDS)[:, 2]
    assert bool((counts(asked, GRIDS)[:, 2] >= left.clamp(max=2)).all()), "as many as are left"


def test_shares_are_those_of_dirichlet_draws():
    """Of two large modalities: the mean is the alphas' share, the spread that of the distribution."""
    layout = Layout.join({"a": Layout.on_grid(1000), "b": Layout.on_grid(1000)})
    _, seen, asked = drawn(
        layout, 4000, seen=200, asked=200, seen_alphas={"a": (3.0,), "b": (1.0,)}, asked_alpha=(1.0,)
    )
    share = counts(seen, layout)[:, 0] / 200
    assert float(share.mean()) == pytest.approx(0.75, abs=0.01)
    assert float(share.var()) == pytest.approx(3 / (16 * 5), rel=0.1)
    share = counts(asked, layout)[:, 0] / 200
    assert float(share.var()) == pytest.approx(1 / 12, rel=0.1)


def test_a_mixture_draws_each_distribution_as_often():
    """A concentration of 0 gives nothing as long as the others can take all."""
    _, seen, _ = drawn(
        GRIDS, 4000, seen=100, asked=100, mixture=(1.0, 3.0), seen_alpha=(0.0, 1.0), asked_alpha=(1.0, 1.0),
        seen_alphas={"rgb": (1000.0, 1.0)},
    )  # fmt: skip
    alone = counts(seen, GRIDS)[:, 0] == 100
    assert float(alone.float().mean()) == pytest.approx(0.25, abs=0.03)


def test_units_are_drawn_uniformly():
    _, seen, asked = drawn(GRIDS, 6000, seen=60, asked=60, seen_alpha=(1000.0,), asked_alpha=(1000.0,))
    for found in (seen, asked):
        shares = found[:, :392].float().mean(dim=0).split(196)
        assert all(float(part.max() - part.min()) < 0.06 for part in shares)


def test_only_seen_and_only_asked():
    _, seen, asked = drawn(GRIDS, 200, seen=50, asked=50, only_seen=("rgb",), only_asked=("depth",))
    assert not bool(counts(seen, GRIDS)[:, 1].any())
    assert not bool(counts(asked, GRIDS)[:, 0].any())


@pytest.mark.parametrize("alpha", [0.01, 1.0, 1000.0])
def test_a_sequence_is_hidden_in_spans(alpha):
    """What is seen fits the budget, what is asked begins at a sentinel and is one stretch; grids fill what is left."""
    lengths = torch.arange(3000) % 13
    valid = torch.arange(26) < lengths[:, None]
    layout = Layout.join({"rgb": Layout.on_grid(4, 6), "words": replace(WORDS, valid=valid), "few": Layout.on_grid(3)})
    mask, seen, asked = drawn(layout, 3000, seen=12, asked=14, seen_alpha=(alpha,), asked_alpha=(alpha,))
    assert mask.spans
    words = slice(24, 50)
    hidden = mask.hidden[:, words][:, : sequence_length(WORDS)] & valid[:, :12]
    spans = Spans(valid[:, :12] & ~hidden, hidden)
    found = counts(seen, layout)[:, 1]
    assert bool(((found == spans.seen) | (found == 0)).all()), "all that is kept is seen, or nothing"
    assert bool((hidden.sum(dim=1) == lengths)[found == 0].all())
    place = torch.arange(26)
    assert torch.equal(seen[:, words], place < found[:, None])
    wanted = counts(asked, layout)[:, 1]
    first = asked[:, words].to(torch.uint8).argmax(dim=1)
    assert torch.equal(asked[:, words], (place >= first[:, None]) & (place < (first + wanted)[:, None]))
    begins = torch.where(spans.starts, spans.seen[:, None] + spans.sentinel_places(), -1)
    some = wanted > 0
    assert bool((begins == first[:, None]).any(dim=1)[some].all())
    assert bool((first + wanted < spans.seen + spans.told)[some].all()), "the last entry is only asked, not told"
    whole = asked.sum(dim=1)
    room = 27 - counts(seen, layout)[:, [0, 2]].sum(dim=1) + (spans.told - 1).clamp(min=0)
    assert torch.equal(whole, room.clamp(max=14))
    assert torch.equal(seen.sum(dim=1), torch.full((3000,), 12)), "27 units on grids fill what the words leave"
    if alpha == 1.0:
        kept = spans.kept.sum(dim=1)[lengths == 12]
        assert int(kept.max()) > 6
        assert bool((kept == 0).any())


def test_filling_never_passes_the_most():
    generator = torch.Generator().manual_seed(0)
    high = torch.randint(0, 9, (4000, 5), generator=generator)
    logs = 50 * torch.randn(4000, 5, generator=generator, dtype=torch.float64)
    ties = torch.randn(4000, 5, 5, generator=generator, dtype=torch.float64)
    found = fill(torch.zeros_like(high), high, 17, logs, ties)
    assert bool(((found >= 0) & (found <= high)).all())
    assert torch.equal(found.sum(dim=1), high.sum(dim=1).clamp(max=17))


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"seen": 0}, "at least 1"),
        ({"mixture": (1.0, 0.0)}, "positive shares"),
        ({"mixture": (1.0, 1.0)}, "one for each of the mixture of 2"),
        ({"seen_alphas": {"rgb": (-1.0,)}}, "seen_alphas of rgb"),
        ({"least": {"rgb": 5}, "most": {"rgb": 4}}, "least of rgb"),
    ],
)
def test_options_that_make_no_sense(options, wanted):
    with pytest.raises(ValueError, match=wanted):
        masker(**options)


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"only_seen": ("rbg",)}, "only_seen names rbg; the modalities are rgb, depth, few; did you mean 'rgb'"),
        ({"only_asked": ("rgb", "depth", "few")}, "no modality may be seen"),
        ({"only_seen": ("rgb", "depth", "few")}, "no modality may be asked"),
        ({"seen": 5, "least": {"rgb": 6}}, "least adds up to 6, and seen is 5"),
        ({"seen": 397}, "there are 397 units"),
    ],
)
def test_layouts_that_do_not_fit(options, wanted):
    with pytest.raises((ValueError, MimError), match=wanted):
        masker(**options).count(GRIDS)
