"""Parts that are wrong on purpose, for the checks that test_contracts_can_fail.py does not have; and that every check
of the maskers', tokenizers', targets' and methods' contracts has one. Data sources and plugins have files of their
own."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from mim_core.host.loading import installed
from mim_core.methods.build import build_method
from mim_core.methods.masked_autoencoder import MaskedAutoencoder
from mim_core.parts.layout import Layout
from mim_core.parts.masker import RandomMasker
from mim_core.parts.target import ValueTarget
from mim_core.parts.tokenizer import PatchTokenizer
from mim_core.recipes.resolve import load_recipe
from mim_core.testing import MaskerContract, MethodContract, TargetContract, TokenizerContract


def on_gpu(*values):
    needs = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
    return pytest.param(*values, marks=(pytest.mark.gpu, needs))


def fails(contract, check, text):
    with pytest.raises(AssertionError, match=text):
        getattr(contract(), check)()


# ---- maskers ----


class StaysOnTheCpu(RandomMasker):
    def forward(self, layout, draw, scores=None):
        mask = super().forward(layout, draw, scores)
        return replace(mask, weight=torch.ones(mask.query_ids.shape))


class Learned(RandomMasker):
    def __init__(self, config):
        super().__init__(config)
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, layout, draw, scores=None):
        mask = super().forward(layout, draw, scores)
        return replace(mask, weight=mask.weight * self.scale)


class HoldsAFunction(RandomMasker):
    def __init__(self, config):
        super().__init__(config)
        self.rule = lambda count: count


class Forgets(RandomMasker):
    def __init__(self, config):
        super().__init__(config)
        self.shift = int(torch.randint(1 << 40, ()))

    def hide(self, layout, draw, scores):
        return super().hide(layout, replace(draw, key=draw.key + self.shift), scores)


class StepsAside(RandomMasker):
    """Another mask when the batch is alone at its step."""

    def hide(self, layout, draw, scores):
        return super().hide(layout, replace(draw, key=draw.key + draw.step * len(draw.key)), scores)


class OtherOnGpu(RandomMasker):
    def hide(self, layout, draw, scores):
        hidden = super().hide(layout, draw, scores)
        return hidden.roll(1, dims=1) if hidden.is_cuda else hidden


MASKERS = [
    (StaysOnTheCpu, "test_meta_device", "left the device"),
    (Learned, "test_no_gradient", "has a gradient"),
    (HoldsAFunction, "test_pickles", "does not pickle"),
    (Forgets, "test_state_dict_round_trip", "masks differ"),
    (StepsAside, "test_row_does_not_depend_on_the_batch", "alone has another mask"),
    on_gpu(OtherOnGpu, "test_gpu_equals_cpu", "masks on a GPU differ"),
]


@pytest.mark.parametrize(("masker", "check", "text"), MASKERS)
def test_wrong_maskers(masker, check, text):
    class Contract(MaskerContract):
        layouts = (Layout.on_grid(3, 5),)

        def make_masker(self):
            return masker(masker.Config(ratio=0.7))

    fails(Contract, check, text)


def test_a_masker_shared_by_a_batch_must_follow_the_step():
    class Contract(MaskerContract):
        part = "core:random"
        layouts = (Layout.on_grid(3, 5),)
        keyed = False

    fails(Contract, "test_key_decides", "all steps give the same mask")


# ---- tokenizers ----


class SubtractsTheBatch(PatchTokenizer):
    def embed(self, values):
        tokens = super().embed(values)
        return tokens - tokens.mean(dim=0, keepdim=True)


class MakesFloats(PatchTokenizer):
    def split(self, sample):
        patches = super().split(sample)
        return replace(patches, values=patches.values.float())


class KeepsAScale(PatchTokenizer):
    def __init__(self, config, width):
        super().__init__(config, width)
        self.scale = torch.rand(())

    def embed(self, values):
        return super().embed(values) * self.scale


class OtherTokensOnGpu(PatchTokenizer):
    def embed(self, values):
        return super().embed(values) * (1.01 if values.is_cuda else 1)


TOKENIZERS = [
    (SubtractsTheBatch, "test_embed_row_does_not_depend_on_the_batch", "alone has other tokens"),
    (MakesFloats, "test_dtype_and_device_are_kept", "of bfloat16"),
    (KeepsAScale, "test_state_dict_round_trip", "does not hold everything"),
    on_gpu(OtherTokensOnGpu, "test_gpu_equals_cpu", "other tokens on a GPU"),
]


@pytest.mark.parametrize(("tokenizer", "check", "text"), TOKENIZERS)
def test_wrong_tokenizers(tokenizer, check, text):
    class Contract(TokenizerContract):
        def make_tokenizer(self):
            return tokenizer(tokenizer.Config(size=(8, 12), patch=(4, 4)), self.width)

    fails(Contract, check, text)


# ---- targets ----


class AddsNoise(ValueTarget):
    def make(self, sample, patches, mask, lesson=None):
        values = super().make(sample, patches, mask)
        return values + torch.randn(values.shape)


class SubtractsTheOthers(ValueTarget):
    def make(self, sample, patches, mask, lesson=None):
        values = super().make(sample, patches, mask)
        return values - values.mean()


class ScaledByChance(ValueTarget):
    def __init__(self, config, tokenizer):
        super().__init__(config, tokenizer)
        self.scale = torch.rand(()) + 1

    def make(self, sample, patches, mask, lesson=None):
        return super().make(sample, patches, mask) * self.scale


class OtherLossOnGpu(ValueTarget):
    def loss(self, prediction, values):
        return super().loss(prediction, values) * (1.1 if prediction.is_cuda else 1)


TARGETS = [
    (AddsNoise, "test_values_follow_from_the_sample", "other values each time"),
    (SubtractsTheOthers, "test_values_follow_from_the_sample", "alone has another loss"),
    (ScaledByChance, "test_state_dict_round_trip", "does not hold everything"),
    on_gpu(OtherLossOnGpu, "test_gpu_equals_cpu", "another on a GPU"),
]


@pytest.mark.parametrize(("target", "check", "text"), TARGETS)
def test_wrong_targets(target, check, text):
    class Contract(TargetContract):
        def make_tokenizer(self):
            return PatchTokenizer(PatchTokenizer.Config(size=(8, 12), patch=(4, 4)), 8)

        def make_target(self, tokenizer):
            return target(target.Config(normalize=False), tokenizer)

    fails(Contract, check, text)


# ---- methods ----


class TiedToWeights(MaskedAutoencoder):
    def prepare(self, sample, mask=None, *, step=0, progress=0.0):
        prepared = super().prepare(sample, mask, step=step, progress=progress)
        return replace(prepared, inputs=prepared.inputs * self.tokenizer.proj.bias.mean())


class Box:
    def __init__(self, inside):
        self.inside = inside


class NoTree(MaskedAutoencoder):
    def prepare(self, sample, mask=None, *, step=0, progress=0.0):
        return Box(super().prepare(sample, mask, step=step, progress=progress))

    def forward(self, prepared):
        return super().forward(prepared.inside)


class CountsInPython(MaskedAutoencoder):
    done = 0

    def forward(self, prepared):
        outcome = super().forward(prepared)
        return replace(outcome, loss=outcome.loss * (1 + self.done))

    def after_step(self, progress):
        self.done += 1


class MasksByBatch(MaskedAutoencoder):
    def prepare(self, sample, mask=None, *, step=0, progress=0.0):
        key = sample["key"] + len(sample["key"])
        return super().prepare({**sample, "key": key}, mask, step=step, progress=progress)


class OtherMethodOnGpu(MaskedAutoencoder):
    def forward(self, prepared):
        outcome = super().forward(prepared)
        return replace(outcome, loss=outcome.loss * (1.1 if outcome.loss.is_cuda else 1))


METHODS = [
    (TiedToWeights, "test_prepare_has_no_gradient", "has a gradient"),
    (NoTree, "test_trees", "is no pytree"),
    (CountsInPython, "test_resumes_to_the_bit", "state outside state_dict"),
    (MasksByBatch, "test_row_does_not_depend_on_the_batch", "masked otherwise"),
    on_gpu(OtherMethodOnGpu, "test_gpu_equals_cpu", "another on a GPU"),
]


@pytest.mark.parametrize(("method", "check", "text"), METHODS)
def test_wrong_methods(method, check, text):
    class Contract(MethodContract):
        def make_method(self):
            base = build_method(load_recipe("image:mae-vit-tiny", installed(), twin=True))
            return method(base.tokenizer, base.masker, base.encoder, dict(base.heads.items()))

    fails(Contract, check, text)


def test_features_that_are_no_numbers(monkeypatch):
    """What `evaluate` would judge is looked at."""
    real = MaskedAutoencoder.encode

    def encode(self, sample):
        features = real(self, sample)
        return replace(features, pooled=features.pooled * float("nan"))

    class Contract(MethodContract):
        recipe = "image:mae-vit-tiny"

    monkeypatch.setattr(MaskedAutoencoder, "encode", encode)
    fails(Contract, "test_commands_take_its_runs", "not finite")


# ---- every check has a part that fails it ----


def _others():
    """test_contracts_can_fail.py, whose tables are read."""
    path = Path(__file__).with_name("test_contracts_can_fail.py")
    spec = importlib.util.spec_from_file_location("test_contracts_can_fail_tables", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tried(test):
    """The checks in a test's table: the last but one of each row."""
    rows = [getattr(row, "values", row) for row in test.pytestmark[0].args[1]]
    return {row[-2] for row in rows}


ALONE = {
    MaskerContract: {"test_unsuitable_layouts_are_refused"},  # test_a_masker_that_takes_all_fails_to_refuse
    TokenizerContract: {"test_sequences_are_told_once"},  # test_wrong_sequences
    # test_methods_that_do_not_compile, test_features_that_are_no_numbers
    MethodContract: {"test_forward_compiles", "test_commands_take_its_runs"},
}


@pytest.mark.parametrize(
    ("contract", "name"),
    [
        (MaskerContract, "test_wrong_maskers"),
        (TokenizerContract, "test_wrong_tokenizers"),
        (TargetContract, "test_wrong_targets"),
        (MethodContract, "test_wrong_methods"),
    ],
)
def test_every_check_can_fail(contract, name):
    checks = {check for check in vars(contract) if check.startswith("test_")}
    found = tried(globals()[name]) | tried(getattr(_others(), name)) | ALONE.get(contract, set())
    assert checks - found == set(), "checks without a part that fails them"
    assert found - checks == set(), "parts for checks that are no more"
