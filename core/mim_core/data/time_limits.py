"""Reading that takes too long: a limit of time for an item, and a watch over processes that read. Torch is imported
where it is used: recipes' files, which ``--help`` reads, have a limit too."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from mim_core.errors import BadSample

ITEM_SECONDS = 60.0
"""The longest that reading an item may take where nothing else is said."""


LOOK_SECONDS = 5.0
"""The longest that a look at a file may take, before a run begins."""


AGAIN = 1.0
"""Seconds after which an item that was told to end is told again."""


_NAME = 240
"""Bytes of an item's name that a process that reads leaves for others."""


OWN = frozenset(function.__code__.co_filename for function in (contextmanager, lambda: None))
"""Code that begins and ends a limit. It is not interrupted: what it sets would stay, and ring at any place later."""


class TooSlow(Exception):
    """Reading an item took longer than it may."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises `TooSlow` inside the block after so many seconds. It ends loops, regular expressions and waiting for a
    file, but not a library that computes without looking up. Only in a main thread, of this or of a process that reads;
    elsewhere there is no limit. An alarm that the program has set for itself is kept. Whatever a reader or a library
    makes of the interruption, it leaves the block as `TooSlow`.

    Args:
        seconds: The limit; 0 is none.
    """
    if seconds <= 0 or not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    rung = False
    text = f"reading it took longer than {seconds:g} s (--train.item-timeout)"

    def ring(number: int, frame: FrameType | None) -> None:
        nonlocal rung
        if frame is None or frame.f_code.co_filename not in OWN:
            rung = True
            raise TooSlow(text)

    began, before = time.monotonic(), signal.signal(signal.SIGALRM, ring)
    # again and again: a library may pass over the first, as all do in what they clear away, and so do beginning and end
    left, interval = signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN)
    try:
        yield
    except Exception as error:
        if rung and not isinstance(error, TooSlow):
            raise TooSlow(text) from error
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL if before is None else before)
        if left:
            signal.setitimer(signal.ITIMER_REAL, max(1e-3, left - (time.monotonic() - began)), interval)


@contextmanager
def in_time(path: str, seconds: float = LOOK_SECONDS) -> Iterator[None]:
    """Reads a file outside a run's own reading, such as to look at it before the run begins, see `time_limit`.

    Args:
        path: The file, as the user knows it.
        seconds: The longest that it may take.

    Raises:
        BadSample: It took longer.
    """
    try:
        with time_limit(seconds):
            yield
    except TooSlow as error:
        raise BadSample(path, f"reading it took longer than {seconds:g} s") from error


class Places:
    """Which item each process that reads is at, and since when; shared memory.

    Args:
        workers: How many read.
    """

    def __init__(self, workers: int) -> None:
        import torch

        self.names = torch.zeros(max(1, workers), _NAME, dtype=torch.uint8).share_memory_()
        self.since = torch.zeros(max(1, workers), dtype=torch.float64).share_memory_()

    def write(self, worker: int, name: str) -> None:
        """This process is at an item."""
        import torch

        text = name.encode("utf-8", "surrogateescape")[-_NAME:]
        self.names[worker] = torch.tensor([*text, *bytes(_NAME - len(text))], dtype=torch.uint8)
        self.since[worker] = time.monotonic()

    def clear(self, worker: int) -> None:
        """This process is between items."""
        self.since[worker] = 0

    def longest(self) -> tuple[int, str, float] | None:
        """(number, item, seconds) of the process that has been at an item for the longest; None where none is."""
        now, slowest = time.monotonic(), None
        for worker, since in enumerate(self.since.tolist()):
            if since and (slowest is None or now - since > slowest[2]):
                text = bytes(self.names[worker].tolist()).rstrip(b"\0").decode("utf-8", "surrogateescape")
                slowest = (worker, text, now - since)
        return slowest


@contextmanager
def at_place(places: Places | None, name: str) -> Iterator[None]:
    """Writes down that this process reads an item, while it does."""
    if places is None:
        yield
        return
    from torch.utils.data import get_worker_info

    info = get_worker_info()
    number = 0 if info is None else info.id
    places.write(number, name)
    try:
        yield
    finally:
        places.clear(number)


class Watch(threading.Thread):
    """Ends the processes that read where the main process has waited for a batch for too long: it may wait in a place
    where no limit holds, such as for a tensor that a stopped process should hand over.

    The loader needs no limit of its own beside it: without one it looks every 5 s whether its processes live. With one
    it looks only when that has passed, should the signal of their end be lost.

    Args:
        places: What the processes that read are at.
        seconds: How long the main process may wait for a batch.
        end: Ends the processes that read; the main process then meets an error where it waits, within 5 s.
        stopped: Whether the run was told to stop; then it waits for ten seconds at most.
        of_item: The seconds are those that one item may take, however long a batch takes.
    """

    AFTER_STOP = 10.0

    def __init__(
        self,
        places: Places,
        seconds: float,
        end: Callable[[], None],
        stopped: Callable[[], bool] = lambda: False,
        of_item: bool = False,
    ) -> None:
        super().__init__(name="watch over reading", daemon=True)
        self.places, self.seconds, self.end, self.stopped, self.of_item = places, seconds, end, stopped, of_item
        self.waiting: float | None = None
        self.stuck: tuple[int, str, float] | None = None
        """What was read when the processes were ended."""
        self.tripped = False
        """Whether the processes were ended here."""
        self.ended = threading.Event()

    @contextmanager
    def over(self) -> Iterator[None]:
        """The main process waits for a batch while this lasts."""
        self.waiting = time.monotonic()
        try:
            yield
        finally:
            self.waiting = None

    def run(self) -> None:
        """Looks twice a second."""
        stop_time: float | None = None
        while not self.ended.wait(0.5):
            waiting, now = self.waiting, time.monotonic()
            stop_time = (stop_time or now) if self.stopped() else None
            if waiting is None:
                continue
            over_time = self._took(now - waiting) > self.seconds
            over_stop = stop_time is not None and now - max(stop_time, waiting) > self.AFTER_STOP
            if over_time or over_stop:
                self.stuck, self.tripped = self.places.longest(), True
                self.end()
                return

    def _took(self, waited: float) -> float:
        """Seconds that are held against the limit."""
        if not self.of_item:
            return waited
        slowest = self.places.longest()
        return 0.0 if slowest is None else slowest[2]

    def stop(self) -> None:
        """Ends the thread."""
        self.ended.set()


def of_reading(slowest: tuple[int, str, float] | None) -> str:
    """What a process that reads was at, as a sentence; empty where none was at anything."""
    return "" if slowest is None else f" Process {slowest[0]} was reading {slowest[1]} for {slowest[2]:.0f} s."
