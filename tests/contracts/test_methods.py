"""Every registered recipe's twin keeps the method's contract, and every registered method is in one of them."""

from mim_core.host.loading import installed
from mim_core.methods.supervised import Supervised
from mim_core.recipes.resolve import load_recipe
from mim_core.testing import MethodContract

RECIPES = [entry.full_name for entry in installed().of_kind("recipes")]


def _contract(recipe):
    title = "".join(word.capitalize() for word in recipe.replace(":", "-").split("-"))
    return type(f"Test{title}", (MethodContract,), {"recipe": recipe, "__module__": __name__})


for _recipe in RECIPES:
    _cls = _contract(_recipe)
    globals()[_cls.__name__] = _cls
del _cls


def test_every_recipe_has_a_contract():
    tried = {cls.recipe for name, cls in globals().items() if name.startswith("Test")}
    assert tried == set(RECIPES)


def test_every_method_is_in_a_recipe():
    """Those that learn from labels are not: `finetune` puts them in the place of a run's method."""
    used = {load_recipe(name, installed(), twin=True).parts["method"].name for name in RECIPES}
    taught = {e.full_name for e in installed().of_kind("methods") if issubclass(e.resolve(), Supervised)}
    assert {entry.full_name for entry in installed().of_kind("methods")} <= used | taught
    assert not used & taught
