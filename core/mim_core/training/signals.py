"""Signals that stop a run. Imports no torch, so that they are heard from the first moment on."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

STOPPED = 3
"""Exit code of a run that was told to stop and can go on, so that `pretrain && evaluate` does not go on with half a
run."""


TIME_LIMIT = 1000
"""Stands among the numbers of signals for the end of ``--train.max-hours``."""


STOPS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP") if hasattr(signal, name))
"""Signals that save and stop a run: Ctrl-C, a launcher's or scheduler's, SLURM's warning (docs/cluster.md), and the end
of the terminal."""


_TOLD: list[int] = []
"""Signals that came while `before_the_first_step` hears them."""


@contextmanager
def heard(handler: Any, signals: Sequence[int] = STOPS) -> Iterator[None]:
    """The handler hears the signals, while this lasts; those that stop a run where no others are given. What was told
    to pass over a signal, as nohup tells a program, still does; outside the main thread signals stay as they are."""
    before: dict[int, Any] = {}
    try:
        for number in signals:
            if signal.getsignal(number) != signal.SIG_IGN:
                before[number] = signal.signal(number, handler)
    except ValueError:  # not the main thread, as in some notebooks
        pass
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """A list that holds the signal's number once one came, also one before the first step that a library hid. A second
    Ctrl-C, a second later or more, stops at once; a launcher may pass the first on."""
    stop: list[int] = list(_TOLD)
    came = 0.0

    def note(number: int, frame: object) -> None:
        nonlocal came
        if number == signal.SIGINT and stop and time.monotonic() - came > 1:
            raise KeyboardInterrupt
        came = came or time.monotonic()
        stop.append(number)

    with heard(note):
        yield stop


@contextmanager
def before_the_first_step(program: str) -> Iterator[None]:
    """Before a run's steps begin, and after they end, a signal ends the process as it would end a run: with the exit
    code of one that can go on. Nothing is lost, for all that was trained is in a checkpoint. A library may turn what
    the signal raises into an error of its own, or pass over it: an error that follows, or the first step, ends the
    process alike."""
    _TOLD.clear()

    def leave(number: int, frame: object) -> None:
        name = signal.Signals(number).name
        _TOLD.append(number)
        sys.stderr.write(f"{program}: stopped by {name}; the same command resumes, or starts, from here.\n")
        raise SystemExit(STOPPED)

    with heard(leave):
        try:
            yield
        except Exception:
            if _TOLD:
                raise SystemExit(STOPPED) from None
            raise
        finally:
            _TOLD.clear()


@contextmanager
def cleared_away(program: str) -> Iterator[None]:
    """A command that trains nothing ends at once when it is told to, but removes its temporary files and ends its
    processes first. Its exit code is a shell's for that signal."""

    def leave(number: int, frame: object) -> None:
        sys.stderr.write(f"{program}: ended by {signal.Signals(number).name}\n")
        raise SystemExit(128 + number)

    with heard(leave, [number for number in STOPS if number not in (signal.SIGINT, getattr(signal, "SIGUSR1", 0))]):
        yield
