"""The contracts survive FSDP2: two gloo ranks give what one process gives."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SPIKE = Path(__file__).with_name("sharding_spike.py")


@pytest.mark.parametrize("extra", [[], ["--bf16"]], ids=["fp32", "bf16"])
def test_two_ranks_under_fsdp2_equal_one(extra):
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        str(SPIKE),
        *extra,
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SHARDED EQUALS SINGLE" in done.stdout
