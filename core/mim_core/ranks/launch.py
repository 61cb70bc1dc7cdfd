"""What the launcher (torchrun, srun) says of this process. Imports no torch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from mim_core.errors import MimError


@dataclass(frozen=True)
class Launch:
    """What the launcher says of this process: its number, how many there are, and its number on this machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @staticmethod
    def from_environment(environment: Any = os.environ) -> Launch:
        """torchrun's variables, or those of an ``srun`` step with several tasks; else a process alone.

        Raises:
            MimError: srun started several tasks and did not say where rank 0 is.
        """
        if "RANK" in environment and "WORLD_SIZE" in environment:
            rank, size = int(environment["RANK"]), int(environment["WORLD_SIZE"])
            return Launch(rank, size, int(environment.get("LOCAL_RANK", rank)))
        tasks = int(environment.get("SLURM_STEP_NUM_TASKS", 1))  # absent in the batch script itself
        if tasks > 1:
            missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in environment]
            if missing:
                raise MimError(
                    f"srun started {tasks} tasks, and {' and '.join(missing)} is not set, so they cannot find each "
                    "other. The template in docs/cluster.md sets both."
                )
            return Launch(int(environment["SLURM_PROCID"]), tasks, int(environment["SLURM_LOCALID"]))
        return Launch()
