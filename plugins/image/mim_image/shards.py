"""Tar files of images, named as webdataset names them. Their headers are read once; after that an image is read by its
place, in any order. A sample is the files of one key, which is a member's path up to the first dot of its name."""

from __future__ import annotations

import errno
import io
import os
import re
import shlex
import tarfile
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mim_core import MimError, counted
from PIL import Image

from mim_image.formats import open_image, refuse_bytes
from mim_image.shard_labels import LARGEST_JSON, JsonLabels

UNPACK = {
    ".tar.gz": "gunzip",
    ".tgz": "gunzip",
    ".tar.bz2": "bunzip2",
    ".tar.xz": "unxz",
    ".txz": "unxz",
    ".tar.zst": "zstd -d --rm",
}
"""Ending of a compressed shard -> the command that leaves a .tar in its place."""
PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
"""How compressed files start."""
LONGEST_CLASS = 1000
LONGEST_HEADER = 1 << 20
"""Bytes of an extended header, such as of a long name; tarfile would read what is said, gigabytes too."""
LONGEST_MARK = 1 << 20
"""Zeros that end a tar file, in bytes; nearly all have 10 KiB or less."""


@dataclass(frozen=True)
class Shards:
    """Images within tar files, to open by index.

    Attributes:
        root: What the names of the tar files are relative to.
        tars: The tar files.
        places: int64 [n, 3]: the number of an image's tar file, the byte of it where the image starts, its bytes.
        splits: The split that the JSON member of each image says, or None; empty where none says one.
    """

    root: Path
    tars: tuple[str, ...]
    places: Any
    splits: tuple[str | None, ...] = ()

    def open(self, index: int) -> Image.Image:
        """The image, not yet decoded. Its file is opened for it alone, so that processes share nothing.

        Raises:
            OSError: The shard has become shorter.
        """
        tar, offset, size = self.places[index].tolist()
        refuse_bytes(size)
        with open(self.root / self.tars[tar], "rb") as file:
            file.seek(offset)
            content = file.read(size)
        if len(content) < size:
            raise OSError("its shard has become shorter since the run started")
        return open_image(io.BytesIO(content))

    def take(self, keep: Sequence[int]) -> Shards:
        """Some of the images."""
        splits = tuple(self.splits[i] for i in keep) if self.splits else ()
        return Shards(self.root, self.tars, self.places[np.asarray(keep, np.int64)], splits)


@dataclass(frozen=True)
class Index:
    """What the headers of shards say: the images and their names, and their classes if there are two or more.
    ``advice`` tells what was left out, ``others`` has the endings of members that are neither."""

    shards: Shards
    names: tuple[str, ...]
    labels: Sequence[int]
    classes: tuple[str, ...] | None
    advice: tuple[str, ...]
    others: Counter[str]


def packed(name: str) -> str | None:
    """The ending of a compressed shard; None for any other file."""
    return next((ending for ending in UNPACK if name.lower().endswith(ending)), None)


def refuse_packed(root: Path, names: Sequence[str]) -> MimError:
    """The error for shards that are all compressed: why they cannot be read, and the commands that unpack them."""
    endings = Counter(ending for name in names if (ending := packed(name)))
    commands = [f"  find {shlex.quote(str(root))} -iname '*{e}' -exec {UNPACK[e]} {{}} +" for e in sorted(endings)]
    summary = ", ".join(f"{n} x {ending}" for ending, n in endings.most_common())
    return MimError(
        f"The shards in {root} are compressed ({summary}), so an image within one cannot be read alone. Unpack them to "
        ".tar files; the images in them are compressed already:\n" + "\n".join(commands)
    )


