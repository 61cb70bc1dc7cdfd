"""Re-encoding a collection once: smaller frames and a key frame every few, so that clips are read fast."""

from __future__ import annotations

import functools
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
from mim_core import (
    ITEM_SECONDS,
    MANIFEST,
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

from mim_video.layouts import EXTENSIONS, no_videos
from mim_video.reader_pyav import PyavReader
from mim_video.readers import open_reader
from mim_video.sound import open_sound

HIDDEN = "it is hidden"
SLOWEST = 10 * 2**20
"""Bytes per second of a slow disk, by which a pass over a whole file may take longer than an item."""


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


def plan(root: Path, out: Path) -> list[Conversion]:
    """What there is to do: videos become MP4, lists and other files are copied; hidden ones are left out, and so is a
    manifest in IN. Links are followed, and each real folder is visited once.

    Raises:
        MimError: No folder, or no videos.
    """
    if not root.is_dir():
        raise MimError(f"{root} is no folder. Usage: mim-video prepare IN OUT, with IN a folder of videos.")
    if root.resolve() == out.resolve():
        raise MimError(f"IN and OUT are both {root}: originals are never overwritten. Give another folder as OUT.")
    files: list[Conversion] = []
    for folder, names, folders in walk_folders(root, hidden=True):
        below = folder.relative_to(root)
        files += [Conversion(f"{below / n}/", "", "aside", reason=HIDDEN) for n in folders if n.startswith(".")]
        folders[:] = [n for n in folders if not n.startswith(".") and (folder / n).resolve() != out.resolve()]
        for source in (below / name for name in names):
            video = source.suffix.lower() in EXTENSIONS
            aside = HIDDEN if source.name.startswith(".") else ""
            aside = f"OUT/{MANIFEST} is written here" if source == Path(MANIFEST) else aside
            kind: Literal["convert", "copy", "aside"] = "aside" if aside else "convert" if video else "copy"
            target = source.with_suffix(".mp4") if video else source
            files.append(Conversion(str(source), str(target), kind, reason=aside))
    if not any(file.kind == "convert" for file in files):
        others = Counter(Path(file.source).suffix.lower() or "no ending" for file in files if file.kind == "copy")
        raise no_videos(root, ", ".join(EXTENSIONS), others)
    return with_own_names(files, ".mp4")


def prepare_collection(root: Path, out: Path, encoding: Encoding, workers: int) -> Iterator[dict[str, Any]]:
    """Do what is not done yet, and what was done from a file that has changed or with other settings. Yields a line of
    the manifest for each file, as it is finished.

    Raises:
        MimError: Nothing to do, another process does it, or a worker died.
    """
    files = plan(root, out)
    with converting_alone(out):
        manifest = Manifest(out)
        yield from manifest.follow(files, _results(root, out, encoding, workers, files, manifest.before))


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
    root: Path, out: Path, encoding: Encoding, workers: int, files: list[Conversion], before: dict[str, dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    left: list[Conversion] = []
    for file in files:
        if file.kind == "aside":
            yield {"file": file.source, "status": "aside", "reason": file.reason}
            continue
        exists = (out / file.target).is_file() and (root / file.source).is_file()
        now = made_of(root / file.source, encoding if file.kind == "convert" else None) if exists else {}
        why = outdated(before.get(file.source), now, file.target) if exists else ""
        if why is None:
            yield {"file": file.source, "out": file.target, "status": "skipped"}
        else:
            left.append(replace(file, reason=why))
    yield from in_processes(functools.partial(write_one, root, out, encoding), left, workers)


def write_one(root: Path, out: Path, encoding: Encoding, file: Conversion) -> dict[str, Any]:
    """Write one file, under another name until it is whole. Returns its line of the manifest."""
    torch.set_num_threads(1)

    def write(source: Path, target: Path) -> dict[str, Any]:
        origin = made_of(
            source, encoding if file.kind == "convert" else None
        )  # before it is read: a later change shows
        if file.kind == "convert":
            return {**origin, "status": "done", **encode_video(source, target, encoding)}
        shutil.copyfile(source, target)
        return {**origin, "status": "copied"}

    return write_file(file, root, out, write, keep=True, faults=(av.FFmpegError,))


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
                    timed_frame = next(pictures, None)
                    if timed_frame is None:
                        break
                    _write(timed_frame, reader, out, stream, sound)
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


def _write(timed_frame: tuple[int, Any], reader: PyavReader, out: Any, stream: Any, sound: Any) -> None:
    """One frame, and the sound up to it."""
    stamp, picture = timed_frame
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
