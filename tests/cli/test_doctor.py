"""doctor: what the machine has and which choice that means; nothing that is broken may break it."""

import json
import subprocess
import sys
from collections import namedtuple
from importlib import metadata
from pathlib import Path
from types import ModuleType

import mim_core
import pytest
import torch
from mim_core.commands import doctor as doctor_command
from mim_core.host import doctor, loading
from mim_core.host.doctor import core_limit, memory_limit, suggested_workers
from mim_core.host.findings import Finding, library
from mim_core.host.hookspecs import hookimpl

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="says what a machine without a GPU says")


@pytest.fixture
def found(mim):
    """``found("--device", "cpu")``: exit code, and findings by topic."""

    def run(*arguments, code=0, plugin=None):
        said = mim("doctor", "--json", *arguments, plugin=plugin)
        assert said.code == code, said
        content = json.loads(said.out)
        assert content["ok"] == (code == 0)
        return {finding["topic"]: finding for finding in content["findings"]}

    return run


@pytest.fixture
def with_plugin(monkeypatch):
    """``with_plugin("name", mim_diagnose=function)``: doctor finds this plugin too."""

    def make(name, **contents):
        module = ModuleType(f"fake_{name}")
        vars(module).update({hook: hookimpl(function) for hook, function in contents.items()})
        monkeypatch.setitem(sys.modules, f"fake_{name}", module)
        candidates = [loading.Candidate(name, f"mim-{name}", "1.0", f"fake_{name}"), *loading.discover()]
        registry = loading.load(candidates, environ={})
        monkeypatch.setattr(doctor_command, "installed", lambda: registry)

    return make


# ---- a machine in order ----------------------------------------------------------------------------------------------


def test_the_core_is_named_with_its_folder(found):
    assert found()["mim-core"]["text"] == f"{mim_core.__version__}, {Path(mim_core.__file__).parent}"


def test_a_table_for_people(mim, tmp_path):
    said = mim("doctor", "--device", "cpu")
    assert said.code == 0, said
    topics = ("Python", "torch", "GPU", "computing", "ranks", "launcher", "cores", "torch.compile", "memory", "disk")
    for topic in (*topics, "plugin core", "plugin image", "wandb", "pillow", "torchvision"):
        assert f"\n{topic}" in said.out
    assert list(tmp_path.iterdir()) == []


def test_json_says_the_same(found):
    answer = found("--device", "cpu")
    assert {finding["state"] for finding in answer.values()} <= {"ok", "missing", "warning"}
    assert torch.__version__ in answer["torch"]["text"]
    assert answer["computing"] == {
        "topic": "computing",
        "state": "ok",
        "text": "torch computes on cpu, forward and backward",
        "means": "",
        "stops": False,
    }
    assert "--train.workers" in answer["cores"]["means"]


@NO_GPU
def test_without_a_gpu_auto_means_cpu_and_fp32(found):
    answer = found()
    assert "train.device auto means cpu, train.precision auto means fp32" in answer["GPU"]["means"]
    assert answer["computing"]["text"].startswith("torch computes on cpu")


def test_of_a_plugin(found):
    assert found("--device", "cpu", plugin="image")["torchvision"]["state"] == "ok"


def test_help(mim):
    for plugin in (None, "image"):
        assert "Report your hardware and what is missing" in mim("--help", plugin=plugin).out


# ---- a machine with faults -------------------------------------------------------------------------------------------


@NO_GPU
def test_a_device_that_cannot_compute_stops_any_run(mim, found):
    answer = found("--device", "cuda", code=1)["computing"]
    assert answer["state"] == "missing"
    assert answer["text"].startswith("torch cannot compute on cuda: ")
    assert "--train.device cpu" in answer["means"]
    assert "No run can start before this is fixed: computing." in mim("doctor", "--device", "cuda").all
    assert found("--device", "tpu", code=1)["computing"]["stops"]


def test_without_torch_the_rest_is_still_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    registry = loading.load([], environ={})
    answer = {finding.topic: finding for finding in doctor.diagnose(registry)}
    assert answer["torch"].stops
    assert answer["torch"].state == "missing"
    assert "cannot be imported" in answer["torch"].text
    assert "computing" not in answer
    assert answer["memory"].state == "ok"


def test_a_plugins_findings_are_listed(with_plugin, found):
    with_plugin("good", mim_diagnose=lambda: [Finding("lidar", "warning", "no lens cap", "take it off")])
    assert found("--device", "cpu")["lidar"]["text"] == "no lens cap"


@pytest.mark.parametrize(
    ("faulty", "why"),
    [
        (lambda: 1 / 0, "ZeroDivisionError: division by zero"),
        (lambda: sys.exit("enough"), "SystemExit: enough"),
        (lambda: ["fine"], "TypeError: 'fine' is not a Finding"),
        (lambda: None, "TypeError"),
    ],
    ids=["raises", "exits", "no finding", "none"],
)
def test_a_plugin_whose_finding_fails_costs_no_other(with_plugin, found, faulty, why):
    with_plugin("faulty", mim_diagnose=faulty)
    answer = found("--device", "cpu")
    finding = answer["plugin faulty"]
    assert finding["state"] == "warning"
    assert f"the check itself failed: {why}" in finding["text"]
    assert answer["torchvision"]["state"] == "ok"


def test_a_check_that_raises_is_a_finding(monkeypatch, found):
    def broken(*_):
        raise OSError("stale handle\nsecond line")

    monkeypatch.setattr(doctor, "memory_limit", broken)
    answer = found("--device", "cpu")
    assert answer["memory"]["text"] == "the check itself failed: OSError: stale handle"
    assert answer["disk"]["state"] == "ok"


