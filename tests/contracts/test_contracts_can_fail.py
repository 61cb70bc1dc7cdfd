"""Parts that are wrong on purpose: each must fail the check that is there for it."""

import pytest
import torch
from mim_core.build import build_method
from mim_core.layout import Layout
from mim_core.mask import Mask
from mim_core.masker import RandomMasker, hide_first
from mim_core.method import MaskedAutoencoder, Outcome
from mim_core.plugins import installed
from mim_core.recipe import load_recipe
from mim_core.target import ValueTarget
from mim_core.testing import MaskerContract, MethodContract, TargetContract, TokenizerContract, uncovered
from mim_core.tokenizer import PatchTokenizer


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


class CountsPadding(RandomMasker):
    def forward(self, layout, draw, scores=None):
        return Mask.with_count(self.hide(layout, draw, scores), self.count(layout), self.per_sample)


def _at(seed):
    return torch.Generator().manual_seed(seed & 0x7FFFFFFF)


@pytest.mark.parametrize(
    ("masker", "masks", "check", "text"),
    [
        (OneTooMany, 1, "test_count_is_exact_in_every_row", "rows hide"),
        (Flipped, 1, "test_count_is_exact_in_every_row", "rows hide"),
        (Flipped, 1, "test_kept_and_queries", "query_ids are not ascending"),
        (IgnoresKey, 1, "test_key_decides", "all keys give the same mask"),
        (IgnoresKey, 1, "test_every_unit_is_reached", "never hidden|always hidden"),
        (AsksTheGenerator, 1, "test_key_decides", "draw from draw.key only"),
        (AsksTheGenerator, 1, "test_row_does_not_depend_on_the_batch", "alone has another mask"),
        (DependsOnTheBatch, 1, "test_row_does_not_depend_on_the_batch", "alone has another mask"),
        (RowsApart, 3, "test_row_does_not_depend_on_the_batch", "alone has another mask"),
        (NeverTheFirst, 1, "test_every_unit_is_reached", "never hidden"),
        (Disordered, 1, "test_kept_and_queries", "kept_ids are not ascending"),
        (CountsPadding, 1, "test_absent_units_weigh_nothing", "valid hidden units"),
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


class TooNarrow(PatchTokenizer):
    def embed(self, values):
        return super().embed(values)[..., :-1]


class TakesAnySize(PatchTokenizer):
    def split(self, sample):
        height, width = self.config.size
        return super().split({name: x[..., :height, :width] if x.ndim == 4 else x for name, x in sample.items()})


class OtherUnits(PatchTokenizer):
    def split(self, sample):
        patches = super().split(sample)
        return type(patches)(patches.values.flatten(2), patches.layout)


@pytest.mark.parametrize(
    ("tokenizer", "check", "text"),
    [
        (WrongJoin, "test_join_undoes_split", "is not input"),
        (LearnedSplit, "test_nothing_in_split_is_trained", "split has a gradient"),
        (MixesUnits, "test_embedding_kept_units_alone", "not close"),
        (MixesSamples, "test_split_row_does_not_depend_on_the_batch", "split otherwise"),
        (TooNarrow, "test_embed", "15 wide, not 16"),
        (TakesAnySize, "test_wrong_sizes_are_named", "took what it must refuse"),
        (OtherUnits, "test_split_keeps_what_is_declared", "declared"),
    ],
)
def test_wrong_tokenizers(tokenizer, check, text):
    class Contract(TokenizerContract):
        def make_tokenizer(self):
            return tokenizer(tokenizer.Config(size=(8, 12), patch=(4, 4)), self.width)

    fails(Contract, check, text)


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

    def make(self, sample, patches, mask, teacher=None):
        return super().make(sample, patches, mask) * self.scale


@pytest.mark.parametrize(
    ("target", "check", "text"),
    [
        (OtherGradient, "test_gradient_is_that_of_the_loss", "not close"),
        (NoGradient, "test_gradient_is_that_of_the_loss", "no gradient"),
        (Reduced, "test_shapes", "must not be reduced"),
        (Shifted, "test_truth_has_the_lowest_loss", "not close"),
        (KeepsHalf, "test_half_precision_predictions", "bfloat16"),
        (NoWayBack, "test_back_to_input_space", "not close"),
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
        (BatchStatistics, "test_encode", "not close"),
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
    ("method", "error"),
    [(Breaks, torch._dynamo.exc.TorchDynamoException), (Recompiles, RuntimeError)],
)
def test_methods_that_do_not_compile(method, error):
    with pytest.raises(error, match=r"data-dependent|\.item\(\)|recompile"):
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

    assert uncovered("maskers", [TestOther], plugin="core") == ["core:block", "core:grid"]
