"""Errors that a user can mend: one screen, exit code 2, no traceback; and warnings, one line each."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterable, Mapping

from mim_core.terminal import tell

LONGEST = 300
"""Characters of another's error that a line of ours repeats."""


class MimError(Exception):
    """A mistake in what was asked for, not in the program.

    The message says what was asked, what exists, the nearest name and the next command. Commands print it and exit
    with code 2.

    Attributes:
        everywhere: All ranks of a run meet it, so that one need say it.
    """

    everywhere: bool = False


class RankError(MimError):
    """Something that one rank of several ran into; that rank says it, the others may not know.

    Args:
        rank: Its number.
        reason: What happened.
    """

    def __init__(self, rank: int, reason: str) -> None:
        super().__init__(f"rank {rank}: {reason}")
        self.rank, self.reason = rank, reason

    def __reduce__(self) -> tuple[type, tuple[int, str]]:
        return type(self), (self.rank, self.reason)


class BadSample(Exception):
    """One file of a data set cannot be used. It is named in ``skipped.jsonl`` and replaced by another.

    Args:
        path: The file, as the user knows it.
        reason: Why, in a few words.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason


class ReadersGone(RuntimeError):
    """A process that reads data died, hung, or was ended because it did not answer."""


def nearest(asked: str, known: Iterable[str]) -> str | None:
    """The known name closest to ``asked``, whether letters are small or capital, or None when nothing is close."""
    known = sorted(known)
    small = {name.lower(): name for name in reversed(known)}
    matches = difflib.get_close_matches(asked, known, n=1, cutoff=0.5)
    matches = matches or [small[name] for name in difflib.get_close_matches(asked.lower(), small, n=1, cutoff=0.5)]
    if matches:
        return matches[0]
    inside = [name for name in known if asked and (asked in name or name.split(":")[-1] in asked)]
    return inside[0] if inside else None


def did_you_mean(
    asked: str, known: Iterable[str], start: str = " Did you mean ", shown: Callable[[str], str] = repr
) -> str:
    """`` Did you mean 'NAME'?`` with the nearest of the known names, to put behind a message; empty when none is close.

    Args:
        asked: What was written.
        known: What exists.
        start: What the words begin with, such as ``; did you mean `` within a sentence.
        shown: How the name is written.
    """
    near = nearest(asked, known)
    return f"{start}{shown(near)}?" if near else ""


def unknown(kind: str, asked: str, known: Iterable[str], more: str = "") -> MimError:
    """The error for a name that does not exist: what was asked, what exists, and the nearest."""
    known = sorted(known)
    listed = ", ".join(known) if known else "none"
    return MimError(
        f"Unknown {kind} {asked!r}.{did_you_mean(asked, known)}\nKnown: {listed}.{' ' if more else ''}{more}"
    )


MOST_WORKERS = 1024
"""Processes that one command starts at most; as many as anyone asks for take the machine's memory."""


def check_workers(option: str, count: int) -> None:
    """Raises MimError for a number of processes that cannot be meant."""
    if not 0 <= count <= MOST_WORKERS:
        raise MimError(f"{option} must be 0 to {MOST_WORKERS:,}, got {count}.")


def one_line(error: BaseException) -> str:
    """An error as ``KeyError: 'x'``, in one line: others' messages may have many, or none that can be had."""
    try:
        text = " ".join(str(error).split())
    except Exception:  # an author's own __str__
        text = "its message cannot be read"
    text = text if len(text) <= LONGEST else f"{text[:LONGEST]} ..."
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "unable to allocate")


NUMBERS = ("overflow", "too large to convert", "too big to convert", "exceeds the limit", "maximum supported dimension")
"""What errors of torch, numpy and Python say, in small letters, where memory is lacking or a number is beyond them."""


def too_much(error: BaseException) -> str | None:
    """What an error says to a user who asked for more than the machine holds or counts; None for every other error."""
    if not isinstance(error, (MemoryError, OverflowError, RuntimeError, ValueError, TypeError)):
        return None
    what = one_line(error)
    if isinstance(error, MemoryError) or any(sign in what.lower() for sign in MEMORY):
        return (
            f"more memory is asked for than there is ({what}). Take smaller sizes, such as --train.micro-batch or the "
            "encoder's width; --dry-run tells what a run needs."
        )
    if "negative dimension" in what:
        return f"a size would be negative ({what}). Take a larger one."
    if isinstance(error, OverflowError) or any(sign in what.lower() for sign in NUMBERS):
        return f"a number is larger than can be computed with ({what}). Take a smaller one."
    return None


def strict(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether MIM_CORE_STRICT=1 makes an error of what a plugin does wrong."""
    return environ.get("MIM_CORE_STRICT", "") not in ("", "0")


def first_rank(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether a launcher calls this process its first, which speaks for all; torchrun or srun (see
    `mim_core.ranks.launch.Launch`). A process that none started is the first."""
    if "RANK" in environ:
        return environ["RANK"] == "0"
    return environ.get("SLURM_STEP_NUM_TASKS", "1") == "1" or environ.get("SLURM_PROCID", "0") == "0"


def warn(text: str) -> None:
    """One line on standard error, from the first rank only."""
    if first_rank():
        tell(f"mim-core: warning: {text}", error=True)
