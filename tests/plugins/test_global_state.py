"""A plugin that changes what the whole process shares is named, and what can be put back is."""

import logging
import operator
import os
import random
import sys
import textwrap
import threading
import warnings

import numpy as np
import pytest
import torch
from mim_core.errors import MimError
from mim_core.host import process_state
from mim_core.host.loading import Candidate, load
from mim_core.host.registry import Card, Entry

PLUGIN = """
from mim_core import hookimpl

{line}


@hookimpl
def mim_register_maskers(register):
    register(name="mine", load="mim_core.parts.masker:RandomMasker", summary="Works.")
"""


@pytest.fixture
def rude(tmp_path, monkeypatch):
    """``rude("line")`` announces a plugin whose import runs that line; what it leaves is cleaned up afterwards."""
    path, environ, threads = list(sys.path), dict(os.environ), torch.get_num_threads()

    def make(line):
        (tmp_path / "rude_plugin.py").write_text(PLUGIN.format(line=textwrap.dedent(line)))
        monkeypatch.syspath_prepend(tmp_path)
        sys.modules.pop("rude_plugin", None)
        return Candidate("rude", "mim-rude", "1.0", "rude_plugin")

    yield make
    sys.modules.pop("rude_plugin", None)
    sys.path[:] = path
    os.environ.clear()
    os.environ.update(environ)
    torch.set_num_threads(threads)
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)


def faults(candidate, **options):
    registry = load([candidate], environ={}, **options)
    record = registry.plugins[-1]
    assert record.failure is None
    assert registry.get("maskers", "rude:mine")  # it is used all the same
    return " ".join(record.faults)


STATE = {
    "import torch; torch.set_default_dtype(torch.float64)": (
        "torch's default dtype (torch.float32 became torch.float64; put back)",
        torch.get_default_dtype,
    ),
    "import torch; torch.set_default_device('meta')": (
        "torch's default device (cpu became meta; put back)",
        lambda: str(torch.get_default_device()),
    ),
    "import torch; torch.set_num_threads(3)": ("torch's threads (1 became 3; put back)", torch.get_num_threads),
    "import torch; torch.manual_seed(987)": (
        "torch's random state (put back)",
        lambda: torch.get_rng_state().tolist(),
    ),
    "import numpy; numpy.random.seed(987)": (
        "numpy's random state (put back)",
        lambda: np.random.get_state()[1].tolist(),
    ),
    "import random; random.seed(987)": ("Python's random state (put back)", random.getstate),
    "import logging; logging.getLogger().setLevel(7)": (
        "the root logger's level (30 became 7; put back)",
        lambda: logging.root.level,
    ),
    "import logging; logging.getLogger().addHandler(logging.NullHandler())": (
        "the root logger's handlers (",
        lambda: list(logging.root.handlers),
    ),
    "import os; os.environ['HOME'] = '/changed'": ("os.environ (HOME; put back)", lambda: os.environ["HOME"]),
    "import torch; torch.set_grad_enabled(False)": (
        "torch's gradient mode (True became False; put back)",
        torch.is_grad_enabled,
    ),
    "import torch; torch.use_deterministic_algorithms(True)": (
        "torch's determinism (False became True; put back)",
        torch.are_deterministic_algorithms_enabled,
    ),
    "import torch; torch.backends.cudnn.benchmark = True": (
        "cuDNN's search for fast algorithms (False became True; put back)",
        lambda: torch.backends.cudnn.benchmark,
    ),
    "import os; os.chdir('/')": ("the working folder (", os.getcwd),
    "import warnings; warnings.simplefilter('ignore')": (
        "the warnings' filters (put back)",
        lambda: list(warnings.filters),
    ),
}


@pytest.mark.parametrize("line", STATE)
def test_what_an_import_changes_is_named_and_put_back(rude, line, monkeypatch):
    monkeypatch.setenv("HOME", "/before")
    monkeypatch.setattr(logging.root, "level", logging.WARNING)
    said, read = STATE[line]
    before = read()
    found = faults(rude(line))
    assert found.startswith("changes global state on import: ")
    assert said in found
    assert found.count("(") == 1, f"more than one change is named: {found}"
    # libraries and their threads may draw from Python's generator meanwhile
    same = process_state._drawn_from if read is random.getstate else operator.eq
    assert same(before, read())


