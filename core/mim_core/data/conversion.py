"""Jobs in processes of their own, for commands that go through a collection once."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, ProcessPoolExecutor, wait
from typing import TypeVar

import torch

from mim_core.errors import MimError

Job = TypeVar("Job")


Result = TypeVar("Result")


def in_processes(function: Callable[[Job], Result], jobs: Sequence[Job], workers: int) -> Iterator[Result]:
    """What the function makes of each job, in the order in which they are done.

    The processes are spawned, each computes with one thread, and none outlives this one, however it ends. Ctrl-C
    reaches this process alone.

    Args:
        function: Goes to other processes, as its jobs and results do, so they pickle.
        jobs: What is to be done.
        workers: Processes at most; with one of them, or one job, all is done in this process.

    Raises:
        MimError: A process died.
    """
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
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # after Ctrl-C, only what is half done is waited for


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
