"""Files of tensors, whole or not there, with the mode that the user's umask gives to any other file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from mim_core.disk import number_in, refuse_device


@contextmanager
def usual_mode(path: Path) -> Iterator[None]:
    """A file that is written while this lasts gets the mode that the umask gives to any other, whoever writes it:
    safetensors makes files that their owner alone may read."""
    path.unlink(missing_ok=True)  # it may be a link of another's
    with open(path, "xb") as file:
        mode = os.fstat(file.fileno()).st_mode & 0o777
    yield
    path.chmod(mode)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Writes a .safetensors file under another name and renames it, so that the one before it stays where that fails.

    Raises:
        OSError: It cannot be written; nothing is left of it.
    """
    refuse_device(path)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with usual_mode(part):
            save_file(dict(tensors), part, metadata=None if metadata is None else dict(metadata))
        part.replace(path)
    except BaseException as error:
        with suppress(OSError):
            part.unlink()  # it would fill what room is left
        number = number_in(str(error)) if isinstance(error, SafetensorError) else None
        if number is None:
            raise
        raise OSError(number, os.strerror(number), str(path)) from error
