"""Re-encoding a collection once: smaller frames and a key frame every few, so that clips are read fast."""

from __future__ import annotations

import functools
import json
import math
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import av
import torch
from av.video.reformatter import Colorspace
from mim_core import ITEM_SECONDS, BadSample, MimError, in_processes, in_time, walk_folders

from mim_video.layouts import EXTENSIONS, no_videos
from mim_video.reader_pyav import PyavReader
from mim_video.readers import open_reader
from mim_video.sound import open_sound

MANIFEST = "manifest.jsonl"
HIDDEN = "it is hidden"
SLOWEST = 10 * 2**20
"""Bytes per second of a slow disk, by which a pass over a whole file may take longer than an item."""
PARTIAL = ".partial"
"""What the name of a file that is being written ends in."""


@dataclass(frozen=True)
class Encoding:
    """How videos are written: H.264 in MP4, upright, 8 bits, each frame at its own time.

    Attributes:
        short_side: Pixels of the shorter side; smaller videos keep their size, but sides are made even.
        keyint: At least every so many frames is a key frame.
        crf: x264's quality: 18 can hardly be told from the original, 28 shows.
        preset: x264's preset: slower makes smaller files.
        sound: Whether the first audio track stays; as it is where MP4 takes its codec, else as AAC.
    """

    short_side: int = 320
    keyint: int = 12
    crf: int = 23
    preset: str = "fast"
    sound: Literal["keep", "drop"] = "drop"


@dataclass(frozen=True)
class Job:
    """One file of the collection, and where it goes; paths below the two folders.

    Attributes:
        source: The file below IN; a folder's path ends in a slash.
        target: Its place below OUT.
        video: Whether it is encoded; else copied.
        again: Why it is written a second time.
        renamed: Why it does not get its own name.
        aside: Why it is left out.
    """

    source: str
    target: str
    video: bool
    again: str = ""
    renamed: str = ""
    aside: str = ""


def plan(root: Path, out: Path) -> list[Job]:
    """What there is to do: videos become MP4, lists and other files are copied; hidden ones are left out, and so is a
    manifest in IN. Links are followed, and each real folder is visited once.

    Raises:
        MimError: No folder, or no videos.
    """
    if not root.is_dir():
        raise MimError(f"{root} is no folder. Usage: mim-video prepare IN OUT, with IN a folder of videos.")
    if root.resolve() == out.resolve():
        raise MimError(f"IN and OUT are both {root}: originals are never overwritten. Give another folder as OUT.")
    jobs = []
    for folder, names, folders in walk_folders(root, hidden=True):
        below = folder.relative_to(root)
        jobs += [Job(f"{below / n}/", "", False, aside=HIDDEN) for n in folders if n.startswith(".")]
        folders[:] = [n for n in folders if not n.startswith(".") and (folder / n).resolve() != out.resolve()]
        for source in (below / name for name in names):
            video = source.suffix.lower() in EXTENSIONS
            aside = HIDDEN if source.name.startswith(".") else ""
            aside = f"OUT/{MANIFEST} is written here" if source == Path(MANIFEST) else aside
            jobs.append(Job(str(source), str(source.with_suffix(".mp4") if video else source), video, aside=aside))
    if not any(job.video and not job.aside for job in jobs):
        others = Counter(Path(job.source).suffix.lower() or "no ending" for job in jobs if not job.aside)
        raise no_videos(root, ", ".join(EXTENSIONS), others)
    return _with_own_names(jobs)


def _with_own_names(jobs: list[Job]) -> list[Job]:
    """The same, each with a target of its own: of videos that would get one name, the first that has it already, or
    else the first, gets it; the others keep their endings."""
    takers: dict[str, str] = {}
    for job in sorted(jobs, key=lambda job: job.source != job.target):  # stable: who has the name comes first
        if not job.aside:
            takers.setdefault(job.target, job.source)
    named = []
    for job in jobs:
        if job.aside or takers[job.target] == job.source:
            named.append(job)
            continue
        target = f"{job.source}.mp4"
        while target in takers:
            target += ".mp4"
        takers[target] = job.source
        named.append(replace(job, target=target, renamed=f"{job.target} is made of {takers[job.target]}"))
    return named


def prepare_collection(root: Path, out: Path, encoding: Encoding, workers: int) -> Iterator[dict[str, Any]]:
    """Do what is not done yet, and what was done from a file that has changed or with other settings. Yields a line of
    the manifest for each file, as it is finished.

    Raises:
        MimError: Nothing to do, or a worker died.
    """
    jobs = plan(root, out)
    out.mkdir(parents=True, exist_ok=True)
    before = _read_manifest(out / MANIFEST)
    lines: dict[str, dict[str, Any]] = {}
    with (out / MANIFEST).open("a") as manifest:
        for line in _results(root, out, encoding, workers, jobs, before):
            if line["status"] == "skipped":  # done by an earlier run: what that one wrote stays
                lines[line["file"]] = before[line["file"]]
            else:
                lines[line["file"]] = line
                manifest.write(json.dumps(line) + "\n")
                manifest.flush()
            yield line
    ordered = [lines[job.source] for job in jobs]
    _write_whole(out / MANIFEST, "".join(json.dumps(line) + "\n" for line in ordered))


