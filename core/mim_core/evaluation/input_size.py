"""Evaluating at another input size than the run was trained at."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import torch

from mim_core.errors import MimError
from mim_core.methods.assembly import Parts
from mim_core.parts.tokenizer import Tokenizer
from mim_core.recipes.config import ResolvedRun
from mim_core.text import times


def tokenizer_at(run: ResolvedRun, size: tuple[int, ...]) -> Tokenizer:
    """The run's tokenizer, without weights, for another input size: what shapes the data then have. Of several
    tokenizers the size is that of the finest; the others keep their ratio to it.

    Raises:
        MimError: A tokenizer has no input size, its patches do not divide that one, or a ratio gives no whole size.
    """
    parts, own = dict(run.parts), size_of(run, size)
    for role, part in run.parts.items():
        if role.rpartition(".")[2] != "tokenizer":
            continue
        if len(own) != len(size):  # the tokenizer says what it wants
            parts[role] = replace(part, options=replace(part.options, size=size))
            continue
        scaled = [Fraction(n * new, old) for n, new, old in zip(part.options.size, size, own, strict=True)]
        if any(n.denominator > 1 for n in scaled):
            raise MimError(
                f"--size {times(size)}: {role} would have no whole size, at {times(own)} it has "
                f"{times(part.options.size)}."
            )
        parts[role] = replace(part, options=replace(part.options, size=tuple(map(int, scaled))))
    with torch.device("meta"):
        return Parts(parts).tokenizer()


def size_of(run: ResolvedRun, asked: tuple[int, ...]) -> tuple[int, ...]:
    """The input size of the run's finest tokenizer.

    Raises:
        MimError: A tokenizer has none, or they have different numbers of axes.
    """
    tokenizers = {role: part for role, part in run.parts.items() if role.rpartition(".")[2] == "tokenizer"}
    sizes = {role: getattr(part.options, "size", None) for role, part in tokenizers.items()}
    for role, size in sizes.items():
        if not isinstance(size, tuple):
            raise MimError(
                f"--size {times(asked)} replaces the tokenizer's input size, but this run has the {role} "
                f"{tokenizers[role].name}, which has no input size."
            )
    known = [size for size in sizes.values() if isinstance(size, tuple)]
    if len({len(size) for size in known}) > 1:
        text = ", ".join(f"{role} {times(size)}" for role, size in zip(sizes, known, strict=True))
        raise MimError(
            f"--size {times(asked)} is for runs whose tokenizers have the same number of axes; this run has {text}."
        )
    return max(known)
