"""show: writes a run's report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from mim_core.commands.options import parse
from mim_core.errors import MimError
from mim_core.evaluation.report import write_report
from mim_core.host.loading import installed
from mim_core.terminal import tell


@dataclass(frozen=True)
class ShowOptions:
    """Write a run's report.html: loss curves, reconstructions, scores, data."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of the run."""
    samples: int = 12
    """Samples that are reconstructed."""


def show(program: str, plugin: str | None, arguments: list[str]) -> int:
    """``show RUN``."""
    options = parse(ShowOptions, f"{program} show", arguments)
    if options.samples < 1:
        raise MimError(f"--samples must be at least 1, got {options.samples}.")
    path = write_report(options.run, installed(), options.samples)
    tell(path)
    return 0
