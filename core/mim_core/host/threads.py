"""How torch's threads wait for each other on a busy machine. This file imports no torch: it must be read before.

On a CPU torch computes with GNU OpenMP, whose threads wait awake at the end of every operation. On a quiet machine that
is fastest. Where other processes want the cores, the thread that is waited for may have none meanwhile, while the
others burn theirs: ten times less speed and worse. Threads that sleep cost up to half of a quiet machine's speed. So a
command looks once, when it starts. Measured in `docs/results/threads.md`.
"""

from __future__ import annotations

import os
import time
from collections.abc import MutableMapping
from pathlib import Path
from statistics import median

STATED = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
"""Variables by which a user says how threads wait."""
SERVICES = 16
"""Of so many cores, one is left to what a machine does by itself."""


def others_running(root: Path = Path("/"), looks: int = 5, seconds: float = 0.01) -> float:
    """How many other processes and threads want a core now: the median of some looks; 0 where Linux does not tell."""
    found = []
    for number in range(looks):
        if number:
            time.sleep(seconds)
        try:
            running = (root / "proc/loadavg").read_text().split()[3].partition("/")[0]
            found.append(float(running) - 1)  # this one runs
        except (OSError, IndexError, ValueError):
            return 0.0
    return max(0.0, median(found))


def sleep_where_busy(environ: MutableMapping[str, str] = os.environ, root: Path = Path("/")) -> bool:
    """Lets threads sleep while they wait, where they and others want more cores than there are, unless the environment
    says how they wait or that there is one. Torch must not be loaded yet.

    Args:
        environ: Of this process.
        root: Where ``proc`` lies.

    Returns:
        Whether they will sleep for this reason.
    """
    cores, stated = os.cpu_count() or 1, environ.get("OMP_NUM_THREADS", "")
    threads = int(stated) if stated.isdigit() else cores
    if threads == 1 or any(name in environ for name in STATED):
        return False
    if others_running(root) <= max(0, cores - threads) + cores // SERVICES:
        return False
    environ["GOMP_SPINCOUNT"] = "0"
    return True
