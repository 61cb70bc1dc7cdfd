"""doctor: reports the hardware and what is missing."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass

from rich.markup import escape
from rich.table import Table

from mim_core.commands.options import parse
from mim_core.host.doctor import diagnose
from mim_core.host.findings import Finding
from mim_core.host.loading import installed
from mim_core.terminal import console, tell

COLOURS = {"ok": "green", "missing": "yellow", "warning": "red"}


@dataclass(frozen=True)
class DoctorOptions:
    """Report your hardware and what is missing, and which choice that means for a run. Exit code 1 when something
    stops any run."""

    device: str = "auto"
    """Look at a run with this --train.device."""
    json: bool = False
    """Print the findings as JSON."""


def doctor(program: str, plugin: str | None, arguments: list[str]) -> int:
    """``doctor [--device cuda] [--json]``."""
    options = parse(DoctorOptions, f"{program} doctor", arguments)
    findings = diagnose(installed(), options.device)
    stopped = [finding for finding in findings if finding.stops]
    if os.environ.get("LOCAL_RANK", "0") == "0":  # one answer per machine
        if options.json:
            content = {"ok": not stopped, "findings": [dataclasses.asdict(finding) for finding in findings]}
            tell(json.dumps(content, indent=1))
        else:
            _print(findings)
    return 1 if stopped else 0


def _print(findings: list[Finding]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in ("topic", "state", "found", "means"):
        table.add_column(column, overflow="fold", no_wrap=column == "state")
    for finding in findings:
        colour = "red" if finding.stops else COLOURS[finding.state]
        state = f"[{colour}]{finding.state}[/]"
        table.add_row(escape(finding.topic), state, escape(finding.text), escape(finding.means))
    screen = console()
    screen.print(table)
    stopped = [finding.topic for finding in findings if finding.stops]
    if stopped:
        screen.print(f"No run can start before this is fixed: {', '.join(stopped)}.", markup=False)
