"""Every registered target keeps the contract; the normalised one is MAE's formula."""

import math
from typing import ClassVar

import pytest
import torch
from mim_core.parts.encoder import ViTEncoder
from mim_core.parts.mask import Mask
from mim_core.parts.target import Losses, ValueTarget
from mim_core.parts.target_features import Answers, FeatureTarget
from mim_core.parts.target_ids import IdTarget
from mim_core.parts.target_ranks import RankTarget
from mim_core.parts.teacher import EmaTeacher, Student
from mim_core.parts.teacher_codes import RandomCodesTeacher
from mim_core.parts.tokenizer import PatchTokenizer
from mim_core.testing import TargetContract, noise, uncovered


def tokenizer(channels=3):
    return PatchTokenizer(PatchTokenizer.Config(size=(8, 12), patch=(2, 3), channels=channels), 8)


class _Values(TargetContract):
    part = "core:values"

    def make_tokenizer(self):
        return tokenizer()


class TestNormalised(_Values):
    options = {"normalize": True, "loss": "l2"}


class TestRaw(_Values):
    options = {"normalize": False, "loss": "l2"}


class TestAbsolute(_Values):
    options = {"normalize": False, "loss": "l1", "channels_first": True}


class TestNormalisedAbsolute(_Values):
    options = {"normalize": True, "loss": "l1", "channels_first": True}


class TestSmooth(_Values):
    options = {"normalize": True, "loss": "smooth_l1", "beta": 0.5}


class TestRanks(_Values):
    part = "core:ranks"
    lowest = None
    inverse = False
    couples_queries = True

    def truth(self, values):
        each = values.each
        apart = (each - each.mean(dim=1, keepdim=True)) / each.std(dim=1, keepdim=True)
        factor = 1.0 if self.options.get("loss") == "absolute" else 1e4
        return (factor * apart)[:, :, None].expand(-1, -1, self.options.get("size", 18))


class TestLossesAsNumbers(TestRanks):
    options = {"loss": "absolute", "size": 3}
    lowest = 0.0


class _Features(TargetContract):
    part = "core:features"
    inverse = False

    def make_tokenizer(self):
        return tokenizer()

    def make_teacher(self, tokenizer):
        encoder = ViTEncoder(ViTEncoder.Config(width=8, depth=3, heads=2), tokenizer.layout)
        return EmaTeacher(EmaTeacher.Config(**self.looks), Student(tokenizer, encoder))

    looks: ClassVar = {}

    def truth(self, values):
        return values.features


class TestFeatures(_Features):
    pass


class TestFeaturesOfSeveralLayers(_Features):
    options = {"layers": 2, "final_norm": False, "loss": "l2", "over": "root"}


class TestFeaturesByTheCosine(_Features):
    options = {"norm": "standardize", "loss": "cosine"}


class TestFeaturesInFolds(_Features):
    options = {"norm": "standardize", "norm_eps": 1e-6, "loss": "cosine", "along": "units"}
    looks = {"sees": "hidden", "folds": 2}
    couples_queries = True


class TestContrast(TargetContract):
    part = "core:contrast"
    options: ClassVar = {"size": 8, "temperature": 1.0}
    asks = "sample"
    head = "contrast"
    lowest = None
    inverse = False

    def truth(self, values):
        others = (values.keys.sum(dim=0) - values.keys[values.own]) / (len(values.keys) - 1)
        return (values.keys[values.own] - others)[:, None]


class TestSelfDistillation(TargetContract):
    part = "core:self-distillation"
    options: ClassVar = {"size": 8, "teacher_start": 1.0, "teacher_end": 1.0, "head": "views"}
    asks = "sample"
    head = "views"
    lowest = None
    inverse = False

    def truth(self, values):
        return 0.1 * values.log()[:, None]


class TestIds(TargetContract):
    part = "core:ids"
    lowest = None
    inverse = False

    def make_tokenizer(self):
        return tokenizer()

    def make_teacher(self, tokenizer):
        student = Student(tokenizer, ViTEncoder(ViTEncoder.Config(width=8, depth=1, heads=2), tokenizer.layout))
        return RandomCodesTeacher(RandomCodesTeacher.Config(codes=12), student)

    def truth(self, values):
        return 20.0 * torch.nn.functional.one_hot(values, 12)


