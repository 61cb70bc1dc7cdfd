"""Two processes that write the same: neither spoils what the other writes."""

import os
import resource
import subprocess
import sys
from contextlib import contextmanager, nullcontext

import pytest
import torch
from mim_core.disk import filled, replaced, write_whole
from mim_core.errors import MimError
from mim_core.interop import program_export
from mim_core.locks import only_writer
from mim_core.tensor_files import write_tensors


@contextmanager
def another(code, path):
    """Another process, at the place in its code where it says "there"; it goes on when its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", f"import sys\nfrom pathlib import Path\npath = Path(sys.argv[1])\n{code}", str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == "there\n"
        yield process
    finally:
        process.stdin.close()
        process.wait(60)
        process.stdout.close()


WRITES = """
from mim_core.disk import replaced
with replaced(path) as file:
    file.write(b"a" * 50000)
    file.flush()
    print("there", flush=True)
    sys.stdin.read()
    file.write(b"a" * 50000)
"""
LOCKS = """
from mim_core.locks import only_writer
from mim_core.tensor_files import write_tensors
path.parent.mkdir(parents=True, exist_ok=True)
with only_writer(path, "", ""):
    print("there", flush=True)
    sys.stdin.read()
"""


def test_a_file_that_two_write_is_whole_either_way(tmp_path):
    path = tmp_path / "table.json"
    with another(WRITES, path):
        write_whole(path, "b" * 70000)
        assert path.read_text() == "b" * 70000
    assert path.read_text() == "a" * 100000
    assert os.listdir(tmp_path) == ["table.json"]


def test_what_a_killed_writer_left_is_removed(tmp_path):
    path = tmp_path / "table.json"
    with another(WRITES, path) as process:
        process.kill()
        process.wait()
    assert os.listdir(tmp_path) == [".table.json"]
    write_whole(path, "whole")
    assert os.listdir(tmp_path) == ["table.json"]


def test_a_second_writer_is_refused_until_the_first_ends(tmp_path):
    lock = tmp_path / ".lock"
    with another(LOCKS, lock) as process:
        with (
            pytest.raises(MimError, match=f"Another writes it .process {process.pid} on .*Wait"),
            only_writer(lock, "Another writes it", "Wait."),
        ):
            pass
        assert lock.exists()
        process.kill()
        process.wait()
        with only_writer(lock, "Another writes it", "Wait."):
            pass
    assert not lock.exists()


@contextmanager
def largest_file(size):
    """No file may be larger: to its writer this is what a full disk is."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_that_may_not_be_so_large_leaves_the_one_before(tmp_path):
    write_whole(tmp_path / "a", "before")
    with largest_file(1000), pytest.raises(OSError, match=r"too large: '.*/a'"), replaced(tmp_path / "a") as file:
        file.write(b"x" * 5000)
    with largest_file(1000), pytest.raises(OSError, match=r"too large: '.*/a'"):
        write_tensors(tmp_path / "a", {"x": torch.zeros(5000)})
    assert os.listdir(tmp_path) == ["a"]
    assert (tmp_path / "a").read_text() == "before"


def test_a_folder_is_filled_whole_or_not_at_all(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/mine").write_text("mine")
    for fails in (True, False):
        with pytest.raises(KeyError) if fails else nullcontext(), filled(tmp_path / "a") as part:
            write_whole(part / "b", "first")
            if fails:
                raise KeyError
            write_whole(part / "c", "second")
        assert sorted(os.listdir(tmp_path / "a")) == (["mine"] if fails else ["b", "c", "mine"])
    with pytest.raises(KeyError), filled(tmp_path / "new"):
        raise KeyError
    assert os.listdir(tmp_path) == ["a"]


def test_a_program_that_may_not_be_so_large_is_an_error_and_no_abort(tmp_path):
    """torch's own writer ends the process there."""
    module, example = torch.nn.Linear(64, 64).eval(), (torch.zeros(2, 64),)
    with largest_file(5000), pytest.raises(OSError, match=r"too large: '.*/a\.pt2'"):
        program_export._write_torch(module, example, tmp_path / "a.pt2", {}, ())
    assert os.listdir(tmp_path) == []
