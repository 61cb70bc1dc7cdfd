"""Sampling a collection once: meshes and clouds of any format become arrays of points that are read fast."""

from __future__ import annotations

import functools
import hashlib
import io
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path, PurePath
from typing import Any, Literal

import numpy as np
from mim_core import (
    ITEM_SECONDS,
    MANIFEST,
    PARTIAL,
    BadSample,
    Conversion,
    Manifest,
    MimError,
    converting_alone,
    in_processes,
    in_time,
    walk_folders,
    with_own_names,
    write_file,
)

from mim_pointcloud.files import EXTENSIONS, is_list, read_centred
from mim_pointcloud.layouts import find_shapes, recognise
from mim_pointcloud.looking import TEXTURES
from mim_pointcloud.prepared import PREPARED, WHOLE, Prepared, write_prepared

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


def plan(root: Path, out: Path, layout: str = "folder") -> list[Conversion]:
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
    files, shapes = list[Conversion](), False
    for folder, names in _folders(root):
        for name in names:
            path = folder / name
            source = path.relative_to(root)
            kind: Literal["convert", "copy", "aside"] = "copy"
            if path.suffix.lower() in (*EXTENSIONS, ".h5") and not is_list(path):
                shapes, kind = True, "copy" if layout in WHOLE or path.suffix.lower() == ".h5" else "convert"
            elif path.suffix.lower() in ASIDE or source in (Path(MANIFEST), Path(PREPARED)):
                kind = "aside"
            target = source.with_suffix(".npy") if kind == "convert" else source
            files.append(Conversion(source.as_posix(), target.as_posix(), kind))
    if not shapes:
        raise MimError(f"There are no shapes in {root}. Looked for {', '.join(EXTENSIONS)}.")
    return with_own_names(files, ".npy")


def source_of(root: Path, sampling: Sampling) -> Prepared:
    """What a collection is, for `prepared.json`."""
    try:
        shapes = find_shapes(root)
        layout, up, rows = shapes.kind, shapes.up, bool(shapes.pretrain.rows)
    except MimError:  # what is wrong with it is said where it is trained on
        layout, up, rows = recognise(root), "y", False
    copied = layout in (*WHOLE, "scanobjectnn") or rows  # files of many shapes
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
        MimError: Nothing to do, another process does it, or a worker died.
    """
    layout = source_of(root, sampling) if root.is_dir() else Prepared("folder")
    files = plan(root, out, layout.layout)
    with converting_alone(out):
        write_prepared(out, layout)
        manifest = Manifest(out)
        before = manifest.before
        yield from _remove_stale(out, before, files)
        for line in manifest.follow(files, _results(root, out, sampling, workers, files, before)):
            again = line["status"] == "failed" and line == before.get(line["file"])
            yield {**line, "known": True} if again else line


def _results(
    root: Path, out: Path, sampling: Sampling, workers: int, files: list[Conversion], before: dict[str, dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    left = []
    for file in files:
        if _is_done(root, out, sampling, file, before.get(file.source)):
            yield {**before[file.source], "status": "skipped"}
        else:
            left.append(file)
    yield from in_processes(functools.partial(write_one, root, out, sampling), left, workers)


def _remove_stale(out: Path, before: dict[str, dict[str, Any]], files: list[Conversion]) -> Iterator[dict[str, Any]]:
    """What was made of files that are no longer in IN, or that go elsewhere now: training would take it for a shape."""
    sources, targets = {file.source for file in files}, {file.target for file in files if file.kind != "aside"}
    for name in [name for name, line in before.items() if name not in sources or line.get("out") not in targets]:
        made = before[name].get("out")
        if name not in sources:
            del before[name]
        if made is not None and made not in targets and (out / made).is_file():
            (out / made).unlink()
            yield {"file": name, "out": made, "status": "removed"}


def _is_done(root: Path, out: Path, sampling: Sampling, file: Conversion, line: dict[str, Any] | None) -> bool:
    if line is None or line["status"] not in ("done", "copied"):
        return False
    target = out / file.target
    same = line.get("out") == file.target and line.get("source") == _stamp(root / file.source)
    if file.kind == "convert":
        same = same and line.get("options") == _options(sampling)
    elif line["status"] == "done":
        return False
    return same and target.is_file() and target.stat().st_size == line.get("bytes")


def path_key(source: str) -> int:
    """The key of a file's points: a hash of its path below IN, so that the sample is equal wherever it is made."""
    name = PurePath(source).as_posix().encode(errors="surrogateescape")
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little", signed=True)


def write_one(root: Path, out: Path, sampling: Sampling, file: Conversion) -> dict[str, Any]:
    """Write one file, under another name until it is whole. Returns its line of the manifest."""
    if file.kind == "aside":
        return {"file": file.source, "status": "aside"}

    def write(source: Path, target: Path) -> dict[str, Any]:
        stamp = _stamp(source)  # before reading: what changes meanwhile is done again
        if file.kind == "convert":
            centre = _write_points(source, target, sampling, path_key(file.source))
            line: dict[str, Any] = {"status": "done", "options": _options(sampling)}
            line |= {"centre": centre} if any(centre) else {}
        elif not source.is_file():  # a pipe or a device may have no end
            raise BadSample(str(source), "no regular file")
        else:
            shutil.copyfile(source, target)
            line = {"status": "copied"}
        return {**line, "source": stamp, "bytes": target.stat().st_size}

    return write_file(file, root, out, write, keep=False)  # points of an earlier source would pass for this one's


def _write_points(source: Path, target: Path, sampling: Sampling, key: int) -> list[float]:
    """Write a shape's points. Returns what was subtracted, because the type would not tell its points apart."""
    with in_time(str(source), ITEM_SECONDS):
        read, centre = read_centred(source, sampling.points, key, sampling.channels, sampling.columns)
    points = read.numpy()
    if sampling.dtype == "float16":
        low, high = points[:, :3].min(0).astype(np.float64), points[:, :3].max(0).astype(np.float64)
        if np.abs(points[:, :3]).max() > HALF_OFFSET * (high - low).max():
            middle = (low + high) / 2
            points = np.concatenate([points[:, :3] - middle, points[:, 3:]], 1)
            centre = (centre[0] + float(middle[0]), centre[1] + float(middle[1]), centre[2] + float(middle[2]))
    with np.errstate(over="ignore"):
        values = points.astype(sampling.dtype)
    if not np.isfinite(values).all():
        largest = float(np.abs(points).max())
        raise BadSample(str(source), f"{largest:g} does not fit float16 (65504 at most); take --dtype float32")
    content = io.BytesIO()  # numpy's own writing to files does not say why it failed
    np.save(content, values)
    target.write_bytes(content.getbuffer())
    return list(centre)


def _stamp(path: Path) -> list[int]:
    """Size in bytes and time of change in nanoseconds; a file that is gone has neither."""
    try:
        stat = path.stat()
    except OSError:
        return [-1, -1]
    return [stat.st_size, stat.st_mtime_ns]


def _options(sampling: Sampling) -> dict[str, Any]:
    options = {**asdict(sampling), "channels": list(sampling.channels), "columns": list(sampling.columns)}
    return options if sampling.columns else {name: value for name, value in options.items() if name != "columns"}
