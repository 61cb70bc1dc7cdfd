"""What the processes that read meet in files and say, each thing once, whichever of them meets it first."""

from __future__ import annotations

import multiprocessing
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from multiprocessing import context
from typing import Any

import torch

from mim_core.errors import warn

PLACES = 4096
"""How many things can be told apart."""


class SaidOnce:
    """Warnings that each are said once by all processes that read together; they share what has been said. Of ranks,
    the first alone speaks.

    Args:
        known: What is known already and need not be said.
        most: Warnings after which nothing more is said.
    """

    def __init__(self, known: Iterable[str] = (), most: int = 12) -> None:
        self.most = most
        self.said = torch.zeros(PLACES, dtype=torch.uint8).share_memory_()
        self.count = torch.zeros(1, dtype=torch.int64).share_memory_()
        self.lock: Any = multiprocessing.get_context().Lock()
        for what in known:
            self.said[_place(what)] = 1

    def __getstate__(self) -> dict[str, Any]:
        """The lock goes to processes that are being started, and nowhere else."""
        starting = context.get_spawning_popen() is not None
        return {**self.__dict__, "lock": self.lock if starting else None}

    def say(self, what: str, text: str) -> None:
        """Warns, where it is new.

        Args:
            what: The thing that was met; it is said once.
            text: What is said of it, such as where it was met.
        """
        place = _place(what)
        if self.said[place] or self.count[0] >= self.most:
            return
        with self._alone():
            if self.said[place]:
                return
            self.said[place] = 1
            self.count += 1
            count = int(self.count[0])
        warn(text if count < self.most else f"{text} No more such files are named.")

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """No other process says anything meanwhile; one that was killed or stopped is not waited for."""
        held = self.lock is not None and self.lock.acquire(timeout=1)
        try:
            yield
        finally:
            if held:
                self.lock.release()


def _place(what: str) -> int:
    return zlib.crc32(what.encode("utf-8", "surrogateescape")) % PLACES
