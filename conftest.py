"""For every test of the core and of the plugins: one thread, shape annotations checked at run time, a temporary folder
of the session's own, and nothing left behind.

MIM_NO_SHAPE_CHECKS=1 leaves the checks of shapes out. Contracts that compile switch them off for that one check
(`mim_core.testing.unchecked`), because a tracer cannot look into the checker.
"""

import functools
import gzip
import math
import multiprocessing
import os
import random
import struct
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch

torch.set_num_threads(1)

# where a float is asked, an int will do, as PEP 484 has it
CHECKER = "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"


def _with_shapes():
    """Modules whose annotations state shapes. In others there is nothing that mypy has not checked, and the wrapper of
    every function would cost a third of the time of these tests."""
    root = Path(__file__).parent
    for package in [root / "core/mim_core", *root.glob("plugins/*/mim_*")]:
        for path in package.rglob("*.py"):
            if "from jaxtyping import" in path.read_text(encoding="utf-8"):
                yield ".".join(path.relative_to(package.parent).with_suffix("").parts)


if not os.environ.get("MIM_NO_SHAPE_CHECKS"):
    from jaxtyping import install_import_hook

    # before anything imports these packages; it stays for the whole session
    install_import_hook(list(_with_shapes()), CHECKER)


@pytest.fixture(scope="module")
def unchecked():
    """Shapes are not checked in this module. The contracts check every part that they use."""
    from mim_core.testing.checks import unchecked

    with unchecked():
        yield


CHECKED = ("tests/contracts", "tests/parity", "contract")
"""Parts of the paths of tests that check shapes."""


@pytest.fixture(scope="module", autouse=True)
def checked_where_parts_are_tested(request):
    """Shapes are checked where parts are tested one by one: contracts and parity. All else runs as users run it: the
    checks took a quarter of the time of plugins' tests and half of those that train."""
    if not tests_parts(request):
        request.getfixturevalue("unchecked")


def tests_parts(request):
    """Whether a file tests parts one by one."""
    path = request.path.relative_to(request.config.rootpath).as_posix()
    return any(part in path for part in CHECKED)


