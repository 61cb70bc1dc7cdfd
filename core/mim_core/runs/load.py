"""Opening a finished or stopped run: its recipe, its method and its weights."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from mim_core.data.source import DataSource
from mim_core.errors import MimError, warn
from mim_core.host.loading import installed
from mim_core.host.registry import Registry
from mim_core.methods.build import build_method, make_source
from mim_core.methods.method import Method
from mim_core.recipes.config import ResolvedRun
from mim_core.recipes.toml import from_toml
from mim_core.runs import checkpoint
from mim_core.runs.folder import check_name, read_recipe


class OpenedRun(NamedTuple):
    """A run that was opened.

    Attributes:
        recipe: Its parts by role, with their options, and how it was trained.
        method: Its method, with the newest weights.
        checkpoint: The folder that these weights are from.
    """

    recipe: ResolvedRun
    method: Method
    checkpoint: Path

    def source(self) -> DataSource:
        """The data that it was trained on.

        Raises:
            MimError: They are no longer there.
        """
        return make_source(self.recipe, self.method)


PROGRAMS = (".pt2", ".onnx")
"""What the names of exported programs end in."""

PLAIN_MODEL = ("model.py", "model.safetensors", "about.json")
"""What a folder that export wrote as a plain model holds."""


def refuse_program(path: Path) -> None:
    """Raises MimError for an exported program, which can be run and nothing can be trained from it; and for a plain
    model, from which no run starts."""
    if path.is_dir() and all((path / name).is_file() for name in PLAIN_MODEL):
        raise MimError(
            f"{path} is a plain model, which export wrote for code that has torch alone; no run starts from it. Name "
            "the run that it was exported from: finetune RUN, or pretrain RECIPE --init RUN."
        )
    if path.is_file() and path.suffix in PROGRAMS:
        raise MimError(
            f"{path} is a program, which can be run and not trained from. Name the run that it was exported from: "
            "finetune RUN, or pretrain RECIPE --init RUN."
        )


def recipe_of(folder: Path | str, registry: Registry) -> tuple[ResolvedRun, Path]:
    """A run's recipe and its newest whole checkpoint, without building anything.

    Args:
        folder: The run's folder, or one of its checkpoints.
        registry: Where names are looked up.

    Raises:
        MimError: The folder holds no whole checkpoint, or is a file.
    """
    folder = Path(folder)
    refuse_program(folder)
    if folder.is_file():
        formats = ", ".join(sorted(entry.full_name for entry in registry.of_kind("importers")))
        raise MimError(
            f"{folder} is a weights file, not a run. To make it one: mim-core import RECIPE {folder} --format NAME; "
            f"or start one from it: pretrain RECIPE --init {folder} --init-format NAME. Formats: {formats or 'none'}."
        )
    if (folder / "config.json").is_file():
        raise MimError(
            f"{folder} is a folder of weights, not a run. Start a run from it: pretrain RECIPE --init {folder}, or "
            f"finetune RECIPE --init {folder}."
        )
    check_name(folder)
    path = folder if os.path.lexists(folder / "state.json") else checkpoint.to_resume(folder, warn)
    if path is None:
        within = sorted(p.parent for p in folder.glob("seed-*/recipe.toml"))
        if within:
            names = ", ".join(path.name for path in within)
            raise MimError(f"{folder} holds a run of each seed: {names}. Name one, such as {within[0]}.")
        near = sorted(p.parent.name for p in folder.parent.glob("*/recipe.toml")) if folder.parent.is_dir() else []
        hint = f" Runs beside it: {', '.join(near)}." if near else ""
        raise MimError(
            f"{folder} holds no complete checkpoint.{hint} Train first: mim-core pretrain RECIPE --out {folder}"
        )
    return from_toml(read_recipe(path / "recipe.toml"), registry), path


def load_run(folder: Path | str, registry: Registry | None = None) -> OpenedRun:
    """A run's recipe, its method with the newest weights, and the checkpoint that they are from. Where the run kept an
    average of its weights (``--train.ema``), the weights are that.

    Args:
        folder: The run's folder, or one of its checkpoints.
        registry: Where names are looked up; what is installed by default.

    Raises:
        MimError: The folder holds no whole checkpoint, or is a file.
    """
    registry = registry or installed()
    config, path = recipe_of(folder, registry)
    loaded = checkpoint.load(path)
    method = build_method(config, registry)
    checkpoint.load_weights(method, loaded, averaged=checkpoint.has_average(path))
    method.carry()
    return OpenedRun(config, method, path)
