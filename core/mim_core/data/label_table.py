"""Labels of files from a table: columns by name, or VideoMAE's lists of a path and a label in each line."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from mim_core.data.collections import Arrangement, every_fifth
from mim_core.data.table_splits import SPLITS as SPLITS
from mim_core.data.table_splits import split_said, table_splits
from mim_core.errors import MimError, one_line
from mim_core.text import counted

PATHS = (
    *("path", "file", "filename", "file_name", "filepath", "file_path", "image", "image_id", "image_path", "img"),
    *("image_name", "img_name", "img_path", "video", "video_id", "video_path", "video_name", "clip", "folder", "shape"),
    *("model", "object", "cloud", "fname", "name", "id"),
)
"""What the column of files may be called; the first that is there counts."""
LABELS = ("label", "class", "class_name", "category", "category_name", "target", "labels", "y")
"""The same of the labels."""


@dataclass(frozen=True)
class LabelTable:
    """Labels and splits of files.

    Attributes:
        path: The table.
        rows: File, as the table has it -> (label, or empty where it says a split alone; split: "train", "test", or
            empty).
        strange: Words of its column of splits that name none, for people.
        column: The columns that say the splits, where they have none of the usual names.
    """

    path: Path
    rows: Mapping[str, tuple[str, str]]
    strange: str = ""
    column: str = ""

    def of(self, names: Sequence[str], root: Path) -> Labelling:
        """The labels of files below a root. A row belongs to the file of its path below the root or below the table's
        folder; else to the only one of that name, with or without its ending.

        Raises:
            MimError: No row names any of the files, all have one label, or two rows say different things of a file.
        """
        matches, lost = self.places(names, root)
        if not matches:
            raise MimError(
                f"{self.path}: none of its {len(self.rows):,} rows names a file of {root}. It has {lost[0]!r}, and "
                f"there is {names[0] if names else 'nothing'!r}."
            )
        classes = class_order(label for label, _ in matches.values() if label)
        whole = any(label for label, _ in self.rows.values())  # or else it says splits alone
        if whole and not classes:
            raise MimError(f"{self.path}: none of the files of {root} that its rows name has a label.")
        if whole and len(classes) < 2:
            raise MimError(f"{self.path}: all of its labels are {classes[0]!r}; there must be two classes at least.")
        number = {name: place for place, name in enumerate(classes)}
        labels = tuple(number.get(matches[i][0], -1) if i in matches else -1 for i in range(len(names)))
        splits = tuple(matches[i][1] if i in matches else "" for i in range(len(names)))
        advice = [self.strange] if self.strange else []
        if lost:
            advice.append(f"{counted(len(lost), 'row')} of {self.path} name no file of {root} ({lost[0]}).")
        bare = [name for name, label in zip(names, labels, strict=True) if label < 0]
        if bare and whole:
            advice.append(f"{counted(len(bare), 'file')} have no label in {self.path} ({bare[0]}).")
        return Labelling(classes, labels, splits, tuple(advice))

    def places(self, names: Sequence[str], root: Path) -> tuple[dict[int, tuple[str, str]], list[str]]:
        """(number of a file -> its label and split, rows that name no file of these).

        Raises:
            MimError: Two rows say different things of a file.
        """
        wholes = {PurePosixPath(name.replace("\\", "/")).as_posix(): number for number, name in enumerate(names)}
        shorter = [_only(wholes, key) for key in (_name, _stem)]
        matches, rows, lost = dict[int, tuple[str, str]](), dict[int, str](), list[str]()
        for file, value in self.rows.items():
            number = self._number(file, root, wholes, shorter)
            if number is None:
                lost.append(file)
            elif matches.setdefault(number, value) != value:
                raise _two(self.path, f"{rows[number]} and {file}, which are one file,", matches[number], value)
            rows.setdefault(-1 if number is None else number, file)
        return matches, lost

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


def read_label_table(path: Path, column: str = "", labels: bool = True) -> LabelTable:
    """A table of comma, semicolon or tab separated values whose first line names the columns; or a list without names,
    a path and a label in each line.

    Args:
        path: The file.
        column: The column of labels; empty: one of the usual names.
        labels: Whether it must have labels; without, it may say splits alone.

    Raises:
        MimError: It is no such table; says what it has.
    """
    lines = _lines(path)
    mark = next((mark for mark in ("\t", ",", ";") if mark in lines[0]), "")
    plain = [cell.strip().strip('"').lower() for cell in lines[0].split(mark or None)]
    if column and column.lower() not in plain:
        raise MimError(f"{path} has no column {column!r}; its first line is {lines[0][:100]!r}.")
    head = [re.sub(r"[\s\-]+", "_", cell) for cell in plain]
    named, usual = (any(cell in known for cell in head) for known in (PATHS, LABELS))
    usual = usual or bool(column)
    if mark and named and not usual and not labels:
        return _named(path, lines, head, mark, None)
    if mark and named != usual:
        what = f"labels ({', '.join(LABELS[:3])})" if named else f"files ({', '.join(PATHS[:3])})"
        remedy = "name it with --data.labels-column" if named else "give it one of these names"
        raise MimError(f"{path} has no column of {what}, only {', '.join(plain)[:100]}: {remedy}.")
    if not named or not usual:
        return _listed(path, lines, mark)
    label = plain.index(column.lower()) if column else head.index(next(name for name in LABELS if name in head))
    return _named(path, lines, head, mark, label)


def _lines(path: Path) -> list[str]:
    """The lines of a table that are not empty."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise MimError(f"--data.labels-from {path} cannot be read: it is not UTF-8; save it as UTF-8.") from error
    except OSError as error:
        raise MimError(f"--data.labels-from {path} cannot be read: {one_line(error)}.") from error
    if "\0" in text:
        raise MimError(f"{path} cannot be read: it has NUL characters; save it as UTF-8.")
    lines = [line for line in text.split("\n") if line.strip()]  # no other sign ends a line of a table
    if not lines:
        raise MimError(f"{path} is empty; it should have a column of files and one of labels.")
    return lines


