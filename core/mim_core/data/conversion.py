"""Commands that go through a collection once and write it anew: a file at a time, in processes of their own, with a
manifest of what was done, by which a stopped conversion goes on."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

from mim_core.disk import is_full, write_whole
from mim_core.errors import BadSample, MimError, check_workers
from mim_core.locks import only_writer

Job = TypeVar("Job")
Result = TypeVar("Result")
Line = dict[str, Any]
"""A line of the manifest: ``file``, ``status`` ("done", "copied", "aside", "failed"), and what else there is to say."""
MANIFEST = "manifest.jsonl"
PARTIAL = ".partial"
"""What the name of a file that is being written ends in."""


@dataclass(frozen=True)
class Conversion:
    """One file of a collection, and where it goes; paths below the two folders.

    Attributes:
        source: The file below IN.
        target: Its place below OUT.
        kind: What is done with it.
        renamed: Why it does not get its own name.
        reason: Why it is left out, or why it is written again.
    """

    source: str
    target: str
    kind: Literal["convert", "copy", "aside"]
    renamed: str = ""
    reason: str = ""


def with_own_names(files: Sequence[Conversion], ending: str) -> list[Conversion]:
    """The same, each with a target of its own: of files that would get one name, the first that has it already, or
    else the first, gets it; the others keep their endings, and ``ending`` follows."""
    takers: dict[str, str] = {}
    for file in sorted(files, key=lambda file: file.source != file.target):  # stable: who has the name comes first
        if file.kind != "aside":
            takers.setdefault(file.target, file.source)
    named = []
    for file in files:
        if file.kind == "aside" or takers[file.target] == file.source:
            named.append(file)
            continue
        target = file.source + ending
        while target in takers:
            target += ending
        takers[target] = file.source
        named.append(replace(file, target=target, renamed=f"{file.target} is made of {takers[file.target]}"))
    return named


def write_file(
    file: Conversion,
    root: Path,
    out: Path,
    write: Callable[[Path, Path], Line],
    keep: bool,
    faults: tuple[type[Exception], ...] = (),
) -> Line:
    """Writes one file of OUT, under another name until it is whole. Returns its line of the manifest.

    Args:
        file: Which one.
        root: IN.
        out: OUT.
        write: Makes the second file of the first; returns the rest of the line.
        keep: Whether what an earlier run wrote stays when this fails, or is removed.
        faults: What it may raise besides `BadSample`, `OSError` and `ValueError` where the file is at fault.

    Raises:
        OSError: There is no room left, so that no other file would fit either.
    """
    source, target = root / file.source, out / file.target
    partial = target.with_name(target.name + PARTIAL)
    line: Line = {"file": file.source, "out": file.target}
    line |= {name: text for name, text in (("again", file.reason), ("renamed", file.renamed)) if text}
    expected: tuple[type[Exception], ...] = (BadSample, OSError, ValueError, *faults)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        line |= write(source, partial)
        partial.replace(target)
        return line
    except expected as error:
        for old in (partial,) if keep else (partial, target):
            if old.is_file():
                old.unlink()
        if is_full(error):
            raise OSError(getattr(error, "errno", None), "There is no room to write", str(target)) from error
        reason = error.reason if isinstance(error, BadSample) else str(error)
        stays = "; the one written before stays" if target.is_file() else ""
        return {"file": file.source, "status": "failed", "reason": reason + stays}


@contextmanager
def converting_alone(out: Path) -> Iterator[None]:
    """Makes the folder OUT, and keeps other conversions out of it: two would write the same files.

    Raises:
        MimError: Another process is at it.
        OSError: It cannot be written.
    """
    out.mkdir(parents=True, exist_ok=True)
    remedy = "Wait for it, stop it, or name another folder."
    with only_writer(out / ".lock", f"Another process writes into {out}", remedy):
        yield


class Manifest:
    """``OUT/manifest.jsonl``: a line for each file of IN, in order, and while a conversion runs in the order in which
    they are done.

    Attributes:
        path: Where it is.
        before: The lines of earlier runs, by the file's path below IN.
    """

    def __init__(self, out: Path) -> None:
        self.path = out / MANIFEST
        self.before: dict[str, Line] = {}
        for text in self.path.read_text(errors="replace").splitlines() if self.path.is_file() else ():
            try:
                line = json.loads(text)
                if isinstance(line["status"], str):
                    self.before[line["file"]] = line
            except (ValueError, KeyError, TypeError, RecursionError):  # cut off when a run was killed, or damaged
                continue

    def follow(self, files: Sequence[Conversion], lines: Iterable[Line]) -> Iterator[Line]:
        """Writes the line of each file as it comes, and hands it on. Of a file that is "skipped", because an earlier
        run did it, that run's line stays."""
        self._write(list(self.before.values()))  # a line that was cut off would spoil the next
        done: dict[str, Line] = {}
        with self.path.open("a") as manifest:
            for line in lines:
                if line["status"] == "skipped":
                    done[line["file"]] = self.before[line["file"]]
                else:
                    done[line["file"]] = line
                    manifest.write(json.dumps(line) + "\n")
                    manifest.flush()
                yield line
        self._write([done[file.source] for file in files])

    def _write(self, lines: Sequence[Line]) -> None:
        write_whole(self.path, "".join(json.dumps(line) + "\n" for line in lines))


def in_processes(function: Callable[[Job], Result], jobs: Sequence[Job], workers: int) -> Iterator[Result]:
    """What the function makes of each job, in the order in which they are done.

    The processes are spawned, each computes with one thread, and none outlives this one, however it ends. Ctrl-C
    reaches this process alone.

    Args:
        function: Goes to other processes, as its jobs and results do, so they pickle.
        jobs: What is to be done.
        workers: Processes at most; with one of them, or one job, all is done in this process.

    Raises:
        MimError: A process died; or so many cannot be meant.
    """
    check_workers("--workers", workers)
    if workers <= 1 or len(jobs) <= 1:
        yield from map(function, jobs)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(jobs)), context, _begin_worker) as pool:
        rest, running = iter(jobs), set[Future[Result]]()
        try:
            while True:
                for job in itertools.islice(rest, 2 * workers - len(running)):
                    running.add(_submitted(pool, function, job))
                if not running:
                    return
                done, running = wait(running, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        except BrokenExecutor as error:
            raise MimError(
                "A worker process died, probably out of memory. The same command resumes from here; "
                "use fewer --workers."
            ) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # after Ctrl-C, only what is half done is waited for
            raise


def _submitted(pool: ProcessPoolExecutor, function: Callable[[Job], Result], job: Job) -> Future[Result]:
    """Hands a job to the pool. A process that is started for it inherits that Ctrl-C does not reach it: the one here
    hears it, and says so once."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return pool.submit(function, job)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin_worker() -> None:
    """One thread for each process; and a watch, because a pool's processes wait for ever when theirs is killed."""
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)  # a job writes under another name until it is done, so it is done again
