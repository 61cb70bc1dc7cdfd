"""Re-encoding a collection once: smaller frames and a key frame every few, so that clips are read fast."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import av
import torch
from av.video.reformatter import Colorspace
from mim_core.errors import BadSample, MimError

from mim_video.layouts import EXTENSIONS
from mim_video.reader_pyav import PyavReader
from mim_video.readers import open_reader

MANIFEST = "manifest.jsonl"
SETTINGS = "prepare.json"
PARTIAL = ".partial"
"""What the name of a file that is being written ends in."""


@dataclass(frozen=True)
class Encoding:
    """How videos are written: H.264 in MP4, upright, 8 bits, without sound, each frame at its own time.

    Attributes:
        short_side: Pixels of the shorter side; smaller videos keep their size, but sides are made even.
        keyint: At least every so many frames is a key frame.
        crf: x264's quality: 18 can hardly be told from the original, 28 shows.
        preset: x264's preset: slower makes smaller files.
    """

    short_side: int = 320
    keyint: int = 12
    crf: int = 23
    preset: str = "fast"


@dataclass(frozen=True)
class Job:
    """One file of the collection, and where it goes; paths below the two folders."""

    source: str
    target: str
    video: bool


def plan(root: Path, out: Path) -> list[Job]:
    """What there is to do: videos become MP4, lists and other files are copied.

    Raises:
        MimError: No folder, no videos, or two videos would have one name.
    """
    if not root.is_dir():
        raise MimError(f"{root} is no folder. Usage: mim-video prepare IN OUT, with IN a folder of videos.")
    if root.resolve() == out.resolve():
        raise MimError(f"IN and OUT are both {root}: originals are never overwritten. Give another folder as OUT.")
    jobs = []
    for folder, folders, names in os.walk(root, followlinks=True):
        folders[:] = sorted(n for n in folders if (Path(folder) / n).resolve() != out.resolve())
        for name in sorted(names):
            source = (Path(folder) / name).relative_to(root)
            video = source.suffix.lower() in EXTENSIONS
            jobs.append(Job(str(source), str(source.with_suffix(".mp4") if video else source), video))
    if not any(job.video for job in jobs):
        raise MimError(f"There are no videos in {root}. Looked for {', '.join(EXTENSIONS)}.")
    counts = Counter(job.target for job in jobs)
    twice = [job.source for job in jobs if counts[job.target] > 1]
    if twice:
        raise MimError(f"These would get the same name: {', '.join(twice[:4])}. Rename or move one of them.")
    return jobs


def prepare_collection(root: Path, out: Path, encoding: Encoding, workers: int) -> Iterator[dict[str, Any]]:
    """Do what is not done yet. Yields a line of the manifest for each file, as it is finished.

    Raises:
        MimError: Nothing to do, or OUT was made with other settings.
    """
    jobs = plan(root, out)
    out.mkdir(parents=True, exist_ok=True)
    _check_settings(out / SETTINGS, encoding)
    before = _read_manifest(out / MANIFEST)
    lines: dict[str, dict[str, Any]] = {}
    with (out / MANIFEST).open("a") as manifest:
        for line in _results(root, out, encoding, workers, jobs):
            if line["status"] == "skipped":  # done by an earlier run: what that one wrote stays
                lines[line["file"]] = before.get(line["file"], line)
            else:
                lines[line["file"]] = line
                manifest.write(json.dumps(line) + "\n")
                manifest.flush()
            yield line
    ordered = [lines[job.source] for job in jobs]
    _write_whole(out / MANIFEST, "".join(json.dumps(line) + "\n" for line in ordered))


def _results(root: Path, out: Path, encoding: Encoding, workers: int, jobs: list[Job]) -> Iterator[dict[str, Any]]:
    left = []
    for job in jobs:
        if (out / job.target).is_file():
            yield {"file": job.source, "out": job.target, "status": "skipped"}
        else:
            left.append(job)
    if workers <= 1:
        yield from (run_job(root, out, encoding, job) for job in left)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, max(1, len(left))), mp_context=context) as pool:
        rest, running = iter(left), set[Future[dict[str, Any]]]()
        while True:
            for job in itertools.islice(rest, 2 * workers - len(running)):
                running.add(pool.submit(run_job, root, out, encoding, job))
            if not running:
                return
            done, running = wait(running, return_when=FIRST_COMPLETED)
            try:
                yield from (future.result() for future in done)
            except BrokenExecutor as error:
                raise MimError(
                    "A worker died, as one does when memory runs out. The same command goes on from here; "
                    "take fewer --workers."
                ) from error


def run_job(root: Path, out: Path, encoding: Encoding, job: Job) -> dict[str, Any]:
    """Write one file, under another name until it is whole. Returns its line of the manifest."""
    torch.set_num_threads(1)
    source, target = root / job.source, out / job.target
    partial = target.with_name(target.name + PARTIAL)
    line: dict[str, Any] = {"file": job.source, "out": job.target}
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if job.video:
            line |= {"status": "done", **encode_video(source, partial, encoding)}
        else:
            shutil.copyfile(source, partial)
            line["status"] = "copied"
        partial.replace(target)
    except (BadSample, OSError, av.FFmpegError, ValueError) as error:
        partial.unlink(missing_ok=True)
        reason = error.reason if isinstance(error, BadSample) else str(error)
        return {"file": job.source, "status": "failed", "reason": reason}
    return line


def encode_video(source: Path, target: Path, encoding: Encoding) -> dict[str, Any]:
    """Re-encode a video; frames keep their times.

    Raises:
        BadSample: It cannot be read, or what was written does not read back as many frames.
    """
    with PyavReader(_regular(source)) as reader:
        size, frames = new_size(reader.size, encoding.short_side), 0
        with av.open(f"file:{target}", "w", format="mp4") as out:
            stream = _stream(out, reader, size, encoding)
            for stamp, picture in reader.walk(size):
                frame = av.VideoFrame.from_ndarray(picture.numpy(), format="rgb24")
                frame = frame.reformat(format="yuv420p", dst_colorspace=Colorspace.SMPTE170M, threads=1)
                frame.pts, frame.time_base = stamp, reader.time_base
                frames += 1
                out.mux(stream.encode(frame))
            out.mux(stream.encode(None))
        seconds = float(reader.times[-1] - reader.times[0])
    with open_reader(target, "pyav") as written:
        if len(written) != frames:
            raise BadSample(str(source), f"{len(written)} of {frames} frames were written")
    sizes = {"bytes_before": source.stat().st_size, "bytes": target.stat().st_size}
    return {"frames": frames, "seconds": round(seconds, 3), "size": list(size), **sizes}


def _stream(out: Any, reader: PyavReader, size: tuple[int, int], encoding: Encoding) -> Any:
    options = {"crf": str(encoding.crf), "preset": encoding.preset, "x264-params": "open-gop=0"}
    stream = out.add_stream("libx264", rate=30, options=options)  # the rate is not used: frames have their times
    stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
    context = stream.codec_context
    context.time_base, context.gop_size, context.thread_count = reader.time_base, encoding.keyint, 1
    context.colorspace, context.color_range = Colorspace.SMPTE170M, 1  # 1: the limited range
    return stream


def new_size(size: tuple[int, int], short_side: int) -> tuple[int, int]:
    """Height and width with the short side asked for, never larger, both even."""
    factor = min(1.0, short_side / min(size))
    height, width = (max(2, 2 * round(side * factor / 2)) for side in size)
    return height, width


def _regular(path: Path) -> Path:
    if not path.is_file() or path.stat().st_size == 0:
        raise BadSample(str(path), "the file is empty" if path.is_file() else "it is no regular file")
    return path


def _check_settings(path: Path, encoding: Encoding) -> None:
    now = asdict(encoding)
    if path.is_file() and (before := json.loads(path.read_text())) != now:
        different = ", ".join(
            f"{name} {before.get(name)} (now {now[name]})" for name in now if before.get(name) != now[name]
        )
        raise MimError(f"{path.parent} was prepared with {different}. Take the same options, or another folder.")
    _write_whole(path, json.dumps(now) + "\n")


def _read_manifest(path: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for text in path.read_text().splitlines() if path.is_file() else ():
        try:
            line = json.loads(text)
        except ValueError:  # cut off when a run was killed
            continue
        found[line["file"]] = line
    return found


def _write_whole(path: Path, text: str) -> None:
    partial = path.with_name(path.name + PARTIAL)
    partial.write_text(text)
    partial.replace(path)
