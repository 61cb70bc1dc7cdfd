"""For importers: what weights of other code bases tell of their sizes, and the method that is built for them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from mim_core.errors import MimError
from mim_core.host.loading import installed
from mim_core.interop.weights import State, Weights
from mim_core.methods.build import build_method
from mim_core.methods.method import Method
from mim_core.parts.position import sincos_table
from mim_core.recipes.config import Part, RunConfig
from mim_core.recipes.resolve import resolve

F = TypeVar("F", bound=Callable[..., Method])

HEAD = "heads.main.decoder."
"""What the names of the only decoder's weights start with."""


def depth_of(state: State, prefix: str) -> int:
    """The number of blocks whose keys start with the prefix."""
    parts = [key.removeprefix(prefix).split(".")[0] for key in state if key.startswith(prefix)]
    return max((int(part) for part in parts if part.isdecimal()), default=-1) + 1


def mlp_ratio_of(state: State, prefix: str, width: int) -> float:
    """Hidden width of the first block's MLP over the width; 4 where there are no blocks."""
    hidden = state.get(f"{prefix}0.mlp.fc1.weight")
    return 4.0 if hidden is None else hidden.shape[0] / width


def need(state: State, key: str, code: str) -> Tensor:
    """The weight of that name, without which these are not the weights of ``code``.

    Raises:
        MimError: There is no such weight.
    """
    if key not in state:
        raise MimError(
            f"These weights have no {key!r}: they are not those of {code}. They start with: "
            f"{', '.join(list(state)[:5])}."
        )
    return state[key]


def pair(size: Any) -> tuple[int, int]:
    """Height and width, from both, from one number, or from text such as "96x160".

    Raises:
        MimError: It is none of these.
    """
    parts = size.lower().split("x") if isinstance(size, str) else size
    numbers = list(parts) if isinstance(parts, (list, tuple)) else [parts]
    try:
        sides = [int(number) for number in numbers]
    except (TypeError, ValueError):
        sides = []
    if len(sides) not in (1, 2) or min(sides) < 1:
        raise MimError(f"A size is one number, or height and width such as (96, 160) or 96x160; got {size!r}.")
    return sides[0], sides[-1]


def agree(given: Any, read: Mapping[str, Any]) -> None:
    """Sizes that were given must be what the weights have.

    Raises:
        MimError: A size that was given is another one.
    """
    for name, value in read.items():
        given_size = getattr(given, name)
        given_size = pair(given_size) if name == "patch_size" and given_size is not None else given_size
        if given_size is not None and given_size != value:
            raise MimError(f"{name} is given as {given_size}, and the weights have {value}.")


def heads_of(name: str, given: Any, width: int, released: Mapping[str, Mapping[int, int]]) -> int:
    """Attention heads: as given, or of the released model of that width.

    Raises:
        MimError: The number is not given, and no released model has that width.
    """
    given_heads: int | None = getattr(given, name)
    heads = released[name].get(width) if given_heads is None else given_heads
    if heads is None:
        raise MimError(
            f"The number of heads cannot be inferred (width {width}); give {name}=..., or mim-core import "
            f"--sizes {name}=NUMBER, which makes a run that --init takes."
        )
    return heads


def heads_within(group: str, given: Mapping[str, int], name: str, released: Mapping[int, int], width: int) -> int:
    """Attention heads of one part, where its sizes are given together, under the part's name.

    Raises:
        MimError: The number is not given, and no released model has that width.
    """
    heads = given.get(name) or released.get(width)
    if heads is None:
        raise MimError(
            f"The number of heads of {group} cannot be inferred (width {width}); give {group}={{'{name}': NUMBER}}, "
            f"or mim-core import --sizes \"{group}={{'{name}': NUMBER}}\"."
        )
    return heads


def build(**parts: Part) -> Method:
    """The method of these parts; what they leave open has its default."""
    return build_method(resolve(RunConfig(parts=parts), installed()))


def grouped(**groups: str) -> Callable[[F], F]:
    """For an importer whose code base saves several dicts of weights in one file: the name of each -> what the weights
    in it are given in front of theirs."""

    def mark(importer: F) -> F:
        importer.groups = groups  # type: ignore[attr-defined]
        return importer

    return mark


def licensed(licence: str) -> Callable[[F], F]:
    """For an importer: the licence that its code base publishes weights under, such as "CC BY-NC 4.0". The cards of
    what is exported from them state it."""

    def mark(importer: F) -> F:
        importer.licence = licence  # type: ignore[attr-defined]
        return importer

    return mark


def without_slot(state: State, token: str, table: str) -> dict[str, Tensor]:
    """Adds the class token's own position, zero in MAE's tables, to the token, and leaves the units' positions.

    Raises:
        MimError: One of them is missing, or they are not equally wide.
    """
    moved = Weights(state)
    if moved[token].shape[-1] != moved[table].shape[-1]:
        raise MimError(
            f"These weights do not fit each other: {token} is {tuple(moved[token].shape)}, and {table} is "
            f"{tuple(moved[table].shape)}."
        )
    moved[token] = state[token] + state[table][:, :1]
    moved[table] = state[table][:, 1:]
    return moved


def with_slot(slot: Tensor, table: Tensor) -> Tensor:
    """A table of positions [1, N, width] with the class token's slot [1, 1, width] in front."""
    return torch.cat([slot, table], dim=1)


def position_of(table: Tensor, grid: tuple[int, ...]) -> str:
    """The kind of a table of positions [1, N, width] on a grid: "sincos" where it is the computed one, within 1e-3,
    else "learned"."""
    width = table.shape[-1]
    if width < 2 * len(grid) or table.shape[1] != math.prod(grid):
        return "learned"
    return "sincos" if torch.allclose(table[0].float().cpu(), sincos_table(grid, width), atol=1e-3) else "learned"
