"""A run ends within seconds of whatever ends it, and leaves no process."""

import contextlib
import gc
import os
import signal
import subprocess
import sys
import tempfile
import time
from multiprocessing import util
from pathlib import Path

import numpy as np
import pytest
import torch
from mim_core.data.labelled import LabelledSource
from mim_core.data.loading import KeyedDataset, Request, end_readers, loader, replacements
from mim_core.data.source import DataSource, Labelled
from mim_core.data.time_limits import Places, TooSlow, Watch, in_time, time_limit
from mim_core.errors import BadSample, MimError
from mim_core.training.signals import before_the_first_step, cleared_away, stop_signals
from PIL import Image
from torch.utils.data import TensorDataset

AT_ONCE = 25
"""Seconds within which a process must end after its error, on a busy machine too; those that hung never did."""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    draws = np.random.default_rng(0)
    for number in range(24):
        Image.fromarray(draws.integers(0, 255, (30, 30), dtype=np.uint8)).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def start(loaded_python):
    """``start(code, *arguments, fresh=False, **environment)``: a command in a session of its own, with code before it,
    in a fork of a Python that has loaded torch, or in a fresh one."""

    def started(code, *arguments, fresh=False, **environment):
        script = f"import sys\n{code}\nfrom mim_core.cli import main\nsys.exit(main(sys.argv[1:]))"
        env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        given = ["-c", script, *map(str, arguments)]
        if not fresh:
            return loaded_python.start(given, env=env, together=True)
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen([sys.executable, *given], env=env, start_new_session=True, **streams)

    return started


def left(pid):
    """Processes of a session that live, but for zombies."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, session = path.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(session) == pid and state != "Z":
            found.append(int(path.parent.name))
    return found


@pytest.fixture
def temporary():
    """A folder of temporary files with a short name, as the system's has: sockets lie in it, whose names are short."""
    with tempfile.TemporaryDirectory(prefix="m", dir="/tmp") as folder:
        yield folder


def remains(temporary):
    """What a command left in its folder of temporary files; but for torch's cache of compiled code, and what wandb
    makes when timm imports it."""
    return [name for name in os.listdir(temporary) if not name.startswith("torchinductor") and "wandb" not in name]


def ended(process, within=120):
    """(exit code, output) of a process, which must leave none."""
    try:
        output, _ = process.communicate(timeout=within)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail(f"still running: {process.communicate()[0][-2000:]}")
    for _ in range(40):
        if not left(process.pid):
            break
        time.sleep(0.1)
    assert not left(process.pid)
    return process.returncode, output


FAILS = """
import torch
import torch.multiprocessing
{method}
from mim_core.methods.masked_autoencoder import MaskedAutoencoder
before, steps = MaskedAutoencoder.forward, [0]
def forward(self, *given):
    steps[0] += 1
    if steps[0] > 3:
        raise {error}
    return before(self, *given)
MaskedAutoencoder.forward = forward
"""
RUN = ("pretrain", "image:mae-vit-tiny", "--twin", "--train.batch-size", "8", "--train.epochs", "400", "--quiet")


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_an_error_of_the_main_process_ends_it(start, pictures, tmp_path, method, temporary):
    code = FAILS.format(error='torch.OutOfMemoryError("made for the test")', method="")
    if method == "spawn":
        code = f"if __name__ != '__main__':\n    raise SystemExit\n{code}"
        code = code.replace("import torch.multiprocessing", "torch.multiprocessing.set_start_method('spawn')")
    given = (*RUN, "--data.root", pictures, "--train.workers", 2, "--out", tmp_path / "run")
    status, output = ended(start(code, *given, fresh=method == "spawn", TMPDIR=str(temporary)))
    assert status == 1, output
    assert "made for the test" in output
    assert not remains(temporary)


def test_a_full_disk_ends_it(start, pictures, tmp_path):
    code = """
import mim_core.training.trainer as trainer
def no_room(*given):
    raise OSError(28, "No space left on device", "metrics.jsonl")
trainer.open = no_room
"""
    run = start(code, *RUN, "--data.root", pictures, "--train.workers", 2, "--out", tmp_path / "run")
    status, output = ended(run)
    assert status == 2, output
    assert "No space left" in output


def test_files_that_are_all_bad_are_refused_every_time(mim_in, tmp_path):
    for number in range(6):
        (tmp_path / f"{number}.jpg").write_bytes(b"no")
    for workers in (2, 2, 0):
        code, said = mim_in(*RUN, "--data.root", tmp_path, "--train.workers", workers, "--out", tmp_path / "run")
        assert code == 2
        assert "6 files cannot be used" in said


