"""Any masker with any tokenizer of the right layout, any target with any tokenizer that can serve it: every pair of
registered parts either works on noise, or is refused when the method is built, by an error that says why.

Options are the parts' own defaults and, so that sizes are small, those of the recipes' twins.
"""

import functools
import math
from dataclasses import dataclass

import pytest
import torch
from mim_core.errors import MimError
from mim_core.host.loading import installed
from mim_core.methods.build import build_method
from mim_core.methods.masked_autoencoder import MaskedAutoencoder
from mim_core.parts.layout import Layout
from mim_core.parts.masker import Masker, RandomMasker
from mim_core.parts.scorer import Scorer
from mim_core.parts.target import Target, ValueTarget
from mim_core.parts.tokenizer import PatchTokenizer
from mim_core.recipes.config import Part, RunConfig
from mim_core.recipes.options import plain
from mim_core.recipes.resolve import load_recipe, resolve, resolve_part
from mim_core.testing import noise, seeded, tensors

pytestmark = pytest.mark.slow


def small_network(tokenizer):
    """A narrow encoder and decoder, with positions that the layout has."""
    found = resolve_part("tokenizer", tokenizer, installed())
    position = "sincos" if found.cls(found.options, 24).layout.grid else "coordinates"
    return {
        "encoder": Part.of("core:vit", width=24, depth=1, heads=2, position=position),
        "decoder": Part.of("core:transformer", width=24, depth=1, heads=2, position=position),
    }


ROWS = 3


@functools.cache
def twins():
    """The parts of every recipe's twin, by role."""
    return [load_recipe(e.full_name, installed(), twin=True).parts for e in installed().of_kind("recipes")]


@functools.cache
def in_twins(kind):
    """Parts of a kind as the recipes' twins use them, each with its options, by name."""
    found = {}
    for parts in twins():
        for role, part in parts.items():
            if role.rpartition(".")[2] == kind.removesuffix("s"):
                found.setdefault(part.name, []).append({k: v for k, v in plain(part.options).items() if v != {}})
    return found


def choices(kind):
    """Every registered part of a kind: as the first twin has it, or else with its defaults."""
    return [Part(entry.full_name, in_twins(kind).get(entry.full_name, [{}])[0]) for entry in installed().of_kind(kind)]


TOKENIZERS = choices("tokenizers")
PAIRS = [
    *((tokenizer, masker, None) for tokenizer in TOKENIZERS for masker in choices("maskers")),
    # with its defaults too: those of the twin may be for another layout
    *((t, Part(e.full_name), None) for t in TOKENIZERS for e in installed().of_kind("maskers")),
    *((tokenizer, Part.of("core:random"), target) for tokenizer in TOKENIZERS for target in choices("targets")),
]


def title(pair):
    tokenizer, masker, target = pair
    return f"{tokenizer.name}-{(target or masker).name}" + ("" if target or not masker.options else "-twin")


@dataclass(frozen=True)
class Plain(ValueTarget.Config):
    """Never normalised."""

    normalize: bool = False


@functools.cache
def own_target(name):
    """The target that goes with the tokenizer of that name in a twin, or else its plain values: to try maskers
    with."""
    for entry in installed().of_kind("recipes"):
        parts = load_recipe(entry.full_name, installed(), twin=True).parts
        for role, part in parts.items():
            scope, _, last = role.rpartition(".")
            target = parts.get(f"{scope}.target" if scope else "target")
            if last == "tokenizer" and part.name == name and target is not None:
                return Part(target.name, {k: v for k, v in plain(target.options).items() if v != {}})
    return Part.of("core:values", normalize=False)


def build(tokenizer, masker, target):
    """The method of these parts; a MimError where they do not fit. Any other error is a fault of the part."""
    parts = {
        **small_network(tokenizer),
        "tokenizer": tokenizer,
        "masker": masker,
        "target": target or own_target(tokenizer.name),
    }
    return build_method(resolve(RunConfig(parts), installed()))


def attempt(pair):
    """The method, or why it is refused; the same one for every test."""
    return attempted(PAIRS.index(pair))


@functools.cache
def attempted(number):
    try:
        return build(*PAIRS[number]), ""
    except MimError as error:
        return None, str(error)


