"""Operations on point clouds against other libraries in one run, as Markdown tables.

    python benchmarks/pointcloud_ops.py            # on the CPU, one thread, and on the GPU where there is one
    python benchmarks/pointcloud_ops.py --quick    # small sizes, two rounds: to see that it works

Libraries take turns call by call, so that whatever else the machine does meets all of them. On a CPU the time is CPU
time of one thread, on a GPU the clock's until the GPU is done. A ratio is a library's time over plain torch's in the
same round: above 1 it is slower. Quartiles stand in brackets; what takes longer than --limit is called once. Memory is
what one call needs at its highest beyond what it was given. fpsample, scipy's trees and pytorch3d take part where they
import; the first two go cloud by cloud. "auto" is what runs where no library is named, if that is not plain torch.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import importlib.metadata
import importlib.util
import platform
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mim_pointcloud.geometry import TREE_PAIRS, chamfer, farthest_points, gather, nearest, within
from torch import Tensor

Task = Callable[[], Any]
LIBRARIES = ("torch", "triton", "pytorch3d", "fpsample", "scipy")
RADIUS = 0.2


def clouds(batch: int, points: int, device: str, seed: int = 0) -> Tensor:
    """Points in a cube from -1 to 1, in steps of 2^-10, at which every library's distances are exact."""
    draw = torch.Generator().manual_seed(seed)
    return (torch.randint(-1024, 1025, (batch, points, 3), generator=draw) / 1024).to(device)


def installed(device: str) -> list[str]:
    """The libraries that import here and work on the device."""
    here = []
    for name in LIBRARIES:
        wrong_side = name in ("fpsample", "scipy") if device == "cuda" else name == "triton"
        if not wrong_side and importlib.util.find_spec(name):
            try:
                importlib.import_module(name)
                here.append(name)
            except (ImportError, OSError) as error:
                print(f"<!-- {name}: {error} -->")
    return here


def ours(names: list[str], x: Tensor, pairs: int) -> list[str]:
    """What neighbours are found by through our own functions."""
    tree = ["auto"] if x.device.type == "cpu" and pairs >= TREE_PAIRS else []
    return tree + [name for name in names if name in ("torch", "pytorch3d")]


def farthest_tasks(x: Tensor, count: int, names: list[str]) -> dict[str, Task]:
    """Farthest points; all libraries must agree."""
    tasks: dict[str, Task] = {n: partial(farthest_points, x, count, ops=n) for n in names if n != "scipy"}
    expected = tasks["torch"]()
    for name, task in tasks.items():
        if not torch.equal(task(), expected):
            print(f"<!-- {name} chooses other points than torch -->")
    return tasks


def nearest_tasks(x: Tensor, count: int, k: int, names: list[str]) -> dict[str, Task]:
    """Neighbours of farthest points; scipy builds a tree for each cloud, as a cloud is seen once."""
    centres = x if count == x.shape[1] else gather(x, farthest_points(x, count))
    mine = ours(names, x, count * x.shape[1])
    tasks: dict[str, Task] = {name: partial(nearest, centres, x, k, ops=name) for name in mine}
    if "scipy" in names:
        tree, both = (
            importlib.import_module("scipy.spatial").cKDTree,
            list(zip(centres.numpy(), x.numpy(), strict=True)),
        )
        tasks["scipy"] = lambda: np.stack([tree(points).query(queries, k)[1] for queries, points in both])
    return tasks


def within_tasks(x: Tensor, count: int, k: int, names: list[str]) -> dict[str, Task]:
    """Ball query of farthest points; scipy gives all inside, by index, neither cut nor filled up to ``k``."""
    centres = gather(x, farthest_points(x, count))
    tasks: dict[str, Task] = {
        n: partial(within, centres, x, RADIUS, k, ops=n) for n in names if n in ("torch", "pytorch3d")
    }
    if "scipy" in names:
        tree, both = (
            importlib.import_module("scipy.spatial").cKDTree,
            list(zip(centres.numpy(), x.numpy(), strict=True)),
        )
        tasks["scipy"] = lambda: [tree(p).query_ball_point(q, RADIUS, return_sorted=True) for q, p in both]
    return tasks


def chamfer_tasks(batch: int, points: int, device: str, backward: bool, names: list[str]) -> dict[str, Task]:
    """Chamfer distance, with its gradient if asked."""
    a, b = clouds(batch, points, device, 1), clouds(batch, points, device, 2)

    def task(ops: str) -> Task:
        moved = a.clone().requires_grad_(backward)

        def run() -> Any:
            value = chamfer(moved, b, ops=ops)
            return torch.autograd.grad(value.sum(), moved) if backward else value

        return run

    tasks: dict[str, Task] = {name: task(name) for name in ours(names, a, points * points)}
    if "scipy" in names and not backward:
        tree, both = importlib.import_module("scipy.spatial").cKDTree, list(zip(a.numpy(), b.numpy(), strict=True))
        tasks["scipy"] = lambda: [
            (tree(q).query(p)[0] ** 2).mean() + (tree(p).query(q)[0] ** 2).mean() for p, q in both
        ]  # fmt: skip
    return tasks


