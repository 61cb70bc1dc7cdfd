"""Sampling a collection once: meshes and clouds of any format become arrays of points that are read fast."""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePath
from typing import Any, Literal

import numpy as np
from mim_core import ITEM_SECONDS, BadSample, MimError, in_processes, in_time, walk_folders

from mim_pointcloud.files import EXTENSIONS, is_list, read_centred
from mim_pointcloud.layouts import find_shapes, recognise
from mim_pointcloud.looking import TEXTURES
from mim_pointcloud.prepared import PREPARED, WHOLE, Prepared, write_prepared

MANIFEST = "manifest.jsonl"
PARTIAL = ".partial"
"""What the name of a file that is being written ends in."""
ASIDE = (*TEXTURES, ".mtl", ".bin", ".binvox", PARTIAL)
"""Materials, textures, buffers and voxels that meshes bring along: of no use beside points, so they are left out."""
HALF_OFFSET = 8
"""Clouds farther from the origin than so many times their extent are centred before they become float16."""


@dataclass(frozen=True)
class Sampling:
    """What is written for each file.

    Attributes:
        points: Points of each, as `read_cloud` takes them.
        channels: "xyz", "normals", "rgb"; three columns each.
        dtype: float16 halves the size and keeps three digits.
        columns: What the columns of text and arrays are that do not say it.
    """

    points: int = 8192
    channels: tuple[str, ...] = ("xyz",)
    dtype: Literal["float32", "float16"] = "float32"
    columns: tuple[str, ...] = ()


@dataclass(frozen=True)
class Job:
    """One file of the collection, and where it goes; paths below the two folders, with forward slashes.

    Attributes:
        source: The file below IN.
        target: Its place below OUT.
        kind: What is done with it.
        renamed: Why it does not get its own name.
    """

    source: str
    target: str
    kind: Literal["cloud", "copy", "aside"]
    renamed: str = ""


def plan(root: Path, out: Path, layout: str = "folder") -> list[Job]:
    """What there is to do: meshes and clouds become .npy, lists and other files are copied, textures are left out.

    Args:
        root: The collection.
        out: Where it goes.
        layout: What it is laid out as; of some layouts, all files are copied.

    Raises:
        MimError: No folder, nothing to sample, or one folder inside the other.
    """
    if not root.is_dir():
        raise MimError(f"{root} is no folder. Usage: mim-pointcloud prepare IN OUT, with IN a folder of shapes.")
    inside, outside = root.resolve(), out.resolve()
    if inside == outside or inside in outside.parents or outside in inside.parents:
        raise MimError(f"OUT ({out}) and IN ({root}) lie in each other: IN is never written to. Give another OUT.")
    jobs, shapes = [], False
    for folder, names in _folders(root):
        for name in names:
            path = folder / name
            source = path.relative_to(root)
            kind: Literal["cloud", "copy", "aside"] = "copy"
            if path.suffix.lower() in (*EXTENSIONS, ".h5") and not is_list(path):
                shapes, kind = True, "copy" if layout in WHOLE or path.suffix.lower() == ".h5" else "cloud"
            elif path.suffix.lower() in ASIDE or source in (Path(MANIFEST), Path(PREPARED)):
                kind = "aside"
            target = source.with_suffix(".npy") if kind == "cloud" else source
            jobs.append(Job(source.as_posix(), target.as_posix(), kind))
    if not shapes:
        raise MimError(f"There are no shapes in {root}. Looked for {', '.join(EXTENSIONS)}.")
    return _with_own_names(jobs)


def _with_own_names(jobs: list[Job]) -> list[Job]:
    """The same, each with a target of its own: of files that would get one name, the first that has it already, or
    else the first, gets it; the others keep their endings."""
    takers: dict[str, str] = {}
    for job in sorted(jobs, key=lambda job: job.source != job.target):  # stable: who has the name comes first
        if job.kind != "aside":
            takers.setdefault(job.target, job.source)
    named = []
    for job in jobs:
        if job.kind == "aside" or takers[job.target] == job.source:
            named.append(job)
            continue
        target = f"{job.source}.npy"
        while target in takers:
            target += ".npy"
        takers[target] = job.source
        named.append(replace(job, target=target, renamed=f"{job.target} is made of {takers[job.target]}"))
    return named


def source_of(root: Path, sampling: Sampling) -> Prepared:
    """What a collection is, for `prepared.json`."""
    try:
        found = find_shapes(root)
        layout, up = found.kind, found.up
    except MimError:  # what is wrong with it is said where it is trained on
        layout, up = recognise(root), "y"
    copied = layout in (*WHOLE, "scanobjectnn")
    return Prepared(layout, up, None if copied else sampling.channels)


