"""export: writes a run's encoder for another library."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro

from mim_core.commands.options import parse
from mim_core.errors import MimError, warn
from mim_core.host.loading import installed
from mim_core.interop.timm import export_timm, notes_on
from mim_core.methods.build import open_source
from mim_core.methods.method import Method
from mim_core.methods.supervised import Supervised
from mim_core.recipes.config import ResolvedRun
from mim_core.recipes.toml import to_toml
from mim_core.runs.load import load_run
from mim_core.terminal import tell


@dataclass(frozen=True)
class ExportOptions:
    """Write a run's encoder for other libraries."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of the run."""
    to: Literal["timm"] = "timm"
    """timm: safetensors under timm's names; the file's metadata says how to load it."""
    out: Path | None = None
    """File to write; RUN/encoder-timm.safetensors by default."""


def export(program: str, plugin: str | None, arguments: list[str]) -> int:
    """``export RUN --to timm``."""
    options = parse(ExportOptions, f"{program} export", arguments)
    run, method, source = load_run(options.run, installed())
    path = options.out or options.run / f"encoder-{options.to}.safetensors"
    about = {"recipe": run.recipe, "checkpoint": source.name, "run": to_toml(run, installed())}
    inputs, classes = _of_data(run, method)
    line = export_timm(method, path, about, inputs, classes)
    tell(f"{path}\n{line}")
    for note in notes_on(method):
        tell(note)
    return 0


def _of_data(run: ResolvedRun, method: Method) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What the run's data tell of the encoder's inputs, under timm's names, and the names of a classifier's classes.
    What they leave open is said, for timm then has its own."""
    try:
        source = open_source(run, method.tokenizer)  # type: ignore[arg-type]
        classes = source.labelled("train").classes if isinstance(method, Supervised) else ()
    except MimError as error:
        warn(
            "the file does not say how inputs are normalised and cropped, nor what classes are called, so timm takes "
            f"its own mean and deviation: the run's data cannot be read: {error}"
        )
        return {}, ()
    found = {name: getattr(source, name, None) for name in ("mean", "std")}
    known: dict[str, Any] = {
        name: tuple(round(float(n), 6) for n in torch.as_tensor(value).flatten())
        for name, value in found.items()
        if value is not None
    }
    if len(known) < 2:
        warn(
            f"the file does not say how inputs are normalised, so timm takes its own mean and deviation: "
            f"{run.parts['data'].name} has no mean and std."
        )
    crop = getattr(run.parts["data"].options, "evaluate_crop", None)
    if crop is not None:  # the centre of a picture, which timm takes likewise
        known |= {"crop_pct": float(crop), "crop_mode": "center", "interpolation": "bicubic"}
    return known, tuple(classes)
