"""``mim-video probe`` and ``mim-video prepare``."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from mim_core import MANIFEST, BadSample, MimError, console, counted, parse, tell
from rich.table import Table

from mim_video.prepare import Encoding, prepare_collection
from mim_video.reader_pyav import PyavReader
from mim_video.readers import LIBRARIES, Reader, known_readers, open_reader

CHUNK, SMALL = 64, (16, 16)
"""Frames that are decoded at once to see whether they do, and the size that they are scaled to."""


@dataclass(frozen=True)
class ProbeOptions:
    """Show what each installed reader sees in a video file: frames, times, size, codec, how many frames do not decode;
    or why it cannot read it."""

    file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """The video."""
    frames: int = 3000
    """So many frames, from the start, are decoded to see whether they do; 0 for all."""
    json: bool = False
    """Print JSON."""


def probe(program: str, plugin: str | None, arguments: list[str]) -> int:
    """``probe FILE``. Exit code 1 when no reader can use the file.

    Raises:
        MimError: --frames is negative.
    """
    options = parse(ProbeOptions, f"{program} probe", arguments)
    if options.frames < 0:
        raise MimError(f"--frames is {options.frames}; it should be a number of frames, or 0 for all.")
    most = options.frames or sys.maxsize
    seen = {name: look(options.file, name, version, most) for name, version in known_readers().items()}
    if options.json:
        tell(json.dumps({"file": str(options.file), "readers": seen}, indent=1))
    else:
        _print_probe(options.file, seen)
    return 0 if any("error" not in facts for facts in seen.values()) else 1


def look(path: Path, name: str, version: str | None, most: int = sys.maxsize) -> dict[str, Any]:
    """What a reader sees in a file, of which at most so many frames are decoded; or ``error``, and ``missing`` where
    its library is not installed."""
    if version is None:
        return {"error": f"not installed: {LIBRARIES[name].install}", "missing": True}
    facts: dict[str, Any] = {"version": version}
    try:
        with open_reader(path, name) as reader:
            bad = failing(reader, most)
            gaps = reader.times.diff()
            facts |= {
                "frames": len(reader),
                "decoded": min(most, len(reader)) - len(bad),
                "do_not_decode": len(bad),
                **({"the_first_of_them": bad[:5]} if bad else {}),
                **({"not_looked_at": len(reader) - most} if most < len(reader) else {}),
                "size": list(reader.size),
                "start": reader.times[0].item(),
                "duration": (reader.times[-1] - reader.times[0]).item(),
                "first_times": [round(time, 6) for time in reader.times[:5].tolist()],
            }
            if len(gaps):
                facts["rate"] = {
                    "mean": round(1 / gaps.mean().item(), 3),
                    "min": round(1 / gaps.max().item(), 3),
                    "max": round(1 / gaps.min().item(), 3),
                }
            return {**facts, **(reader.facts() if hasattr(reader, "facts") else {})}
    except BadSample as error:
        return {**facts, "error": error.reason}
    except MimError as error:
        return {**facts, "error": str(error).splitlines()[0]}


def failing(reader: Reader, most: int) -> list[int]:
    """Frames among the first ``most`` that do not decode."""
    if isinstance(reader, PyavReader):
        return reader.failing(most)
    failures: list[int] = []
    count = min(most, len(reader))
    for start in range(0, count, CHUNK):
        numbers = list(range(start, min(start + CHUNK, count)))
        if not _decode(reader, numbers):
            failures += [number for number in numbers if not _decode(reader, [number])]
    return failures


def _decode(reader: Reader, numbers: list[int]) -> bool:
    try:
        reader.frames_at(numbers, SMALL)
    except BadSample:
        return False
    return True


def _print_probe(path: Path, seen: dict[str, dict[str, Any]]) -> None:
    missing = {name: facts["error"] for name, facts in seen.items() if "missing" in facts}
    seen = {name: facts for name, facts in seen.items() if name not in missing}
    table = Table(title=str(path), title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("", no_wrap=True)
    for name in seen:
        table.add_column(name, overflow="fold")
    rows = list(dict.fromkeys(row for facts in seen.values() for row in facts))
    for row in [row for row in rows if row != "error"] + ["error"] * ("error" in rows):
        table.add_row(row.replace("_", " "), *(_named(row, facts.get(row)) for facts in seen.values()))
    screen = console(markup=False)
    screen.print(table)
    for name, why in missing.items():
        screen.print(f"{name} is {why}")


UNITS = {
    "start": "s",
    "duration": "s",
    "first_times": "s",
    "rate": "frames/s",
    "key_frame_distance": "frames at most",
}
"""What numbers of a row count."""


def _named(row: str, value: Any) -> str:
    """A cell with what its numbers are."""
    if row in ("size", "stored_size") and value:
        return f"{value[1]} x {value[0]} pixels (width x height)"
    text = _cell(value)
    return f"{text} {UNITS[row]}" if text and row in UNITS else text


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_cell(number)}" for name, number in value.items())
    if isinstance(value, list):
        return " ".join(_cell(number) for number in value)
    if isinstance(value, float):
        return f"{value:.6g}"
    return (
        ""
        if value is None
        else {True: "yes", False: "no"}.get(value, str(value))
        if isinstance(value, bool)
        else str(value)
    )


@dataclass(frozen=True)
class PrepareOptions:
    """Re-encode a collection once: smaller frames, a key frame every few, so that clips are read fast from anywhere.

    Videos become H.264 in MP4 under the same name below OUT, upright, every frame at its own time; of two that would
    get one name the second keeps its ending. Lists and others are copied, hidden files left out. The same command goes
    on where it was stopped, and does again what was made from a file that has since changed, or with other options.
    A file of which a frame takes longer than a minute has failed. OUT/manifest.jsonl says what was done.
    """

    root: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="IN")]
    """Folder of videos, nested or not. It is not changed."""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """Folder to write."""
    short_side: int = 320
    """Pixels of the shorter side; smaller videos keep their size."""
    keyint: int = 12
    """At least every so many frames is a key frame."""
    crf: int = 23
    """Quality: 18 can hardly be told from the original, 28 shows."""
    preset: str = "fast"
    """x264's preset: ultrafast to veryslow. Slower makes smaller files."""
    sound: Literal["keep", "drop"] = "drop"
    """Whether the first audio track is kept; as it is where MP4 takes its codec, else as AAC."""
    workers: int = 0
    """Files at a time; as many as there are CPUs by default."""