def _named(path: Path, lines: Sequence[str], head: Sequence[str], mark: str, label: int | None) -> LabelTable:
    """Rows under a line that names the columns."""
    try:
        rows = list(csv.reader(lines, delimiter=mark))[1:]
    except csv.Error as error:
        raise MimError(f"{path} cannot be read: {error}.") from error
    file = _file_column(head, rows, label)
    splits = table_splits(head, rows, (file,) if label is None else (file, label))
    entries: dict[str, tuple[str, str]] = {}
    for number, (row, split) in enumerate(zip(rows, splits.rows, strict=True), start=2):
        name, value = _cell(row, file), "" if label is None else _cell(row, label)
        if not name:
            raise MimError(f"{path}, row {number}: it names no file.")
        if value or split:
            _add(entries, path, name, value, split)
    if label is not None and not any(value for value, _ in entries.values()):
        raise MimError(f"{path} has no labels: its column {head[label]} is empty.")
    if not entries:
        raise MimError(f"{path} says neither labels nor splits of its files.")
    note = f"{path}: its column {splits.name} has words that name no split: {splits.strange}; they are ignored."
    column = "" if splits.name in SPLITS else splits.name
    return LabelTable(path, entries, note if splits.strange else "", column)


def _cell(row: Sequence[str], place: int) -> str:
    return row[place].strip() if place < len(row) else ""


def _file_column(head: Sequence[str], rows: Sequence[Sequence[str]], label: int | None) -> int:
    """The column of files: of those with a usual name one whose cells all end as names of files do, or else the first.
    Beside a name or number of a row alone, any column with such cells."""
    usual = [head.index(name) for name in PATHS if name in head]
    ended = re.compile(r".+\.[A-Za-z][A-Za-z0-9]{1,4}")
    others = [i for i in range(len(head)) if i != label] if head[usual[0]] in PATHS[-2:] else []
    sure = (i for i in (*usual, *others) if rows and all(ended.fullmatch(_cell(row, i)) for row in rows))
    return next(sure, usual[0])


