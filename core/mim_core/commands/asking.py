"""What embed and predict share: a run opened on files, where results are kept while they work, and what is said."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from mim_core.disk import write_whole
from mim_core.errors import MimError, check_workers, warn
from mim_core.host.registry import Registry
from mim_core.inference.chunks import Chunks
from mim_core.inference.inputs import Inputs, open_inputs
from mim_core.methods.method import Method
from mim_core.ranks.world import choose_device
from mim_core.recipes.config import ResolvedRun
from mim_core.recipes.options import plain
from mim_core.runs import checkpoint, inventory
from mim_core.terminal import tell
from mim_core.text import counted, shown
from mim_core.version import __version__

SECONDS = 5.0
"""Between two lines of progress."""


@dataclass(frozen=True)
class AskingOptions:
    """Options that embed and predict share."""

    input: Annotated[Path, tyro.conf.Positional]
    """A folder of files as the run's data source reads them, or one file."""
    given: tuple[str, ...] = ()
    """Of several modalities, those that are read; all by default."""
    batch_size: int = 64
    """Items at once."""
    workers: int = 0
    """Processes that read."""
    device: str = "auto"
    """cpu, cuda, or auto."""
    quiet: bool = False
    """No progress."""


def unless_there(out: Path | None, default: str, result: str = "") -> Path:
    """Where to write: what the user told, or else the default.

    Args:
        out: By ``--out``; what lies there is replaced.
        default: A file, or a folder.
        result: A file of the folder that is there when a command has ended.

    Raises:
        MimError: Nothing was told, and an earlier command's result lies there.
    """
    if out is not None:
        return out
    if (existing := Path(default) / result).exists():
        raise MimError(
            f"{existing} is of an earlier command. Name another place with --out, or the same to write over it: "
            f"--out {default}"
        )
    return Path(default)


@dataclass(frozen=True)
class Asked:
    """A run on files.

    Attributes:
        inputs: The files.
        device: Where the method is.
        about: What results depend on.
        quiet: Say nothing while working.
    """

    inputs: Inputs
    device: torch.device
    about: list[Any]
    quiet: bool

    def chunks(self, folder: Path, more: list[Any], size: int, out: Path) -> AbstractContextManager[Chunks]:
        """Where results are kept until all are in ``out``; ``more`` is what else they depend on."""
        return Chunks.alone(folder, [*self.about, *more], len(self.inputs), size, out)

    def progress(self, resumed: int) -> Callable[[int], None]:
        """Says how many samples are done, now and then."""
        last = [time.monotonic()]
        if resumed and not self.quiet:
            tell(f"Going on: {resumed:,} of {len(self.inputs):,} were done before.")

        def told(done: int) -> None:
            if not self.quiet and time.monotonic() - last[0] >= SECONDS:
                last[0] = time.monotonic()
                tell(f"{done:,} of {len(self.inputs):,}")

        return told


def open_asked(run: ResolvedRun, method: Method, path: Path, options: Any, registry: Registry) -> Asked:
    """Opens a command's input for a run, and says what is there.

    Args:
        run: The run.
        method: Its method, which moves to the device.
        path: Its checkpoint.
        options: The command's, with ``input``, ``data``, ``given``, ``batch_size``, ``workers``, ``device``, ``quiet``.
        registry: What is installed.

    Raises:
        MimError: There is nothing to read.
    """
    if options.batch_size < 1:
        raise MimError(f"--batch-size must be at least 1, got {options.batch_size}.")
    check_workers("--workers", options.workers)
    device = choose_device(options.device)
    inputs = open_inputs(run, method, options.input, options.data, options.given)
    if not options.quiet:
        tell(f"{shown(str(options.input))}: {counted(len(inputs), 'sample')}")
        whole = len(inputs) == len(inputs.items.names)  # of one file alone, the others beside it are of no concern
        for label, text in inputs.source.contents().items() if whole else ():
            if label.endswith(("left out", "files hold")):
                tell(f"{label}: {text}")
    for line in inputs.source.advice():
        warn(line)
    method.eval().to(device)
    versions = {**registry.versions(), "mim-core": __version__}
    data = {name: value for name, value in plain(options.data).items() if name != "root"}
    files = inventory.digest_of(inputs.source, ())
    asked = [data, sorted(options.given), list(inputs.kept)[:1]]
    return Asked(inputs, device, [checkpoint.identity_of(path), files, *asked, versions], options.quiet)


def write_csv(path: Path, columns: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    """A table, whole or as it was; its cells hold nothing that steers a terminal."""
    content = io.StringIO()
    table = csv.writer(content, lineterminator="\n")
    table.writerow(map(shown, columns))
    table.writerows([shown(str(cell)) for cell in row] for row in rows)
    write_whole(path, content.getvalue())


def told_of_skipped(skipped: Mapping[str, str], most: int = 5) -> None:
    """Names the first files that could not be used, with why."""
    if not skipped:
        return
    some = "; ".join(f"{shown(name)}: {why}" for name, why in list(skipped.items())[:most])
    more = ", ..." if len(skipped) > most else ""
    left = f"{counted(len(skipped), 'file')} cannot be used and {'is' if len(skipped) == 1 else 'are'} left out"
    warn(f"{left} ({some}{more}).")
