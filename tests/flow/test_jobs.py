"""Jobs in processes of their own: results as they are done, and no process that outlives this one."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mim_core.data.conversion import in_processes


def squared(number):
    return number**2, os.getpid()


def test_few_jobs_stay_in_this_process():
    assert list(in_processes(squared, [3, 4], 1)) == [(9, os.getpid()), (16, os.getpid())]
    assert list(in_processes(squared, [3], 8)) == [(9, os.getpid())]
    assert list(in_processes(squared, [], 8)) == []


# processes import what they are to do by its name, so the functions lie in a file of their own

WORK = """
import multiprocessing, os, sys, time
from mim_core.errors import MimError
from mim_core.data.conversion import in_processes

def squared(number):
    return number**2

def dying(number):
    os._exit(1)

if __name__ == "__main__":
    if sys.argv[1] == "all":
        print(sorted(in_processes(squared, range(7), 2)))
    elif sys.argv[1] == "die":
        try:
            list(in_processes(dying, range(7), 2))
        except MimError as error:
            print(error)
    else:
        for _ in in_processes(squared, range(7), 2):
            print(*(child.pid for child in multiprocessing.active_children()), flush=True)
            sys.stdin.read(1)  # until the test is done with this process
"""


def started(folder, what):
    script = folder / "work.py"
    script.write_text(WORK)
    return subprocess.Popen(
        [sys.executable, str(script), what],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip


def test_all_are_done(tmp_path):
    assert started(tmp_path, "all").communicate(timeout=240)[0].strip() == str([n**2 for n in range(7)])


def test_a_process_that_dies_is_said(tmp_path):
    assert "A worker process died" in started(tmp_path, "die").communicate(timeout=240)[0]


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_process_outlives_this_one(tmp_path, stop):
    process = started(tmp_path, "stop")
    workers = [int(word) for word in process.stdout.readline().split()]
    assert workers
    (os.killpg if stop == signal.SIGINT else os.kill)(process.pid, stop)  # Ctrl-C reaches all of a terminal's processes
    said = process.communicate(timeout=120)[1]
    deadline = time.monotonic() + 60
    while any(map(running, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(running, workers))
    assert said.count("Traceback") == (stop == signal.SIGINT)  # of the script itself, which does not catch it


def running(pid):
    """Whether a process is there, and no zombie that nobody has asked for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
