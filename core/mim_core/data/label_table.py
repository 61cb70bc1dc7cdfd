"""Labels of files from a table: columns by name, or VideoMAE's lists of a path and a label in each line."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from mim_core.data.collections import HELD_OUT, split_of
from mim_core.errors import MimError, one_line
from mim_core.text import counted

PATHS = ("path", "file", "filename", "file_name", "filepath", "image", "image_id", "video", "clip", "name", "id")
"""What the column of files may be called; the first that is there counts."""
LABELS = ("label", "class", "class_name", "category", "target", "y")
"""The same of the labels."""
SPLITS = ("split", "set", "subset", "partition", "fold")
"""The same of the split, which a table may lack."""


@dataclass(frozen=True)
class LabelTable:
    """Labels and splits of files.

    Attributes:
        path: The table.
        rows: File, as the table has it -> (label, split: "train", "test", or empty).
    """

    path: Path
    rows: Mapping[str, tuple[str, str]]

    def of(self, names: Sequence[str], root: Path) -> Labelling:
        """The labels of files below a root. A row belongs to the file of its path below the root or below the table's
        folder; else to the only one of that name, with or without its ending.

        Raises:
            MimError: No row names any of the files, or all have one label.
        """
        wholes = {PurePosixPath(name.replace("\\", "/")).as_posix(): number for number, name in enumerate(names)}
        shorter = [_only(wholes, key) for key in (_name, _stem)]
        found: dict[int, tuple[str, str]] = {}
        lost: list[str] = []
        for file, value in self.rows.items():
            number = self._number(file, root, wholes, shorter)
            if number is None:
                lost.append(file)
            else:
                found[number] = value
        if not found:
            raise MimError(
                f"{self.path}: none of its {len(self.rows):,} rows names a file of {root}. It has {lost[0]!r}, and "
                f"there is {names[0] if names else 'nothing'!r}."
            )
        classes = tuple(sorted({label for label, _ in found.values()}))
        if len(classes) < 2:
            raise MimError(f"{self.path}: all of its labels are {classes[0]!r}; there must be two classes at least.")
        labels = tuple(classes.index(found[i][0]) if i in found else -1 for i in range(len(names)))
        splits = tuple(found[i][1] if i in found else "" for i in range(len(names)))
        advice = []
        if lost:
            advice.append(f"{counted(len(lost), 'row')} of {self.path} name no file of {root} ({lost[0]}).")
        bare = [name for name, label in zip(names, labels, strict=True) if label < 0]
        if bare:
            advice.append(f"{counted(len(bare), 'file')} have no label in {self.path} ({bare[0]}).")
        return Labelling(classes, labels, splits, tuple(advice))

    def _number(
        self, file: str, root: Path, wholes: Mapping[str, int], shorter: Sequence[Mapping[str, int]]
    ) -> int | None:
        plain = PurePosixPath(file.replace("\\", "/")).as_posix()
        spelt = [plain]
        for base in (root, self.path.parent):
            whole = Path(plain) if Path(plain).is_absolute() else self.path.parent / plain
            try:
                spelt.append(whole.resolve().relative_to(base.resolve()).as_posix())
            except ValueError:
                continue
        for one in spelt:
            if one in wholes:
                return wholes[one]
        by_name, by_stem = shorter
        return by_name.get(_name(plain), by_stem.get(_stem(plain)))


@dataclass(frozen=True)
class Labelling:
    """The labels of some files.

    Attributes:
        classes: Names, sorted.
        labels: Number of each file's class; -1 where it has none.
        splits: "train", "test", or empty.
        advice: What does not fit, in words.
    """

    classes: tuple[str, ...]
    labels: tuple[int, ...]
    splits: tuple[str, ...]
    advice: tuple[str, ...] = ()


def read_label_table(path: Path, column: str = "") -> LabelTable:
    """A table of comma, semicolon or tab separated values whose first line names the columns; or a list without names,
    a path and a label in each line.

    Args:
        path: The file.
        column: The column of labels; empty: one of the usual names.

    Raises:
        MimError: It is no such table; says what it has.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise MimError(f"--data.labels-from {path} cannot be read: {one_line(error)}.") from error
    if "\0" in text:
        raise MimError(f"{path} cannot be read: it has NUL characters; save it as UTF-8.")
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise MimError(f"{path} is empty; it should have a column of files and one of labels.")
    mark = next((mark for mark in ("\t", ",", ";") if mark in lines[0]), "")
    head = [cell.strip().strip('"').lower() for cell in lines[0].split(mark or None)]
    if column and column.lower() not in head:
        raise MimError(f"{path} has no column {column!r}; its first line is {lines[0][:100]!r}.")
    named = any(cell in PATHS for cell in head) and (bool(column) or any(cell in LABELS for cell in head))
    if not named:
        return _listed(path, lines, mark)
    try:
        rows = list(csv.DictReader(lines, fieldnames=head, delimiter=mark))[1:]
    except csv.Error as error:
        raise MimError(f"{path} cannot be read: {error}.") from error
    file = next(name for name in PATHS if name in head)
    label = column.lower() or next(name for name in LABELS if name in head)
    split = next((name for name in SPLITS if name in head), "")
    found: dict[str, tuple[str, str]] = {}
    for number, row in enumerate(rows, start=2):
        name, value = (row.get(file) or "").strip(), (row.get(label) or "").strip()
        if not name:
            raise MimError(f"{path}, row {number}: it names no file.")
        if value:
            _add(found, path, name, value, _split(row.get(split) or ""))
    return LabelTable(path, found)


def _listed(path: Path, lines: Sequence[str], mark: str) -> LabelTable:
    """A path and a label in each line; what stands between, such as a number of frames, is passed over."""
    found: dict[str, tuple[str, str]] = {}
    for number, line in enumerate(lines, start=1):
        cells = [cell.strip() for cell in (line.split(mark) if mark else line.rsplit(maxsplit=1))]
        if len(cells) < 2 or not cells[0] or not cells[-1]:
            raise MimError(
                f"{path}, line {number}: it should be a path and a label, or the first line should name the columns "
                f"(one of {', '.join(PATHS[:4])}; one of {', '.join(LABELS[:3])}); it is {line[:80]!r}."
            )
        name = cells[0]
        if not mark and cells[0].rpartition(" ")[2].isdecimal():  # PATH FRAMES LABEL
            name = cells[0].rpartition(" ")[0]
        _add(found, path, name, cells[-1], "")
    return LabelTable(path, found)


def _add(found: dict[str, tuple[str, str]], path: Path, name: str, label: str, split: str) -> None:
    if found.setdefault(name, (label, split))[0] != label:
        raise MimError(f"{path} says of {name} that it is {found[name][0]!r} and {label!r}; a file has one label here.")


def _split(word: str) -> str:
    """ "train" or "test" for a word such as "val"; empty for none."""
    known = split_of(word.strip()) if word.strip() else None
    return "" if known is None else "test" if known in HELD_OUT else "train"


def _name(path: str) -> str:
    return PurePosixPath(path).name


def _stem(path: str) -> str:
    return PurePosixPath(path).stem


def _only(wholes: Mapping[str, int], key: Callable[[str], str]) -> dict[str, int]:
    """Short names that one file alone has."""
    counts = Counter(map(key, wholes))
    return {key(name): number for name, number in wholes.items() if counts[key(name)] == 1}
