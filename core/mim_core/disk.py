"""Files that are written whole or not at all, and what a full or closed disk says."""

from __future__ import annotations

import errno
import hashlib
import os
from contextlib import suppress
from pathlib import Path


def is_full(error: Exception) -> bool:
    """Whether an error says that there is no room; safetensors says so in words."""
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)


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
    errno.EROFS: "the disk is read-only",
    errno.EACCES: "you may not read or write there",
    errno.ENAMETOOLONG: "the name is too long",
}
"""What is no bug of a program that meets it: error number -> in plain words."""


IN_WORDS = {os.strerror(number): number for number in DISK}


def of_the_disk(error: BaseException) -> str | None:
    """What an error of a full or closed disk says to a user; None for every other error.

    safetensors puts the system's error into the words of its own, without its number.
    """
    number, what = getattr(error, "errno", None), str(error)
    if type(error).__name__ == "SafetensorError":  # not imported: the command line starts without it
        number = next((known for text, known in IN_WORDS.items() if text in what), None)
        what = f"A file of tensors cannot be written, {what.rpartition('I/O error: ')[2]}"
    if number not in DISK:
        return None
    return f"{what}: {DISK[number]}. Complete files are kept; fix this, then rerun the command."


def write_whole(path: Path, text: str) -> None:
    """Writes a file under another name and renames it, so that on a full disk the one before it stays.

    Raises:
        OSError: It cannot be written; nothing is left of it.
    """
    part = path.with_name(f".{path.name}")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except OSError:
        with suppress(OSError):
            part.unlink()
        raise
