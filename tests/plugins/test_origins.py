"""A run that goes on under other versions of its plugins says so, and its recipe keeps all of them."""

import tomllib

import pytest
from mim_core.recipes import versions


@pytest.fixture(autouse=True)
def _nothing_said():
    """What was said once in this process may be said again."""
    versions._warn_once.cache_clear()


def recipe(**versions):
    lines = "".join(f'{name.replace("_", "-")} = "{version}"\n' for name, version in versions.items())
    return f'recipe = "image:mae-vit-tiny"\n[plugins]\n{lines}[masker]\nratio = 0.75\n'


def test_earlier_versions_are_kept_in_front_and_named_once(capsys):
    before = recipe(mim_core="0.1.0", mim_image="0.1.0")
    after = versions.with_earlier(recipe(mim_core="0.2.0", mim_image="0.1.0", mim_new="1.0"), before)
    content = tomllib.loads(after)
    assert content["plugins"] == {"mim-core": "0.1.0, 0.2.0", "mim-image": "0.1.0", "mim-new": "1.0"}
    assert content["masker"] == {"ratio": 0.75}
    said = " ".join(capsys.readouterr().err.split())
    assert "the run was written with mim-core 0.1.0, this is 0.2.0" in said
    assert "mim-image" not in said
    third = versions.with_earlier(recipe(mim_core="0.3.0"), after)
    assert tomllib.loads(third)["plugins"] == {"mim-core": "0.1.0, 0.2.0, 0.3.0"}
    capsys.readouterr()
    versions.warn_of_changes({"mim-core": "0.1.0"}, {"mim-core": "0.2.0"})
    assert not capsys.readouterr().err, "it was said already"


def test_the_same_versions_leave_a_recipe_as_it_is(capsys):
    same = recipe(mim_core="0.2.0")
    assert versions.with_earlier(same, same) == same
    kept = recipe(mim_core="0.1.0, 0.2.0")
    assert tomllib.loads(versions.with_earlier(same, kept))["plugins"] == {"mim-core": "0.1.0, 0.2.0"}
    assert versions.with_earlier(same, 'recipe = "image:mae-vit-tiny"\n') == same, "of a run without the table"
    assert not capsys.readouterr().err
