"""Parts that are wrong on purpose: each must fail the check that is there for it."""

import unittest
from dataclasses import replace

import pytest
import torch
from mim_core.errors import MimError
from mim_core.host.loading import installed
from mim_core.methods.build import build_method
from mim_core.methods.masked_autoencoder import MaskedAutoencoder
from mim_core.methods.method import Outcome
from mim_core.parts.layout import Layout
from mim_core.parts.mask import Mask
from mim_core.parts.masker import RandomMasker, hide_first
from mim_core.parts.target import ValueTarget
from mim_core.parts.tokenizer import PatchTokenizer
from mim_core.parts.tokenizer_ids import BinTokenizer, SequenceTokenizer
from mim_core.recipes.resolve import load_recipe
from mim_core.testing import MaskerContract, MethodContract, TargetContract, TokenizerContract, uncovered


def fails(contract, check, text):
    with pytest.raises(AssertionError, match=text):
        getattr(contract(), check)()


# ---- maskers ----


class OneTooMany(RandomMasker):
    def hide(self, layout, draw, scores):
        return super().hide(layout, draw, scores).index_fill(1, torch.tensor([0]), True)


class Flipped(RandomMasker):
    def hide(self, layout, draw, scores):
        return ~super().hide(layout, draw, scores)


class IgnoresKey(RandomMasker):
    def hide(self, layout, draw, scores):
        return super().hide(layout, type(draw)(torch.zeros_like(draw.key)), scores)


class AsksTheGenerator(RandomMasker):
    def hide(self, layout, draw, scores):
        return hide_first(torch.randint(1 << 40, (len(draw.key), layout.count)), self.count(layout))


class DependsOnTheBatch(RandomMasker):
    def hide(self, layout, draw, scores):
        return super().hide(layout, type(draw)(draw.key + len(draw.key)), scores)


class RowsApart(RandomMasker):
    def hide(self, layout, draw, scores):
        hidden = super().hide(layout, draw, scores)
        return hidden.reshape(-1, self.per_sample, layout.count).transpose(0, 1).reshape(hidden.shape)


class NeverTheFirst(RandomMasker):
    def hide(self, layout, draw, scores):
        rank = torch.stack([torch.randperm(layout.count, generator=_at(int(k))) for k in draw.key])
        rank[:, 0] = layout.count
        return hide_first(rank, self.count(layout))


class Disordered(RandomMasker):
    def forward(self, layout, draw, scores=None):
        mask = super().forward(layout, draw, scores)
        return Mask(mask.hidden, mask.kept_ids.flip(1), mask.query_ids, mask.weight, mask.per_sample)


class SwapsIds(RandomMasker):
    def forward(self, layout, draw, scores=None):
        mask = super().forward(layout, draw, scores)
        return Mask(mask.hidden, mask.query_ids, mask.kept_ids, torch.ones(mask.kept_ids.shape), mask.per_sample)


class HidesMoreLater(RandomMasker):
    """The library itself would stop this one; here it goes round the library's own count."""

    def forward(self, layout, draw, scores=None):
        count = self.count(layout)
        more = count + 2 * (draw.progress > 0.2)
        return Mask.with_count(hide_first(super().forward(layout, draw).hidden.long().argsort(), more), more)


class ChangesKeys(RandomMasker):
    def forward(self, layout, draw, scores=None):
        mask = super().forward(layout, draw, scores)
        draw.key.add_(1)
        return mask


class CountsPadding(RandomMasker):
    def forward(self, layout, draw, scores=None):
        return Mask.with_count(self.hide(layout, draw, scores), self.count(layout), self.per_sample)


class ShowsWhatItAsks(RandomMasker):
    def forward(self, layout, draw, scores=None):
        mask = super().forward(layout, draw, scores)
        return replace(mask, kept_ids=mask.query_ids[:, : mask.kept_ids.shape[1]])


def _at(seed):
    return torch.Generator().manual_seed(seed & 0x7FFFFFFF)


