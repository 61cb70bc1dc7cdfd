"""show: writes a run's report."""

from __future__ import annotations

from mim_core.commands.evaluate import ShowOptions
from mim_core.commands.options import parse
from mim_core.evaluation.report import write_report
from mim_core.host.loading import installed
from mim_core.terminal import tell


def show(program: str, plugin: str | None, arguments: list[str]) -> int:
    """``show RUN``."""
    options = parse(ShowOptions, f"{program} show", arguments)
    path = write_report(options.run, installed(), options.samples)
    tell(path)
    return 0
