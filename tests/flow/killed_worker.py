"""Trains one run in processes that are killed, twenty times, and then lets it end. Started by test_faults.py.

    python killed_worker.py FOLDER SEED

Each attempt is a fork of this process, so that twenty do not import torch twenty times. Half are killed from outside at
a random moment, half kill themselves at a random system call of writing a checkpoint. Prints what happened.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from mim_core import disk
from mim_core.host.loading import installed
from mim_core.recipes.resolve import load_recipe
from mim_core.runs import checkpoint
from mim_core.training.loop import start, train

KILLS, STEPS = 20, 240


def make_run(folder: Path, workers: int = 0):
    config = load_recipe("image:mae-vit-tiny", installed(), twin=True)
    options = replace(
        config.train, epochs=STEPS * 16 / 10_000, checkpoint_every=3, log_every=1, workers=workers, ema=0.99
    )
    return start(replace(config, train=options), folder, installed())


def kill_in_checkpoint(call: int) -> None:
    """SIGKILL to this process at that call among those that write a checkpoint."""
    count = [0]

    def armed(function):
        def run(*given, **named):
            count[0] += 1
            if count[0] == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*given, **named)

        return run

    real = checkpoint.save_file

    def torn(tensors, path, **named):
        count[0] += 1
        if count[0] == call:
            real(tensors, path, **named)
            os.truncate(path, os.path.getsize(path) // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        return real(tensors, path, **named)

    checkpoint.save_file = torn
    disk._sync = armed(disk._sync)
    checkpoint.shutil.rmtree = armed(checkpoint.shutil.rmtree)
    Path.rename = armed(Path.rename)
    Path.write_text = armed(Path.write_text)


def attempt(folder: Path, draw: random.Random, number: int) -> tuple[str, bool]:
    """One process; returns how it was to be killed, and whether it was."""
    inside, call = number % 2 == 1, draw.randint(3, 20)
    lines, delay = _lines(folder) + draw.randint(0, 9), draw.uniform(0, 0.02)
    child = os.fork()
    if child == 0:
        if inside:
            kill_in_checkpoint(call)
        train(make_run(folder, workers=2 if number % 6 == 0 else 0), quiet=True)
        os._exit(0)
    if not inside:
        until = time.monotonic() + 60
        while _lines(folder) < lines and time.monotonic() < until:
            time.sleep(0.001)
        time.sleep(delay)  # anywhere within a step, or within a checkpoint
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    if not killed and status != 0:
        raise SystemExit(f"attempt {number} failed with status {status}")
    return ("in a checkpoint" if inside else "at a moment"), killed


def _lines(folder: Path) -> int:
    """Steps that the run has told of."""
    path = folder / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def main() -> None:
    torch.set_num_threads(1)
    folder, draw = Path(sys.argv[1]), random.Random(int(sys.argv[2]))
    kills = {"in a checkpoint": 0, "at a moment": 0}
    number = 0
    while sum(kills.values()) < KILLS:
        how, killed = attempt(folder, draw, number)
        kills[how] += killed
        number += 1
        newest = checkpoint.newest(folder)
        print(f"{number}: {how}, {'killed' if killed else 'ended'}; newest {newest and newest.name}", flush=True)
        if not killed and newest and newest.name == f"step-{STEPS:08d}":
            raise SystemExit("the run ended before it was killed often enough")
    train(make_run(folder), quiet=True)
    print(f"KILLED {kills['in a checkpoint']} + {kills['at a moment']}")


if __name__ == "__main__":
    main()