def test_ids_by_hand():
    """The nearest direction of the projection, standardised values in front; the loss is that of a plain loop."""
    one = tokenizer()
    student = Student(one, ViTEncoder(ViTEncoder.Config(width=8, depth=1, heads=2), one.layout))
    teacher = RandomCodesTeacher(RandomCodesTeacher.Config(codes=12, size=4), student)
    patches = one.split(noise(one.shapes, 3))
    lesson = teacher(patches)
    for row, unit in ((0, 0), (2, 5)):
        x = patches.values[row, unit].flatten()
        x = ((x - x.mean()) / (x.var(correction=0) + 1e-5).sqrt()) @ teacher.projection
        alike = [float(torch.nn.functional.cosine_similarity(x, code, dim=0)) for code in teacher.book]
        assert int(lesson.ids[row, unit]) == alike.index(max(alike))
    assert len(lesson.ids.unique()) > 4
    target = IdTarget(IdTarget.Config(), one)
    target.bind(teacher)
    assert target.size == 12
    asked, ids = torch.randn(2, 3, 12), torch.tensor([[0, 5, 11], [3, 3, 7]])
    wanted = -asked.log_softmax(dim=-1).gather(2, ids[:, :, None])[:, :, 0]
    torch.testing.assert_close(target.loss(asked, ids), wanted)


def test_ids_of_a_teacher_that_gives_none():
    one = tokenizer()
    with pytest.raises(ValueError, match="random-codes"):
        IdTarget(IdTarget.Config(), one).bind(
            EmaTeacher.of(one, ViTEncoder(ViTEncoder.Config(width=8, depth=1, heads=2), one.layout))
        )


def test_every_target_has_a_contract():
    assert uncovered("targets", globals().values(), "core") == []


def test_normalised_values_are_maes():
    """(x - mean) / sqrt(var + 1e-6) over all values of the unit, the variance unbiased."""
    cut, target = tokenizer(), ValueTarget(ValueTarget.Config(), tokenizer())
    sample = noise(cut.shapes, 1)
    hidden = torch.zeros(1, 16, dtype=torch.bool)
    hidden[0, 5] = True
    values = target.make(sample, cut.split(sample), Mask.from_bool(hidden))
    x = sample["input"][0, :, 2:4, 3:6].permute(1, 2, 0).flatten().double().tolist()
    mean = sum(x) / len(x)
    var = sum((v - mean) ** 2 for v in x) / (len(x) - 1)
    assert values[0, 0].tolist() == pytest.approx([(v - mean) / (var + 1e-6) ** 0.5 for v in x], rel=1e-5, abs=1e-6)


def test_a_constant_unit_is_finite():
    cut, target = tokenizer(), ValueTarget(ValueTarget.Config(), tokenizer())
    sample = {"input": torch.full((1, 3, 8, 12), 0.7)}
    values = target.make(sample, cut.split(sample), Mask.from_bool(torch.arange(16)[None] < 8))
    assert values.abs().max() < 1e-3


def test_losses_are_those_of_the_papers():
    one, other = torch.tensor([[[0.0, 3.0]]]), torch.tensor([[[0.5, 1.0]]])
    cut = PatchTokenizer(PatchTokenizer.Config(size=(2,), patch=(2,), channels=1), 4)
    for options, expected in (
        ({"loss": "l2"}, (0.25 + 4) / 2),
        ({"loss": "l1"}, (0.5 + 2) / 2),
        ({"loss": "smooth_l1", "beta": 1.0}, (0.125 + 1.5) / 2),
        ({"loss": "smooth_l1", "beta": 2.0}, (0.0625 + 1.0) / 2),
    ):
        target = ValueTarget(ValueTarget.Config(normalize=False, **options), cut)
        assert target.loss(one, other).item() == pytest.approx(expected)


def test_channels_first_is_a_pixel_shuffle():
    cut = PatchTokenizer(PatchTokenizer.Config(size=(8, 8), patch=(2, 2)), 8)
    target = ValueTarget(ValueTarget.Config(normalize=False, channels_first=True), cut)
    sample = noise(cut.shapes, 2)
    values = target.make(sample, cut.split(sample), Mask.from_bool(torch.ones(2, 16, dtype=torch.bool)))
    shuffled = torch.nn.functional.pixel_shuffle(values.transpose(1, 2).reshape(2, 12, 4, 4), 2)
    assert torch.equal(shuffled, sample["input"])


