"""What the processes that read meet in files and say, each thing once, whichever of them meets it first."""

from __future__ import annotations

import zlib
from collections.abc import Iterable

import torch

from mim_core.errors import warn

PLACES = 4096


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
        for what in known:
            self.said[_place(what)] = 1

    def say(self, what: str, text: str) -> None:
        """Warns, where it is new.

        Args:
            what: The thing that was met; it is said once.
            text: What is said of it, such as where it was met.
        """
        place = _place(what)
        if self.said[place] or self.count[0] >= self.most:
            return
        self.said[place] = 1
        self.count += 1
        warn(text if self.count[0] < self.most else f"{text} No more such files are named.")


def _place(what: str) -> int:
    return zlib.crc32(what.encode("utf-8", "surrogateescape")) % PLACES
