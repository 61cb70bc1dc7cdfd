"""``mim-pointcloud prepare``."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from mim_core.commands.arguments import parse
from mim_core.errors import MimError

from mim_pointcloud.prepare import MANIFEST, Sampling, prepare_collection

STATUSES = {"done": "done", "copied": "copied", "aside": "left out", "skipped": "skipped", "failed": "failed"}
"""Status in the manifest -> how the last line says it."""


@dataclass(frozen=True)
class PrepareOptions:
    """Sample a collection of meshes or clouds once, so that it is read fast from anywhere.

    Every shape becomes an array [points, channels] under the same name below OUT, in the file's own units and axes; its
    points follow from its path. Lists and other files are copied; materials and textures are left out. A run that was
    stopped goes on where it was; a changed source, or other options, are done again. OUT/manifest.jsonl says what was
    done, and what failed and why.
    """

    root: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="IN")]
    """Folder of shapes, nested or not. It is not changed."""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """Folder to write; outside IN."""
    points: int = 8192
    """Points of each shape: four to eight times what a run takes, so that it draws others at each epoch."""
    channels: tuple[Literal["xyz", "normals", "rgb"], ...] = ("xyz",)
    """Columns to write, three each."""
    format: Literal["npy"] = "npy"
    """How arrays are stored."""
    dtype: Literal["float32", "float16"] = "float32"
    """float16 halves the size and keeps three digits."""
    workers: int = 0
    """Files at a time; as many as there are CPUs by default."""


def prepare(program: str, plugin: str | None, arguments: list[str]) -> int:
    """``prepare IN OUT``. Exit code 1 when some files failed."""
    options = parse(PrepareOptions, f"{program} prepare", arguments)
    for name, least in (("points", 1), ("workers", 0)):
        if getattr(options, name) < least:
            raise MimError(f"--{name} is {getattr(options, name)}; the least is {least}.")
    if not options.channels or len(set(options.channels)) < len(options.channels):
        raise MimError(f"--channels is {' '.join(options.channels) or 'empty'}; give each of xyz normals rgb once.")
    sampling = Sampling(options.points, options.channels, options.dtype)
    workers = options.workers or len(os.sched_getaffinity(0))
    counts: Counter[str] = Counter()
    for line in prepare_collection(options.root, options.out, sampling, workers):
        counts[line["status"]] += 1
        if line["status"] == "failed":
            print(f"failed: {line['file']}: {line['reason']}")  # noqa: T201
        elif line["status"] == "done" and counts["done"] % 1000 == 0:
            print(f"{counts['done']} done, at {line['file']}")  # noqa: T201
    told = ", ".join(f"{counts[status]} {word}" for status, word in STATUSES.items())
    print(f"{told}; see {options.out / MANIFEST}")  # noqa: T201
    return 1 if counts["failed"] else 0