@pytest.fixture(autouse=True)
def counted_where_it_is_looked_at(request):
    """Operations are not counted at each start of a run: that takes longer than the steps of a tiny one. The contracts
    count them for every kind of recipe, and so do tests that are marked ``counted``."""
    with pytest.MonkeyPatch.context() as patch:
        if not tests_parts(request) and request.node.get_closest_marker("counted") is None:
            from mim_core.training import loop

            patch.setattr(loop._Session, "_count_operations", lambda session: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def unpacked_once():
    """The bundled images are unpacked once in a process of tests; their arrays cannot be written to."""
    from mim_image import data, idx

    read, once = idx.read_idx, functools.cache(idx.read_idx)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(idx, "read_idx", lambda path, axes: (once if path.parent == data.SAMPLE else read)(path, axes))
        yield


@pytest.fixture(scope="session")
def first_pictures(tmp_path_factory):
    """``first_pictures(300, 100)``: the first images of the bundled sample, to train and to test on, as a folder of
    idx files."""
    from mim_image.data import SAMPLE

    def made(train, test):
        folder = tmp_path_factory.mktemp("first")
        for path in SAMPLE.glob("*.gz"):
            content, count = gzip.decompress(path.read_bytes()), train if "train" in path.name else test
            axes = content[3]
            sizes = struct.unpack(f">{axes}I", content[4 : 4 + 4 * axes])
            body = content[4 + 4 * axes :][: count * math.prod(sizes[1:])]
            header = content[:4] + struct.pack(f">{axes}I", count, *sizes[1:])
            (folder / path.name).write_bytes(gzip.compress(header + body))
        return folder

    return functools.cache(made)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Checks of the contracts that need a GPU get the marker ``gpu``; `mim_core.testing` does without pytest."""
    for item in items:
        if getattr(getattr(item, "function", None), "needs_gpu", False):
            item.add_marker(pytest.mark.gpu)


LONG = (
    "tests/flow/test_ranks.py",
    "tests/packaging/test_wheels.py",
    "tests/flow/test_curves.py",
    "tests/flow/test_faults.py",
    "tests/authoring/test_tutorial.py",
    "tests/flow/test_loop.py",
    "tests/flow/test_nothing_hangs.py",
    "tests/plugins/test_projects.py",
    "tests/authoring/test_new_plugin.py",
    "tests/cli/test_programs.py",
    "tests/authoring/test_audio.py",
    "tests/flow/test_finetune.py",
    "tests/flow/test_finetune_recipes.py",
)
"""Files that take longest, the longest first. One process runs a whole file, so a run that came to one of these at its
end would wait for it."""


class LongFirst:
    """Where several processes share the tests, those of long files come first; others stay in their random order."""

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config, items):
        if os.environ.get("PYTEST_XDIST_WORKER"):
            rank = {file: number for number, file in enumerate(LONG)}
            items.sort(key=lambda item: rank.get(item.nodeid.partition("::")[0], len(rank)))


# ---- the session's own folder ----------------------------------------------------------------------------------------

CACHES = ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "TRITON_HOME")
"""Where libraries keep what they write below the home folder."""


@pytest.hookimpl(trylast=True)
def pytest_configure(config):
    """Temporary files of the tests, of the libraries and of every process that they start lie in pytest's own folder,
    which pytest removes. xdist's processes inherit the variables of the one that starts them."""
    config.pluginmanager.register(LongFirst())
    if "PYTEST_XDIST_WORKER" in os.environ:
        keep_sockets(Path(os.environ["TMPDIR"]))
        return
    config.option.loadscopereorder = False  # xdist would begin with the files that have most tests
    folder = config._tmp_path_factory.getbasetemp() / "system"
    folder.mkdir()
    config.mim_environ = {name: os.environ.get(name) for name in ("TMPDIR", *CACHES, "PYTHONDONTWRITEBYTECODE")}
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # or each process that a test starts compiles all modules again
    for name in CACHES:
        os.environ[name] = str(folder / name.lower())
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
    keep_sockets(folder)


def keep_sockets(folder):
    """multiprocessing gets a folder for its sockets. One that it made it would remove when Python ends, and print a
    traceback because pytest had done so."""
    (folder / "mp").mkdir(exist_ok=True)
    multiprocessing.current_process()._config["tempdir"] = str(folder / "mp")


def pytest_unconfigure(config):
    tempfile.tempdir = None
    multiprocessing.current_process()._config.pop("tempdir", None)
    for name, value in getattr(config, "mim_environ", {}).items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def pytest_terminal_summary(terminalreporter, config):
    """The order's seed: ``-q`` hides the header that holds it."""
    if (seed := config.getoption("randomly_seed", None)) is not None:
        terminalreporter.write_line(f"Random order; the same order again: pytest --randomly-seed={seed}")


def orphans():
    """Command lines of processes that tests started, known by their temporary folder, and that are no descendants of
    this one: they would outlive it."""
    mark, parents, ours = f"TMPDIR={os.environ['TMPDIR']}\0".encode(), {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            number, rest = int(folder.name), (folder / "stat").read_text().rpartition(")")[2].split()
            parents[number] = int(rest[1])
            if rest[0] != "Z" and mark in (folder / "environ").read_bytes():
                ours[number] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it has ended, or belongs to somebody else
            continue

    def below(number):
        while number > 1 and number != os.getpid():
            number = parents.get(number, 0)
        return number == os.getpid()

    return {number: line for number, line in ours.items() if not below(number)}


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session):
    """Fails a session that leaves processes; those of xdist and their helpers may take a moment to end."""
    result = yield
    if "PYTEST_XDIST_WORKER" not in os.environ:
        until = time.monotonic() + 10
        while (left := orphans()) and time.monotonic() < until:
            time.sleep(0.1)
        if left:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
            told = "\n".join(f"  process {number}: {line}" for number, line in left.items())
            session.config.get_terminal_writer().line(f"\nThe tests leave processes behind:\n{told}", red=True)
    return result


# ---- nothing left behind ---------------------------------------------------------------------------------------------

LIBRARIES = ("PYTEST_", "TORCH", "_TORCH", "PYTORCH", "TRITON", "CUBLAS", "KINETO", "TOKENIZERS_", "DISABLE_CUPTI",
             "TEARDOWN_CUPTI")  # fmt: skip
"""How environment variables begin that pytest, and torch when a part of it is first used, set for good."""
HELPERS = ("multiprocessing.resource_tracker", "multiprocessing.forkserver", "compile_worker")
"""Processes that Python and torch start once and keep: part of a command line."""


def children():
    """Command lines of this process's children, by number; those that have ended and were not waited for too."""
    found = {}
    for task in Path("/proc/self/task").glob("*/children"):
        try:
            numbers = task.read_text().split()
        except OSError:  # the thread has ended
            continue
        for number in numbers:
            try:
                line = Path(f"/proc/{number}/cmdline").read_bytes()
            except OSError:
                continue
            found[number] = line.replace(b"\0", b" ").decode(errors="replace")
    return {number: line for number, line in found.items() if not any(helper in line for helper in HELPERS)}


def state():
    """What a test must leave as it was, by name."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(LIBRARIES)}
    return {
        "os.environ": environ,
        "the working folder": os.getcwd(),
        "torch's default dtype": torch.get_default_dtype(),
        "torch's default device": str(torch.get_default_device()),
        "torch's threads": torch.get_num_threads(),
        "torch's gradient mode": torch.is_grad_enabled(),
        "torch's determinism": torch.are_deterministic_algorithms_enabled(),
        "a process group": torch.distributed.is_available() and torch.distributed.is_initialized(),
    }


def told(before, after):
    if not isinstance(before, dict):
        return f"{before!r} became {after!r}"
    return ", ".join(sorted(name for name in {*before, *after} if before.get(name) != after.get(name)))


@pytest.fixture(autouse=True)
def nothing_is_left(request):
    """Fails a test that leaves the process otherwise than it found it, or a process of its own. Random states are put
    back instead: a run seeds them at every step, and no test may lean on what another left."""
    before, running = state(), children()
    drawn = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    yield
    random.setstate(drawn[0])
    np.random.set_state(drawn[1])
    torch.random.set_rng_state(drawn[2])
    after = state()
    left = [f"{name} ({told(before[name], after[name])})" for name in before if before[name] != after[name]]
    new = {}
    for _ in range(100):  # a process that was told to end may take a moment
        multiprocessing.active_children()  # waits for those that have ended
        new = {number: line for number, line in children().items() if number not in running}
        if not new:
            break
        time.sleep(0.05)
    left += [f"process {number}: {line or 'ended, and nobody waited for it'}" for number, line in new.items()]
    assert not left, f"this test leaves {'; '.join(left)}"
