"""What every masker keeps to."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from mim_core.errors import MimError
from mim_core.parts.layout import Layout, take
from mim_core.parts.mask import Draw, Mask
from mim_core.parts.masker import Masker
from mim_core.testing.checks import Contract, equal, keys, on_gpu, refusal, saying, seeded, shapes, tensors, to_gpu

MOMENTS = ((0, 0.0), (1, 0.01), (11, 0.3), (500, 0.5), (20_000, 0.9), (100_000, 1.0))
"""Steps of a run and the share of it that is done: what a masker hides may change on the way, how much may not."""


def written_places(layout: Layout) -> Tensor:
    """Which units are places of a sequence, bool [1, N]."""
    each = [torch.full((1, part.count), part.sequence) for _, part in layout.parts()]
    return torch.cat(each, dim=1)


class MaskerContract(Contract):
    """What every masker keeps to.

    Attributes:
        layouts: Layouts that it must take.
        unsuitable: Layouts that it must refuse with a ValueError.
        expected_hidden: Hidden units per row, by grid, or by unit count where units lie freely; these layouts are
            tried too.
        partitions: Kept and queried units are disjoint and together all; false where queries repeat or are visible.
        keyed: Masks differ between keys; false where a batch shares them by step.
        tries: Keys over which every unit must be hidden once and visible once; raise it where few units are hidden, or
            few visible.
    """

    kind: ClassVar[str] = "maskers"
    layouts: ClassVar[Sequence[Layout]] = ()
    unsuitable: ClassVar[Sequence[Layout]] = ()
    expected_hidden: ClassVar[Mapping[tuple[int, ...] | int, int]] = {}
    partitions: ClassVar[bool] = True
    keyed: ClassVar[bool] = True
    tries: ClassVar[int] = 512

    def make_masker(self) -> Masker:
        """The masker under test."""
        masker: Masker = self._make("masker")
        return masker

    def _made(self) -> Masker:
        """The masker under test, which must be one."""
        masker: Any = self.make_masker()
        assert isinstance(masker, Masker), f"make_masker gives a {type(masker).__name__}, no mim_core.Masker"
        return masker

    def make_scores(self, layout: Layout, rows: int) -> Tensor | None:
        """Scores [B, N] for a guided masker."""
        return None

    def fixed_units(self, layout: Layout) -> Sequence[int]:
        """Units that are the same in every mask: a first frame that is always shown, a future that is always hidden.
        All of them, where a masker draws nothing."""
        return ()

    def all_layouts(self) -> list[Layout]:
        """Those named, and those of ``expected_hidden``."""
        named = [Layout.on_grid(*n) if isinstance(n, tuple) else Layout(count=n) for n in self.expected_hidden]
        assert [*self.layouts, *named], "the contract needs layouts or expected_hidden"
        return [*self.layouts, *named]

    def draw(
        self,
        masker: Masker,
        layout: Layout,
        key: Tensor,
        step: int = 0,
        progress: float = 0.0,
        scores: Tensor | None = None,
    ) -> Mask:
        """Masks of samples with these keys, at a step of a run; with these scores, or with `make_scores`, which are
        the same each time."""
        if scores is None:
            with seeded():
                scores = self.make_scores(layout, len(key))
        assert scores is not None or not masker.needs_scores, "the masker needs scores: override make_scores"
        mask: Any = masker(layout, Draw(key, step, progress), scores)
        assert isinstance(mask, Mask), f"the masker gives a {type(mask).__name__}, no mim_core.Mask"
        return mask

    def test_count_is_exact_in_every_row(self) -> None:
        """Hidden is bool, True = hidden, exactly as many as stated in each row, from the first step to the last."""
        masker = self._made()
        for layout in self.all_layouts():
            count, where = masker.count(layout), f"on {layout.grid or layout.count}"
            assert 0 < count < layout.count, f"{where}: {count} of {layout.count} are hidden: hide some and show some"
            expected = self.expected_hidden.get(layout.grid or layout.count, count)
            assert count == expected, f"{where}: hides {count}, expected {expected}"
            for step, progress in MOMENTS:
                mask = self.draw(masker, layout, keys(16, step), step, progress)
                when = f"{where} at step {step}, {progress:.0%} of the run"
                rows = 16 * masker.per_sample
                assert mask.hidden.dtype == torch.bool, f"{when}: hidden is {mask.hidden.dtype}, not bool"
                assert mask.hidden.shape == (rows, layout.count), (
                    f"{when}: hidden is {tuple(mask.hidden.shape)}, not {(rows, layout.count)}"
                )
                counts = sorted(set(mask.hidden.sum(dim=1).tolist()))
                fits = counts == [count] if masker.exact else count <= counts[0] <= counts[-1] < layout.count
                assert fits, f"{when}: rows hide {counts}; count says {count} (True = hidden)"
                assert masker.count(layout) == count, f"{when}: count says {masker.count(layout)}, at first {count}"

    def test_inputs_are_left_alone(self) -> None:
        """Keys, layout and scores are as they were: the batch goes on with them."""
        masker = self._made()
        for layout in self.all_layouts():
            draw, scores = Draw(keys(8), 3, 0.5), self.make_scores(layout, 8)
            before = pytree.tree_map_only(Tensor, lambda value: value.clone(), (layout, draw.key, scores))
            masker(layout, draw, scores)
            for name, one, other in zip(
                ("layout", "draw.key", "scores"), before, (layout, draw.key, scores), strict=True
            ):
                assert equal(one, other), f"the masker changes {name} in place, on {layout.grid or layout.count}"

    def test_kept_and_queries(self) -> None:
        """Kept units are the visible ones and queries the hidden ones, both ascending; every query weighs one."""
        masker = self._made()
        for layout in self.all_layouts():
            mask = self.draw(masker, layout, keys(8))
            for name, ids in (("kept_ids", mask.kept_ids), ("query_ids", mask.query_ids)):
                assert ids.dtype == torch.int64, f"{name} are {ids.dtype}, not int64"
                assert ids.numel() > 0, f"{name} are empty on {layout.grid or layout.count}: nothing is left"
                assert 0 <= int(ids.min()) <= int(ids.max()) < layout.count, f"{name} leave the layout"
            assert mask.weight.shape == mask.query_ids.shape, (
                f"weight is {tuple(mask.weight.shape)} for queries {tuple(mask.query_ids.shape)}; each has one"
            )
            if not self.partitions:
                continue
            assert bool((mask.kept_ids.diff(dim=1) > 0).all()), "kept_ids are not ascending"
            assert bool((mask.query_ids.diff(dim=1) > 0).all()), "query_ids are not ascending"
            both = torch.cat([mask.kept_ids, mask.query_ids], dim=1).sort(dim=1).values
            assert torch.equal(both, torch.arange(layout.count).expand_as(both)), "kept and queries are not all units"
            assert not bool(mask.kept_hidden().any()), "a kept unit is hidden: is the polarity flipped?"
            assert bool((mask.weight == 1).all()), "a hidden unit does not count in the loss"

    def test_every_unit_is_reached(self) -> None:
        """Over many keys every unit is hidden at least once and visible at least once, but for `fixed_units`, which
        never change."""
        masker = self._made()
        for layout in self.all_layouts():
            hidden = self.draw(masker, layout, keys(self.tries)).hidden
            fixed = torch.zeros(layout.count, dtype=torch.bool)
            fixed[list(self.fixed_units(layout))] = True
            for what, units in (("never", ~hidden.any(dim=0)), ("always", hidden.all(dim=0))):
                stuck = (units & ~fixed).nonzero().flatten().tolist()
                assert not stuck, (
                    f"{what} hidden on {layout.grid or layout.count} by {self.tries} keys: units {stuck}; if that is "
                    "meant, name them in fixed_units; if it is chance, raise tries"
                )
            changing = (fixed & hidden.any(dim=0) & ~hidden.all(dim=0)).nonzero().flatten().tolist()
            assert not changing, f"fixed_units names {changing}, hidden in some masks and not in others"

    def test_key_decides(self) -> None:
        """The same keys at the same step give the same masks, whatever torch's generator says; other keys give others,
        or other steps where a batch shares its masks."""
        masker = self._made()
        for layout in self.all_layouts():
            with seeded(1):
                one = self.draw(masker, layout, keys(8), step=7, progress=0.5)
            with seeded(2):
                other = self.draw(masker, layout, keys(8), step=7, progress=0.5)
            assert equal(one, other), "two masks of the same keys differ: draw from draw.key only"
            if len(set(self.fixed_units(layout))) == layout.count:
                continue  # all masks are alike, which test_every_unit_is_reached sees
            if self.keyed:
                rows = self.draw(masker, layout, keys(64)).hidden
                assert len(rows.unique(dim=0)) > 1, "all keys give the same mask"
            else:
                steps = [self.draw(masker, layout, keys(1), step=step).hidden for step in range(64)]
                assert any(not torch.equal(steps[0], mask) for mask in steps), "all steps give the same mask"

    def test_row_does_not_depend_on_the_batch(self) -> None:
        """At the same step a batch of 1 gives the rows that a batch of 8 has for that sample: adjacent, in the same
        order."""
        masker = self._made()
        for layout in self.all_layouts():
            with seeded():
                scores = self.make_scores(layout, 8)
            whole, each = self.draw(masker, layout, keys(8), step=3, scores=scores), masker.per_sample
            assert whole.per_sample == each, f"the mask says {whole.per_sample} per sample, the masker {each}"
            for row in range(8):
                own = None if scores is None else scores[row : row + 1]
                alone = self.draw(masker, layout, keys(8)[row : row + 1], step=3, scores=own)
                rows = slice(row * each, (row + 1) * each)
                assert torch.equal(alone.hidden, whole.hidden[rows]), f"sample {row} alone has another mask"
                assert torch.equal(alone.query_ids, whole.query_ids[rows]), f"sample {row} alone is asked elsewhere"

    def test_absent_units_weigh_nothing(self) -> None:
        """Units that are not valid (padding, a missing modality) do not count in the loss. A masker that would show
        them to the encoder is refused where there are such, and that is enough."""
        masker = self._made()
        for layout in self.all_layouts():
            valid = torch.ones(4, layout.count, dtype=torch.bool)
            valid[0, -1] = valid[2, 0] = False
            try:
                mask = self.draw(masker, replace(layout, valid=valid), keys(4))
            except MimError:
                continue
            written = written_places(layout)  # of sequences, which places are used is the mask's matter
            wanted = take((valid | written).float(), mask.query_ids)
            wanted = wanted * (mask.hidden | written).gather(1, mask.query_ids)
            wanted = wanted if mask.query_valid is None else wanted * mask.query_valid
            assert torch.equal(mask.weight, wanted), "weights are not those of valid hidden units"

    def test_what_is_asked_is_not_seen(self) -> None:
        """No unit that the encoder sees is asked and counts."""
        masker = self._made()
        for layout in self.all_layouts():
            mask = self.draw(masker, layout, keys(64))
            valid = torch.ones_like(mask.kept_ids) if mask.kept_valid is None else mask.kept_valid.to(torch.int64)
            seen = torch.zeros_like(mask.hidden, dtype=torch.int64).scatter_add(1, mask.kept_ids, valid)
            both = (take(seen, mask.query_ids) > 0) & (mask.weight > 0)
            assert not bool(both.any()), f"units of {layout.grid or layout.count} are seen and asked"

    def test_meta_device(self) -> None:
        """Shapes follow from the layout alone, nothing reads a value, and all stays on the keys' device."""
        masker = self._made()
        for layout in self.all_layouts():
            wanted, scores = shapes(self.draw(masker, layout, keys(4))), self.make_scores(layout, 4)
            meta_layout, scores = pytree.tree_map_only(Tensor, lambda value: value.to("meta"), (layout, scores))
            with saying("the masker reads a value or makes tensors elsewhere than the keys, so a GPU would wait"):
                mask = self.draw(copy.deepcopy(masker).to("meta"), meta_layout, keys(4).to("meta"), scores=scores)
            assert shapes(mask) == wanted, "shapes on the meta device differ"
            assert all(value.is_meta for value in tensors(mask)), "the mask left the device of the keys"

    def test_no_gradient(self) -> None:
        """Nothing is learned through a mask, also where scores have a gradient."""
        masker = self._made()
        for layout in self.all_layouts():
            scores = self.make_scores(layout, 4)
            mask = masker(layout, Draw(keys(4)), None if scores is None else scores.float().requires_grad_())
            assert not any(value.requires_grad for value in tensors(mask)), "a mask has a gradient"

    def test_pickles(self) -> None:
        """A masker goes to another process, as in a multi-process launcher, and gives the same masks there.

        Raises:
            AssertionError: The masker does not pickle, or its copy gives other masks.
        """
        masker = self._made()
        layout = self.all_layouts()[0]
        before = self.draw(masker, layout, keys(4))
        try:
            copied = pickle.loads(pickle.dumps(masker))
        except Exception as error:
            raise AssertionError(f"the masker does not pickle: {type(error).__name__}: {error}") from error
        assert equal(before, self.draw(copied, layout, keys(4))), "a pickled masker gives other masks"

    def test_state_dict_round_trip(self) -> None:
        """Another with the same weights and buffers gives the same masks."""
        masker, other = self._made(), self._made()
        other.load_state_dict({name: value.clone() for name, value in masker.state_dict().items()}, strict=True)
        for layout in self.all_layouts():
            same = equal(self.draw(masker, layout, keys(4)), self.draw(other, layout, keys(4)))
            assert same, "with the same state dict another of the same options gives other masks: masks differ"

    @on_gpu
    def test_gpu_equals_cpu(self) -> None:
        """The same masks on a GPU, to the bit."""
        for layout in self.all_layouts():
            with seeded():
                scores = self.make_scores(layout, 8)
            here = self.draw(self._made(), layout, keys(8), scores=scores)
            gpu_masks = self._made().cuda()(to_gpu(layout), Draw(keys(8).cuda()), to_gpu(scores))
            assert all(value.is_cuda for value in tensors(gpu_masks)), "the mask left the GPU"
            copied = pytree.tree_map_only(Tensor, lambda value: value.cpu(), gpu_masks)
            assert equal(here, copied), f"masks on a GPU differ on {layout.grid or layout.count}"

    def test_unsuitable_layouts_are_refused(self) -> None:
        """A layout that the masker cannot serve is a ValueError."""
        for layout in self.unsuitable:
            masker = self._made()
            assert refusal(self.draw, masker, layout, keys(2)), "the refusal says nothing"