def operations(device: str, quick: bool, names: list[str]) -> dict[str, Callable[[], dict[str, Task]]]:
    """What is measured, by title. Inputs are made when their turn comes."""
    batches, points, count, k = ((2, 4), 128, 8, 4) if quick else ((32, 128), 1024, 64, 32)
    many, groups = (2000, 6) if quick else (100_000, 1216)
    makers: dict[str, Callable[[], dict[str, Task]]] = {}
    for batch, number in [*((batch, points) for batch in batches), (1, many)]:
        x, size = clouds(batch, number, device), f"{batch} x {number:,}"
        makers[f"farthest points, {size}, {count}"] = partial(farthest_tasks, x, count, names)
        makers[f"nearest, {count} of {size}, k {k}"] = partial(nearest_tasks, x, count, k, names)
        makers[f"within {RADIUS}, {count} of {size}, k {k}"] = partial(within_tasks, x, count, k, names)
    every = partial(nearest_tasks, clouds(1, many, device), many, k, names)
    makers[f"nearest, all of 1 x {many:,}, k {k}"] = every
    for batch, number in ((groups, k), (1, many // 10), (1, many)):
        for backward in (False, True):
            title = f"Chamfer{' and gradient' if backward else ''}, {batch:,} x {number:,}"
            makers[title] = partial(chamfer_tasks, batch, number, device, backward, names)
    return makers


def seconds(task: Task, device: str) -> float:
    """How long one call takes."""
    if device == "cpu":
        begin = time.process_time()
        task()
        return time.process_time() - begin
    torch.cuda.synchronize()
    begin = time.perf_counter()
    task()
    torch.cuda.synchronize()
    return time.perf_counter() - begin


def costs(task: Task, device: str) -> tuple[float, float | None]:
    """Seconds of one call, and the megabytes that it needs at its highest; None where the system does not tell."""
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        taken = seconds(task, device)
        return taken, (torch.cuda.max_memory_allocated() - before) / 2**20
    before = None
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the highest is now what is held
        before = _resident("VmRSS")
        before = None if _resident("VmHWM") > before + 2**20 else before
    except (OSError, AttributeError, KeyError):
        pass
    taken = seconds(task, device)
    return taken, None if before is None else (_resident("VmHWM") - before) / 2**20


def _resident(name: str) -> int:
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {words[0][:-1]: int(words[1]) * 1024 for words in lines if words[0] in ("VmRSS:", "VmHWM:")}[name]


def measure(
    tasks: dict[str, Task], device: str, rounds: int, limit: float
) -> tuple[dict[str, list[float]], dict[str, float | None]]:
    """Seconds of each task, one number a round, until the rounds or the time are over, but two at least; of what takes
    longer than the limit, one number alone. And the megabytes of one call."""
    first = {name: costs(task, device) for name, task in tasks.items()}  # warms up what is called again
    timings = {name: [taken] for name, (taken, _) in first.items()}
    quick = [name for name, (taken, _) in first.items() if taken <= limit]
    timings |= {name: [] for name in quick}
    begin = time.perf_counter()
    for turn in range(1, rounds + 1):
        for name in quick:
            timings[name].append(seconds(tasks[name], device))
        if turn >= 2 and time.perf_counter() - begin > limit:
            break
    return timings, {name: costs(tasks[name], device)[1] if name in quick else first[name][1] for name in tasks}


def spread(values: list[float], digits: int) -> str:
    """Median and quartiles; a number alone as it is."""
    if len(values) == 1:
        return f"{values[0]:,.{digits}f}"
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


def table(device: str, options: argparse.Namespace) -> None:
    """One row for each operation and library."""
    names = installed(device)
    print(f"\n| on the {'GPU' if device == 'cuda' else 'CPU'} | library | ms | times torch | memory, MB |")
    print("|---|---|---|---|---|")
    for title, make in operations(device, options.quick, names).items():
        tasks = make()
        timings, needed = measure(tasks, device, 2 if options.quick else options.rounds, options.limit)
        for name, times in timings.items():
            base = timings["torch"] if len(timings["torch"]) > 1 else timings["torch"] * len(times)
            ratios = [mine / max(plain, 1e-9) for mine, plain in zip(times, base, strict=False)]
            memory = needed[name]
            needs = "not known" if memory is None else f"{memory:,.1f}"
            took = spread([1000 * value for value in times], 2)
            print(f"| {title} | {name} | {took} | {spread(ratios, 2)} | {needs} |", flush=True)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--limit", type=float, default=20, help="seconds for one operation, after two rounds")
    options = parser.parse_args()
    torch.set_num_threads(1)
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "missing"
    print(f"{platform.machine()}, {_processor()}, Python {sys.version.split()[0]}, {versions}")
    table("cpu", options)
    if torch.cuda.is_available():
        print(f"\n{torch.cuda.get_device_name()}")
        table("cuda", options)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "CPU"
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "CPU")


if __name__ == "__main__":
    main()