def _folders(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Folders and their files in order; links are followed, and each real folder is visited once."""
    for folder, names, _ in walk_folders(root, hidden=True):
        yield folder, names


def prepare_collection(root: Path, out: Path, sampling: Sampling, workers: int) -> Iterator[dict[str, Any]]:
    """Do what is not done yet, or not with this source and these options. Yields a line of the manifest for each file.

    A line's ``status``: done, copied, aside (left out), failed; skipped where an earlier run did it, whose line stays;
    removed where the file is no longer in IN. "known" says of what failed that it did so before.

    Raises:
        MimError: Nothing to do, or a worker died.
    """
    layout = source_of(root, sampling) if root.is_dir() else Prepared("folder")
    jobs = plan(root, out, layout.layout)
    out.mkdir(parents=True, exist_ok=True)
    write_prepared(out, layout)
    before = _read_manifest(out / MANIFEST)
    yield from _remove_stale(out, before, jobs)
    _write_manifest(out / MANIFEST, list(before.values()))  # a line that was cut off would spoil the next
    lines: dict[str, dict[str, Any]] = {}
    with (out / MANIFEST).open("a") as manifest:
        left = []
        for job in jobs:
            if _is_done(root, out, sampling, job, before.get(job.source)):
                lines[job.source] = before[job.source]
                yield {**before[job.source], "status": "skipped"}
            else:
                left.append(job)
        for line in in_processes(functools.partial(run_job, root, out, sampling), left, workers):
            lines[line["file"]] = line
            manifest.write(json.dumps(line) + "\n")
            manifest.flush()
            yield {**line, "known": True} if line == before.get(line["file"]) and line["status"] == "failed" else line
    _write_manifest(out / MANIFEST, [lines[job.source] for job in jobs])


def _remove_stale(out: Path, before: dict[str, dict[str, Any]], jobs: list[Job]) -> Iterator[dict[str, Any]]:
    """What was made of files that are no longer in IN, or that go elsewhere now: training would take it for a shape."""
    sources, targets = {job.source for job in jobs}, {job.target for job in jobs if job.kind != "aside"}
    for file in [file for file, line in before.items() if file not in sources or line.get("out") not in targets]:
        made = before[file].get("out")
        if file not in sources:
            del before[file]
        if made is not None and made not in targets and (out / made).is_file():
            (out / made).unlink()
            yield {"file": file, "out": made, "status": "removed"}


def _is_done(root: Path, out: Path, sampling: Sampling, job: Job, line: dict[str, Any] | None) -> bool:
    if line is None or line["status"] not in ("done", "copied"):
        return False
    target = out / job.target
    same = line.get("out") == job.target and line.get("source") == _stamp(root / job.source)
    if job.kind == "cloud":
        same = same and line.get("options") == _options(sampling)
    elif line["status"] == "done":
        return False
    return same and target.is_file() and target.stat().st_size == line.get("bytes")


def path_key(source: str) -> int:
    """The key of a file's points: a hash of its path below IN, so that the sample is equal wherever it is made."""
    name = PurePath(source).as_posix().encode(errors="surrogateescape")
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little", signed=True)


def run_job(root: Path, out: Path, sampling: Sampling, job: Job) -> dict[str, Any]:
    """Write one file, under another name until it is whole. Returns its line of the manifest."""
    if job.kind == "aside":
        return {"file": job.source, "status": "aside"}
    source, target = root / job.source, out / job.target
    partial = target.with_name(target.name + PARTIAL)
    line: dict[str, Any] = {"file": job.source, "out": job.target}
    line |= {"renamed": job.renamed} if job.renamed else {}
    try:
        stamp = _stamp(source)  # before reading: what changes meanwhile is done again
        target.parent.mkdir(parents=True, exist_ok=True)
        if job.kind == "cloud":
            centre = _write_points(source, partial, sampling, path_key(job.source))
            line |= {"status": "done", "options": _options(sampling)}
            line |= {"centre": centre} if any(centre) else {}
        elif not source.is_file():  # a pipe or a device may have no end
            raise BadSample(str(source), "no regular file")
        else:
            shutil.copyfile(source, partial)
            line["status"] = "copied"
        partial.replace(target)
        return {**line, "source": stamp, "bytes": target.stat().st_size}
    except (BadSample, OSError, ValueError) as error:
        reason = error.reason if isinstance(error, BadSample) else str(error)
        for old in (partial, target):  # points of an earlier source would pass for this one's
            if old.is_file():
                old.unlink()
        return {"file": job.source, "status": "failed", "reason": reason}


def _write_points(source: Path, target: Path, sampling: Sampling, key: int) -> list[float]:
    """Write a shape's points. Returns what was subtracted, because the type would not tell its points apart."""
    with in_time(str(source), ITEM_SECONDS):
        read, centre = read_centred(source, sampling.points, key, sampling.channels, sampling.columns)
    found = read.numpy()
    if sampling.dtype == "float16":
        low, high = found[:, :3].min(0).astype(np.float64), found[:, :3].max(0).astype(np.float64)
        if np.abs(found[:, :3]).max() > HALF_OFFSET * (high - low).max():
            middle = (low + high) / 2
            found = np.concatenate([found[:, :3] - middle, found[:, 3:]], 1)
            centre = (centre[0] + float(middle[0]), centre[1] + float(middle[1]), centre[2] + float(middle[2]))
    with np.errstate(over="ignore"):
        values = found.astype(sampling.dtype)
    if not np.isfinite(values).all():
        largest = float(np.abs(found).max())
        raise BadSample(str(source), f"{largest:g} does not fit float16 (65504 at most); take --dtype float32")
    with target.open("wb") as file:
        np.save(file, values)
    return list(centre)


def _stamp(path: Path) -> list[int]:
    """Size in bytes and time of change in nanoseconds; a file that is gone has neither."""
    try:
        stat = path.stat()
    except OSError:
        return [-1, -1]
    return [stat.st_size, stat.st_mtime_ns]


def _options(sampling: Sampling) -> dict[str, Any]:
    told = {**asdict(sampling), "channels": list(sampling.channels), "columns": list(sampling.columns)}
    return told if sampling.columns else {name: value for name, value in told.items() if name != "columns"}


def _read_manifest(path: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for text in path.read_text(errors="replace").splitlines() if path.is_file() else ():
        try:
            line = json.loads(text)
            if isinstance(line["status"], str):
                found[line["file"]] = line
        except (ValueError, KeyError, TypeError, RecursionError):  # cut off when a run was killed, or damaged
            continue
    return found


def _write_manifest(path: Path, lines: list[dict[str, Any]]) -> None:
    partial = path.with_name(path.name + PARTIAL)
    partial.write_text("".join(json.dumps(line) + "\n" for line in lines))
    partial.replace(path)
