"""Which versions of which distributions made a run: the table ``plugins`` of its ``recipe.toml``. A run that goes on
under another version keeps the earlier ones, oldest first: ``mim-checker = "0.1.0, 0.2.0"``."""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Mapping
from typing import Any

import tomli_w

from mim_core.errors import warn

BETWEEN = ", "


def warn_of_changes(written: Mapping[str, Any], here: Mapping[str, str]) -> None:
    """Warns of each distribution that is here in another version than a run was last written with; once in a process.

    Args:
        written: Distribution -> versions, as ``recipe.toml`` has them.
        here: Distribution -> version that is used.
    """
    for name, versions in written.items():
        if name in here and here[name] != _versions(versions)[-1]:
            _warn_once(f"the run was written with {name} {versions}, this is {here[name]}; it may not do the same.")


def with_earlier(recipe: str, before: str) -> str:
    """The text of a recipe with the versions that the text of before has and this has not, in front; warns of them."""
    content, old = tomllib.loads(recipe), tomllib.loads(before).get("plugins", {})
    now = content.get("plugins", {})
    warn_of_changes(old, now)
    kept = {name: _kept(old[name], version) if name in old else version for name, version in now.items()}
    if kept == now:
        return recipe
    return tomli_w.dumps({**content, "plugins": kept})


def _kept(versions: Any, now: str) -> str:
    earlier = _versions(versions)
    return BETWEEN.join(earlier if earlier[-1] == now else [*earlier, now])


def _versions(text: Any) -> list[str]:
    return str(text).split(BETWEEN)


@functools.cache
def _warn_once(text: str) -> None:
    warn(text)