@pytest.mark.parametrize(
    ("masker", "masks", "check", "text"),
    [
        (OneTooMany, 1, "test_count_is_exact_in_every_row", "rows hide"),
        (Flipped, 1, "test_count_is_exact_in_every_row", "rows hide"),
        (SwapsIds, 1, "test_kept_and_queries", "a kept unit is hidden: is the polarity flipped"),
        (HidesMoreLater, 1, "test_count_is_exact_in_every_row", r"at step 11, 30% of the run: rows hide \[13\]"),
        (ChangesKeys, 1, "test_inputs_are_left_alone", "changes draw.key in place"),
        (IgnoresKey, 1, "test_key_decides", "all keys give the same mask"),
        (IgnoresKey, 1, "test_every_unit_is_reached", "never hidden|always hidden"),
        (AsksTheGenerator, 1, "test_key_decides", "draw from draw.key only"),
        (AsksTheGenerator, 1, "test_row_does_not_depend_on_the_batch", "alone has another mask"),
        (DependsOnTheBatch, 1, "test_row_does_not_depend_on_the_batch", "alone has another mask"),
        (RowsApart, 3, "test_row_does_not_depend_on_the_batch", "alone has another mask"),
        (NeverTheFirst, 1, "test_every_unit_is_reached", "never hidden"),
        (Disordered, 1, "test_kept_and_queries", "kept_ids are not ascending"),
        (CountsPadding, 1, "test_absent_units_weigh_nothing", "valid hidden units"),
        (ShowsWhatItAsks, 1, "test_what_is_asked_is_not_seen", "are seen and asked"),
    ],
)
def test_wrong_maskers(masker, masks, check, text):
    class Contract(MaskerContract):
        layouts = (Layout.on_grid(3, 5),)

        def make_masker(self):
            return masker(masker.Config(ratio=0.7, masks=masks))

    fails(Contract, check, text)


def test_a_wrong_expectation_fails():
    class Contract(MaskerContract):
        part = "core:random"
        expected_hidden = {(14, 14): 146}

    fails(Contract, "test_count_is_exact_in_every_row", "hides 147, expected 146")


def test_a_masker_that_takes_all_fails_to_refuse():
    class Contract(MaskerContract):
        part = "core:random"
        unsuitable = (Layout(count=5),)

    fails(Contract, "test_unsuitable_layouts_are_refused", "took what it must refuse")


# ---- tokenizers ----


class WrongJoin(PatchTokenizer):
    def join(self, values, layout):
        return super().join(values.flip(1), layout)


class LearnedSplit(PatchTokenizer):
    def split(self, sample):
        patches = super().split(sample)
        return type(patches)(patches.values + self.proj.bias.mean(), patches.layout)


class MixesUnits(PatchTokenizer):
    def embed(self, values):
        tokens = super().embed(values)
        return tokens - tokens.mean(dim=1, keepdim=True)


class MixesSamples(PatchTokenizer):
    def split(self, sample):
        patches = super().split(sample)
        return type(patches)(patches.values - patches.values.mean(), patches.layout)


class ChangesTheSample(PatchTokenizer):
    def split(self, sample):
        for name in self.shapes:
            sample[name] -= sample[name].mean(dim=(1, 2, 3), keepdim=True)
        return super().split(sample)


class TooNarrow(PatchTokenizer):
    def embed(self, values):
        return super().embed(values)[..., :-1]


class TakesAnySize(PatchTokenizer):
    def split(self, sample):
        height, width = self.config.size
        return super().split({name: x[..., :height, :width] if x.ndim == 4 else x for name, x in sample.items()})


