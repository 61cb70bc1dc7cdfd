"""export: writes a run's encoder for another library."""

from __future__ import annotations

from mim_core.commands.evaluate import ExportOptions, _of_data
from mim_core.commands.options import parse
from mim_core.host.loading import installed
from mim_core.interop.timm import export_timm
from mim_core.recipes.toml import to_toml
from mim_core.runs.load import load_run
from mim_core.terminal import tell


def export(program: str, plugin: str | None, arguments: list[str]) -> int:
    """``export RUN --to timm``."""
    options = parse(ExportOptions, f"{program} export", arguments)
    run, method, source = load_run(options.run, installed())
    path = options.out or options.run / f"encoder-{options.to}.safetensors"
    about = {"recipe": run.recipe, "checkpoint": source.name, "run": to_toml(run, installed())}
    inputs, classes = _of_data(run, method)
    line = export_timm(method, path, about, inputs, classes)
    tell(f"{path}\n{line}")
    return 0
