"""What ``--init`` may name: a run, an export, or weights of another code base; and what a run takes over of it."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from mim_core.data.normalise import usual_statistics
from mim_core.errors import MimError, warn
from mim_core.host.registry import Registry
from mim_core.interop.encoders import Found, find_encoder
from mim_core.interop.own_encoders import encoder_within, have_other_patches, read_alike
from mim_core.interop.weights import export_recipe, read_export
from mim_core.methods.supervised import Supervised
from mim_core.parts.tokenizer import PatchTokenizer
from mim_core.recipes.config import ResolvedRun
from mim_core.runs import origins
from mim_core.runs.initial_weights import take_encoder
from mim_core.runs.load import load_run, recipe_of, refuse_program
from mim_core.runs.run import Run

PLAIN = "core:vit"
"""The encoder that weights of other code bases are read for."""


def is_foreign(path: Path) -> bool:
    """Whether this names weights of another code base: no run, no checkpoint and no export of ours."""
    if str(path).startswith("timm:"):
        return True
    if path.is_dir():
        return not any((path / name).exists() for name in ("recipe.toml", "checkpoints", "state.json"))
    return path.is_file()


def _check_there(path: Path) -> None:
    if not str(path).startswith("timm:") and not os.path.lexists(path):
        raise MimError(f"--init {path}: there is no such file or folder.")
    refuse_program(path)


def recipe_behind(path: Path, registry: Registry) -> ResolvedRun | None:
    """The recipe of a run, or of the run that an export was made of; None for weights of another code base."""
    _check_there(path)
    if is_foreign(path):
        return export_recipe(path, registry)
    return recipe_of(path, registry)[0]


def foreign(path: Path, registry: Registry) -> Found | None:
    """The encoder in weights of another code base; None for what is ours.

    Raises:
        MimError: There is nothing, or no encoder can be read from it.
    """
    _check_there(path)
    if not is_foreign(path) or read_export(path, registry) is not None:
        return None
    try:
        return find_encoder(path)
    except MimError as error:
        if str(path).startswith("timm:"):
            raise
        formats = ", ".join(sorted(entry.full_name for entry in registry.of_kind("importers")))
        kind = "folder of weights" if path.is_dir() else "weights file"
        raise MimError(
            f"{path} is a {kind}, not a run, and no encoder that is a plain ViT can be read from it: {error} Weights "
            f"of a whole method of another code base: --init {path} --init-format NAME. Formats: {formats or 'none'}."
        ) from error


def read_as_plain(run: ResolvedRun, path: Path, registry: Registry) -> Found | None:
    """The plain ViT that a run starts from: in weights of another code base, or in a run or an export of ours that
    reads other inputs, such as images where this run reads clips, or cuts them into other patches or channels. None
    for ours that read the same, which are taken weight by weight.

    Raises:
        MimError: There is nothing, or no plain ViT.
    """
    model = foreign(path, registry)
    if model is not None:
        return model
    base = recipe_behind(path, registry)
    if base is None:
        return None
    if read_alike(run, base) and not have_other_patches(run, base):
        return None
    return encoder_within(read_export(path, registry) or load_run(path, registry).method, base, path)


def fitted(run: ResolvedRun, path: Path, registry: Registry) -> ResolvedRun:
    """The run with an encoder of the size of the weights that it starts from, where these are read as a plain ViT; what
    was changed is said.

    Raises:
        MimError: They are read so, and the recipe's encoder is not the plain one with sizes of its own, or it has no
            patches.
    """
    model = read_as_plain(run, path, registry)
    if model is None:
        return run
    part = run.parts.get("encoder")
    tokenizers = {role: part for role, part in run.parts.items() if role.rpartition(".")[2] == "tokenizer"}
    if not any(issubclass(part.cls, PatchTokenizer) for part in tokenizers.values()):
        raise model.has_no_patches(", ".join(sorted({part.name for part in tokenizers.values()})))
    if part is None or part.name != PLAIN or part.options.name is not None:
        own = "none" if part is None else getattr(part.options, "name", None) or part.name
        raise MimError(
            f"--init {path}: weights of other code bases are read into {PLAIN}, and this recipe's encoder is {own}. "
            "Make a run of them first: mim-core import."
        )
    sizes = model.encoder_options()
    if not model.tells_heads and part.options.width == model.width:
        sizes["heads"] = part.options.heads
    if len(tokenizers) > 1 and "position" not in sizes and str(part.options.position).startswith("sincos"):
        sizes["position"] = "sincos"  # of several modalities, computed anew on each grid: by the rule of the weights
    changed = {name: value for name, value in sizes.items() if getattr(part.options, name) != value}
    if changed:
        before = vars(part.options)
        summary = ", ".join(f"{name} {value} (the recipe has {before[name]})" for name, value in changed.items())
        warn(f"--init {path}: {model.what}. The encoder follows from it: {summary}.")
    if not model.statistics and _has_statistics(run):
        warn(
            f"--init {model.path} does not say how its inputs were normalised; if not by the mean and deviation of "
            "this run's data, state them: --data.mean ... --data.std ..."
        )
    compare_statistics(run, f"--init {model.path}", model.statistics)
    options: Any = replace(part.options, **changed)
    return replace(run, parts={**run.parts, "encoder": replace(part, options=options)})


def _has_statistics(run: ResolvedRun) -> bool:
    data: Any = run.parts["data"].options if "data" in run.parts else None
    return hasattr(data, "mean") and hasattr(data, "std")


def compare_statistics(run: ResolvedRun, weights: str, statistics: tuple[tuple[float, ...], ...]) -> None:
    """Says where the weights' inputs were normalised otherwise than this run's are.

    Args:
        run: The run.
        weights: What they are called.
        statistics: Their mean and deviation; empty where these are not known.
    """
    if not statistics or not _has_statistics(run):
        return
    data: Any = run.parts["data"].options
    own = usual_statistics(data.mean, data.std, len(statistics[0]))
    if [len(values) for values in own] != [len(values) for values in statistics]:
        return
    pairs = [pair for one, other in zip(own, statistics, strict=True) for pair in zip(one, other, strict=True)]
    if any(abs(one - other) > 1e-3 for one, other in pairs):
        here, stats = ([" ".join(f"{value:g}" for value in each) for each in both] for both in (own, statistics))
        warn(
            f"{weights}: its inputs were normalised by mean {stats[0]} and deviation {stats[1]}; here it is "
            f"{here[0]} and {here[1]}. To have the same: --data.mean {stats[0]} --data.std {stats[1]}"
        )


def origin_of(model: Found, registry: Registry) -> list[origins.Origin]:
    """What a run remembers of the plain ViT that it starts from."""
    path = model.path if model.form or model.path.is_file() else recipe_of(model.path, registry)[1]
    return origins.behind(path, model.form or None)


def take_encoder_from(run: Run, path: Path, registry: Registry) -> list[str]:
    """Copies tokenizer and encoder into a method that learns from labels; what starts fresh and what is left out, in
    words.

    Raises:
        MimError: The weights cannot be read or do not fit.
    """
    model = read_as_plain(run.config, path, registry)
    if model is not None:
        run.origins = origin_of(model, registry)
        return model.fill(run.method)
    assert isinstance(run.method, Supervised)
    other: nn.Module | None = read_export(path, registry)
    start = path
    if other is None:
        _, other, start = load_run(path, registry)
    run.origins = origins.behind(start, None)
    return take_encoder(run.method, other, path)
