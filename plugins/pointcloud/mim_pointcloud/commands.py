"""``mim-pointcloud prepare``."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from mim_core import MANIFEST, MimError, parse, tell

from mim_pointcloud.columns import check_names
from mim_pointcloud.layouts_store import shown
from mim_pointcloud.prepare import Sampling, prepare_collection

STATUSES = {
    "done": "done",
    "copied": "copied",
    "aside": "left out",
    "skipped": "skipped",
    "failed": "failed",
}
"""Status in the manifest -> how the last line says it."""


@dataclass(frozen=True)
class PrepareOptions:
    """Sample a collection of meshes or clouds once, so that it is read fast from anywhere.

    Every shape becomes an array [points, channels] under the same name below OUT, in the file's own units and axes; its
    points follow from its path; one that lies so far from the origin that its points would run together is centred, as
    the manifest says. Lists and other files are copied, and all files of ShapeNetPart and ScanObjectNN; materials,
    textures and voxels are left out. A run that was stopped goes on where it was; a changed source, or other options,
    are done again; what was made of a file that is no longer in IN is removed. OUT/manifest.jsonl says what was done,
    and what failed and why; OUT/prepared.json names the layout and the upright axis of IN, which --data.root OUT then
    has too.
    """

    root: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="IN")]
    """Folder of shapes, nested or not. It is not changed."""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """Folder to write; outside IN."""
    points: int = 8192
    """Points of each shape: four to eight times what a run takes, so that it draws others at each epoch."""
    channels: tuple[Literal["xyz", "normals", "rgb"], ...] = ("xyz",)
    """Columns to write, three each."""
    columns: tuple[str, ...] = ()
    """What the columns of text and arrays are, where the files do not say it, such as x y z intensity r g b."""
    dtype: Literal["float32", "float16"] = "float32"
    """float16 halves the size and keeps three digits."""
    workers: int = 0
    """Files at a time; as many as there are CPUs by default."""


def prepare(program: str, plugin: str | None, arguments: list[str]) -> int:
    """``prepare IN OUT``. Exit code 1 when files failed that had not failed in the same way before.

    Raises:
        MimError: --points or --workers is too small, or --channels or --columns cannot be used.
    """
    options = parse(PrepareOptions, f"{program} prepare", arguments)
    for name, least in (("points", 1), ("workers", 0)):
        if getattr(options, name) < least:
            raise MimError(f"--{name} is {getattr(options, name)}; the least is {least}.")
    channels = options.channels
    if not channels or channels[0] != "xyz" or len(set(channels)) < len(channels):
        text = " ".join(channels) or "empty"
        raise MimError(f"--channels is {text}; xyz comes first, then normals and rgb, each once at most.")
    wrong = check_names(options.columns) if options.columns else ""
    if wrong:
        raise MimError(f"--columns is {' '.join(options.columns)}: {wrong}.")
    sampling = Sampling(options.points, options.channels, options.dtype, options.columns)
    workers = options.workers or len(os.sched_getaffinity(0))
    counts: Counter[str] = Counter()
    for line in prepare_collection(options.root, options.out, sampling, workers):
        counts[line["status"]] += 1
        counts["known"] += "known" in line
        note = _file_note(line, counts["done"])
        if note:
            tell(shown(note))
    text = ", ".join(f"{counts[status]} {word}" for status, word in STATUSES.items())
    text += f", {counts['removed']} removed" if counts["removed"] else ""
    tell(f"{text}; see {options.out / MANIFEST}")
    if counts["failed"] and counts["failed"] == counts["known"]:
        tell(f"What failed ({counts['failed']}) failed in the same way before: exit code 0.")
    return 1 if counts["failed"] > counts["known"] else 0


def _file_note(line: dict[str, Any], done: int) -> str:
    """What is said of a file while the run goes on; mostly nothing."""
    if line["status"] == "failed":
        return f"failed: {line['file']}: {line['reason']}"
    if line["status"] == "removed":
        return f"removed: {line['out']}, because {line['file']} is no longer in IN, or has another name in OUT"
    if line.get("renamed"):
        return f"{line['file']} becomes {line['out']}: {line['renamed']}"
    if line["status"] == "done" and done % 1000 == 0:
        return f"{done} done, at {line['file']}"
    return ""