def read_index(
    root: Path, tars: Sequence[str], endings: Sequence[str], with_classes: bool = True, column: str = ""
) -> Index:
    """Reads the headers of all members, and the classes.

    Args:
        root: What the names of the tar files are relative to.
        tars: The tar files, in the order that images are numbered in.
        endings: What the name of an image ends with, in lower case.
        with_classes: False where images without a class may lie beside others, as no class is used.
        column: The key of JSON members that holds the class; empty: KEY.cls, or a key of one of the usual names.

    Raises:
        MimError: A shard is damaged or cut, there are no images, or some have a class and others have none.
    """
    reader = _Reader(root, tuple(endings), column)
    for number, tar in enumerate(tars):
        reader.read(number, tar)
    if not reader.names:
        summary = ", ".join(f"{n} x {ending}" for ending, n in reader.others.most_common(5)) or "nothing"
        raise MimError(
            f"No images in the {counted(len(tars), 'shard')} of {root}. Looked for members that end with "
            f"{', '.join(endings)}; found {summary}."
        )
    labels, classes = reader.labels() if with_classes else ((), None)
    splits = tuple(reader.splits) if any(reader.splits) else ()
    shards = Shards(root, tuple(tars), np.array(reader.places, np.int64).reshape(-1, 3), splits)
    return Index(shards, tuple(reader.names), labels, classes, reader.advice(), reader.others)


@dataclass(slots=True)
class _Sample:
    """What a shard has of one key."""

    image: str = ""
    ending: str = ""
    offset: int = 0
    size: int = 0
    label: str | None = None
    noted: str | None = None
    split: str | None = None


