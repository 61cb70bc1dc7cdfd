"""Parts that are right and unusual: the contracts must not refuse them, and what an attribute excuses is looked at."""

import math
from dataclasses import dataclass, replace

import pytest
import torch
from mim_core.errors import MimError
from mim_core.methods.masked_autoencoder import Head, MaskedAutoencoder
from mim_core.methods.method import Features
from mim_core.parts.decoder import TransformerDecoder
from mim_core.parts.encoder import ViTEncoder
from mim_core.parts.layout import Layout, Patches
from mim_core.parts.mask import Draw
from mim_core.parts.masker import Masker, RandomMasker, hide_first
from mim_core.parts.scorer import Scorer
from mim_core.parts.target import Target, ValueTarget
from mim_core.parts.teacher import EmaTeacher
from mim_core.parts.tokenizer import PatchTokenizer, Tokenizer
from mim_core.randomness import uniform
from mim_core.testing import MaskerContract, MethodContract, TargetContract, TokenizerContract, keys, noise, unchecked
from torch import nn
from torch.nn import functional as F


def fails(contract, check, text):
    with pytest.raises(AssertionError, match=text):
        getattr(contract(), check)()


@dataclass(frozen=True)
class NoOptions:
    """Nothing to set."""


# ---- maskers ---------------------------------------------------------------------------------------------------------


class Forecast(Masker):
    """Hides the last quarter, always: the future."""

    Config = NoOptions

    def count(self, layout):
        return layout.count // 4

    def hide(self, layout, draw, scores):
        place = torch.arange(layout.count, device=draw.key.device)
        return (place >= layout.count - self.count(layout)).expand(len(draw.key), -1)


class ShowsTheFirst(RandomMasker):
    """Never hides the first unit, which is given."""

    def hide(self, layout, draw, scores):
        rank = uniform(draw.key, "first", layout.count).index_fill(1, torch.tensor(0, device=draw.key.device), 2.0)
        return hide_first(rank.argsort(dim=1).argsort(dim=1), self.count(layout))


class Guided(Masker):
    """Hides what scores highest, with some noise: a mask follows from scores and key."""

    Config = NoOptions
    needs_scores = True

    def count(self, layout):
        return layout.count // 2

    def hide(self, layout, draw, scores):
        rank = -(scores.float() + uniform(draw.key, "guided", layout.count))
        return hide_first(rank.argsort(dim=1).argsort(dim=1), self.count(layout))


class TestForecast(MaskerContract):
    layouts = (Layout.on_grid(16), Layout.on_grid(2, 4))

    def make_masker(self):
        return Forecast()

    def fixed_units(self, layout):
        return range(layout.count)


class TestShowsTheFirst(MaskerContract):
    layouts = (Layout.on_grid(16),)

    def make_masker(self):
        return ShowsTheFirst(ShowsTheFirst.Config(ratio=0.5))

    def fixed_units(self, layout):
        return [0]


class TestGuided(MaskerContract):
    """Every row has scores of its own, drawn anew at each call."""

    layouts = (Layout.on_grid(16),)

    def make_masker(self):
        return Guided()

    def make_scores(self, layout, rows):
        return torch.rand(rows, layout.count)


class TestRare(MaskerContract):
    """One unit in a hundred is hidden: 512 keys do not reach each."""

    layouts = (Layout.on_grid(32, 32),)
    tries = 4096

    def make_masker(self):
        return RandomMasker(RandomMasker.Config(ratio=0.01))


def test_units_that_never_change_must_be_named():
    for cls, units in ((TestForecast, range(12)), (TestShowsTheFirst, [0])):
        plain = type("Plain", (cls,), {"fixed_units": MaskerContract.fixed_units})
        text = f"never hidden on .* by 512 keys: units .{', '.join(map(str, units))}.; if that is meant"
        fails(plain, "test_every_unit_is_reached", text)
    fails(type("Few", (TestRare,), {"tries": 512}), "test_every_unit_is_reached", "if it is chance, raise tries")


def test_units_that_change_cannot_be_called_fixed():
    class Excused(MaskerContract):
        part = "core:random"
        layouts = (Layout.on_grid(8),)

        def fixed_units(self, layout):
            return range(layout.count)

    fails(Excused, "test_every_unit_is_reached", "fixed_units names .* hidden in some masks and not in others")


def test_a_guided_masker_is_not_built_without_a_scorer():
    tokenizer = small()
    with pytest.raises(ValueError, match="hides by scores of the units, and this method has no scorer"):
        autoencoder(tokenizer, Guided(), values_of(tokenizer))
    with pytest.raises(ValueError, match="needs scores of the units, and was given none"):
        Guided()(Layout.on_grid(4), Draw(keys(2)))
    plain = type("Plain", (TestGuided,), {"make_scores": MaskerContract.make_scores})
    fails(plain, "test_key_decides", "the masker needs scores: override make_scores")