class IdsBeyondTheLast(BinTokenizer):
    def split(self, sample):
        patches = super().split(sample)
        return replace(patches, values=patches.values + self.names // 2)


class OtherUnits(PatchTokenizer):
    def split(self, sample):
        patches = super().split(sample)
        return type(patches)(patches.values.flatten(2), patches.layout)


@pytest.mark.parametrize(
    ("tokenizer", "check", "text"),
    [
        (WrongJoin, "test_join_undoes_split", "is not input"),
        (LearnedSplit, "test_nothing_in_split_is_trained", "split has a gradient"),
        (MixesUnits, "test_embedding_kept_units_alone", "depends on which others are embedded"),
        (MixesSamples, "test_split_row_does_not_depend_on_the_batch", "split otherwise"),
        (ChangesTheSample, "test_nothing_is_changed_in_place", "split changes input of the sample in place"),
        (TooNarrow, "test_embed", "15 wide, not 16"),
        (TakesAnySize, "test_wrong_sizes_are_named", "took what it must refuse"),
        (OtherUnits, "test_split_keeps_what_is_declared", "declared"),
        (IdsBeyondTheLast, "test_units_that_are_ids", "there are 64"),
    ],
)
def test_wrong_tokenizers(tokenizer, check, text):
    class Contract(TokenizerContract):
        def make_tokenizer(self):
            return tokenizer(tokenizer.Config(size=(8, 12), patch=(4, 4)), self.width)

    fails(Contract, check, text)


class LeavesHiddenIds(SequenceTokenizer):
    def arrange(self, values, mask):
        return values


class OneSentinelForAll(SequenceTokenizer):
    def arrange(self, values, mask):
        return super().arrange(values, mask).clamp(max=self.config.vocabulary)


class HidesOthers(SequenceTokenizer):
    def arrange(self, values, mask):
        return super().arrange(values, replace(mask, hidden=~mask.hidden))


@pytest.mark.parametrize("tokenizer", [LeavesHiddenIds, OneSentinelForAll, HidesOthers])
def test_wrong_sequences(tokenizer):
    class Contract(TokenizerContract):
        def make_tokenizer(self):
            return tokenizer(tokenizer.Config(length=9, vocabulary=20), self.width)

    fails(Contract, "test_sequences_are_told_once", "is written; it should be")


# ---- targets ----


class OtherGradient(ValueTarget):
    def loss(self, prediction, values):
        loss = super().loss(prediction, values)
        return loss.detach() + 2 * (loss - loss.detach())


class NoGradient(ValueTarget):
    def loss(self, prediction, values):
        return super().loss(prediction, values).detach() + 0 * prediction.sum()


class Reduced(ValueTarget):
    def loss(self, prediction, values):
        return super().loss(prediction, values).mean(dim=1, keepdim=True)


class Shifted(ValueTarget):
    def loss(self, prediction, values):
        return super().loss(prediction + 1, values)


class KeepsHalf(ValueTarget):
    def loss(self, prediction, values):
        return (prediction - values.to(prediction.dtype)).square().mean(dim=-1)


class NoWayBack(ValueTarget):
    def to_input_space(self, prediction, patches, mask):
        return super().to_input_space(prediction, patches, mask) * 1.01


class Learns(ValueTarget):
    def __init__(self, config, tokenizer):
        super().__init__(config, tokenizer)
        self.scale = torch.nn.Parameter(torch.ones(()))

    def make(self, sample, patches, mask, lesson=None):
        return super().make(sample, patches, mask) * self.scale


class SizeOff(ValueTarget):
    def __init__(self, config, tokenizer):
        super().__init__(config, tokenizer)
        self.size += 1


class AsksTheVisible(ValueTarget):
    def make(self, sample, patches, mask, lesson=None):
        ones = torch.ones(mask.kept_ids.shape)
        return super().make(sample, patches, replace(mask, query_ids=mask.kept_ids, weight=ones))


class IgnoresTheQueries(ValueTarget):
    """Values of all hidden units, in their order, whatever is asked."""

    def make(self, sample, patches, mask, lesson=None):
        rows = mask.hidden.nonzero()[:, 1].reshape(len(mask.hidden), -1)[:, : mask.query_ids.shape[1]]
        return super().make(sample, patches, replace(mask, query_ids=rows))


class ChangesThePatches(ValueTarget):
    def make(self, sample, patches, mask, lesson=None):
        values = super().make(sample, patches, mask).clone()
        patches.values.mul_(0.5)
        return values


class ShowsTheTruth(ValueTarget):
    def to_input_space(self, prediction, patches, mask):
        return mask.take(patches.values, mask.query_ids)


@pytest.mark.parametrize(
    ("target", "check", "text"),
    [
        (OtherGradient, "test_gradient_is_that_of_the_loss", "does not rise as the gradient says"),
        (NoGradient, "test_gradient_is_that_of_the_loss", "no gradient"),
        (Reduced, "test_shapes", "must not be reduced"),
        (Shifted, "test_truth_has_the_lowest_loss", "the loss at the truth is not 0"),
        (KeepsHalf, "test_half_precision_predictions", "bfloat16"),
        (NoWayBack, "test_back_to_input_space", "is not the true unit values"),
        (SizeOff, "test_shapes", "size 49 does not fit the values: they are "),
        (AsksTheVisible, "test_shapes", "those at query_ids are asked"),
        (IgnoresTheQueries, "test_values_are_those_of_the_queries", "turned round queries an answer has another loss"),
        (ChangesThePatches, "test_values_follow_from_the_sample", "changes the patches in place"),
        (ShowsTheTruth, "test_back_to_input_space", "the same for any prediction"),
        (Learns, "test_make_has_no_gradient", "make has a gradient"),
    ],
)
def test_wrong_targets(target, check, text):
    class Contract(TargetContract):
        def make_tokenizer(self):
            return PatchTokenizer(PatchTokenizer.Config(size=(8, 12), patch=(4, 4)), 8)

        def make_target(self, tokenizer):
            return target(target.Config(normalize=False), tokenizer)

    fails(Contract, check, text)


# ---- methods ----


class Counts(MaskedAutoencoder):
    def forward(self, prepared):
        self.tokenizer.proj.bias.data.add_(0.01)
        return super().forward(prepared)


class Breaks(MaskedAutoencoder):
    def forward(self, prepared):
        outcome = super().forward(prepared)
        if outcome.loss.item() > 1e6:  # reads a value in the step
            raise FloatingPointError
        return outcome


class Idle(MaskedAutoencoder):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.spare = torch.nn.Linear(2, 2)


class Forgets(MaskedAutoencoder):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.factor = torch.rand(()) + 1

    def forward(self, prepared):
        outcome = super().forward(prepared)
        return Outcome(outcome.loss * self.factor, outcome.parts, outcome.predictions, outcome.latent)


class Climbs(MaskedAutoencoder):
    def forward(self, prepared):
        outcome = super().forward(prepared)
        return Outcome(-outcome.loss, outcome.parts, outcome.predictions, outcome.latent)

    def after_step(self, progress):
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.mul_(0.0)


class OtherShapes(MaskedAutoencoder):
    def forward(self, prepared):
        outcome = super().forward(prepared)
        return Outcome(outcome.loss, outcome.parts, outcome.predictions, outcome.latent[prepared.mask.hidden[:, 0]])


class BatchStatistics(MaskedAutoencoder):
    def encode(self, sample):
        features = super().encode(sample)
        return type(features)(features.tokens - features.tokens.amax(), features.pooled, features.prefix)


class EncodesHalf(MaskedAutoencoder):
    def encode(self, sample):
        features = super().encode(sample)
        return replace(features, tokens=features.tokens[:, ::2])


class HidesWhenEncoding(MaskedAutoencoder):
    """As many tokens as units; which are blank follows from the keys."""

    def encode(self, sample):
        features = super().encode(sample)
        blank = (sample["key"][:, None] + torch.arange(features.tokens.shape[1])) % 2
        return replace(features, tokens=features.tokens * blank[..., None])


class SaysNoPrefix(MaskedAutoencoder):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.encoder.prefix = 0


class ComparesSamples(MaskedAutoencoder):
    def forward(self, prepared):
        outcome = super().forward(prepared)
        spread = outcome.latent.mean(dim=1).var(dim=0, correction=0).mean()
        return replace(outcome, loss=outcome.loss - 0.1 * spread)


class GivesADict(MaskedAutoencoder):
    def forward(self, prepared):
        return {"loss": super().forward(prepared).loss}


class Careless(MaskedAutoencoder):
    def prepare(self, sample, mask=None, *, step=0, progress=0.0):
        return super().prepare({**sample, "key": torch.randint(1 << 60, sample["key"].shape)}, mask)


@pytest.mark.parametrize(
    ("method", "check", "text"),
    [
        (Counts, "test_forward_is_pure", "another outcome|forward changes"),
        (Idle, "test_outcome", "spare"),
        (Forgets, "test_state_dict_round_trip", "does not hold everything"),
        (Climbs, "test_loss_falls", "the loss goes from"),
        (OtherShapes, "test_shapes_are_static", "so has the outcome"),
        (BatchStatistics, "test_encode", "gives a sample alone other tokens"),
        (EncodesHalf, "test_encode", "gives 8 tokens of the 16 units: it must hide nothing"),
        (HidesWhenEncoding, "test_encode", "gives other tokens with other keys"),
        (SaysNoPrefix, "test_encode", "gives 1 prefix tokens, and the encoder says 0"),
        (ComparesSamples, "test_samples_are_coupled_only_if_said", "couples_batch is False"),
        (GivesADict, "test_outcome", "forward gives a dict, no mim_core.Outcome"),
        (Careless, "test_prepare_follows_from_the_keys", "more than the sample and its keys"),
    ],
)
def test_wrong_methods(method, check, text):
    fails(_contract(method), check, text)


class Recompiles(MaskedAutoencoder):
    def forward(self, prepared):
        outcome = super().forward(prepared)
        factor = 1.0 + 1e-9 * len({prepared.mask.hidden.shape, *prepared.targets, self.masker.per_sample})
        self.masker.per_sample += 1  # state in Python: a guard that fails at the next call
        return Outcome(outcome.loss * factor, outcome.parts, outcome.predictions, outcome.latent)


@pytest.mark.parametrize(
    ("method", "text"),
    [
        (Breaks, r"does not compile as one graph: .*(data-dependent|\.item\(\))"),
        (Recompiles, "compiles anew for a second batch of the same size"),
    ],
)
def test_methods_that_do_not_compile(method, text):
    with pytest.raises(AssertionError, match=text):
        _contract(method)().test_forward_compiles()
    torch._dynamo.reset()


def _contract(method):
    made = []

    class Contract(MethodContract):
        def make_method(self):
            base = build_method(load_recipe("image:mae-vit-tiny", installed(), twin=True))
            made.append(base)
            torch.manual_seed(len(made))
            return method(base.tokenizer, base.masker, base.encoder, dict(base.heads.items()))

    return Contract


# ---- coverage ----


def test_a_part_without_contract_is_named():
    class TestOther(MaskerContract):
        part = "core:random"

    left = ["core:block", "core:grid", "core:guided", "core:multi-block", "core:region"]
    assert uncovered("maskers", [TestOther], plugin="core") == left


def test_a_recipe_covers_its_method():
    class TestRecipe(MethodContract):
        recipe = "image:mae-vit-tiny"

    others = ["core:classifier", "core:multi-label-classifier", "core:vq"]
    assert uncovered("methods", [TestRecipe], plugin="core") == others
    assert uncovered("methods", [], plugin="core") == sorted([*others, "core:masked-autoencoder"])
    for kind, used in (("encoders", "core:vit"), ("decoders", "core:transformer")):
        assert used in uncovered(kind, [], plugin="core")
        assert used not in uncovered(kind, [TestRecipe], plugin="core")
    left = uncovered("recipes", [TestRecipe], plugin="image")
    assert left
    assert "image:mae-vit-tiny" not in left


def test_a_contract_of_another_kind_covers_nothing():
    class TestOther(TargetContract):
        part = "core:random"

    assert "core:random" in uncovered("maskers", [TestOther], plugin="core")


@pytest.mark.parametrize(
    ("kind", "plugin", "text"),
    [
        ("masker", "core", "Unknown kind 'masker'. Did you mean 'maskers'"),
        ("maskers", "imgae", "Unknown plugin 'imgae'. Did you mean 'image'"),
    ],
)
def test_nothing_is_covered_by_a_typo(kind, plugin, text):
    with pytest.raises(MimError, match=text):
        uncovered(kind, [], plugin=plugin)


def test_checks_that_take_seconds_may_be_left_out(monkeypatch):
    class TestTiny(MethodContract):
        recipe = "image:mae-vit-tiny"

    monkeypatch.setenv("MIM_QUICK", "1")
    for check in ("test_forward_compiles", "test_loss_falls", "test_commands_take_its_runs"):
        with pytest.raises(unittest.SkipTest, match="MIM_QUICK"):
            getattr(TestTiny(), check)()
    TestTiny().test_prepare_has_no_gradient()
