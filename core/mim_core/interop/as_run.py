"""Weights of other code bases as runs: a checkpoint of no step, so that all that takes a run takes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mim_core.errors import MimError
from mim_core.host.registry import Registry
from mim_core.methods.assembly import Parts
from mim_core.methods.build import make_source
from mim_core.methods.method import Method
from mim_core.parts.tokenizer import Tokenizer
from mim_core.recipes.config import ResolvedRun
from mim_core.recipes.toml import to_toml
from mim_core.runs import checkpoint
from mim_core.runs import folder as run_folder
from mim_core.runs.average import WeightAverage
from mim_core.text import times
from mim_core.training.optimizer import make_optimizer


def with_parts_of(run: ResolvedRun, method: Method, form: str) -> ResolvedRun:
    """The run with the parts that imported weights are for; its data and its training stay.

    Args:
        run: The recipe that the weights go into.
        method: What an importer made.
        form: The importer's name, for errors.

    Raises:
        MimError: The method's parts are not known, or take other modalities than the recipe's.
    """
    if not method.built_from:
        raise MimError(
            f"The importer {form} does not tell the parts of its method, so there is no recipe of them; it should use "
            "mim_core.importers.build. Its weights can start a run: pretrain RECIPE --init FILE --init-format NAME"
        )
    own, tokenizer = Parts(run.parts).tokenizer(), getattr(method, "tokenizer", None)
    if isinstance(tokenizer, Tokenizer) and not set(tokenizer.shapes) & set(own.shapes):
        theirs, ours = (", ".join(shapes) for shapes in (tokenizer.shapes, own.shapes))
        raise MimError(f"These weights take {theirs}, and {run.recipe} is for {ours}. Name a recipe that has {theirs}.")
    data = {"data": run.parts["data"]} if "data" in run.parts else {}
    parts = {**data, **{role: part for role, part in method.built_from.items() if role != "data"}}
    gone = tuple(role for role in run.parts if role not in parts)
    return replace(run, parts=parts, dropped=tuple(dict.fromkeys((*run.dropped, *gone))))


def count_items(recipe: ResolvedRun, run: ResolvedRun, method: Method) -> int | None:
    """How many items the run's data have; None where the recipe leaves open which data.

    Args:
        recipe: The recipe as it was, for errors.
        run: The same with the parts of the weights.
        method: The weights.

    Raises:
        MimError: They cannot be read, or do not fit the method.
    """
    part = run.parts.get("data")
    tokenizer = getattr(method, "tokenizer", None)
    if part is None or getattr(part.options, "root", True) is None or not isinstance(tokenizer, Tokenizer):
        return None
    try:
        return len(make_source(run, method))
    except MimError as error:
        theirs, ours = _shapes(tokenizer), _shapes(Parts(recipe.parts).tokenizer())
        if theirs == ours:
            raise
        raise MimError(
            f"{error}\nThese weights take {theirs}, and {recipe.recipe} is for {ours}. If that is why: name another "
            "recipe, or other options of the data."
        ) from error


def _shapes(tokenizer: Tokenizer) -> str:
    return ", ".join(f"{name} {times(shape)}" for name, shape in tokenizer.shapes.items())


def write_run(
    run: ResolvedRun, method: Method, folder: Path, registry: Registry, items: int | None, source: Mapping[str, Any]
) -> Path:
    """Writes a run of no step. Training goes on from it as from any checkpoint.

    Args:
        run: The recipe, with the parts of ``method``.
        method: The weights.
        folder: Of the run; it must not hold one.
        registry: Where the parts were found.
        items: Items of the data; None where they are not known yet.
        source: Where the weights are from, for the checkpoint's state.json.

    Returns:
        The checkpoint's folder.

    Raises:
        MimError: The folder holds a run, or cannot be written.
    """
    run_folder.check_name(folder)
    recipe = to_toml(run, registry)
    with run_folder.locked(folder):
        if checkpoint.to_resume(folder) is not None:
            raise MimError(f"{folder} holds a run already. Choose another folder with --out.")
        run_folder.open_folder(folder, recipe)
        optimizer = make_optimizer(method, run.train, torch.device("cpu"))
        average = None if run.train.ema is None else WeightAverage(method, run.train.ema)
        extra = {
            **({} if items is None else {"items": items}),
            "samples": 0,
            "plugins": registry.versions(),
            "torch": torch.__version__,
            "imported": dict(source),
        }
        contents = checkpoint.gather(method, optimizer, average, first=True)
        return checkpoint.save(folder, contents, 0, recipe, extra, run.train.keep_checkpoints)
