"""What every target keeps to."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from mim_core.data.source import Sample
from mim_core.parts.decoder_sample import SampleDecoder
from mim_core.parts.layout import Patches
from mim_core.parts.mask import Draw, Mask
from mim_core.parts.masker import RandomMasker
from mim_core.parts.target import Losses, Target
from mim_core.parts.teacher import EmaTeacher, Lesson, Teacher
from mim_core.parts.tokenizer import Tokenizer
from mim_core.testing.checks import equal, keys, near, on_gpu, seeded, tensors, to_gpu
from mim_core.testing.student import WithStudent


class TargetContract(WithStudent):
    """What every target keeps to. One that sets ``couples_samples`` is not asked what a sample alone would lose.

    Attributes:
        asks: "units", or "sample" for the target of a sample head: it gives a value for each mask, [R, 1, size].
        head: Of a sample head, its name, under which the teacher's copy of it answers.
        lowest: The loss at the truth; None where it has no fixed value, as of classes or probabilities, and is only
            smaller there than for noise.
        inverse: `to_input_space` gives the true unit values back.
        couples_queries: The loss of an answer depends on which other units are asked: a contrastive loss, that tells
            a sample's units from one another.
        step: Step of the finite differences, in units of a prediction's spread.
    """

    kind: ClassVar[str] = "targets"
    lowest: ClassVar[float | None] = 0.0
    inverse: ClassVar[bool] = True
    couples_queries: ClassVar[bool] = False
    asks: ClassVar[Literal["units", "sample"]] = "units"
    head: ClassVar[str] = ""
    step: ClassVar[float] = 1e-3

    def make_target(self, tokenizer: Tokenizer) -> Target:
        """The target under test."""
        target: Target = self._make("target", tokenizer)
        return target

    def make_teacher(self, tokenizer: Tokenizer) -> Teacher | None:
        """The teacher that the target reads, where it needs one; the same weights each time, as torch's generator is
        seeded. By default it follows `make_encoder`, of two blocks, and a sample decoder under the name ``head``."""
        target = self.make_target(tokenizer)
        if not target.needs_teacher:
            return None
        encoder = self.make_encoder(tokenizer)
        teacher = EmaTeacher.of(tokenizer, encoder, heads=(self.head,) if self.head else ())
        options = SampleDecoder.Config(depth=0, hidden=16)
        teacher.begin({self.head: SampleDecoder(options, encoder, tokenizer.layout, target.size)} if self.head else {})
        return teacher

    def make_values(self, target: Target, sample: Sample, patches: Patches, mask: Mask) -> Any:
        """What the target makes of a batch; where it is held against another head's losses, such losses: the spread of
        each unit's values, as a stand-in."""
        if target.of_head:
            assert isinstance(patches.values, Tensor), "patches of several modalities: override make_values"
            each = mask.take(patches.values, mask.query_ids).flatten(2).float().square().mean(dim=-1)
            return Losses(each, mask.weight)
        return target.make(sample, patches, mask, self._lesson(sample, patches, mask))

    def _lesson(self, sample: Sample, patches: Patches, mask: Mask) -> Lesson | None:
        """What the teacher says of a batch, the target bound to it."""
        with seeded():
            tokenizer = self.make_tokenizer()
            teacher, target = self.make_teacher(tokenizer), self.make_target(tokenizer)
        if teacher is None:
            return None
        target.bind(teacher)
        lesson: Lesson = teacher(patches, sample, mask)
        return lesson

    def _target(self, tokenizer: Tokenizer) -> Target:
        """The target under test, bound to its teacher."""
        target, teacher = self.make_target(tokenizer), self.make_teacher(tokenizer)
        assert teacher is not None or not target.needs_teacher, "the target needs a teacher: override make_teacher"
        if teacher is not None:
            target.bind(teacher)
        return target

    def truth(self, values: Any) -> Tensor:
        """The prediction that the loss asks for; by default the values themselves."""
        assert isinstance(values, Tensor), "the values are no tensor: override truth"
        return values

    def case(self, masks: int = 1) -> tuple[Target, Patches, Mask, Any]:
        """A target, the patches of four samples, a mask of most of their units, and the values there. More units are
        hidden than visible, so that one cannot be taken for the other."""
        with seeded():
            tokenizer = self.make_tokenizer()
            target = self._target(tokenizer)
        sample = self.make_sample(tokenizer, 4)
        patches = tokenizer.split(sample)
        mask = self._mask(patches, keys(4), masks)
        values = self.make_values(target, sample, patches, mask)
        wanted, shape = (*self._asked(mask), target.size), tuple(self.truth(values).shape)
        each = f"{wanted[:2]} are asked: one for each mask, mask.per_sample of a sample side by side"
        if self.asks == "units":
            each = f"{wanted[:2]} are hidden and {tuple(mask.kept_ids.shape)} visible: those at query_ids are asked "
            each += '(True = hidden), or of a sample head one for each mask: then set asks = "sample"'
        assert shape[:2] == wanted[:2], f"make gives values of {shape[:2]} where {each}"
        assert shape == wanted, f"size {target.size} does not fit the values: they are {shape}, by size {wanted}"
        return target, patches, mask, values

    def _asked(self, mask: Mask) -> tuple[int, int]:
        """Masks, and answers that are asked of each."""
        rows, queries = mask.query_ids.shape
        return rows, 1 if self.asks == "sample" else queries

    def _mask(self, patches: Patches, key: Tensor, masks: int = 1) -> Mask:
        """Three quarters of the units hidden, where there are four or more."""
        ratio = 0.75 if patches.layout.count >= 4 else 0.5
        masker = RandomMasker(RandomMasker.Config(ratio=ratio, masks=masks))
        mask: Mask = masker(patches.layout, Draw(key))
        return mask

    def guess(self, target: Target, mask: Mask, seed: int = 0) -> Tensor:
        """A prediction made of noise."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(*self._asked(mask), target.size, generator=generator)

    def test_shapes(self) -> None:
        """A prediction of ``size`` per query gives a finite loss per query, in float32, for one or two masks."""
        for masks in (1, 2):
            target, _, mask, values = self.case(masks)
            loss = target.loss(self.guess(target, mask), values)
            assert loss.shape == self._asked(mask), f"the loss is {tuple(loss.shape)}: it must not be reduced"
            assert loss.dtype == torch.float32, f"the loss is {loss.dtype}"
            assert bool(loss.isfinite().all()), "the loss of noise is not finite"

    def test_values_are_those_of_the_queries(self) -> None:
        """Queries in another order, or fewer of them, have the same losses: an answer is held against its own unit,
        whatever else is asked. Fewer are not tried where ``couples_queries``, and neither of a sample head."""
        if self.asks == "sample":
            return
        target, patches, mask, values = self.case()
        sample = self.make_sample(self.make_tokenizer(), 4)
        guess = self.guess(target, mask)
        loss = target.loss(guess, values)
        asked = mask.query_ids.shape[1]
        for what, ids in (
            ("turned round", torch.arange(asked).flip(0)),
            ("fewer", torch.arange(0, asked, 2)),
        )[: 1 if self.couples_queries else 2]:
            other = replace(mask, query_ids=mask.query_ids[:, ids], weight=mask.weight[:, ids])
            made = self.make_values(target, sample, patches, other)
            shape = tuple(self.truth(made).shape[:2])
            assert shape == tuple(other.query_ids.shape), (
                f"with {what} queries make gives values of {shape} units for {tuple(other.query_ids.shape)}: it must "
                "give those at mask.query_ids"
            )
            near(
                target.loss(guess[:, ids], made),
                loss[:, ids],
                f"with {what} queries an answer has another loss: "
                "values must be those at mask.query_ids, in their order; if the loss tells units from one another, set "
                "couples_queries = True",
            )

    def test_half_precision_predictions(self) -> None:
        """Under autocast predictions are bfloat16; the loss stays float32."""
        target, _, mask, values = self.case()
        loss = target.loss(self.guess(target, mask).bfloat16(), values)
        assert loss.dtype == torch.float32, f"the loss of a bfloat16 prediction is {loss.dtype}"

    def test_make_has_no_gradient(self) -> None:
        """Nothing is learned through the values."""
        assert not any(value.requires_grad for value in tensors(self.case()[3])), "make has a gradient"

    def test_truth_has_the_lowest_loss(self) -> None:
        """Zero, or ``lowest``, at the truth, and more for the truth with some noise; where ``lowest`` is None, more for
        noise alone."""
        target, _, mask, values = self.case()
        truth = self.truth(values)
        least = target.loss(truth, values)
        assert bool(least.isfinite().all()), "the loss at the truth is not finite"
        if self.lowest is not None:
            lowest = torch.full_like(least, self.lowest)
            near(least, lowest, f"the loss at the truth is not {self.lowest:g}", 1e-5, 1e-6)
        for seed in range(3):
            guess = self.guess(target, mask, seed)
            other = target.loss(guess if self.lowest is None else truth + 0.1 * guess, values)
            assert bool((other > least).all()), (
                "a wrong answer costs no more than the truth; if the loss is of classes, set lowest = None"
            )

    def test_gradient_is_that_of_the_loss(self) -> None:
        """Along the gradient the loss rises as finite differences say."""
        target, _, mask, values = self.case()
        guess = self.guess(target, mask).requires_grad_()
        (slope,) = torch.autograd.grad(target.loss(guess, values).sum(), guess)
        assert bool(slope.isfinite().all()), "the gradient is not finite"
        spread = slope.square().mean().sqrt()
        assert float(spread) > 0, "the loss has no gradient"
        with torch.no_grad():
            move = slope / spread * self.step
            change = target.loss(guess + move, values).double() - target.loss(guess - move, values).double()
            expected = 2 * (slope.double() * move.double()).sum()
        near(change.sum(), expected, "along the gradient the loss does not rise as the gradient says", 5e-3, 0.0)

    def test_back_to_input_space(self) -> None:
        """The truth gives the true unit values back, and another prediction other values; a target without an inverse
        says None or gives unit values."""
        target, patches, mask, values = self.case()
        truth = self.truth(values)
        pictures = target.to_input_space(truth, patches, mask)
        if pictures is not None:
            shape = tuple(pictures.shape[:2])
            assert shape == self._asked(mask), f"pictures are of {shape} units; one per query is asked"
            other = target.to_input_space(self.guess(target, mask), patches, mask)
            assert other is not None, "to_input_space gives None for some predictions only"
            same = other.shape == pictures.shape and torch.equal(other, pictures)
            assert not same, "to_input_space gives the same for any prediction: it must show what was predicted"
        if not self.inverse:
            return
        assert pictures is not None, "to_input_space gives None; if that is meant, set inverse = False"
        assert isinstance(patches.values, Tensor), "patches of several modalities: name a segment"
        wanted = mask.take(patches.values, mask.query_ids)
        near(pictures.to(wanted.dtype), wanted, "to_input_space of the truth is not the true unit values", 1e-4, 1e-4)

    def test_values_follow_from_the_sample(self) -> None:
        """Made twice they are the same, whatever torch's generator says, and a sample alone has the loss that it has
        in a batch, unless the target says ``couples_samples``."""
        target, patches, mask, values = self.case()
        with seeded():
            sample = self.make_sample(self.make_tokenizer(), 4)
        given = pytree.tree_map_only(Tensor, lambda value: value.clone(), (sample, patches, mask))
        with seeded(5):
            again = self.make_values(target, sample, patches, mask)
        for name, before, after in zip(("sample", "patches", "mask"), given, (sample, patches, mask), strict=True):
            assert equal(before, after), f"make changes the {name} in place"
        assert equal(values, again), "make gives other values each time"
        if target.couples_samples:
            return
        alone = {name: value[2:3] for name, value in sample.items()}
        with seeded():
            cut = self.make_tokenizer().split(alone)
        draw = self._mask(cut, keys(4)[2:3])
        guess = self.guess(target, mask)
        one = target.loss(guess, values)[2:3]
        other = target.loss(guess[2:3], self.make_values(target, alone, cut, draw))
        near(
            other,
            one,
            "a sample alone has another loss than in a batch; a target that compares samples says so by "
            "couples_samples = True",
        )

    def test_state_dict_round_trip(self) -> None:
        """Another with the same weights and buffers gives the same loss."""
        target, patches, mask, values = self.case()
        tokenizer = self.make_tokenizer()
        other = self._target(tokenizer)
        other.load_state_dict({name: value.clone() for name, value in target.state_dict().items()}, strict=True)
        again = self.make_values(other, self.make_sample(tokenizer, 4), patches, mask)
        guess = self.guess(target, mask)
        same = torch.equal(target.loss(guess, values), other.loss(guess, again))
        assert same, "the state dict does not hold everything"

    @on_gpu
    def test_gpu_equals_cpu(self) -> None:
        """The same loss on a GPU, and values that stay there."""
        target, patches, mask, values = self.case()
        guess = self.guess(target, mask)
        here = target.loss(guess, values)
        sample = self.make_sample(self.make_tokenizer(), 4)
        lesson = to_gpu(self._lesson(sample, patches, mask))
        target = target.cuda()
        gpu_values = to_gpu(values)
        if not target.of_head:
            gpu_values = target.make(to_gpu(sample), to_gpu(patches), to_gpu(mask), lesson)
        assert all(value.is_cuda for value in tensors(gpu_values)), "values left the GPU"
        near(target.loss(guess.cuda(), gpu_values).cpu(), here, "the loss is another on a GPU", 1e-3, 1e-4)
