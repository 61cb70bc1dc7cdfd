"""Files that are written whole or not at all, and what a full or closed disk says."""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from mim_core.locks import take


def is_full(error: Exception) -> bool:
    """Whether an error says that there is no room; safetensors says so in words."""
    full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return getattr(error, "errno", None) in full or any(os.strerror(number) in str(error) for number in full)


def _digest(path: Path) -> str:
    with open(path, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


DISK = {
    errno.ENOSPC: "there is no room left",
    errno.EDQUOT: "the quota is used up",
    errno.EFBIG: "a file may not be so large there (ulimit -f)",
    errno.EROFS: "the disk is read-only",
    errno.EACCES: "you may not read or write there",
    errno.EPERM: "the system does not allow it",
    errno.ENAMETOOLONG: "the name is too long",
    errno.EISDIR: "a folder lies where a file should",
    errno.ENOTDIR: "a file lies where a folder should",
    errno.EEXIST: "something else lies there",
    errno.ELOOP: "a link there leads round in a circle",
    errno.EIO: "the disk fails",
    errno.ESTALE: "the disk's server no longer knows the file",
}
"""What is no bug of a program that meets it: error number -> in plain words."""


IN_WORDS = {os.strerror(number): number for number in DISK}


def number_in(words: str) -> int | None:
    """The number of a disk's error in words: safetensors puts the system's error into its own, without the number."""
    return next((number for text, number in IN_WORDS.items() if text in words), None)


def of_the_disk(error: BaseException) -> str | None:
    """What an error of a full or closed disk says to a user; None for every other error."""
    number = getattr(error, "errno", None)
    if type(error).__name__ == "SafetensorError":  # not imported: the command line starts without it
        number = number_in(str(error))
    if number not in DISK:
        return None
    return f"{error}: {DISK[number]}. Complete files are kept; fix this, then rerun the command."


def refuse_device(path: Path) -> None:
    """Raises OSError where a device lies, such as /dev/full, which a file must not take the place of."""
    if not path.is_symlink() and (path.is_char_device() or path.is_block_device()):
        raise FileExistsError(errno.EEXIST, "It is a device", str(path))


@contextmanager
def replaced(path: Path) -> Iterator[BinaryIO]:
    """A file that is written under another name and renamed in the end, so that on a full disk, or when the process is
    told to stop, the one before it stays. What lies under either name, such as a link or a pipe in a folder of
    another's, is replaced and never written to; a device is neither.

    Raises:
        OSError: It cannot be written; nothing is left of it.
    """
    refuse_device(path)
    part, file = _part_of(path)
    try:
        with file:
            yield file
            file.flush()
            os.close(os.dup(file.fileno()))  # disks over a network say here that there is no room
            part.replace(path)
    except BaseException as error:
        with suppress(OSError):
            part.unlink()
        if isinstance(error, OSError) and error.filename is None:  # writing does not say where
            error.filename = str(path)
        raise


@contextmanager
def folder_made(folder: Path) -> Iterator[None]:
    """A folder, with those above it, while something is written there; what fails before anything lies in it leaves no
    new folder behind.

    Raises:
        OSError: It cannot be made.
    """
    new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        if new:
            with suppress(OSError):  # something lies in it
                folder.rmdir()
        raise


@contextmanager
def filled(folder: Path) -> Iterator[Path]:
    """A folder to write files into, which are moved into ``folder`` when all are whole: what fails on the way leaves
    that as it was. Other files there stay.

    Raises:
        OSError: It cannot be written.
    """
    new, part = not folder.exists(), folder / f".part-{os.getpid()}"
    try:
        part.mkdir(parents=True)  # within: the folder may be a disk of its own
        yield part
        for file in sorted(part.iterdir()):
            file.replace(folder / file.name)
        new = False
    finally:
        shutil.rmtree(part, ignore_errors=True)
        if new:
            with suppress(OSError):
                folder.rmdir()


def _part_of(path: Path) -> tuple[Path, BinaryIO]:
    """A new file beside a path, which no other process writes; what a killed process left of its own is removed."""
    for number in itertools.count():
        part = path.with_name(f".{path.name}" + (f".{number}" if number else ""))
        if _is_written(part):
            continue
        part.unlink(missing_ok=True)
        try:
            file = open(part, "xb")  # noqa: SIM115 (closed by `replaced`)
        except FileExistsError:
            continue
        if take(file, part):
            return part, file
        file.close()
    raise AssertionError("numbers do not end")


def _is_written(part: Path) -> bool:
    """Whether another process is at a part."""
    if part.is_symlink() or not part.is_file():
        return False
    try:
        with open(part, "rb+") as file:
            return not take(file, part)
    except OSError:
        return False


def write_whole(path: Path, text: str) -> None:
    """Writes a text file so that it is whole or as it was, see `replaced`.

    Raises:
        OSError: It cannot be written; nothing is left of it.
    """
    with replaced(path) as file:
        file.write(text.encode("utf-8"))
