"""Data sources of other plugins inside one of this plugin's: found by name, and given their options."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mim_core import DataSource, MimError, did_you_mean, fill, installed

Option = bool | int | float | str
"""What an option of an inner source is written as; text is read as TOML where it is TOML, so a list is "[1, 2]"."""


def open_inner(
    name: str, root: Path | None, options: Mapping[str, Option], shapes: Mapping[str, tuple[int, ...]], where: str
) -> DataSource:
    """A registered data source with these options.

    Args:
        name: As registered, such as ``"video:clips"``.
        root: Its option of this name.
        options: Its other options.
        shapes: What it must give: its own modality -> shape.
        where: What to call it in an error.

    Raises:
        MimError: No such source, or no such option of it, or it finds no data.
        ValueError: It cannot give these shapes.
    """
    cls = _class(name)
    values = {key: value_of(value) for key, value in options.items()}
    config = fill(cls.Config, {"root": root, **values}, f"{where} ({name})")
    try:
        source: DataSource = cls(config, shapes)
    except ValueError as error:
        raise ValueError(f"{where} ({name}): {error}") from error
    return source


def value_of(option: Option) -> Any:
    """An option's value: text as TOML where it is TOML, else as it is."""
    if not isinstance(option, str):
        return option
    try:
        return tomllib.loads(f"value = {option}")["value"]
    except tomllib.TOMLDecodeError:
        return option


def options_of(names: Mapping[str, str], options: Mapping[str, Option]) -> dict[str, dict[str, Option]]:
    """Which options each source is given: ``stride`` goes to every source that has it, ``depth.stride`` to one, before
    the others.

    Args:
        names: Modality -> name of its data source.
        options: As written.

    Raises:
        MimError: An option that no source has, or of a modality that there is not.
    """
    given: dict[str, dict[str, Option]] = {modality: {} for modality in names}
    known = {m: [f.name for f in dataclasses.fields(_class(name).Config)] for m, name in names.items()}
    for scoped in (False, True):
        for key, value in options.items():
            modality, _, name = key.rpartition(".")
            name = name.replace("-", "_")
            if bool(modality) != scoped:
                continue
            if modality and modality not in names:
                raise MimError(f"data.options: {key!r} is for {modality!r}; the modalities are {', '.join(names)}.")
            takers = [m for m in names if modality in ("", m) and name in known[m]]
            if not takers:
                every = sorted({option for options in known.values() for option in options})
                guess = did_you_mean(name, every)
                raise MimError(f"data.options: no source has the option {key!r}.{guess}\nOptions: {', '.join(every)}.")
            for taker in takers:
                given[taker][name] = value
    return given


def _class(name: str) -> Any:
    return installed().get("data", name).resolve()
