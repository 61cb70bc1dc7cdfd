"""Every plugin of this repository keeps the contract of plugins, and the suite for others makes the same classes."""

import pytest
from mim_core.errors import MimError
from mim_core.host.loading import installed
from mim_core.testing import MethodContract, PluginContract
from mim_core.testing.suite import collect, suite

pytestmark = pytest.mark.slow

PLUGINS = [record.name for record in installed().plugins if record.name != "core"]


class _Plugin(PluginContract):
    test_twins_train = None  # tests/flow/test_curves.py trains every twin for 20 steps


for _name in PLUGINS:
    globals()[f"Test{_name.capitalize()}"] = type(f"Test{_name.capitalize()}", (_Plugin,), {"plugin": _name})


def test_there_are_some():
    assert {"image", "video", "pointcloud", "multimodal"} <= set(PLUGINS)


def test_the_suite_has_a_class_for_the_plugin_and_each_recipe():
    found = suite(installed(), "pointcloud")
    recipes = [entry.full_name for entry in installed().of_kind("recipes", "pointcloud")]
    assert [cls.plugin for cls in found.values() if issubclass(cls, PluginContract)] == ["pointcloud"]
    assert [cls.recipe for cls in found.values() if issubclass(cls, MethodContract)] == recipes
    assert all(name.startswith("Test") for name in found)


def test_the_environment_says_which():
    assert "TestPluginImage" in collect({})
    assert next(iter(collect({"MIM_PLUGIN": "video"}))) == "TestPluginVideo"
    with pytest.raises(MimError, match=r"Unknown plugin 'vidoe'. Did you mean 'video'"):
        collect({"MIM_PLUGIN": "vidoe"})