@pytest.fixture
def mim_in(capsys):
    from mim_core.cli import main

    def run(*arguments):
        code = main(list(map(str, arguments)))
        return code, capsys.readouterr().err

    return run


def wait_for(process, path, lines):
    """Until a file has so many lines."""
    until = time.monotonic() + 90
    while time.monotonic() < until and process.poll() is None:
        if path.exists() and len(path.read_text().splitlines()) >= lines:
            return
        time.sleep(0.05)
    pytest.fail(f"no {path}: {process.communicate(timeout=10)[0] if process.poll() is not None else ''}")


def readers_of(process):
    """The processes that a run has started."""
    return [pid for pid in left(process.pid) if pid != process.pid]


def test_a_stopped_reader_is_noticed(start, pictures, tmp_path):
    out = tmp_path / "run"
    run = start("", *RUN, "--data.root", pictures, "--train.workers", 1, "--train.timeout", 4, "--out", out)
    wait_for(run, out / "metrics.jsonl", 3)
    for pid in readers_of(run):
        os.kill(pid, signal.SIGSTOP)
    status, output = ended(run)
    assert status == 2, output
    assert "--train.timeout" in output


def test_a_stopped_reader_is_noticed_while_a_machine_is_measured(start, pictures):
    """Readers are stopped by the process that they read for, once it has had three batches."""
    code = """
import os, signal
from mim_core.training.trainer import Trainer
before, batches = Trainer._fetch, [0]
def fetch(self, given):
    batches[0] += 1
    if batches[0] == 3:
        for worker in given._workers:
            os.kill(worker.pid, signal.SIGSTOP)
    return before(self, given)
Trainer._fetch = fetch
"""
    given = ("--twin", "--train.batch-size", 8, "--train.workers", 1, "--train.timeout", 4, "--seconds", 60)
    run = start(code, "bench", "image:mae-vit-tiny", "--data.root", pictures, *given)
    status, output = ended(run)
    assert status == 2, output
    assert "--train.timeout" in output
    assert "Traceback" not in output


def test_a_run_that_waits_for_a_stopped_reader_hears_a_signal(start, pictures, tmp_path):
    """Also where the signal of the reader's end tells nothing: another thread may wait for that end first."""
    out = tmp_path / "run"
    lost = "import torch.utils.data._utils.signal_handling as handling; handling._SIGCHLD_handler_set = True"
    run = start(lost, *RUN, "--data.root", pictures, "--train.workers", 1, "--train.timeout", 600, "--out", out)
    wait_for(run, out / "metrics.jsonl", 3)
    for pid in readers_of(run):
        os.kill(pid, signal.SIGSTOP)
    time.sleep(1)
    run.send_signal(signal.SIGTERM)
    status, output = ended(run)
    assert status == 3, output
    assert list((out / "checkpoints").glob("step-*"))


def test_readers_end_with_a_run_that_is_killed(start, pictures, tmp_path, temporary):
    given = (*RUN, "--data.root", pictures, "--train.workers", 2, "--out", tmp_path / "run")
    run = start("", *given, TMPDIR=str(temporary))
    wait_for(run, tmp_path / "run" / "metrics.jsonl", 2)
    run.kill()
    until = time.monotonic() + 30
    while left(run.pid) and time.monotonic() < until:
        time.sleep(0.2)
    ended(run)
    assert not remains(temporary)


def test_sockets_of_the_tests_lie_in_pytests_own_folder():
    """And pytest removes them. What multiprocessing removes when Python ends is gone by then, which is a traceback."""
    assert Path(util.get_temp_dir()).is_relative_to(os.environ["TMPDIR"])
    assert util._remove_temp_dir not in [end._callback for end in util._finalizer_registry.values()]


def test_a_command_that_trains_nothing_clears_away_before_it_ends(capfd):
    def hears(number):
        os.kill(os.getpid(), number)
        time.sleep(5)

    with pytest.raises(SystemExit) as end, cleared_away("mim-core"), tempfile.TemporaryDirectory() as folder:
        hears(signal.SIGTERM)
    assert end.value.code == 128 + signal.SIGTERM
    assert not Path(folder).exists()
    assert "SIGTERM" in capfd.readouterr().err