def test_another_thread_that_draws_is_no_fault(rude):
    """Trackers have such threads."""
    over = threading.Event()
    thread = threading.Thread(target=lambda: [random.random() for _ in iter(lambda: over.wait(0.0005), True)])
    random.seed(5)
    thread.start()
    try:
        assert faults(rude("import random")) == ""
    finally:
        over.set()
        thread.join()


def test_what_the_plugin_may_need_stays_and_is_named(rude):
    found = faults(rude("import os, sys; os.environ['MIM_NEW'] = 'secret'; sys.path.append('/vendored')"))
    assert "os.environ (MIM_NEW; left)" in found
    assert "sys.path (added '/vendored'; left)" in found
    assert "secret" not in found
    assert os.environ["MIM_NEW"] == "secret"
    assert "/vendored" in sys.path


def test_a_failing_plugin_is_cleaned_up_too(rude):
    bad = rude("import torch; torch.set_default_dtype(torch.float64); raise RuntimeError('no')")
    record = load([bad], environ={}).plugins[-1]
    assert record.failure == "RuntimeError: no"
    assert "torch's default dtype" in record.faults[0]
    assert torch.get_default_dtype() == torch.float32


QUIET = {
    "imports": "import os, sys, random, logging, torch, numpy",
    "draws a little from Python's generator": "import random; random.random()",
    "a filter of one message": "import warnings; warnings.filterwarnings('ignore', message='an old name')",
    "what torch sets": "import os; os.environ['TORCHINDUCTOR_CACHE_DIR'] = '/tmp/cache'",
}


@pytest.mark.parametrize("line", QUIET.values(), ids=QUIET)
def test_a_polite_plugin_has_no_fault(rude, line, monkeypatch):
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    with warnings.catch_warnings():
        assert faults(rude(line)) == ""


def test_the_module_of_a_part_is_watched_too(rude, capsys, monkeypatch):
    """Not the plugin's own module, but what it registers, imported when a run needs it."""
    rude("import torch; torch.set_default_dtype(torch.float64); Mine = torch.nn.Module")
    entry = Entry("evaluations", "mine", "rude", "rude_plugin:Mine", Card("Works."), origin="mim-rude 1.0")
    assert entry.resolve() is torch.nn.Module
    said = capsys.readouterr().err
    assert "evaluation 'rude:mine' of the plugin 'rude' (mim-rude 1.0) changes global state when it is impor" in said
    assert torch.get_default_dtype() == torch.float32
    sys.modules.pop("rude_plugin")
    monkeypatch.setenv("MIM_CORE_STRICT", "1")
    with pytest.raises(MimError, match="torch's default dtype"):
        entry.resolve()
    assert torch.get_default_dtype() == torch.float32


def test_a_slow_import_is_named_with_its_time(rude):
    found = faults(rude("import time; time.sleep(0.3)"), slow=0.25)
    assert found.startswith("took 0.")
    assert "s to import, more than 0.25 s" in found


def test_strict_mode_refuses(rude):
    with pytest.raises(MimError, match=r"mim-rude 1.0 changes global state on import: torch's default dtype"):
        load([rude("import torch; torch.set_default_dtype(torch.float64)")], environ={"MIM_CORE_STRICT": "1"})
    with pytest.raises(MimError, match=r"mim-rude 1.0 took 0\.\d s to import"):
        load([rude("import time; time.sleep(0.1)")], environ={"MIM_CORE_STRICT": "1"}, slow=0.05)


FRESH = """
import sys
from mim_core.host import process_state
before = process_state.read()
assert "torch" not in sys.modules and "numpy" not in sys.modules
import torch, logging
print(process_state.settle(before))
torch.set_default_dtype(torch.float64)
torch.set_default_device("meta")
logging.basicConfig(level=10)
print(process_state.settle(before))
print(torch.get_default_dtype(), torch.get_default_device(), process_state.settle(before))
"""


def test_a_library_that_comes_with_the_plugin_is_compared_with_a_fresh_one(session):
    done = session().python("-c", FRESH, fresh=True)
    assert done.returncode == 0, done.stderr
    untouched, changed, after = done.stdout.splitlines()
    assert untouched == "[]"
    for name in ("default dtype", "default device", "logger's level", "logger's handlers"):
        assert name in changed
    assert after == "torch.float32 cpu []"


def test_every_facet_is_tried():
    tried = " ".join(said for said, _ in STATE.values()) + "sys.path"
    # threads between operations can be set once in a process, before any work
    untried = [f.name for f in process_state.FACETS if f.name not in tried]
    assert untried == ["torch's threads between operations"]
