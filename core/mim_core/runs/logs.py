"""What a run writes line by line (metrics.jsonl, probes.jsonl, skipped.jsonl) and its scores.json, read with care: a
process may have been killed, or a disk full, within a line. Whole lines count; others are left out with a warning."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from mim_core.errors import MimError, warn
from mim_core.runs.run import PHASES
from mim_core.runs.state import StateError, read_json
from mim_core.scores import Score

METRICS, PROBES, SKIPPED = "metrics.jsonl", "probes.jsonl", "skipped.jsonl"


LONGEST = 1 << 20
"""Bytes of the longest line."""


MOST = 1 << 30
"""Bytes of a log that are read; what is behind them is left out."""


_NUMBERS = ("step", "epoch", "loss", "lr", "grad_norm", "samples_per_second", "seconds_per_step")


Line = dict[str, Any]


def read(path: Path) -> list[Line]:
    """The whole lines of a log; none where it is not there. Warns of those that are left out.

    Raises:
        MimError: It is no regular file, or cannot be read.
    """
    lines, lost = _parted(path)
    if lost:
        total = len(lines) + lost
        warn(f"{path}: {lost:,} of {total:,} lines are damaged and left out; the others are used.")
    return lines


def mend(path: Path, keep: Callable[[Line], bool] = lambda line: True) -> list[Line]:
    """Writes a log anew with its whole lines that are to be kept, so that what is added starts a line of its own.

    Raises:
        MimError: It is no regular file, or cannot be read.
        OSError: It cannot be written.
    """
    from mim_core.disk import write_whole

    if not path.exists() and not path.is_symlink():
        return []
    kept = [line for line in read(path) if keep(line)]
    write_whole(path, "".join(json.dumps(line) + "\n" for line in kept))
    return kept


def _parted(path: Path) -> tuple[list[Line], int]:
    """(whole lines, how many are damaged)."""
    try:
        if not path.is_file():
            if path.exists():
                raise MimError(f"{path} is no regular file. Move it away, then rerun the command.")
            return [], 0
        fits, lines, lost = _FITS.get(path.name, _is_table), list[Line](), 0
        for text in _lines(path):
            if text is not None and not text.strip():
                continue
            line = None if text is None else _parsed(text)
            if line is not None and fits(line):
                lines.append(line)
            else:
                lost += 1
    except OSError as error:
        raise MimError(f"{path} cannot be read: {error.strerror or error}. Mend that, or move it away.") from error
    return lines, lost


def _lines(path: Path) -> Iterator[bytes | None]:
    """The lines of a log, one after another; None for one that is longer than any of ours, and for all behind `MOST`
    bytes: a damaged log may say gigabytes of zeros."""
    with open(path, "rb") as file:
        while file.tell() < MOST:
            line = part = file.readline(LONGEST)
            if not line:
                return
            while len(part) == LONGEST and part[-1:] != b"\n" and file.tell() < MOST:
                part = file.readline(LONGEST)
            yield line if part is line else None
        if file.read(1):
            yield None


def _parsed(text: bytes) -> Any:
    """What a line holds; None where it is no whole JSON."""
    try:
        return json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError):
        return None


def _is_table(line: Any) -> bool:
    return isinstance(line, dict)


def _number(value: Any) -> bool:
    return (isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300) or _nan(value)


def _nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _is_reading(line: Any) -> bool:
    if not isinstance(line, dict) or not all(_number(line.get(name)) for name in _NUMBERS):
        return False
    more = [value for name, value in line.items() if name.startswith("loss/") or name == "mfu"]
    phases = [line.get(f"time/{phase}") for phase in PHASES]
    return all(map(_number, [*more, *phases])) and line["step"] > 0


def _is_judgement(line: Any) -> bool:
    fine = isinstance(line, dict) and _number(line.get("step")) and _number(line.get("epoch"))
    return (
        fine and isinstance(line.get("scores"), list) and all(map(_is_score, line["scores"])) and bool(line["scores"])
    )


def _is_skipped(line: Any) -> bool:
    return isinstance(line, dict) and isinstance(line.get("file"), str) and isinstance(line.get("reason"), str)


_FITS: dict[str, Callable[[Any], bool]] = {METRICS: _is_reading, PROBES: _is_judgement, SKIPPED: _is_skipped}


# ---- scores ----------------------------------------------------------------------------------------------------------


def _is_score(score: Any) -> bool:
    known = {each.name for each in fields(Score)}
    if not isinstance(score, dict) or not {"row", "column", "value"} <= set(score) <= known:
        return False
    texts = isinstance(score["row"], str) and isinstance(score["column"], str)
    beside = [score.get("spread"), score.get("error")]
    return texts and _number(score["value"]) and all(each is None or _number(each) for each in beside)


def read_scores(path: Path) -> dict[str, Any] | None:
    """What a scores.json holds, its scores as `Score`; None where it is not there, or is damaged, which is a
    warning."""
    if not path.exists():
        return None
    try:
        content = read_json(path)
        if not isinstance(content, dict) or not isinstance(content.get("scores"), list):
            raise StateError(f"{path.name} holds no table of scores")
        if not all(map(_is_score, content["scores"])):
            raise StateError(f"{path.name} holds a score that is none")
        notes, title = content.get("notes", []), content.get("title", "")
        if not isinstance(title, str) or not isinstance(notes, list) or not all(isinstance(n, str) for n in notes):
            raise StateError(f"{path.name} holds notes that are no text")
    except StateError as error:
        warn(f"{path} is damaged and left out: {error}. To make it anew, give the command that judged the run again.")
        return None
    return {**content, "notes": notes, "scores": [Score(**score) for score in content["scores"]]}
