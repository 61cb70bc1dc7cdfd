"""All that can be checked of an installed plugin from its registration alone, for pytest:

    MIM_PLUGIN=mine pytest --pyargs mim_core.testing.suite

Without ``MIM_PLUGIN`` it takes every plugin that is installed. Contracts of maskers, tokenizers, targets and data
sources need to know what to try them on: inherit these in a test file of the plugin's.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from mim_core.errors import unknown
from mim_core.host.loading import installed
from mim_core.host.registry import Registry
from mim_core.testing.methods import MethodContract
from mim_core.testing.plugins import PluginContract


def suite(registry: Registry, plugin: str | None = None) -> dict[str, type]:
    """Test classes by name: a `PluginContract` for the plugin, or for each, and a `MethodContract` for each recipe.

    Raises:
        MimError: No plugin of that name is installed.
    """
    known = [record.name for record in registry.plugins if not record.disabled and record.name != "core"]
    if plugin is not None and plugin not in known:
        raise unknown("plugin", plugin, known)
    classes: dict[str, type] = {}
    for name in known if plugin is None else [plugin]:
        classes[_title(name, "Plugin")] = type(_title(name, "Plugin"), (PluginContract,), {"plugin": name})
        for entry in registry.of_kind("recipes", name):
            title = _title(entry.full_name, "Recipe")
            classes[title] = type(title, (MethodContract,), {"recipe": entry.full_name})
    return classes


def _title(name: str, kind: str) -> str:
    words = name.replace(":", "-").replace(".", "-").split("-")
    return f"Test{kind}{''.join(word.capitalize() for word in words)}"


def collect(environ: Mapping[str, str] = os.environ) -> dict[str, type]:
    """The classes that the environment asks for."""
    return suite(installed(), environ.get("MIM_PLUGIN") or None)


globals().update(collect())