def made_of(source: Path, encoding: Encoding | None) -> dict[str, Any]:
    """What a file of OUT depends on, as the manifest remembers it: size and time of the source, and the settings, None
    for what is copied."""
    facts = source.stat()
    settings = {"encoding": asdict(encoding)} if encoding else {}
    return {"source": {"bytes": facts.st_size, "modified": facts.st_mtime_ns}, **settings}


def outdated(before: dict[str, Any] | None, now: dict[str, Any], target: str) -> str | None:
    """Why a file is written again; None when what lies in OUT is what would be written.

    Args:
        before: Its line of the manifest.
        now: What it is made of, see `made_of`.
        target: Where it goes.
    """
    if before is None or before["status"] == "failed":
        return "it was not finished"
    if before.get("source") != now["source"]:
        return "its source has changed"
    if before.get("out") != target:
        return "another file had this name"
    old, new = before.get("encoding", {}), now.get("encoding", {})
    other = [f"{name} {new[name]}, was {old.get(name)}" for name in new if old.get(name) != new[name]]
    return "; ".join(other) or None


def _results(
    root: Path, out: Path, encoding: Encoding, workers: int, jobs: list[Job], before: dict[str, dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    left: list[Job] = []
    for job in jobs:
        if job.aside:
            yield {"file": job.source, "status": "aside", "reason": job.aside}
            continue
        there = (out / job.target).is_file() and (root / job.source).is_file()
        now = made_of(root / job.source, encoding if job.video else None) if there else {}
        why = outdated(before.get(job.source), now, job.target) if there else ""
        if why is None:
            yield {"file": job.source, "out": job.target, "status": "skipped"}
        else:
            left.append(replace(job, again=why))
    yield from in_processes(functools.partial(run_job, root, out, encoding), left, workers)


def run_job(root: Path, out: Path, encoding: Encoding, job: Job) -> dict[str, Any]:
    """Write one file, under another name until it is whole. Returns its line of the manifest."""
    torch.set_num_threads(1)
    source, target = root / job.source, out / job.target
    partial = target.with_name(target.name + PARTIAL)
    line: dict[str, Any] = {"file": job.source, "out": job.target}
    line |= {name: text for name, text in (("again", job.again), ("renamed", job.renamed)) if text}
    try:
        line |= made_of(source, encoding if job.video else None)  # before it is read: a later change is noticed
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
        stays = "; the one written before stays" if target.is_file() else ""
        return {"file": job.source, "status": "failed", "reason": reason + stays}
    return line


def encode_video(source: Path, target: Path, encoding: Encoding) -> dict[str, Any]:
    """Re-encode a video; frames keep their times. Those that do not decode are left out, and counted as ``lost``.

    Raises:
        BadSample: It cannot be read, or not in time, or what was written does not read back as many frames.
    """
    # one frame has the time of an item, and passes over the whole file as much more as its bytes take
    whole = functools.partial(in_time, str(source), ITEM_SECONDS + _regular(source).stat().st_size / SLOWEST)
    with whole():
        opened = PyavReader(source)
    with opened as reader:
        size, frames = new_size(reader.size, encoding.short_side), 0
        with av.open(f"file:{target}", "w", format="mp4") as out, ExitStack() as stack:
            stream = _stream(out, reader, size, encoding)
            with whole():
                sound = stack.enter_context(open_sound(source, out)) if encoding.sound == "keep" else None
            pictures = reader.walk(size)
            while True:
                with in_time(str(source), ITEM_SECONDS):
                    found = next(pictures, None)
                    if found is None:
                        break
                    _write(found, reader, out, stream, sound)
                    frames += 1
            with whole():
                out.mux(stream.encode(None))
                if sound is not None:
                    sound.write_until(math.inf)
        seconds, lost = float(reader.times[-1] - reader.times[0]), len(reader) - frames
    with whole(), open_reader(target, "pyav") as written:
        if len(written) != frames:
            raise BadSample(str(source), f"{len(written)} of {frames} frames were written")
    sizes = {"bytes_before": source.stat().st_size, "bytes": target.stat().st_size}
    more: dict[str, Any] = {} if sound is None else {"sound": sound.codec}
    more |= {"lost": lost} if lost else {}
    return {"frames": frames, "seconds": round(seconds, 3), "size": list(size), **sizes, **more}


def _write(found: tuple[int, Any], reader: PyavReader, out: Any, stream: Any, sound: Any) -> None:
    """One frame, and the sound up to it."""
    stamp, picture = found
    frame = av.VideoFrame.from_ndarray(picture.numpy(), format="rgb24")
    frame = frame.reformat(format="yuv420p", dst_colorspace=Colorspace.SMPTE170M, threads=1)
    frame.pts, frame.time_base = stamp, reader.time_base
    if sound is not None:
        sound.write_until(float(stamp * reader.time_base))
    out.mux(stream.encode(frame))


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


def _write_whole(path: Path, text: str) -> None:
    partial = path.with_name(path.name + PARTIAL)
    partial.write_text(text)
    partial.replace(path)
