"""Opening a finished or stopped run: its recipe, its method and its weights."""

from __future__ import annotations

from mim_core.errors import MimError
from mim_core.errors import warn
from mim_core.host.registry import Registry
from mim_core.methods.build import build_method
from mim_core.methods.method import Method
from mim_core.recipes.config import ResolvedRun
from mim_core.recipes.toml import from_toml
from mim_core.runs import checkpoint
from mim_core.runs.folder import check_name
from mim_core.runs.folder import read_recipe
from pathlib import Path
import os



def load_run(folder: Path, registry: Registry) -> tuple[ResolvedRun, Method, Path]:
    """A run's recipe, its method with the newest weights, and the checkpoint that they are from. Where the run kept an
    average of its weights (``--train.ema``), the weights are that.

    Raises:
        MimError: The folder holds no whole checkpoint, or is a file.
    """
    if folder.is_file():
        formats = ", ".join(sorted(entry.full_name for entry in registry.of_kind("importers")))
        raise MimError(
            f"{folder} is a weights file, not a run. To make it one: mim-core import RECIPE {folder} --format NAME; "
            f"or start one from it: pretrain RECIPE --init {folder} --init-format NAME. Formats: {formats or 'none'}."
        )
    check_name(folder)
    path = folder if os.path.lexists(folder / "state.json") else checkpoint.to_resume(folder, warn)
    if path is None:
        near = sorted(p.parent.name for p in folder.parent.glob("*/recipe.toml")) if folder.parent.is_dir() else []
        there = f" Runs beside it: {', '.join(near)}." if near else ""
        raise MimError(
            f"{folder} holds no whole checkpoint.{there} Train first: mim-core pretrain RECIPE --out {folder}"
        )
    loaded = checkpoint.load(path)
    config = from_toml(read_recipe(path / "recipe.toml"), registry)
    method = build_method(config, registry)
    checkpoint.load_weights(method, loaded, averaged=checkpoint.has_average(path))
    return config, method, path