@pytest.mark.parametrize(
    ("options", "patch", "text"),
    [
        ({"normalize": True}, (1,), "single value cannot be normalised"),
        ({"loss": "smooth_l1", "beta": 0.0}, (2,), "beta must be positive"),
    ],
)
def test_options_that_make_no_target(options, patch, text):
    cut = PatchTokenizer(PatchTokenizer.Config(size=(4,), patch=patch, channels=1), 4)
    with pytest.raises(ValueError, match=text):
        ValueTarget(ValueTarget.Config(**options), cut)


def ranks(**options):
    return RankTarget(RankTarget.Config(**options), tokenizer(1)).eval()


def losses(each, weight=None):
    each = torch.tensor(each)
    return Losses(each, torch.ones_like(each) if weight is None else torch.tensor(weight))


def of_pairs(scores, each, weight):
    """A plain loop over all ordered pairs of the batch, as HPM's code has it."""
    total, pairs = 0.0, 0
    for score, loss, counts in zip(scores, each, weight, strict=True):
        for i in range(len(score)):
            for j in range(len(score)):
                if loss[i] == loss[j] or not counts[i] or not counts[j]:
                    continue
                p = 1 / (1 + math.exp(score[j] - score[i]))
                total -= math.log((p if loss[i] > loss[j] else 1 - p) + 1e-6)
                pairs += 1
    return total / pairs


@pytest.mark.parametrize("weight", [[[1.0] * 4] * 2, [[1.0, 0.0, 1.0, 1.0], [1.0] * 4]])
def test_ranks_are_the_mean_over_unequal_pairs_of_the_batch(weight):
    scores = [[0.5, -0.2, 1.0, 3.0], [0.0, 0.1, -4.0, 2.0]]
    each = [[3.0, 1.0, 1.0, 2.0], [0.5, 0.5, 0.5, 7.0]]
    target = ranks(size=2)
    answers = torch.tensor(scores)[:, :, None] + torch.tensor([-5.0, 5.0])  # their mean is the score
    found = target.loss(answers, losses(each, weight))
    share = torch.tensor(weight) / torch.tensor(weight).sum()
    assert float((found * share).sum()) == pytest.approx(of_pairs(scores, each, weight), rel=1e-5)


def test_equal_losses_make_no_pairs():
    answers = torch.randn(2, 3, 6, requires_grad=True)
    found = ranks().loss(answers, losses([[1.0] * 3] * 2))
    assert found.tolist() == [[0.0] * 3] * 2
    found.sum().backward()
    assert answers.grad.abs().max() == 0


def test_losses_as_numbers_are_standardised_per_sample():
    each, weight = [[1.0, 2.0, 6.0, 100.0]], [[0.5, 0.5, 0.5, 0.0]]
    found = ranks(loss="absolute", size=1).loss(torch.zeros(1, 4, 1), losses(each, weight))
    assert found[0, :3].tolist() == pytest.approx([(x - 3) ** 2 / (7 + 1e-6) for x in (1, 2, 6)], rel=1e-5)


def test_a_rank_target_has_no_values_of_its_own():
    sample, hidden = noise(tokenizer(1).shapes, 1), torch.arange(16)[None] < 8
    with pytest.raises(ValueError, match="only what the head 'main' loses"):
        ranks().make(sample, tokenizer(1).split(sample), Mask.from_bool(hidden))
    with pytest.raises(ValueError, match="size must be at least 1"):
        ranks(size=0)
    with pytest.raises(ValueError, match="head must name the head"):
        ranks(head="")


def test_the_cosine_of_a_channel_along_units():
    """By hand: two folds of two units, one channel each of which is answered rightly or turned round."""
    target = FeatureTarget(FeatureTarget.Config(loss="cosine", along="units"), tokenizer())
    features = torch.tensor([[[1.0, 2.0], [2.0, 1.0], [3.0, -1.0], [1.0, 1.0]]])
    prediction = features * torch.tensor([[[1.0, -1.0], [1.0, -1.0], [5.0, 2.0], [5.0, 2.0]]])
    loss = target.loss(prediction, Answers(features, torch.tensor([[[0, 1], [3, 2]]])))
    assert loss[0].tolist() == pytest.approx([1.0, 1.0, 0.0, 0.0], abs=1e-6)
