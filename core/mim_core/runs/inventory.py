"""What data are made of: the files behind items, with their sizes and times. A run keeps a list of its items, so that
one that goes on over other files says so; and kept features know what they were made of."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mim_core.data.folders import walk_folders
from mim_core.data.labelled import LabelledSource
from mim_core.data.source import DataSource, Labelled
from mim_core.disk import replaced
from mim_core.errors import MimError, warn
from mim_core.text import counted

NAME = "files.jsonl.gz"


MOST = 200_000
"""Items that are listed one by one; of more, a digest of their names is kept."""


LONGEST, LARGEST = 1 << 16, 1 << 29
"""Bytes of a line of a list, and of a whole list, unpacked; few bytes may unpack to gigabytes."""


Facts = tuple[int, int]
"""Bytes and time of the last change, in nanoseconds."""


@dataclass(frozen=True)
class Inventory:
    """The items of a run's data.

    Attributes:
        root: The folder that they were read from; empty where there is none.
        count: How many.
        names: Digest of their names in their order.
        items: Name -> bytes and time of its files, None where these are not known; empty beyond `MOST` items.
        labels: Digest of the labels that are trained on; empty where there are none, or they are not known.
    """

    root: str
    count: int
    names: str
    items: dict[str, Facts | None]
    labels: str = ""


# ---- files -----------------------------------------------------------------------------------------------------------


class _Stats:
    """Facts of files, each asked for once."""

    def __init__(self) -> None:
        self.known: dict[str, Facts | None] = {}
        self.places: dict[str, Facts] = {}

    def __call__(self, path: str) -> Facts | None:
        if path not in self.known:
            try:
                stat = os.stat(path)
                self.known[path] = (stat.st_size, stat.st_mtime_ns)
                self.places[path] = (stat.st_ctime_ns, stat.st_ino)
            except (OSError, ValueError):
                self.known[path] = None
        return self.known[path]

    def of_content(self, path: str) -> tuple[int, ...] | None:
        """Its facts, and the time of its last change of any kind, a new name too, and its number on the disk: two files
        of equal size and time may have changed places."""
        facts = self(path)
        return None if facts is None else (*facts, *self.places[path])


def digest_of(source: DataSource, splits: Iterable[Labelled]) -> str:
    """What features depend on: the files of all splits, by name, size, times and number on the disk, and the labels,
    names and classes."""
    root, stats = _root(source), _Stats()
    paths = {path for split in ("pretrain", "train", "test") for paths in _files(source, split) for path in paths}
    if not any(stats(path) for path in paths) and root:  # a source that does not tell
        paths = {os.path.join(folder, name) for folder, names, _ in walk_folders(Path(root)) for name in names}
    total = hashlib.sha256()
    for path in sorted(paths):
        total.update(
            f"{os.path.relpath(path, root or None)}\0{stats.of_content(path)}\n".encode(errors="surrogateescape")
        )
    for split in splits:
        description = [split.name, list(split.classes), list(split.names), split.views]
        total.update(json.dumps(description).encode())
        total.update(split.labels.contiguous().numpy().tobytes())
    return total.hexdigest()


def _files(source: DataSource, split: str) -> Iterator[tuple[str, ...]]:
    try:
        yield from source.files_of(split)
    except MimError:  # there is no such split
        return


def _root(source: DataSource) -> str:
    root = getattr(source.config, "root", None)
    return str(Path(root).absolute()) if isinstance(root, str | Path) and os.path.exists(root) else ""


# ---- the list of a run -----------------------------------------------------------------------------------------------


def take(source: DataSource) -> Inventory:
    """The items of data as they are now."""
    root, count, stats = _root(source), len(source), _Stats()
    names, total = _names(source, root), hashlib.sha256()
    for name in names:
        total.update(name.encode(errors="surrogateescape") + b"\n")
    items: dict[str, Facts | None] = {}
    if count <= MOST:
        file_facts = [[stats(path) for path in paths] for paths in _files(source, "pretrain")]
        file_facts = file_facts if len(file_facts) == count else [[]] * count
        items = dict(zip(names, map(_joined, file_facts), strict=True))
    return Inventory(root, count, total.hexdigest(), items, _labels(source))


def _labels(source: DataSource) -> str:
    if not isinstance(source, LabelledSource):
        return ""
    return hashlib.sha256(source.split.labels.contiguous().numpy().tobytes()).hexdigest()


def _joined(file_facts: list[Facts | None]) -> Facts | None:
    """The facts of an item's files together."""
    known = [facts for facts in file_facts if facts is not None]
    return (sum(size for size, _ in known), max(time for _, time in known)) if known else None