def test_scores_of_another_shape_are_named():
    with unchecked(), pytest.raises(MimError, match=r"The scorer gives \(2, 5\); the masker needs \(2, 4\)"):
        Guided()(Layout.on_grid(4), Draw(keys(2)), torch.rand(2, 5))


def test_a_guided_masker_that_mixes_rows_fails():
    class Mixes(Guided):
        def hide(self, layout, draw, scores):
            return super().hide(layout, draw, scores - scores.mean(dim=0, keepdim=True))

    contract = type("Mixed", (TestGuided,), {"make_masker": lambda self: Mixes()})
    fails(contract, "test_row_does_not_depend_on_the_batch", "alone has another mask")


# ---- tokenizers ------------------------------------------------------------------------------------------------------


class Windows(Tokenizer):
    """Windows of four values; nothing in it is trained, and a frozen scale is part of cutting."""

    Config = NoOptions

    def __init__(self, config, width):
        super().__init__()
        self.layout, self.shapes, self.unit_shape = Layout.on_grid(8), {"signal": (1, 32)}, (4, 1)
        self.basis = nn.Parameter(torch.linspace(-1, 1, 4 * width).reshape(4, width).sin(), requires_grad=False)
        self.scale = nn.Parameter(torch.tensor(2.0), requires_grad=False)

    def split(self, sample):
        signal = sample["signal"]
        if tuple(signal.shape[1:]) != (1, 32):
            raise ValueError(f"signal must be [B, 1, 32], got {list(signal.shape)}")
        return Patches((signal * self.scale.to(signal.dtype)).reshape(-1, 8, 4, 1), self.layout)

    def embed(self, values):
        return values.flatten(2) @ self.basis

    def join(self, values, layout):
        return values.reshape(-1, 1, 32) / self.scale


class Padded(Windows):
    """Signals of unequal length: units that hold nothing but zeros are padding."""

    def __init__(self, config, width):
        super().__init__(config, width)
        self.basis.requires_grad_()

    def split(self, sample):
        patches = super().split(sample)
        return replace(patches, layout=replace(self.layout, valid=(patches.values != 0).flatten(2).any(dim=2)))


def ragged(tokenizer, rows, seed=0):
    """Signals of 16 to 32 values, zeros behind."""
    sample = noise(tokenizer.shapes, rows, seed)
    ends = 16 + 4 * (torch.arange(rows) % 5)
    return {**sample, "signal": sample["signal"] * (torch.arange(32) < ends[:, None, None])}


class TestWindows(TokenizerContract):
    def make_tokenizer(self):
        return Windows(NoOptions(), self.width)


class TestPadded(TokenizerContract):
    def make_tokenizer(self):
        return Padded(NoOptions(), self.width)

    def make_sample(self, tokenizer, rows):
        return ragged(tokenizer, rows)


def test_a_tokenizer_that_cuts_the_gradient_off_fails():
    class Detached(PatchTokenizer):
        def embed(self, values):
            return super().embed(values).detach()

    class Contract(TokenizerContract):
        def make_tokenizer(self):
            return Detached(Detached.Config(size=(8, 8), patch=(4, 4)), self.width)

    fails(Contract, "test_embed", "embed cuts the gradient off")


# ---- targets ---------------------------------------------------------------------------------------------------------


class Codes(Target):
    """The nearest of 32 codes; answers are scores of each (BEiT's loss, with codes that nobody learned)."""

    Config = NoOptions
    size = 32

    def __init__(self, config, tokenizer):
        super().__init__()
        self.unit_shape = tokenizer.unit_shape
        generator = torch.Generator().manual_seed(3)
        self.register_buffer("codes", torch.randn(self.size, math.prod(self.unit_shape), generator=generator))

    def make(self, sample, patches, mask, lesson=None):
        values = mask.take(patches.values, mask.query_ids).flatten(2).float()
        return torch.cdist(values, self.codes).argmin(dim=-1)

    def loss(self, prediction, values):
        return F.cross_entropy(prediction.float().transpose(1, 2), values, reduction="none")

    def to_input_space(self, prediction, patches, mask):
        return self.codes[prediction.argmax(dim=-1)].reshape(*prediction.shape[:2], *self.unit_shape)