@pytest.mark.parametrize("name", ["SIGHUP", "SIGTERM"])
def test_signals_save_and_stop(start, pictures, tmp_path, name):
    if signal.getsignal(getattr(signal, name)) == signal.SIG_IGN:
        pytest.skip(f"{name} is ignored here, as under nohup, and so by what is started from here")
    out = tmp_path / "run"
    run = start("", *RUN, "--data.root", pictures, "--train.workers", 2, "--out", out)
    wait_for(run, out / "metrics.jsonl", 2)
    run.send_signal(getattr(signal, name))
    status, output = ended(run)
    assert status == 3, output
    assert list((out / "checkpoints").glob("step-*"))


def test_a_signal_before_the_first_step_ends_as_one_after_it(start, pictures, tmp_path):
    code = "import mim_core.cli, os, signal, threading\n"  # a busy machine imports for seconds
    code += "threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()"
    status, output = ended(start(code, *RUN, "--data.root", pictures, "--out", tmp_path / "run", fresh=True))
    assert status == 3, output
    assert "SIGTERM" in output


@pytest.mark.parametrize("becomes", [RuntimeError, None])
def test_a_signal_that_a_library_hides_still_ends_as_one(becomes):
    """What a handler raises may come anywhere: within an import that makes an error of it, or where it is ignored."""

    def command():
        with before_the_first_step("x"):
            with contextlib.suppress(SystemExit):
                signal.raise_signal(signal.SIGTERM)
            raise becomes("cannot be imported") if becomes else MimError("No images")

    with pytest.raises(SystemExit) as ended_by:
        command()
    assert ended_by.value.code == 3
    with pytest.raises(MimError), before_the_first_step("x"):
        raise MimError("No images")
    with before_the_first_step("x"):
        with contextlib.suppress(SystemExit):
            signal.raise_signal(signal.SIGTERM)
        with stop_signals() as stop:
            assert stop == [signal.SIGTERM]
    with stop_signals() as stop:
        assert not stop


class Slow(DataSource):
    """Numbers, of which some take for ever and some are bad."""

    class Config:
        max_bad = 1.0

    def __init__(self, count, slow=(), bad=()):
        super().__init__(self.Config(), {})
        self.count, self.slow, self.bad = count, slow, bad
        self.item_seconds = 0.2

    def __len__(self):
        return self.count

    def name_of(self, index):
        return f"{index}.x"

    def read(self, index, key):
        while index in self.slow:
            pass
        if index in self.bad:
            raise BadSample(f"{index}.x", "bad")
        return {"x": torch.tensor(index)}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_slow_item_is_named_and_replaced(workers):
    requests = [[Request(index, 1000 + index)] for index in range(4)]
    dataset = KeyedDataset(Slow(4, slow=(2,)), Places(workers))
    batches = list(loader(dataset, requests, workers, lambda found: found[0], wait=60))
    assert [sample is not None for sample, _ in batches] == [True] * 4
    (path, reason), *_ = batches[2][1]
    assert path == "2.x"
    assert "longer than 0.2 s" in reason
    end_readers()


class Wrapping(Slow):
    """Makes a bad file of every error, as readers do around libraries that raise many kinds."""

    def read(self, index, key):
        try:
            return super().read(index, key)
        except Exception as error:
            raise BadSample(self.name_of(index), f"it is damaged ({error})") from error


def test_a_slow_item_whose_reader_takes_every_error_for_damage_is_slow():
    dataset = KeyedDataset(Wrapping(4, slow=(2,)))
    for key in range(3):
        sample, skipped = dataset[Request(2, key)]
        assert sample is not None
        assert skipped[0] == ("2.x", "reading it took longer than 0.2 s (--train.item-timeout)")
        assert dataset.slow == {2}  # so it is not tried again
    with pytest.raises(BadSample, match=r"longer than 0\.1 s"), in_time("2.x", 0.1):
        Wrapping(4, slow=(2,)).read(2, 0)


def test_a_readable_item_is_found_however_few_there_are():
    source = Slow(1000, bad=set(range(1000)) - {617})
    sample, skipped = KeyedDataset(source)[Request(3, 42)]
    assert int(sample["index"]) == 617
    assert 0 < len(skipped) < 1000
    again, _ = KeyedDataset(source)[Request(3, 42)]
    assert int(again["index"]) == 617


class Odd(Slow):
    """An item can be read under even keys alone, as a clip of which another part is damaged."""

    def read(self, index, key):
        if key % 2:
            raise BadSample(self.name_of(index), "bad")
        return {"x": torch.tensor(index)}


