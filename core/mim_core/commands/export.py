"""export: writes a run's encoder, with its head, for another library."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from mim_core.commands.options import parse
from mim_core.errors import MimError, unknown, warn
from mim_core.host.loading import installed
from mim_core.host.registry import Registry
from mim_core.interop import exporters
from mim_core.interop.model_card import write_card
from mim_core.interop.plain import export_plain
from mim_core.interop.program_export import export_program
from mim_core.interop.timm import encoder_of_timm, export_timm, notes_on
from mim_core.methods.build import open_source
from mim_core.methods.method import Method
from mim_core.methods.supervised import Supervised
from mim_core.recipes.config import ResolvedRun
from mim_core.recipes.toml import to_toml
from mim_core.runs import origins
from mim_core.runs.load import load_run
from mim_core.runs.state import ORIGINS
from mim_core.terminal import tell

FILES = {"timm": "encoder-timm.safetensors", "torch": "program.pt2", "onnx": "program.onnx", "plain": "plain"}
"""What the file is called by default; a folder for transformers is called as --to is."""

AUTO = "auto"
"""The format that fits the run."""


@dataclass(frozen=True)
class ExportOptions:
    """Write a run's encoder for other libraries; of a run that was trained on labels with its head."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of the run."""
    to: str = "auto"
    """timm: safetensors under timm's names. auto: that where timm has a model for the run, torch where it has none. hf:
    a folder for transformers, of the first format that fits (mim-core list exporters; each can be named, such as
    hf-vit). torch: a program of torch.export, which runs without mim-core. plain: a folder with model.py, which needs
    torch alone, and its state_dict. onnx: a program for ONNX (needs onnx, onnxscript, onnxruntime). The file's metadata
    say how inputs are made."""
    out: Path | None = None
    """File to write, of torch's programs with the ending .pt2; RUN/encoder-timm.safetensors by default, or
    RUN/program.pt2 or .onnx; a folder for plain and for transformers, RUN/plain and RUN/hf."""
    given: tuple[str, ...] = ()
    """torch and onnx: of several modalities, those that the program takes; all by default."""


def export(program: str, plugin: str | None, arguments: list[str]) -> int:
    """``export RUN [--to timm|hf|torch|plain|onnx]``.

    Raises:
        MimError: --to is torch, and --out does not end in .pt2.
    """
    options, registry = parse(ExportOptions, f"{program} export", arguments), installed()
    _check_format(options.to, registry)
    opened = load_run(options.run, registry)
    run, method, source = opened
    to, why = _chosen(options.to, method)
    path = options.out or options.run / FILES.get(to, to)
    if to == "torch" and path.suffix != ".pt2":
        raise MimError(
            "\n".join(
                [f"--out {path}: torch's programs are files that end in .pt2: --out {path.with_suffix('.pt2')}", *why]
            )
        )
    about = {"recipe": run.recipe, "checkpoint": source.name, "run": to_toml(run, registry)}
    inputs, classes = _of_data(run, method, to)
    notes: Sequence[str]
    if to == "timm":
        about[ORIGINS] = json.dumps(origins.behind(source, None))
        line, notes = export_timm(method, path, about, inputs, classes), notes_on(method)
    elif to == "plain":
        metadata = {**about, **inputs, **({"classes": list(classes)} if classes else {})}
        line, notes = export_plain(method, path, metadata), []
    elif to in FILES:
        metadata = {**about, **inputs, **({"classes": list(classes)} if classes else {})}
        line, notes = export_program(method, path, to, metadata, options.given)
    else:
        exported = exporters.convert(method, to, registry, inputs, classes)
        line, notes = exporters.write_folder(exported, path), exported.notes
    here = line.replace(repr(str(path)), repr(path.name))  # beside the card; it holds no folders of this machine
    card = write_card(opened, path, to, here, notes, inputs, classes, registry)
    tell("\n".join([str(path), line, *notes, *why, *([f"Model card: {card}"] if card else [])]))
    return 0


def _chosen(to: str, method: Method) -> tuple[str, list[str]]:
    """The format; of ``auto``, timm's where it has a model for the method, else torch's, and why."""
    if to != AUTO:
        return to, []
    try:
        encoder_of_timm(method)
    except MimError as error:
        reason = str(error).partition(" Other formats may")[0]
        return "torch", [f"Written as torch's program (--to torch), for {reason} Others: --to plain, onnx, hf."]
    return "timm", []


def _check_format(name: str, registry: Registry) -> None:
    """Raises MimError for a format that nobody writes."""
    known = [entry.name for entry in registry.of_kind("exporters")]
    known += [entry.full_name for entry in registry.of_kind("exporters") if ":" in name]
    if name not in (AUTO, *FILES, exporters.ANY, *known):
        raise unknown("format in --to", name, (AUTO, *FILES, exporters.ANY, *known), registry.absent(name))


def _of_data(run: ResolvedRun, method: Method, to: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What the run's data tell of the encoder's inputs, under timm's names, and the names of a classifier's classes.
    What they leave open is said, for timm then has its own."""
    classes = tuple(getattr(getattr(method, "config", None), "names", ()))
    try:
        source = open_source(run, method.tokenizer)  # type: ignore[arg-type]
        if isinstance(method, Supervised) and not classes:
            labels = method.training_source(source).labelled("train").classes
            classes = tuple(name for name in labels if name)  # maps have one class without a name
    except MimError as error:
        called = "" if classes else ", nor what classes are called"
        own = ", so timm takes its own mean and deviation" if to == "timm" else ""
        warn(
            f"the file does not say how inputs are normalised and cropped{called}{own}: the run's data cannot be read: "
            f"{error}"
        )
        return {}, classes
    stats = {name: getattr(source, name, None) for name in ("mean", "std")}
    known: dict[str, Any] = {
        name: tuple(round(float(n), 6) for n in torch.as_tensor(value).flatten())
        for name, value in stats.items()
        if value is not None
    }
    if len(known) < 2 and to == "timm":
        warn(
            f"the file does not say how inputs are normalised, so timm takes its own mean and deviation: "
            f"{run.parts['data'].name} has no mean and std."
        )
    return {**known, **source.how_read()}, tuple(classes)