class _Reader:
    """Goes through shards and gathers what is in them."""

    def __init__(self, root: Path, endings: tuple[str, ...], column: str = "") -> None:
        self.root, self.endings, self.column = root, endings, column
        self.json = JsonLabels(root, column)
        self.classes = 0
        self.names: list[str] = []
        self.places = array("q")
        self.texts: list[str | None] = []
        self.splits: list[str | None] = []
        self.known: dict[str, str] = {}
        self.others: Counter[str] = Counter()
        self.left_out: Counter[str] = Counter()
        self.first: dict[str, str] = {}
        self.endless: list[str] = []
        self.empty: list[str] = []
        self.zeros: list[str] = []

    def read(self, number: int, tar: str) -> None:
        """One shard."""
        path, samples = self.root / tar, dict[str, _Sample]()
        if not path.is_file():  # opening a pipe would wait for ever
            link = f"a link to {os.readlink(path)}, where nothing is" if path.is_symlink() else "no regular file"
            raise MimError(f"The shard {path} cannot be read: it is {link}.")
        if not os.access(path, os.R_OK):
            raise MimError(f"The shard {path} cannot be read: this user may not. See: ls -l {shlex.quote(str(path))}")
        try:
            with tarfile.open(path, "r:", tarinfo=_Member) as file:
                for member, name in _members(file, path.stat().st_size):
                    self._sort(samples, file, member, name, tar)
                self._end(path, file.offset, tar)
        except RecursionError:
            raise MimError(
                f"The shard {path} cannot be read: hundreds of headers follow one another without a file. It is "
                "damaged or made to harm; move it to another folder."
            ) from None
        except (tarfile.TarError, OSError, ValueError, IndexError, OverflowError, MemoryError) as error:
            kind = _compression(path) if isinstance(error, tarfile.ReadError) else None
            if kind is not None:
                raise MimError(
                    f"The shard {path} is compressed by {kind}, whatever its name says, so an image within it cannot "
                    "be read alone. Unpack it to a .tar file of the same name."
                ) from error
            images = counted(sum(bool(sample.image) for sample in samples.values()), "image")
            raise MimError(
                f"The shard {path} cannot be read to its end: {str(error) or type(error).__name__}. Before that place "
                f"it has {images}. Copy or download it again; or, to go on without it, move it to another folder."
            ) from error
        for key, sample in samples.items():
            if not sample.image:
                self._leave(f"{tar}/{key}", "sample without an image", "samples without an image")
                continue
            self.names.append(sample.image)
            self.places.extend((number, sample.offset, sample.size))
            first, second = (sample.label, sample.noted) if not self.column else (sample.noted, sample.label)
            self.texts.append(first if first is not None else second)
            self.splits.append(sample.split)

    def _end(self, path: Path, offset: int, tar: str) -> None:
        """Notes a shard that has no member, no mark of the end, or far more zeros behind it than tar writes."""
        if not _ended(path, offset):
            self.endless.append(tar)
        elif offset == 0:
            self.empty.append(tar)
        elif path.stat().st_size - offset > LONGEST_MARK:
            self.zeros.append(tar)

    def _sort(
        self, samples: dict[str, _Sample], file: tarfile.TarFile, member: tarfile.TarInfo, name: str, tar: str
    ) -> None:
        """One member: an image or the class of a sample, or neither."""
        base = name.rpartition("/")[2]
        start, _, ending = base.partition(".")
        last = "." + ending.rpartition(".")[2].lower() if ending else "no ending"
        if member.issparse() or not member.isreg():
            if last in self.endings or last == ".cls":
                self._leave(f"{tar}/{name}", "link or sparse file", "links and sparse files")
            return
        sample = samples.setdefault(name[: len(name) - len(base)] + start, _Sample())
        if ending.lower() == "cls":
            sample.label = self._class(file, member, f"{tar}/{name}")
            self.classes += 1
        elif last in self.endings:
            self._choose(sample, member, f"{tar}/{name}", ending.lower())
        elif ending.lower() == "json" and self.json.wanted and member.size <= LARGEST_JSON:
            content = file.extractfile(member)
            text, sample.split = self.json.of(b"" if content is None else content.read(), f"{tar}/{name}")
            sample.noted = None if text is None else self.known.setdefault(text, text)
            self.others[last] += text is None and sample.split is None
        else:
            self.others[last] += 1

    def _class(self, file: tarfile.TarFile, member: tarfile.TarInfo, name: str) -> str:
        content = file.extractfile(member)
        raw = content.read(LONGEST_CLASS) if content is not None else b""
        try:
            text = raw.decode().strip()
        except UnicodeDecodeError:
            text = ""
        if not text or "\n" in text or member.size > LONGEST_CLASS:
            raise MimError(f"{self.root}: {name} holds no class: it should be one line of text, such as 7 or cat.")
        return self.known.setdefault(text, text)  # one object for all, of which there may be millions

    def _choose(self, sample: _Sample, member: tarfile.TarInfo, name: str, ending: str) -> None:
        """The image with the shortest ending is kept; of the same name twice the later, as unpacking would have it."""
        if sample.image:
            later = (len(ending), ending) <= (len(sample.ending), sample.ending)
            self._leave(sample.image if later else name, "second image of a sample", "second images of a sample")
            if not later:
                return
        sample.image, sample.ending = name, ending
        sample.offset, sample.size = member.offset_data, member.size

    def _leave(self, name: str, one: str, many: str) -> None:
        self.left_out[f"{one}|{many}"] += 1
        self.first.setdefault(f"{one}|{many}", name)

    def advice(self) -> tuple[str, ...]:
        """What is in the shards and not used, and which may have been cut between two members."""
        unused = [
            f"{counted(n, *what.split('|'))} (the first: {self.first[what]})" for what, n in self.left_out.most_common()
        ]
        lines = [f"left out of the shards in {self.root}: {', '.join(unused)}."] if unused else []
        if self.json.strange:
            words = ", ".join(sorted(self.json.strange)[:5])
            lines.append(f"{self.root}: .json members have words for a split that name none: {words}; ignored.")
        if self.endless:
            shards = counted(len(self.endless), "shard")
            lines.append(f"{shards} of {self.root} without a mark of the end, perhaps cut short ({self.endless[0]}).")
        for tars, what in (
            (self.empty, "without any file in it, though perhaps of the right size"),
            (self.zeros, f"with more than {LONGEST_MARK >> 20} MiB of zeros behind the last file"),
        ):
            if tars:
                shards, names = counted(len(tars), "shard"), ", ".join(tars[:3]) + (", ..." if tars[3:] else "")
                lines.append(f"{shards} of {self.root} {what} ({names}): perhaps not downloaded whole.")
        return tuple(lines)

    def labels(self) -> tuple[Sequence[int], tuple[str, ...] | None]:
        """The class of each image, and the classes by name, or by number where all are whole numbers."""
        texts = [text for text in self.texts if text is not None]
        if not texts:
            return (), None
        if len(texts) < len(self.texts):
            if self.json.found and not self.column and not self.classes:
                return (), None  # nobody named the key, and it may be of something else
            name = self.names[self.texts.index(None)]
            raise MimError(
                f"{self.root}: {counted(len(self.texts) - len(texts), 'image')} of {len(self.texts):,} "
                f"without a class; the first is {name}, which has no .cls, and no .json with one, beside it (links are "
                "not followed). Give every image one, or none."
            )
        distinct = set(texts)
        numbers = all(re.fullmatch(r"[+-]?[0-9]+", text) for text in distinct)
        meant: dict[str, Any] = {text: int(text) if numbers else text for text in distinct}
        order = sorted(set(meant.values()))
        if len(order) < 2:
            return (), None
        position = {value: i for i, value in enumerate(order)}
        return [position[meant[text]] for text in texts], tuple(str(value) for value in order)


