"""Every kind of recipe keeps the method's contract, and every registered method is in one of them.

Recipes of one kind have the same parts and options but for numbers: ViT-B and ViT-L of one method. The contract is
tried with the twin of the first of a kind; `flow/test_curves.py` trains the twins of all.
"""

import functools

import pytest
from mim_core.host.loading import installed
from mim_core.methods.supervised import Supervised
from mim_core.recipes.options import plain
from mim_core.recipes.resolve import load_recipe
from mim_core.testing import MethodContract

pytestmark = pytest.mark.slow

RECIPES = [entry.full_name for entry in installed().of_kind("recipes")]


def shape(value):
    """What stays of an option when its numbers do not count."""
    if isinstance(value, (list, tuple)):
        return tuple(shape(item) for item in value)
    if isinstance(value, dict):
        return tuple(sorted((name, shape(item)) for name, item in value.items()))
    return "number" if isinstance(value, (int, float)) and not isinstance(value, bool) else value


@functools.cache
def kind_of(recipe):
    """The parts of its twin and their options without numbers; the data source does not make the method."""
    parts = load_recipe(recipe, installed(), twin=True).parts
    return tuple(
        sorted((role, part.name, shape(plain(part.options))) for role, part in parts.items() if role != "data")
    )


FIRST = {kind_of(recipe): recipe for recipe in reversed(RECIPES)}
"""The recipe that stands for each kind."""


UNUSUAL = {"image:autoencoder": {"keyed": False}, "core:vq": {"keyed": False}}
"""By method: what of the contract is otherwise, as `MethodContract` says it."""


def _contract(recipe):
    title = "".join(word.capitalize() for word in recipe.replace(":", "-").split("-"))
    unusual = UNUSUAL.get(load_recipe(recipe, installed(), twin=True).parts["method"].name, {})
    return type(f"Test{title}", (MethodContract,), {"recipe": recipe, "__module__": __name__, **unusual})


for _recipe in FIRST.values():
    _cls = _contract(_recipe)
    globals()[_cls.__name__] = _cls
del _cls


def test_every_kind_of_recipe_has_a_contract():
    tried = {cls.recipe for name, cls in globals().items() if name.startswith("Test")}
    assert {kind_of(recipe) for recipe in tried} == {kind_of(recipe) for recipe in RECIPES}


def test_every_method_is_in_a_recipe():
    """Those that learn from labels are not: `finetune` puts them in the place of a run's method."""
    used = {load_recipe(name, installed(), twin=True).parts["method"].name for name in RECIPES}
    taught = {e.full_name for e in installed().of_kind("methods") if issubclass(e.resolve(), Supervised)}
    assert {entry.full_name for entry in installed().of_kind("methods")} <= used | taught
    assert not used & taught