def _listed(path: Path, lines: Sequence[str], mark: str) -> LabelTable:
    """A path and a label in each line; what stands between, such as a number of frames, is ignored."""
    entries: dict[str, tuple[str, str]] = {}
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
        _add(entries, path, name, cells[-1], "")
    splits = {split_said(label) for label, _ in list(entries.values())[1:]}  # the first may be names after all
    if splits == {"train", "test"}:
        raise MimError(
            f"{path}: the last cells of its lines are no labels, they name splits ({lines[0][:80]!r}). Its first line "
            "should name the columns: path,label,split"
        )
    return LabelTable(path, entries)


def _add(entries: dict[str, tuple[str, str]], path: Path, name: str, label: str, split: str) -> None:
    if entries.setdefault(name, (label, split)) != (label, split):
        raise _two(path, name, entries[name], (label, split))


def _two(path: Path, name: str, one: tuple[str, str], other: tuple[str, str]) -> MimError:
    """The error for two rows that say different things of a file."""
    if one[0] != other[0]:
        return MimError(f"{path} says of {name} that it is {one[0]!r} and {other[0]!r}; a file has one label here.")
    splits = [split or "no split" for split in (one[1], other[1])]
    return MimError(f"{path} has {name} twice, in {splits[0]} and in {splits[1]}. Leave one row for each file.")


def class_order(labels: Iterable[str]) -> tuple[str, ...]:
    """The classes that occur, by number where all are whole numbers, else by name."""
    classes = set(labels)
    numbers = all(re.fullmatch(r"[+-]?[0-9]{1,18}", label) for label in classes)
    return tuple(sorted(classes, key=int) if numbers else sorted(classes))


def arranged(about: Arrangement, table: LabelTable, files: Sequence[str], root: Path, noun: str) -> Arrangement:
    """Splits and classes of files whose classes a table says. Its own splits count before those of folders; files
    without a label are for pre-training. ``test`` is None where neither says what is held out.

    Args:
        about: What their folders say.
        table: Which table.
        files: Paths below the root.
        root: The collection.
        noun: What a file is called.

    Raises:
        MimError: The table does not fit the files, or labels none of a split.
    """
    labelling = table.of(files, root)
    every = range(len(files))
    labelled = {i for i in every if labelling.labels[i] >= 0} if labelling.classes else set(every)
    classes = labelling.classes or None
    about = replace(about, labels=labelling.labels, classes=classes, advice=(*about.advice, *labelling.advice))
    if "test" in labelling.splits:
        held = [i for i in every if labelling.splits[i] == "test"]
        pretrain = tuple(i for i in every if labelling.splits[i] != "test")
        train, test = (tuple(i for i in split if i in labelled) for split in (pretrain, held))
        bare = f", {len(held) - len(test):,} of them without a label" if len(held) > len(test) else ""
        by = f"{table.path.name} (column {table.column})" if table.column else table.path.name
        summary = f"as {by} says: {len(held):,} held out{bare}, {len(pretrain):,} for training"
        about = replace(about, splits=summary)
        if not test:  # as where the labels of a test are kept back: others are judged in its place
            kept, judged = every_fifth(labelling.labels, train)
            train, test = tuple(kept), tuple(judged)
            summary += f", {len(test):,} of them held out from the probes alone"
            about = replace(about, splits=summary)
    elif about.test is not None:
        pretrain = about.pretrain
        train, test = (tuple(i for i in split if i in labelled) for split in (about.train, about.test))
    else:
        return replace(about, pretrain=tuple(every), train=tuple(sorted(labelled)))
    if not train or not test:
        split = "test" if train else "training"
        raise MimError(f"{table.path} labels no {noun} of the {split} split of {root}.")
    return replace(about, pretrain=pretrain, train=train, test=test)


def _name(path: str) -> str:
    return PurePosixPath(path).name


def _stem(path: str) -> str:
    return PurePosixPath(path).stem


def _only(wholes: Mapping[str, int], key: Callable[[str], str]) -> dict[str, int]:
    """Short names that one file alone has."""
    counts = Counter(map(key, wholes))
    return {key(name): number for name, number in wholes.items() if counts[key(name)] == 1}