def test_what_is_read_does_not_depend_on_what_the_process_met_before():
    requests = [Request(index, key) for key in range(4) for index in range(50)]
    one = KeyedDataset(Odd(50))
    for request in requests:
        (first, skipped), (second, others) = one[request], KeyedDataset(Odd(50))[request]
        assert skipped == others
        assert (first is None) == (second is None) == bool(request.key % 2)


class Rows(Slow):
    """Two files of a hundred items each."""

    class Config:
        max_bad = 0.2

    def name_of(self, index):
        return f"{index // 100}.h5 (row {index % 100})"

    def read(self, index, key):
        if index < 100:
            raise BadSample("0.h5", "damaged")
        return {"x": torch.tensor(index)}


def test_a_file_of_many_items_counts_once():
    dataset = KeyedDataset(Rows(200))
    for number in range(200):
        sample, skipped = dataset[Request(number, number)]
        assert sample is not None
        assert {path for path, _ in skipped} <= {"0.h5"}


class Files(Slow):
    """Numbered files, all labelled but the first; their bad files have other names."""

    def labelled(self, split):
        labels = torch.zeros(self.count - 1, dtype=torch.int64)
        return Labelled(
            split, labels, ("a", "b"), TensorDataset(labels), names=tuple(map(self.name_of, range(1, self.count)))
        )

    def items_named(self, names):
        return {name: int(name.removeprefix("depth/")) for name in names if name.startswith("depth/")}


def test_bad_files_are_found_among_labelled_items():
    source = LabelledSource(Files(5))
    assert [source.name_of(index) for index in range(4)] == ["1.x", "2.x", "3.x", "4.x"]
    assert source.items_named({"2.x", "depth/3", "depth/0", "9.x"}) == {"2.x": 1, "depth/3": 2}


@pytest.mark.parametrize("count", [1, 2, 7, 64, 1000])
def test_replacements_meet_every_item_once(count):
    for key in range(5):
        order = list(replacements(Request(key % count, key), count))
        assert sorted(order) == list(range(count))
        assert order[0] == key % count


def for_ever(seconds):
    with time_limit(seconds):
        while True:
            pass


def test_a_limit_that_a_library_passes_over_is_told_again(monkeypatch):
    monkeypatch.setattr("mim_core.data.time_limits.AGAIN", 0.1)

    def read():
        with contextlib.suppress(TooSlow):
            time.sleep(5)
        time.sleep(5)

    with pytest.raises(TooSlow), time_limit(0.1):
        read()
    time.sleep(0.3)  # and no more once it has ended


def test_a_look_at_a_slow_file_ends_and_names_it():
    with pytest.raises(BadSample) as found, in_time("a/slow.x", 0.1):
        time.sleep(5)
    assert found.value.path == "a/slow.x"
    assert "longer than 0.1 s" in found.value.reason


def test_a_limit_that_runs_out_as_it_begins_or_ends_leaves_no_alarm():
    """Else it would ring again and again, wherever the program is."""
    for number in range(500):
        with contextlib.suppress(TooSlow), time_limit(1e-6 * (1 + number % 100)):
            pass
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
        assert signal.getsignal(signal.SIGALRM) == signal.SIG_DFL


def test_a_limit_ends_a_loop_and_keeps_an_alarm_of_the_programs_own():
    heard = []
    before = signal.signal(signal.SIGALRM, lambda *given: heard.append(1))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(TooSlow, match=r"longer than 0\.1 s"):
            for_ever(0.1)
        until = time.monotonic() + 5
        while not heard and time.monotonic() < until:
            time.sleep(0.01)
        assert heard == [1]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_watch_tells_what_was_read():
    places, over = Places(2), []
    places.write(1, "a/slow.x")
    watch = Watch(places, 0.1, lambda: over.append(1), lambda: False)
    watch.start()
    with watch.over():
        watch.join(5)
    assert over == [1]
    assert watch.stuck[:2] == (1, "a/slow.x")


class Collecting(torch.utils.data.Dataset):
    """An item is the number of errors of what is left over, when it is collected in the process that reads."""

    def __getitem__(self, index):
        errors = []
        sys.unraisablehook = errors.append
        gc.collect()
        return len(errors)


def test_a_reader_does_not_collect_what_its_parent_left_over():
    def first():
        left = [iter(loader(Collecting(), [[0], [1]], 1, list, wait=60))]
        left.append(left)  # only the collector finds it
        return next(left[0])

    gc.collect()
    gc.disable()
    try:
        assert [first(), first()] == [[0], [0]]
    finally:
        gc.enable()
        end_readers()
        gc.collect()
    assert not gc.get_freeze_count()