class _Member(tarfile.TarInfo):
    """A member whose extended headers have a bounded length."""

    def _proc_member(self, file: tarfile.TarFile) -> Any:
        extended = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, *tarfile.GNU_TYPES)
        if self.type in extended and self.type != tarfile.GNUTYPE_SPARSE and not 0 <= self.size <= LONGEST_HEADER:
            raise tarfile.ReadError(f"a header says that it has {self.size:,} bytes")
        return super()._proc_member(file)  # type: ignore[misc]


def _members(file: tarfile.TarFile, size: int) -> Iterator[tuple[tarfile.TarInfo, str]]:
    """Members that are no folders and not hidden, with their names, of a tar file of this many bytes."""
    while (member := file.next()) is not None:
        file.members = []  # type: ignore[attr-defined]  # tarfile would keep all of them
        if member.size < 0 or file.offset <= member.offset:
            raise tarfile.ReadError("a header is damaged")
        if file.offset > size:
            raise tarfile.ReadError("it ends within a member")
        parts = [part for part in member.name.split("/") if part not in ("", ".")]
        if not member.isdir() and parts and not any(part.startswith(".") for part in parts):
            yield member, "/".join(parts)


def _ended(path: Path, offset: int) -> bool:
    """Whether a mark of the end follows the last member, as nearly all have it. Nothing but zeros may follow: tarfile
    takes a damaged header for the end. Holes of a sparse file are zeros, and ignored."""
    with open(path, "rb") as file:
        file.seek(offset)
        block = mark = file.read(tarfile.BLOCKSIZE)
        if block.count(0) < len(block):
            cut = len(block) < tarfile.BLOCKSIZE
            raise tarfile.ReadError("it ends within a header" if cut else f"the header at byte {offset:,} is damaged")
        while _to_data(file) and (block := file.read(1 << 20)):
            if block.count(0) < len(block):
                raise tarfile.ReadError(
                    f"more follows its end at byte {offset:,}, as where tar files were joined by cat, not by tar "
                    "--concatenate"
                )
    return len(mark) == tarfile.BLOCKSIZE


def _to_data(file: Any) -> bool:
    """Moves on to what is no hole, where the system tells; False where nothing but a hole follows."""
    if not hasattr(os, "SEEK_DATA"):
        return True
    try:
        file.seek(os.lseek(file.fileno(), file.tell(), os.SEEK_DATA))
    except OSError as error:
        return error.errno != errno.ENXIO
    return True


def _compression(path: Path) -> str | None:
    """What a file is compressed by, from how it starts."""
    with open(path, "rb") as file:
        start = file.read(8)
    return next((kind for magic, kind in PACKED.items() if start.startswith(magic)), None)