def prepare(program: str, plugin: str | None, arguments: list[str]) -> int:
    """``prepare IN OUT``. Exit code 1 when some files failed.

    Raises:
        MimError: --short-side, --keyint, --crf or --workers is too small.
    """
    options = parse(PrepareOptions, f"{program} prepare", arguments)
    for name, least in (("short_side", 2), ("keyint", 1), ("crf", 0), ("workers", 0)):
        if getattr(options, name) < least:
            raise MimError(f"--{name.replace('_', '-')} is {getattr(options, name)}; the least is {least}.")
    encoding = Encoding(options.short_side, options.keyint, options.crf, options.preset, options.sound)
    workers = options.workers or len(os.sched_getaffinity(0))
    counts: Counter[str] = Counter()
    for line in prepare_collection(options.root, options.out, encoding, workers):
        counts[line["status"]] += 1
        if line["status"] == "failed":
            tell(f"failed: {line['file']}: {line['reason']}")
        elif line["status"] == "aside":
            tell(f"left out: {line['file']}: {line['reason']}")
        elif line["status"] == "done":
            notes = [f"again: {line['again']}"] if "again" in line else []
            notes += [f"{line['lost']} more do not decode"] if "lost" in line else []
            notes += [f"from {line['file']}: {line['renamed']}"] if "renamed" in line else []
            text = f" ({'; '.join(notes)})" if notes else ""
            tell(f"{line['out']}: {counted(line['frames'], 'frame')}, {line['bytes'] / 2**20:.1f} MiB{text}")
    text = ", ".join(f"{counts[status]} {status}" for status in ("done", "copied", "skipped", "failed"))
    text += f", {counts['aside']} left out" if counts["aside"] else ""
    tell(f"{text}; see {options.out / MANIFEST}")
    return 1 if counts["failed"] else 0