class Contrast(Target):
    """Each answer should be more like its own unit than like the sample's other ones (wav2vec 2.0's loss)."""

    Config = NoOptions

    def __init__(self, config, tokenizer):
        super().__init__()
        self.size = math.prod(tokenizer.unit_shape)

    def make(self, sample, patches, mask, lesson=None):
        return F.normalize(mask.take(patches.values, mask.query_ids).flatten(2).float(), dim=-1)

    def loss(self, prediction, values):
        alike = F.normalize(prediction.float(), dim=-1) @ values.transpose(1, 2) / 0.2
        return -alike.log_softmax(dim=-1).diagonal(dim1=1, dim2=2)


class Latent(Target):
    """The teacher's tokens (data2vec)."""

    Config = NoOptions
    size = 16

    def __init__(self, config, tokenizer):
        super().__init__()

    needs_teacher = True

    def make(self, sample, patches, mask, lesson=None):
        return mask.take(lesson.tokens.float(), mask.query_ids)

    def loss(self, prediction, values):
        return (prediction.float() - values).square().mean(dim=-1)


class Alike(Target):
    """What the teacher's copy of a sample head says (BYOL, without the norm)."""

    Config = NoOptions
    size = 8
    needs_teacher = True

    def __init__(self, config, tokenizer):
        super().__init__()

    def make(self, sample, patches, mask, lesson=None):
        return lesson.answers["pull"].float().repeat_interleave(mask.per_sample, dim=0)

    def loss(self, prediction, values):
        return (prediction.float() - values).square().mean(dim=-1)


class Apart(Alike):
    """Samples should also lie apart (VICReg's variance)."""

    couples_samples = True

    def loss(self, prediction, values):
        apart = (1 - prediction.float().var(dim=0).add(1e-4).sqrt()).relu().mean()
        return 25 * super().loss(prediction, values) + apart


def small():
    return PatchTokenizer(PatchTokenizer.Config(size=(16, 16), patch=(4, 4)), 16)


def encoder_for(tokenizer):
    return ViTEncoder(ViTEncoder.Config(width=16, depth=1, heads=2), tokenizer.layout)


class _Target(TargetContract):
    inverse = False
    cls = Target

    def make_tokenizer(self):
        return small()

    def make_target(self, tokenizer):
        return self.cls(NoOptions(), tokenizer)


class TestCodes(_Target):
    cls = Codes
    lowest = None

    def truth(self, values):
        return 20.0 * F.one_hot(values, 32).float()


class TestContrast(_Target):
    cls = Contrast
    lowest = None
    couples_queries = True


class TestLatent(_Target):
    cls = Latent

    def make_teacher(self, tokenizer):
        return EmaTeacher.of(tokenizer, encoder_for(tokenizer))


class TestLatentOfTheDefaultTeacher(TargetContract):
    inverse = False

    def make_target(self, tokenizer):
        return Latent(NoOptions(), tokenizer)


class TestAlike(TestLatentOfTheDefaultTeacher):
    asks = "sample"
    head = "pull"

    def make_target(self, tokenizer):
        return Alike(NoOptions(), tokenizer)


class TestApart(TestAlike):
    lowest = None

    def make_target(self, tokenizer):
        return Apart(NoOptions(), tokenizer)


class TestPaddedValues(_Target):
    def make_tokenizer(self):
        return Padded(NoOptions(), 16)

    def make_sample(self, tokenizer, rows):
        return ragged(tokenizer, rows)

    def make_target(self, tokenizer):
        return ValueTarget(ValueTarget.Config(normalize=False), tokenizer)


def test_what_a_sample_head_s_attributes_excuse_is_said():
    units = type("Units", (TestAlike,), {"asks": "units"})
    fails(units, "test_shapes", r"values of \(4, 1\) .* set asks = \"sample\"")
    alone = type("Uncoupled", (Apart,), {"couples_samples": False})
    wrong = type("Wrong", (TestApart,), {"make_target": lambda self, tokenizer: alone(NoOptions(), tokenizer)})
    fails(wrong, "test_values_follow_from_the_sample", "couples_samples = True")


def test_a_sample_head_answers_every_mask():
    class OfEachSample(Alike):
        def make(self, sample, patches, mask, lesson=None):
            return lesson.answers["pull"].float()

    wrong = type("Wrong", (TestAlike,), {"make_target": lambda self, tokenizer: OfEachSample(NoOptions(), tokenizer)})
    fails(wrong, "test_shapes", r"values of \(4, 1\) where \(8, 1\) are asked: one for each mask")


def test_what_a_target_s_attributes_excuse_is_said():
    alone = type("Alone", (TestContrast,), {"couples_queries": False})
    fails(alone, "test_values_are_those_of_the_queries", "with fewer queries .*set couples_queries = True")
    zero = type("Zero", (TestCodes,), {"lowest": 0.0, "truth": lambda self, v: 1000.0 * F.one_hot(v, 32).float()})
    fails(zero, "test_truth_has_the_lowest_loss", "if the loss is of classes, set lowest = None")