def _names(source: DataSource, root: str) -> list[str]:
    """What items are called, without their numbers."""
    if not isinstance(source, LabelledSource):
        return [source.name_of(index) for index in range(len(source))]
    if source.split.names:
        return list(source.split.names)
    paths = [os.path.relpath(paths[0], root or None) if paths else "" for paths in _files(source, "pretrain")]
    if len(paths) == len(source) == len({*paths}):
        return paths
    return [source.name_of(index) for index in range(len(source))]


def record(folder: Path, source: DataSource) -> None:
    """Writes the list of a run's items into its folder.

    Raises:
        MimError: It cannot be written.
    """
    listing = take(source)
    try:
        with replaced(folder / NAME) as file, gzip.GzipFile("", "wb", 6, file, mtime=0) as packed:
            head = {"root": listing.root, "items": listing.count, "names": listing.names, "labels": listing.labels}
            packed.write(json.dumps(head).encode() + b"\n")
            for name, facts in listing.items.items():
                packed.write(json.dumps([name, *(facts or (None, None))]).encode() + b"\n")
    except OSError as error:
        raise MimError(f"The output folder {folder} cannot be written: {error}. Choose another with --out.") from error


def recorded(folder: Path) -> Inventory | None:
    """The list in a run's folder; None where it has none, as older runs have, or it is damaged, which is a warning."""
    path = folder / NAME
    if not path.is_file():
        return None
    try:
        with gzip.open(path, "rb") as file:
            head = json.loads(file.readline(LONGEST))
            items: dict[str, Facts | None] = {}
            while len(items) < MOST and (line := file.readline(LONGEST)):
                if file.tell() > LARGEST:
                    raise ValueError(f"it unpacks to more than {LARGEST >> 20} MiB")
                name, size, time = json.loads(line)
                items[str(name)] = None if size is None else (int(size), int(time))
        return Inventory(str(head["root"]), int(head["items"]), str(head["names"]), items, str(head.get("labels", "")))
    except (OSError, EOFError, ValueError, TypeError, KeyError, RecursionError, ArithmeticError) as error:
        warn(f"{path} is damaged, so whether the files are still the same is not known: {error}")
        return None
    except Exception as error:  # zlib's own
        warn(f"{path} is damaged, so whether the files are still the same is not known: {error}")
        return None


def check_items(folder: Path, state: dict[str, Any], source: DataSource) -> None:
    """Refuses data of another size than a checkpoint's: samples would come in another order. Warns of other files.

    Raises:
        MimError: There are more items, or fewer; says which.
    """
    count, then, now = len(source), recorded(folder), take(source)
    before = state.get("items", count)
    diff = "" if then is None or then.count != before else _differences(then, now)
    if before != count:
        which = f" ({diff})" if diff else ""
        raise MimError(
            f"The data has {count} items, and had {before} when the run in {folder} began{which}; the order of samples "
            "would not go on. Use the same data, or start a new run from these weights: --init and another --out."
        )
    if diff:
        warn(
            f"the files are not those that the run in {folder} had so far: {diff}. Items are numbered in the order of "
            "their names, so those behind a change stand for other files, and order, crops and masks do not go on for "
            "them. The run goes on over the files as they are now; to start a new one instead: another --out."
        )
        return
    if then is not None and then.labels and then.labels != now.labels:
        warn(
            f"the labels are not those that the run in {folder} had so far. The run goes on with the labels as they "
            "are now; to start a new one instead: another --out."
        )
    changed = [] if then is None else _changed(then, now)
    if changed:
        warn(
            f"{counted(len(changed), 'item')} of {count:,} changed since the run in {folder} last read them: "
            f"{_some(changed)}. The run goes on over the files as they are now."
        )


def _differences(then: Inventory, now: Inventory) -> str:
    """How the names differ, in words; empty where they do not."""
    if then.names == now.names:
        return ""
    if not then.items or not now.items:
        return f"their names differ; there are too many to keep a list of ({now.count:,})"
    gone = [name for name in then.items if name not in now.items]
    new = [name for name in now.items if name not in then.items]
    texts = [f"{len(names):,} {what}: {_some(names)}" for names, what in ((gone, "gone"), (new, "new")) if names]
    return "; ".join(texts) or "the same names come in another order"


def _changed(then: Inventory, now: Inventory) -> list[str]:
    """Items of the same name whose files have another size; in the same folder, or another time."""
    names = []
    for name, facts in now.items.items():
        before = then.items.get(name)
        if facts is not None and before is not None:
            same = facts == before if then.root == now.root else facts[0] == before[0]
            names += [] if same else [name]
    return names


def _some(names: list[str]) -> str:
    shown = ", ".join(name.encode(errors="backslashreplace").decode() for name in names[:5])
    return shown + (", ..." if len(names) > 5 else "")