def test_a_plugin_that_failed_to_load_is_one_line(monkeypatch, mim):
    candidates = [loading.Candidate("gone", "mim-gone", "3.2", "no_such_module"), *loading.discover()]
    registry = loading.load(candidates, environ={})
    monkeypatch.setattr(doctor_command, "installed", lambda: registry)
    answer = {f["topic"]: f for f in json.loads(mim("doctor", "--json", "--device", "cpu").out)["findings"]}
    assert answer["plugin gone"]["state"] == "warning"
    assert "mim-gone 3.2 failed: ModuleNotFoundError" in answer["plugin gone"]["text"]
    assert "mim-core plugins --errors" in answer["plugin gone"]["means"]


def test_torchvision_that_does_not_fit_torch(monkeypatch, found):
    monkeypatch.setitem(sys.modules, "torchvision.transforms", None)
    answer = found("--device", "cpu", code=1)["torchvision"]
    assert answer["stops"]
    assert "it does not import: ModuleNotFoundError" in answer["text"]
    assert "pip install -U torch torchvision" in answer["means"]


Usage = namedtuple("Usage", "total used free")


def test_small_shared_memory_and_a_full_disk(monkeypatch, found):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: Usage(64 * 2**20, 0, 2**30))
    answer = found("--device", "cpu")
    assert "--train.workers 0" in answer["shared memory"]["means"]
    assert answer["shared memory"]["text"] == "/dev/shm has 64 MiB"
    assert (answer["disk"]["state"], answer["disk"]["text"][:12]) == ("warning", "1.0 GiB free")


def test_more_threads_than_cores(monkeypatch, found):
    monkeypatch.setattr(doctor, "core_limit", lambda: 1.5)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    answer = found("--device", "cpu")
    assert answer["cores"]["text"] == "1 that this process may use (its control group allows 1.5)"
    assert answer["threads"]["state"] == "warning"
    assert "OMP_NUM_THREADS=1" in answer["threads"]["means"]


@pytest.mark.parametrize(("load", "told"), [(0.5, False), (3.25, True)])
def test_a_busy_machine_is_said(monkeypatch, found, load, told):
    monkeypatch.setattr(doctor.os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(doctor, "core_limit", lambda: 2.0)
    answer = found("--device", "cpu")
    assert ("load" in answer) == told
    if told:
        cores = answer["cores"]["text"].split()[0]
        assert answer["load"]["text"] == f"3.2 processes want the {cores} cores"


def test_no_compiler(monkeypatch, found):
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    answer = found("--device", "cpu")["torch.compile"]
    assert answer["state"] == "missing"
    assert "a C++ compiler (g++ or clang++)" in answer["text"]


def test_launchers(monkeypatch, found):
    for name, value in {"RANK": "0", "WORLD_SIZE": "4", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    answer = found("--device", "cpu")
    assert answer["launcher"]["means"] == "This is rank 0 of 4."
    assert "WORLD_SIZE=4" in answer["launcher"]["text"]
    assert "for each of 4 ranks" in answer["cores"]["means"]
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    assert "MASTER_ADDR" in found("--device", "cpu", code=1)["launcher"]["means"]


def test_one_answer_per_machine(mim, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert mim("doctor", "--device", "cpu").out == ""


# ---- libraries that are looked up, not imported ----------------------------------------------------------------------


def test_libraries(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "explodes_on_import.py").write_text("raise RuntimeError('imported')")
    (tmp_path / "just_a_folder").mkdir()
    assert library("explodes_on_import").state == "ok"
    missing = library("just_a_folder", ("some-dist",), "drawing", "just")
    assert missing == Finding("just_a_folder", "missing", "not installed", "For drawing: pip install some-dist")
    assert library("no_such_module_at_all").state == "missing"
    assert library("torch", ("no-such-dist", "torch")).text == metadata.version("torch")


def test_a_tracker_that_is_missing(monkeypatch, found):
    monkeypatch.setattr(doctor, "TRACKERS", {"nontracker": ("nontracker",)})
    answer = found("--device", "cpu")["nontracker"]
    assert (answer["state"], answer["means"]) == ("missing", "For --train.track nontracker: pip install nontracker")


def test_the_plugin_and_its_findings_import_no_torch():
    code = "import sys, mim_image.plugin, mim_core.host.doctor; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---- limits ----------------------------------------------------------------------------------------------------------


def write(root, files):
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)


def test_limits_of_version_2(tmp_path):
    write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/slurm/job\n",
            "sys/fs/cgroup/slurm/cpu.max": "350000 100000\n",
            "sys/fs/cgroup/slurm/job/cpu.max": "max 100000\n",
            "sys/fs/cgroup/slurm/memory.max": "max\n",
            "sys/fs/cgroup/slurm/job/memory.max": "1073741824\n",
        },
    )
    assert core_limit(tmp_path) == 3.5
    assert memory_limit(tmp_path) == 2**30


def test_limits_of_version_1(tmp_path):
    write(
        tmp_path,
        {
            "proc/self/cgroup": "3:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n9:name=systemd:/\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "200000\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "2147483648\n",
        },
    )
    assert core_limit(tmp_path) == 2
    assert memory_limit(tmp_path) == 2**31


def test_no_limits(tmp_path):
    assert core_limit(tmp_path) is None
    write(tmp_path, {"proc/self/cgroup": "0::/\n"})
    assert core_limit(tmp_path) is None
    assert memory_limit(tmp_path) is None


@pytest.mark.parametrize(
    ("cores", "ranks", "gpu", "workers"), [(1, 1, False, 0), (2, 1, False, 1), (64, 1, False, 2), (64, 8, True, 7)]
)
def test_suggested_workers(cores, ranks, gpu, workers):
    assert suggested_workers(cores, ranks, gpu) == workers
