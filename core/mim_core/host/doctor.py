"""``doctor``: reports the hardware, what is missing, and what that means for a run. Torch is imported inside
the checks, because it may be what is broken."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mim_core.errors import MimError
from mim_core.host.findings import Finding, first_line, library, version_of
from mim_core.host.registry import PluginRecord, Registry
from mim_core.version import __version__

GIB = 2**30


SMALL_SHM, SMALL_DISK = 1 * GIB, 10 * GIB
"""Below these, shared memory and the disk are worth a warning."""


TRACKERS = {
    "tensorboard": ("tensorboard",),
    "wandb": ("wandb",),
    "mlflow": ("mlflow", "mlflow-skinny"),
    "trackio": ("trackio",),
}
"""Module of each tracker, and the distributions that bring it."""


Probe = Callable[[], Iterable[Finding]]


def diagnose(registry: Registry, device: str = "auto") -> list[Finding]:
    """All findings: of the machine, of torch on it, of what is installed, and of the plugins.

    Args:
        registry: What is installed.
        device: What ``--train.device`` would be.
    """
    findings = [*tried("Python", _python), *tried("torch", _torch)]
    if not any(finding.stops for finding in findings):
        findings += tried("GPU", _gpus)
        findings += tried("computing", lambda: _computing(device))
        findings += tried("ranks", _ranks)
        findings += tried("launcher", _launcher)
        findings += tried("cores", _cores)
        findings += tried("torch.compile", lambda: _compiler(device))
    probes: dict[str, Probe] = {"memory": _memory, "shared memory": _shared_memory, "disk": _disk}
    for topic, probe in probes.items():
        findings += tried(topic, probe)
    findings += [_plugin(record) for record in registry.plugins]
    for name, distributions in TRACKERS.items():
        findings += tried(name, lambda n=name, d=distributions: [library(n, d, f"--train.track {n}", n)])  # type: ignore[misc]
    return findings + _of_plugins(registry)


def tried(topic: str, probe: Probe) -> list[Finding]:
    """What a probe finds; one that raises is itself a finding."""
    try:
        findings = list(probe())
        wrong = [finding for finding in findings if not isinstance(finding, Finding)]
        if wrong:
            raise TypeError(f"{wrong[0]!r} is not a Finding")
    except (Exception, SystemExit) as error:
        why = f"the check itself failed: {type(error).__name__}: {first_line(error)}"
        return [Finding(topic, "warning", why, "Nothing is known of this.")]
    return findings


# ---- torch and what it computes on -----------------------------------------------------------------------------------


def _python() -> Iterator[Finding]:
    yield Finding("Python", "ok", f"{platform.python_version()}, {sys.executable}")
    yield Finding("mim-core", "ok", f"{__version__}, {Path(__file__).parents[1]}")


def _torch() -> Iterator[Finding]:
    try:
        import torch
    except Exception as error:  # a library that does not load raises OSError, an older ABI anything
        why = f"cannot be imported: {type(error).__name__}: {first_line(error)}"
        yield Finding("torch", "missing", why, "No run can start. Install it anew: https://pytorch.org", stops=True)
        return
    build = torch.version.cuda and f"built for CUDA {torch.version.cuda}"
    build = build or (torch.version.hip and f"built for ROCm {torch.version.hip}") or "built for CPUs only"
    yield Finding("torch", "ok", f"{torch.__version__}, {build}")


def _gpus() -> Iterator[Finding]:
    import torch

    if not torch.cuda.is_available():
        yield _no_gpu(torch)
        return
    for number in range(torch.cuda.device_count()):
        yield from tried(f"GPU {number}", lambda n=number: [_gpu(torch, n)])  # type: ignore[misc]


def _no_gpu(torch: Any) -> Finding:
    means = "train.device auto means cpu, train.precision auto means fp32"
    if not (Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi")):
        return Finding("GPU", "ok", "none", means)
    if torch.version.cuda is None:
        why = "this machine has NVIDIA's driver, and torch is built without CUDA"
        return Finding("GPU", "warning", why, f"{means}. To use the GPU, install another torch: https://pytorch.org")
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None:
        return Finding("GPU", "warning", f"none that torch may use: CUDA_VISIBLE_DEVICES is {hidden!r}", means)
    try:
        torch.cuda.init()
        why = "no device"
    except Exception as error:
        why = first_line(error)
    return Finding("GPU", "warning", f"none that torch can use: {why}", f"{means}. See: nvidia-smi")


def _gpu(torch: Any, number: int) -> Finding:
    about = torch.cuda.get_device_properties(number)
    free, total = torch.cuda.mem_get_info(number)
    bf16 = torch.version.hip is not None or about.major >= 8
    text = (
        f"{about.name}, {size(total)} ({size(free)} free), compute capability {about.major}.{about.minor}, bf16 "
        f"{'yes' if bf16 else 'no'}"
    )
    means = ["train.device auto means cuda, train.precision auto means bf16"]
    if not bf16:
        means.append("which this GPU only emulates: --train.precision fp32 is faster")
    if free < total / 2:
        means.append("another process holds much of its memory; see: nvidia-smi")
    return Finding(f"GPU {number}", "ok" if len(means) == 1 else "warning", text, "; ".join(means))


def _computing(device: str) -> Iterator[Finding]:
    """A forward and backward pass of a linear layer, in the precision that "auto" takes."""
    import torch

    name = device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(name).type
        layer = torch.nn.Linear(64, 64).to(name)
        with torch.autocast(kind, torch.bfloat16, enabled=kind == "cuda"):
            loss = layer(torch.ones(8, 64, device=name)).square().mean()
        loss.backward()
        if not bool(torch.isfinite(loss)):
            raise RuntimeError("the result of a matrix product is not finite")
    except Exception as error:
        means = "No run can start there." + ("" if name == "cpu" else " Until it is fixed: --train.device cpu")
        why = f"torch cannot compute on {name}: {first_line(error)}"
        yield Finding("computing", "missing", why, means, stops=True)
        return
    yield Finding("computing", "ok", f"torch computes on {name}, forward and backward")


def _ranks() -> Iterator[Finding]:
    import torch
    from torch import distributed

    if not distributed.is_available():
        yield Finding("ranks", "missing", "torch is built without torch.distributed", "Runs use one device.")
        return
    has = {"NCCL": distributed.is_nccl_available(), "gloo": distributed.is_gloo_available()}
    text = ", ".join(f"{name} {'yes' if available else 'no'}" for name, available in has.items())
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not has["gloo"] or (gpus and not has["NCCL"]):
        yield Finding("ranks", "missing", text, "Runs use one device: ranks need gloo, and on GPUs NCCL too.")
        return
    means = "Runs on a CPU need one process." if not gpus else "Runs use this GPU."
    if gpus > 1:
        means = f"For all GPUs of this machine: torchrun --nproc-per-node {gpus} -m mim_core pretrain ..."
    yield Finding("ranks", "ok", text, means)


LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "SLURM_JOB_ID", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID")


def _launcher() -> Iterator[Finding]:
    from mim_core.ranks.launch import Launch

    seen = " ".join(f"{name}={os.environ[name]}" for name in LAUNCHERS if name in os.environ)
    try:
        launch = Launch.from_environment()
    except (MimError, ValueError) as error:
        yield Finding("launcher", "missing", seen, str(error), stops=True)
        return
    means = "A run is one process." if launch.size == 1 else f"This is rank {launch.rank} of {launch.size}."
    yield Finding("launcher", "ok", seen or "no variables of torchrun or SLURM", means)


def _compiler(device: str) -> Iterator[Finding]:
    """What torch.compile calls: a C++ compiler on a CPU, triton and a C compiler on a GPU; both with Python's
    headers."""
    import torch

    gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    variable, programs = ("CC", ("gcc", "clang", "cc")) if gpu else ("CXX", ("g++", "clang++", "c++"))
    asked = os.environ.get(variable)
    compiler = next(filter(None, map(shutil.which, (asked,) if asked else programs)), None)
    lacking = [] if compiler else [f"{'a C' if gpu else 'a C++'} compiler ({asked or ' or '.join(programs[:2])})"]
    if gpu and find_spec("triton") is None:
        lacking.append("triton (pip install triton)")
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").exists():
        lacking.append("Python's headers (python3-dev)")
    if lacking:
        yield Finding("torch.compile", "missing", f"lacks {', '.join(lacking)}", "Leave --train.compile out.")
        return
    version = f", triton {version_of('triton', 'pytorch-triton')}" if gpu else ""
    yield Finding("torch.compile", "ok", f"{compiler}{version}", "--train.compile can be used")


# ---- the rest of the machine -----------------------------------------------------------------------------------------


def _cores() -> Iterator[Finding]:
    import torch

    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = core_limit()
    cores = allowed if limit is None else max(1, min(allowed, int(limit)))
    text = f"{cores} that this process may use" + ("" if limit is None else f" (its control group allows {limit:g})")
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    here = int(os.environ.get("LOCAL_WORLD_SIZE", 0)) or max(1, gpus)
    workers = suggested_workers(cores, here, gpus > 0)
    means = f"--train.workers {workers}" + (f" for each of {here} ranks" if here > 1 else "")
    yield Finding("cores", "ok", text, f"{means} is a good start (most recipes: 2)")
    threads = torch.get_num_threads()
    if threads > cores:
        means = f"They take turns, which is slow: export OMP_NUM_THREADS={max(1, cores // here)}"
        yield Finding("threads", "warning", f"torch computes with {threads} threads on {cores} cores", means)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load > cores:
        means = "What is measured now, such as a plan's hours, is slower than on a quiet machine"
        yield Finding("load", "warning", f"{load:.1f} processes want the {cores} cores", means)


def suggested_workers(cores: int, ranks: int, gpu: bool) -> int:
    """Processes that read data, per rank. One core stays for the rank itself; on a CPU, which computes too, two read at
    most, and none on a single core."""
    each = cores // ranks - 1
    return max(1, min(8, each)) if gpu else max(0, min(2, each))


def _groups(controller: str, root: Path) -> Iterator[Path]:
    """Folders of this process's control groups and of those around them; both versions of Linux's interface."""
    base = root / "sys/fs/cgroup"
    for line in (root / "proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = base / controllers
        inner = (top / path.lstrip("/")).relative_to(top)
        yield from (top / folder for folder in (inner, *inner.parents))


def core_limit(root: Path = Path("/")) -> float | None:
    """Cores that the control groups allow; None: no limit, or not Linux."""
    limits = []
    if not (root / "proc/self/cgroup").exists():
        return None
    for folder in dict.fromkeys(_groups("cpu", root)):
        new, quota, period = (folder / name for name in ("cpu.max", "cpu.cfs_quota_us", "cpu.cfs_period_us"))
        if new.exists():
            numbers = new.read_text().split()
        elif quota.exists() and period.exists():
            numbers = [quota.read_text().strip(), period.read_text().strip()]
        else:
            continue
        if numbers[0] not in ("max", "-1"):
            limits.append(int(numbers[0]) / int(numbers[1]))
    return min(limits, default=None)


def memory_limit(root: Path = Path("/")) -> int | None:
    """Bytes that the control groups allow; None: no limit, or not Linux."""
    if not (root / "proc/self/cgroup").exists():
        return None
    files = [folder / n for folder in _groups("memory", root) for n in ("memory.max", "memory.limit_in_bytes")]
    texts = [file.read_text().strip() for file in files if file.exists()]
    return min((int(text) for text in texts if text != "max"), default=None)


def _memory() -> Iterator[Finding]:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = memory_limit()
    if limit is not None and limit < total:
        means = "A process above the limit is killed without a word: fewer --train.workers, smaller --train.micro-batch"
        yield Finding("memory", "ok", f"{size(limit)} by its control group, of {size(total)}", means)
        return
    yield Finding("memory", "ok", size(total))


def _shared_memory() -> Iterator[Finding]:
    if not Path("/dev/shm").is_dir():
        return
    total = shutil.disk_usage("/dev/shm").total
    if total < SMALL_SHM:
        means = "Processes that read data may die: --train.workers 0, or more of it (docker run --shm-size 8g)"
        yield Finding("shared memory", "warning", f"/dev/shm has {size(total)}", means)
        return
    yield Finding("shared memory", "ok", f"/dev/shm has {size(total)}")


def _disk() -> Iterator[Finding]:
    folder = Path.cwd()
    free = shutil.disk_usage(folder).free
    if not os.access(folder, os.W_OK):
        yield Finding("disk", "warning", f"{folder} cannot be written", "Runs go to ./runs: choose another with --out")
    elif free < SMALL_DISK:
        means = (
            "A checkpoint of a ViT-B takes 1.3 GiB, and two are kept: --train.keep-checkpoints 1, or --out elsewhere"
        )
        yield Finding("disk", "warning", f"{size(free)} free in {folder}", means)
    else:
        yield Finding("disk", "ok", f"{size(free)} free in {folder}")


def size(number: float) -> str:
    """Bytes as people read them."""
    return f"{number / GIB:.1f} GiB" if number >= GIB else f"{number / 2**20:.0f} MiB"


# ---- plugins ---------------------------------------------------------------------------------------------------------


def _plugin(record: PluginRecord) -> Finding:
    topic = f"plugin {record.name}"
    if record.failure:
        text = f"{record.distribution} {record.version} failed: {record.failure}"
        return Finding(topic, "warning", text, "Its parts are not there. See: mim-core plugins --errors")
    if record.disabled:
        return Finding(topic, "ok", "switched off by MIM_CORE_PLUGINS or MIM_CORE_DISABLE")
    return Finding(topic, "ok", f"{record.distribution} {record.version}")


def _of_plugins(registry: Registry) -> list[Finding]:
    """Each plugin's own findings, so that one that raises costs no other its turn."""
    findings = []
    for hook in registry.hooks.mim_diagnose.get_hookimpls():
        findings += tried(f"plugin {hook.plugin_name}", hook.function)
    return findings
