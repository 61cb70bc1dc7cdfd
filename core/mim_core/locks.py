"""One writer at a time: locks of files, which the system lets go of when a process ends, however it ends."""

from __future__ import annotations

import errno
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from mim_core.errors import MimError

TAKEN = (errno.EACCES, errno.EAGAIN)
"""What the system says of a lock that another process has; all else means that the disk knows no locks."""


def take(file: IO[Any], path: Path) -> bool:
    """Whether this process alone has an open file from here on, until it is closed; a disk without locks cannot tell,
    and then it has.

    Args:
        file: Open for writing.
        path: Where it lies; it may have been replaced since it was opened, and is then another's.
    """
    try:
        import fcntl

        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of this process alone, not of those that it forks
    except ImportError:  # not on Windows
        return True
    except OSError as error:
        if error.errno in TAKEN:
            return False
    return _lies_at(file, path)


@contextmanager
def only_writer(path: Path, what: str, remedy: str, stays: bool = False) -> Iterator[None]:
    """Keeps other processes from writing the same while this lasts.

    Args:
        path: The lock's file, in a folder that is there.
        what: What the other process does, such as "Another process trains into runs/a".
        remedy: What to do then, as a sentence.
        stays: Leave the file when this is over.

    Raises:
        MimError: Another process has it; says which.
        OSError: It cannot be written there.
    """
    while True:
        with open(path, "a+", opener=_no_link) as handle:
            if not take(handle, path):
                if not _lies_at(handle, path):  # the one before has just removed it
                    continue
                handle.seek(0)
                raise MimError(f"{what} ({handle.read(200).strip() or 'not known which'}). {remedy}")
            try:
                _sign(handle.fileno(), path)
                yield
            finally:
                if not stays:
                    with suppress(OSError):
                        path.unlink()
            return


def _sign(file: int, path: Path) -> None:
    """Writes into a lock's file who has it."""
    try:
        os.truncate(file, 0)
        os.write(file, f"process {os.getpid()} on {platform.node()}".encode())
    except OSError as error:
        error.filename = str(path)
        raise


def _lies_at(file: IO[Any], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path, follow_symlinks=False))
    except OSError:
        return False


def _no_link(path: str, flags: int) -> int:
    """Opens a file of the folder itself: what another program's link leads to is not ours to write, and a pipe is not
    waited for."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
