"""A run made with a plugin that is not here says which package to install, also where plugin and package have other
names."""

from dataclasses import replace

import pytest
from mim_core.errors import MimError
from mim_core.host.hookspecs import hookimpl
from mim_core.host.loading import discover, load
from mim_core.recipes.config import Part
from mim_core.recipes.resolve import load_recipe, resolve_part
from mim_core.recipes.toml import from_toml, read_file, to_toml
from mim_core.runs.load import load_run
from mim_core.training.loop import start, train


@hookimpl
def mim_register_maskers(register):
    register(name="hum", load="mim_core.parts.masker:RandomMasker", summary="Hides at random.")


@pytest.fixture
def both(plugin):
    """The registry with the plugin ``sound`` of the package ``acoustic-masks``, and that without."""
    extra = plugin("sound", distribution="acoustic-masks", version="2.7", mim_register_maskers=mim_register_maskers)
    return load([*discover(), extra], environ={}), load(discover(), environ={})


def config(registry):
    run = load_recipe("image:mae-vit-tiny", registry, twin=True)
    return replace(run, parts={**run.parts, "masker": resolve_part("masker", Part("sound:hum"), registry)})


def check(error):
    said = str(error.value)
    assert "Unknown masker 'sound:hum'" in said
    assert "written with acoustic-masks 2.7, not installed here. Run: pip install acoustic-masks" in said
    assert "mim-image" not in said


def test_a_recipe_names_the_package(both, tmp_path):
    here, elsewhere = both
    text = to_toml(config(here), here)
    assert from_toml(text, here).parts["masker"].name == "sound:hum"
    with pytest.raises(MimError) as error:
        from_toml(text, elsewhere)
    check(error)
    (tmp_path / "recipe.toml").write_text(text)
    with pytest.raises(MimError) as error:
        read_file(tmp_path / "recipe.toml", elsewhere)
    check(error)


def test_a_checkpoint_names_the_package(both, tmp_path):
    here, elsewhere = both
    run = start(config(here), tmp_path, here)
    run.steps = 1
    assert train(run, quiet=True)
    assert load_run(tmp_path, here)[0].parts["masker"].name == "sound:hum"
    with pytest.raises(MimError) as error:
        load_run(tmp_path, elsewhere)
    check(error)


def test_other_errors_stay_as_they_are(both):
    here, _ = both
    text = to_toml(config(here), here).replace("ratio", "ratoi", 1)
    with pytest.raises(MimError) as error:
        from_toml(text, here)
    assert "written with" not in str(error.value)
    with pytest.raises(MimError, match="unknown table"):
        from_toml("plugins = 3\n[nothing]\nx = 1\n", here)
