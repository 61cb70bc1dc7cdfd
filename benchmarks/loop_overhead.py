"""What the training loop costs beside a bare step that one would write by hand, for the same model and the same data.

Both run in this process, in turns of a few steps, so that a busy machine slows both; the figure is the median ratio of
neighbouring turns. The bare step loads a batch by a plain DataLoader, prepares, runs forward and backward, clips, and
updates; the loop does the same through `Trainer`, with metrics read and written every 10 steps.

    python benchmarks/loop_overhead.py                      # about 100 ms a step on one CPU thread
    python benchmarks/loop_overhead.py --recipe image:mae-vit-base --batch-size 64 --device cuda
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from mim_core.data.loading import KeyedBatches, KeyedDataset, collate
from mim_core.host.loading import installed
from mim_core.recipes.resolve import load_recipe, swap
from mim_core.runs.run import Run
from mim_core.training import engine as engines
from mim_core.training.loop import start
from mim_core.training.optimizer import make_optimizer
from mim_core.training.progress import Reporter
from mim_core.training.trainer import Trainer
from torch.utils.data import DataLoader


def make_run(options: argparse.Namespace, folder: Path) -> Run:
    """The recipe on noise, with a batch of the size that was asked for."""
    registry = installed()
    config = swap(load_recipe(options.recipe, registry), "data", "core:noise", registry)
    train = replace(
        config.train, batch_size=options.batch_size, micro_batch=None, device=options.device, precision="fp32",
        workers=0, epochs=1e6, log_every=10, warmup_epochs=0.0,
    )  # fmt: skip
    folder.mkdir()
    return start(replace(config, train=train), folder, registry)


def bare(run: Run) -> Iterator[None]:
    """Steps without any loop around them."""
    optimizer = make_optimizer(run.method, run.train, run.device)
    sampler = KeyedBatches(len(run.source), run.micro, 0, 0, 10**9)
    batches = iter(DataLoader(KeyedDataset(run.source), batch_sampler=sampler, collate_fn=collate))
    run.method.train()
    while True:
        sample = run.source.finish({k: v.to(run.device, non_blocking=True) for k, v in next(batches).sample.items()})
        prepared = run.method.prepare(sample)
        run.method(prepared).loss.backward()
        torch.nn.utils.clip_grad_norm_(run.method.parameters(), float("inf"))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield


def looped(run: Run) -> Iterator[None]:
    """The same steps by the trainer, with what the loop does between them."""
    engine = engines.Engine(run.method, run.train, run.world)
    optimizer = make_optimizer(run.method, run.train, run.device)
    reporter = Reporter("overhead", 0, run.steps, quiet=True)
    for _ in Trainer(run, engine, optimizer, None, reporter):
        reporter.advance(run.step)
        run.world.poll(0)
        yield


def turn(steps: Iterator[None], count: int, device: torch.device) -> float:
    """Seconds per step of so many steps."""
    begin = time.perf_counter()
    for _ in range(count):
        next(steps)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - begin) / count


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="image:mae-vit-tiny")
    parser.add_argument("--batch-size", type=int, default=176)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--turns", type=int, default=30, help="pairs of turns")
    parser.add_argument("--steps", type=int, default=10, help="steps in a turn")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        runs = [make_run(options, Path(folder) / name) for name in ("bare", "loop")]
        device = runs[0].device
        one, other = bare(runs[0]), looped(runs[1])
        for steps in (one, other):
            turn(steps, options.steps, device)
        pairs = []
        for number in range(options.turns):
            order = [one, other] if number % 2 == 0 else [other, one]
            seconds = {id(steps): turn(steps, options.steps, device) for steps in order}
            pairs.append((seconds[id(one)], seconds[id(other)]))
    ratios = sorted(b / a for a, b in pairs)
    quarter = len(ratios) // 4
    result = {
        "bare_ms": round(1000 * statistics.median(a for a, _ in pairs), 2),
        "loop_ms": round(1000 * statistics.median(b for _, b in pairs), 2),
        "ratio": round(statistics.median(ratios), 4),
        "ratio_quartiles": [round(ratios[quarter], 4), round(ratios[-1 - quarter], 4)],
        "recipe": options.recipe,
        "batch": options.batch_size,
        "turns": options.turns,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.machine(),
        "threads": options.threads,
        "torch": torch.__version__,
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
