"""What official lists say: UCF101's text files, Kinetics' csv, Something-Something's json."""

from __future__ import annotations

import csv
import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from mim_core import MimError, collections

TIMED = ("youtube_id", "time_start", "time_end")
"""Columns that make a csv file one of Kinetics'."""


@dataclass(frozen=True)
class Entry:
    """One line of a list: the file's name without folder and ending, its class, and its part in seconds."""

    stem: str
    label: str
    window: tuple[float, float] | None = None


def ucf101_classes(path: Path) -> tuple[str, ...]:
    """The second word of each line of classInd.txt, in order.

    Raises:
        MimError: A line has no two words.
    """
    lines = [(number, text.split()) for number, text in _lines(path)]
    for number, words in lines:
        if len(words) != 2:
            raise MimError(f"{path}, line {number} should be a number and a class and is {' '.join(words)!r}.")
    return tuple(words[1] for _, words in lines)


def ucf101_entries(path: Path) -> list[Entry]:
    """The clips of a train or test list: ``Class/v_Class_g01_c01.avi``, then a number or nothing."""
    rows = [PurePosixPath(text.split()[0]) for _, text in _lines(path)]
    return [Entry(row.stem, row.parent.name) for row in rows]


def _lines(path: Path) -> list[tuple[int, str]]:
    """Lines that are not blank, with their numbers."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise MimError(f"{path} is no text in UTF-8: {error}.") from error
    return [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]


def header(path: Path) -> list[str]:
    """The names of a csv file's columns."""
    with open(path, newline="", encoding="utf-8-sig", errors="replace") as file:
        return next(csv.reader(file), [])


def kinetics_rows(path: Path) -> Iterator[tuple[str, Entry]]:
    """(split, entry) of each row of a csv file.

    Raises:
        MimError: A row has no youtube_id, or is for training and has no class, or the file is no csv in UTF-8.
    """
    with open(path, newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        try:
            for row in rows:
                where = f"{path}, line {rows.line_num}"
                split_name, stem = (row.get("split") or "").strip().lower(), (row["youtube_id"] or "").strip()
                split = (collections.split_of(split_name) or split_name) or split_of(path)
                label = (row.get("label") or "").strip()
                if not stem:
                    raise MimError(f"{where}: the column youtube_id is empty.")
                if split == "train" and not label:
                    fault = "is empty" if "label" in row else f"is missing; there are {', '.join(header(path))}"
                    raise MimError(f"{where}: {stem} is for training and has no class: the column label {fault}.")
                yield split, Entry(stem, label, _part(row, where))
        except (csv.Error, UnicodeDecodeError) as error:
            raise MimError(f"{path}, after line {rows.line_num}: no csv in UTF-8: {error}.") from error


def _part(row: dict[str, str], where: str) -> tuple[float, float]:
    """The part of a video that a row names, in seconds."""
    times = []
    for column in ("time_start", "time_end"):
        try:
            times.append(float(row[column] or ""))
        except ValueError:
            times.append(math.nan)
        if not math.isfinite(times[-1]):
            raise MimError(f"{where}: the column {column} should be a number of seconds and is {row[column] or ''!r}.")
    if not times[0] < times[1]:
        raise MimError(f"{where}: time_end ({times[1]:g}) should be larger than time_start ({times[0]:g}).")
    return times[0], times[1]


def names_a_clip(path: Path, root: Path) -> bool:
    """Whether one of the first two lines of a list begins with the path of a file or folder that is there."""
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        lines = [line.strip() for line in itertools.islice(file, 2)]
    for line in lines:
        cut = [line.split(mark)[0].strip() for mark in "\t,;" if mark in line]
        cut += [line.rsplit(maxsplit=cells)[0] for cells in (1, 2) if len(line.split()) > cells]
        if any(0 < len(name) < 4096 and "\0" not in name and (root / name).exists() for name in cut):
            return True
    return False


def split_of(path: Path) -> str:
    """The split that a file's name tells; train where it tells none."""
    match = re.search(r"train|val|test", path.stem.lower())
    return collections.split_in(path.stem) or (match.group() if match else "train")


def ssv2_labels(path: Path) -> dict[str, int]:
    """The classes and their numbers.

    Raises:
        MimError: It is no object of label to number.
    """
    content = _json(path)
    try:
        return {label: int(number) for label, number in content.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise MimError(f"{path} should be an object of label to number.") from error


def ssv2_entries(path: Path, numbers: Mapping[str, int]) -> list[Entry]:
    """The clips of a list of objects with ``id`` and ``template``. A row's class is its template without the brackets;
    rows without template have it as their label.

    Raises:
        MimError: It is no such list, or a template is no label.
    """
    rows = _json(path)
    if not isinstance(rows, list) or not all(isinstance(row, dict) and "id" in row for row in rows):
        raise MimError(f"{path} should be a list of objects, each with id and template.")
    entries = []
    for row in rows:
        text = str(row.get("template") or row.get("label") or "")
        label = text.replace("[", "").replace("]", "")
        if label not in numbers:
            raise MimError(f"{path}: the clip {row['id']} has the template {text!r}, which is no label.")
        entries.append(Entry(str(row["id"]), label))
    return entries


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise MimError(f"{path} cannot be read: {error}") from error