def check_works(method):
    """One step on noise: shapes fit, what is hidden is what the masker says, and ids are answered by ids."""
    tokenizer, masker = method.tokenizer, method.masker
    sample = noise(tokenizer.shapes, ROWS, ids=tokenizer.ids)
    with seeded():
        prepared = method.prepare(sample)
        outcome = method(prepared)
    mask, (head,) = prepared.mask, method.heads.values()
    assert mask.hidden.shape == (ROWS * masker.per_sample, tokenizer.layout.count)
    hidden, count = mask.hidden.sum(dim=1), masker.count(tokenizer.layout)
    assert bool((hidden == count).all() if masker.exact else (hidden >= count).all()), hidden.tolist()
    assert outcome.prediction.shape == (*mask.query_ids.shape, head.target.size)
    assert outcome.loss.isfinite()
    outcome.loss.backward()
    values = tensors(prepared.targets["main"])
    assert values, "the target makes nothing"
    if tokenizer.ids:
        assert not any(value.is_floating_point() for value in values), "ids are names: a number between two is none"


@pytest.mark.parametrize("pair", PAIRS, ids=title)
def test_a_pair_works_or_says_why_not(pair):
    method, refusal = attempt(pair)
    if method is not None:
        check_works(method)
        return
    part = (pair[2] or pair[1]).name
    assert len(refusal) > len(part) + 20, f"the refusal says too little: {refusal}"
    assert part in refusal or "masker" in refusal, f"the refusal does not say what is refused: {refusal}"


SCORERS = {
    "a loss": lambda patches: torch.rand(ROWS, patches.layout.count),
    "attention": lambda patches: torch.rand(ROWS, patches.layout.count).softmax(dim=1),
    "no opinion": lambda patches: torch.zeros(ROWS, patches.layout.count),
    "below zero": lambda patches: -1e6 * torch.rand(ROWS, patches.layout.count).double(),
}
"""Scores [B, N] as scorers give them: of any size, alike, in any precision."""


@pytest.mark.parametrize("pair", [pair for pair in PAIRS if pair[2] is None], ids=title)
def test_any_scorer_with_any_masker(pair):
    method, _ = attempt(pair)
    if method is None:
        return
    own = method.scorer
    for make in SCORERS.values():
        method.scorer = Function(make)
        check_works(method)
    method.scorer = own


class Function(Scorer):
    """Calls a function of the patches."""

    def __init__(self, make):
        super().__init__(None, None)
        self.make = make

    def forward(self, sample, patches, lesson=None):
        return self.make(patches)


def test_what_should_work_does():
    """The check above passes where all is refused; this one does not."""
    for pair in PAIRS:
        if pair[1].name == "core:random" and (pair[2] is None or pair[2].name == own_target(pair[0].name).name):
            assert attempt(pair)[0] is not None, f"{title(pair)} is refused: {attempt(pair)[1]}"


# ---- the check can fail ----------------------------------------------------------------------------------------------


class Careless(RandomMasker):
    """Says another count than it hides."""

    def count(self, layout: Layout) -> int:
        return super().count(layout) - 1

    def hide(self, layout, draw, scores):
        return RandomMasker(self.config)(layout, draw).hidden


class Crashes(Masker):
    def count(self, layout: Layout) -> int:
        return layout.grid[7]


class Rounds(ValueTarget):
    """Takes ids for numbers."""

    def __init__(self, config, tokenizer):
        Target.__init__(self)
        self.config, self.unit_shape, self.size = config, tokenizer.unit_shape, math.prod(tokenizer.unit_shape)


def method_of(tokenizer, masker, target):
    base = build(Part.of("core:patch", size=(8, 8), patch=(4, 4)), Part.of("core:random"), None)
    encoder = base.encoder
    head = base.heads["main"]
    head.target = target
    return MaskedAutoencoder(tokenizer, masker, encoder, {"main": head})


def small(cls=PatchTokenizer):
    return cls(cls.Config(size=(8, 8), patch=(4, 4)), 24)


def test_a_masker_that_miscounts_fails():
    tokenizer = small()
    method = method_of(tokenizer, Careless(Careless.Config()), ValueTarget(ValueTarget.Config(), tokenizer))
    with pytest.raises(MimError, match=r"Careless: rows hide \[3\] of 4 units; count says 2"):
        check_works(method)


def test_a_masker_that_crashes_is_no_refusal():
    tokenizer = small()
    with pytest.raises(IndexError):
        method_of(tokenizer, Crashes(), ValueTarget(ValueTarget.Config(), tokenizer))


def test_a_target_that_takes_ids_for_numbers_fails():
    tokenizer = small()
    tokenizer.ids = {"input": 9}
    tokenizer.embed = lambda values: torch.zeros(*values.shape[:2], 24, requires_grad=True)
    method = method_of(tokenizer, RandomMasker(RandomMasker.Config()), Rounds(Plain(), tokenizer))
    with pytest.raises(AssertionError, match="ids are names"):
        check_works(method)
