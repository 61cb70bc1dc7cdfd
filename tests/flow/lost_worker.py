"""One of two ranks, of which rank 1 dies, hangs or fails at its 40th sample. Started by test_faults.py.

python lost_worker.py FOLDER die|hang|raise
"""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from mim_core import cli
from mim_core.errors import MimError
from mim_core.host.loading import installed
from mim_core.ranks import world as ranks
from mim_core.recipes.resolve import load_recipe
from mim_core.training.loop import start, train

TIMEOUT = 6.0


def lose(source, how: str) -> None:
    real, count = source.read, [0]

    def read(index, key):
        count[0] += 1
        if count[0] == 40:
            if how == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            if how == "raise":
                raise MimError("this rank has no more of it")
            time.sleep(3600)
        return real(index, key)

    source.read = read


def main(argv, plugin=None) -> int:
    folder, how = argv
    config = load_recipe("image:mae-vit-tiny", installed(), twin=True)
    options = replace(
        config.train, epochs=0.064, checkpoint_every=2, log_every=1, workers=0, timeout=TIMEOUT, warmup_epochs=0.0
    )
    config = replace(config, train=options)
    with ranks.world(options.device, options.timeout) as world:
        run = start(config, Path(folder), installed(), world)
        if world.rank == 1:
            lose(run.source, how)
        train(run, quiet=True)
    return 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    cli._command = lambda *given: lambda program, plugin, arguments: main(arguments)
    raise SystemExit(cli.main(["pretrain", *sys.argv[1:]]))
