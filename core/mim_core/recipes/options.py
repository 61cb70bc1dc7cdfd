"""Options are frozen dataclasses. This module fills them from plain values (TOML, keyword arguments) and says what is
wrong with those."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from mim_core.errors import MimError, did_you_mean

NONE = "none"
"""How None is written in TOML, which has no word for it."""


def fill(cls: type, values: Mapping[str, Any], where: str, base: Any = None) -> Any:
    """An instance of ``cls`` with these values; the others come from ``base``, or from the defaults.

    Args:
        cls: A frozen dataclass.
        values: Field name -> plain value.
        where: What to call it in an error: "masker (core:random)".
        base: An instance to start from.

    Raises:
        MimError: A misspelt name, with the nearest; or a value of the wrong type.
    """
    hints = typing.get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls)]
    options = {}
    for key, value in values.items():
        name = key.replace("-", "_")
        if name not in names:
            guess = did_you_mean(name, names)
            known = ", ".join(names) if names else "none"
            raise MimError(f"{where} has no option {key!r}.{guess}\nOptions: {known}.")
        try:
            options[name] = convert(hints[name], value)
        except (TypeError, ValueError) as error:
            raise MimError(f"{where}: option {name!r}: {error}") from None
    return cls(**options) if base is None else dataclasses.replace(base, **options)


def convert(kind: Any, value: Any) -> Any:
    """``value`` as ``kind``: lists become tuples, whole numbers floats, text paths.

    Raises:
        TypeError: It is of another kind.
        ValueError: It is not one of the choices.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, types.UnionType):
        if type(None) in arguments and (value is None or value == NONE):
            return None
        rest = [argument for argument in arguments if argument is not type(None)]
        for argument in rest[:-1]:
            try:
                return convert(argument, value)
            except (TypeError, ValueError):
                continue
        return convert(rest[-1], value)
    if origin is Literal:
        if value not in arguments:
            guess = did_you_mean(str(value), map(str, arguments), "; did you mean ")
            raise ValueError(f"must be one of {', '.join(map(str, arguments))}; got {value!r}{guess}")
        return value
    if origin is tuple:
        if isinstance(value, str) or not hasattr(value, "__iter__"):
            raise TypeError(f"must be a list, got {value!r}")
        items = list(value)
        kinds = [arguments[0]] * len(items) if arguments[-1] is Ellipsis else list(arguments)
        if len(kinds) != len(items):
            raise ValueError(f"must hold {len(kinds)} values, got {len(items)}")
        return tuple(convert(k, item) for k, item in zip(kinds, items, strict=True))
    if origin is dict:
        return {convert(arguments[0], k): convert(arguments[1], v) for k, v in dict(value).items()}
    return _plain(kind, value)


def _plain(kind: Any, value: Any) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is Path and isinstance(value, str):
        return Path(value)
    if isinstance(kind, type) and (not isinstance(value, kind) or (kind is not bool and isinstance(value, bool))):
        raise TypeError(f"must be of type {kind.__name__}, got {value!r}")
    return value


def plain(value: Any) -> Any:
    """The reverse, for TOML and JSON: a dataclass as a dict, None as "none", tuples as lists, paths as text."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if value is None:
        return NONE
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def check_text(role: str, options: Mapping[str, Any]) -> None:
    """Refuses a part's options, as `plain` has them, whose text TOML cannot hold.

    Raises:
        MimError: The bytes of a name are no UTF-8.
    """
    for name, value in options.items():
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and any("\ud800" <= letter <= "\udfff" for letter in text):
                raise MimError(
                    f"--{role}.{name.replace('_', '-')} {text}: this name is not UTF-8, and a recipe (TOML) can hold "
                    "no other. Rename it, or give a link to it: ln -s NAME OTHER"
                )
