"""A source that hands everything on to another one, for those that change a part of what a source does."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any

from mim_core.data.source import DataSource


class WrappedSource(DataSource):
    """A source around an inner one. Every method and attribute is the inner source's; a subclass overrides what it
    changes.

    What the inner source does, it does by its own methods: one that is overridden here is not called by those that are
    not.

    Args:
        source: The inner source.
        config: The options, where they are not the inner source's.
        shapes: What the tokenizer wants, where it is not what the inner source gives.

    Attributes:
        source: The inner source.
    """

    def __init__(
        self, source: DataSource, config: Any = None, shapes: Mapping[str, tuple[int, ...]] | None = None
    ) -> None:
        super().__init__(source.config if config is None else config, source.shapes if shapes is None else shapes)
        self.source = source
        self.samples_per_item = source.samples_per_item
        self.judges_anomalies = source.judges_anomalies

    @property
    def ids(self) -> Mapping[str, int]:
        """The inner source's; what is set here is set there."""
        return self.source.ids

    @ids.setter
    def ids(self, ids: Mapping[str, int]) -> None:
        self.source.ids = ids

    @property
    def item_seconds(self) -> float:
        """The inner source's; what is set here is set there."""
        return self.source.item_seconds

    @item_seconds.setter
    def item_seconds(self, seconds: float) -> None:
        self.source.item_seconds = seconds

    def __getattr__(self, name: str) -> Any:
        """What only the inner source has."""
        if name == "source" or name.startswith("_"):  # while it is made or unpickled there is none yet
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.source, name)


def _handed_on(name: str) -> Any:
    """A method that calls the inner source's."""

    @functools.wraps(getattr(DataSource, name))
    def method(self: WrappedSource, *args: Any, **options: Any) -> Any:
        return getattr(self.source, name)(*args, **options)

    return method


for _name, _value in vars(DataSource).items():
    if inspect.isfunction(_value) and _name != "__init__":
        setattr(WrappedSource, _name, _handed_on(_name))
