"""import: weights of another code base as a run, to be judged, shown, exported, fine-tuned and trained on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tyro

from mim_core.commands.options import apply, command_class, parse, take_name
from mim_core.commands.pretrain import load_named
from mim_core.commands.starting import compare_statistics
from mim_core.evaluation.report import try_report
from mim_core.host.loading import installed
from mim_core.interop.as_run import count_items, with_parts_of, write_run
from mim_core.interop.encoders import statistics_in
from mim_core.interop.weights import import_checkpoint, sizes_given
from mim_core.terminal import tell


@dataclass(frozen=True)
class ImportOptions:
    """Options of the import itself; those of the recipe's data and training follow."""

    weights: tyro.conf.Positional[Path]
    """A .pth, .pt or .safetensors file, or a folder of transformers' save_pretrained."""
    format: str
    """The code base that wrote it, by its importer's name. See: mim-core list importers."""
    out: Path | None = None
    """Folder of the run; runs/NAME-OF-THE-FILE by default."""
    sizes: tuple[str, ...] = ()
    """What the weights do not tell, under the code base's own names: --sizes num_heads=3 "img_size=(96, 160)"."""


def import_weights(program: str, plugin: str | None, arguments: list[str]) -> int:
    """``import RECIPE WEIGHTS --format NAME``."""
    registry = installed()
    usage = f"Usage: {program} import RECIPE WEIGHTS --format NAME [OPTIONS]"
    name, rest = take_name(arguments, "recipe", usage)
    recipe = load_named(name, plugin, registry, twin=False)
    kept = replace(recipe, parts={role: part for role, part in recipe.parts.items() if role == "data"})
    cls = command_class(kept, ImportOptions, "Weights of another code base as a run, with the data and training of")
    options: Any = parse(cls, f"{program} import {name}", rest)
    method = import_checkpoint(options.weights, format=options.format, registry=registry, **sizes_given(options.sizes))
    changed = apply(kept, options)
    run = replace(changed, parts={**recipe.parts, **changed.parts})
    run = with_parts_of(run, method, options.format)
    items = count_items(recipe, run, method)
    folder = options.out or Path("runs") / _name(options.weights)
    if options.weights.is_dir():
        compare_statistics(run, str(options.weights), statistics_in(options.weights))
    source = {"file": str(options.weights), "format": options.format, "sizes": list(options.sizes)}
    write_run(run, method, folder, registry, items, source)
    count = sum(parameter.numel() for parameter in method.parameters())
    tell(f"{folder}: {options.format} weights of {options.weights}, a method of {count:,} parameters.")
    if items is None:
        tell(f"No data are named yet. Next: {program} evaluate {folder} --data.root FOLDER")
        return 0
    report = f"Report: {folder / 'report.html'}    " if try_report(folder, registry) else ""
    tell(f"{report}Next: {program} evaluate {folder}")
    return 0


def _name(weights: Path) -> str:
    """What a file is called without its ending; a folder may have dots in its name."""
    path = weights.resolve()
    return path.name if path.is_dir() else path.stem