def test_a_target_whose_loss_is_the_same_everywhere_fails():
    class Blind(Codes):
        def loss(self, prediction, values):
            return super().loss(torch.zeros_like(prediction), values) + 0 * prediction.sum()

    contract = type("Contract", (TestCodes,), {"cls": Blind})
    fails(contract, "test_truth_has_the_lowest_loss", "a wrong answer costs no more than the truth")


# ---- methods ---------------------------------------------------------------------------------------------------------


def autoencoder(tokenizer, masker, target, cls=MaskedAutoencoder, average="batch", **more):
    encoder = encoder_for(tokenizer)
    decoder = TransformerDecoder(
        TransformerDecoder.Config(width=16, depth=1, heads=2), encoder, tokenizer.layout, target.size
    )
    if cls is Follows:
        more["teachers"] = {"main": EmaTeacher.of(tokenizer, encoder)}
    head = Head(decoder, target, average=average, teacher="main" if target.needs_teacher else None)
    return cls(tokenizer, masker, encoder, {"main": head}, **more)


def values_of(tokenizer):
    return ValueTarget(ValueTarget.Config(normalize=False), tokenizer)


class Follows(MaskedAutoencoder):
    """A teacher follows the student; its tokens are the targets."""


class Spread(Scorer):
    """Scores units by how much their values vary."""

    def __init__(self):
        super().__init__(None, None)

    def forward(self, sample, patches, lesson=None):
        return patches.values.flatten(2).var(dim=2)


class Merges(MaskedAutoencoder):
    """Features at a quarter of the units, as a hierarchical encoder gives them."""

    def encode(self, sample):
        features = super().encode(sample)
        merged = features.tokens.unflatten(1, (4, 4)).mean(dim=2)
        return Features(merged, features.pooled, features.prefix)


class TestTaughtAndGuided(MethodContract):
    def make_method(self):
        tokenizer = small()
        return autoencoder(tokenizer, Guided(), Latent(NoOptions(), tokenizer), cls=Follows, scorer=Spread())


class TestClassifiesCodes(MethodContract):
    def make_method(self):
        tokenizer = small()
        return autoencoder(tokenizer, RandomMasker(RandomMasker.Config()), Codes(NoOptions(), tokenizer))


class TestForetells(MethodContract):
    keyed = False

    def make_method(self):
        tokenizer = small()
        return autoencoder(tokenizer, Forecast(), values_of(tokenizer))


class TestUneven(MethodContract):
    """Samples with more padding have fewer answers that count; all share one denominator."""

    average = "batch"

    def make_method(self):
        tokenizer, masker = Padded(NoOptions(), 16), RandomMasker(RandomMasker.Config(ratio=0.625))
        return autoencoder(tokenizer, masker, values_of(tokenizer), average=self.average)

    def make_sample(self, method, rows, seed=0):
        return ragged(method.tokenizer, rows, seed)


class TestUnevenBySample(TestUneven):
    average = "sample"


class TestMerges(MethodContract):
    tokens = 4

    def make_method(self):
        tokenizer = small()
        return autoencoder(tokenizer, RandomMasker(RandomMasker.Config()), values_of(tokenizer), cls=Merges)


def test_what_a_method_s_attributes_excuse_is_looked_at():
    fails(type("Keyed", (TestForetells,), {"keyed": True}), "test_prepare_follows_from_the_keys", "set keyed = False")
    loose = type("Loose", (TestMerges,), {"keyed": False})
    fails(loose, "test_prepare_follows_from_the_keys", "yet keyed is False")
    fails(type("One", (TestMerges,), {"tokens": None}), "test_encode", "gives 4 tokens of the 16 units: it must hide")
    fails(type("Six", (TestMerges,), {"tokens": 6}), "test_encode", "say in tokens how many come out")


def test_uneven_samples_that_are_compared_are_still_found():
    class Compares(MaskedAutoencoder):
        def forward(self, prepared):
            outcome = super().forward(prepared)
            spread = outcome.latent.mean(dim=1).var(dim=0, correction=0).mean()
            return replace(outcome, loss=outcome.loss - 0.1 * spread)

    class Contract(TestUneven):
        def make_method(self):
            tokenizer, masker = Padded(NoOptions(), 16), RandomMasker(RandomMasker.Config(ratio=0.625))
            return autoencoder(tokenizer, masker, values_of(tokenizer), cls=Compares)

    fails(Contract, "test_samples_are_coupled_only_if_said", "couples_batch is False")
