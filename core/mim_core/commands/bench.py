"""bench: how fast a recipe trains on this machine."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from rich.markup import escape
from rich.table import Table

from mim_core.commands.fitting import on_data, suited
from mim_core.commands.options import apply, command_class, hints_of, parse, swap_all, take_name
from mim_core.commands.pretrain import load_named
from mim_core.errors import MimError, RankError
from mim_core.host.loading import installed
from mim_core.host.registry import Registry
from mim_core.methods.build import build_method, make_source
from mim_core.ranks import world as ranks
from mim_core.ranks.world import World
from mim_core.recipes.config import ResolvedRun
from mim_core.terminal import console, tell
from mim_core.text import amount, counted
from mim_core.training import bench as benchmark
from mim_core.training import loop
from mim_core.training.plan import print_plan
from mim_core.training.progress import lasting

LABELS = {"data": "data wait", "forward_backward": "forward and backward"}
"""Names of phases that read better otherwise."""


@dataclasses.dataclass(frozen=True)
class BenchOptions:
    """Measure how fast a recipe trains on this machine. Takes the options of pretrain, of which --out and --init have
    no effect: nothing is read or kept."""

    seconds: float = 60.0
    """How long it may take, about, with the steps that warm up."""
    json: bool = False
    """Print the result as JSON."""


def bench(program: str, plugin: str | None, arguments: list[str]) -> int:
    """``bench RECIPE [OPTIONS]``, with the options of ``pretrain``.

    Raises:
        MimError: --seconds is not positive.
    """
    registry = installed()
    known = ", ".join(entry.name for entry in registry.of_kind("recipes", plugin)) or "none"
    name, rest = take_name(arguments, "recipe", f"Recipes: {known}. Usage: {program} bench RECIPE [OPTIONS]")
    run = swap_all(load_named(name, plugin, registry, "--twin" in rest), rest, registry)
    options = parse(_options(run), f"{program} bench {name}", rest)
    if options.seconds <= 0:
        raise MimError(f"--seconds must be positive, got {options.seconds:g}.")
    run = on_data(apply(run, options), rest, registry)
    folder = options.out or Path("runs") / name
    with ranks.world(run.train.device, run.train.timeout) as world:
        run, changed = world.together(lambda: suited(run, folder, registry, options.twin))
        if options.dry_run:
            started = loop.start(run, folder, registry, world, plans=True)
            started.sizes = (*changed, *started.sizes)
            if world.first:
                print_plan(started)
            return 0
        result = _measured(run, registry, world, options)
    if world.first:
        _print(result, options.json)
    return 0


def _options(run: ResolvedRun) -> type[Any]:
    """Those of ``pretrain`` and two more."""
    hints = hints_of(BenchOptions)
    own = [(f.name, hints[f.name], dataclasses.field(default=f.default)) for f in dataclasses.fields(BenchOptions)]
    cls = dataclasses.make_dataclass("Bench", own, bases=(command_class(run),), frozen=True)
    cls.__doc__ = (
        f"Measure how fast {run.recipe} trains on this machine. Takes the options of pretrain, of which --out and "
        "--init have no effect: nothing is read or kept."
    )
    return cls


def _measured(run: ResolvedRun, registry: Registry, world: World, options: Any) -> benchmark.Result:
    """The result; where the data is at fault, the error says how to do without."""

    def say(text: str) -> None:
        if world.first and not options.quiet:
            tell(text, error=True)

    try:
        return benchmark.measure(run, registry, world, options.seconds, say)
    except MimError as error:
        if isinstance(error, RankError) or not _data_is_at_fault(error, run, registry):
            raise
        raise MimError(f"{error}\nTo measure without data: --use data=core:noise") from error


def _data_is_at_fault(error: MimError, run: ResolvedRun, registry: Registry) -> bool:
    data = run.parts.get("data")
    if data is not None and data.name == "core:noise":
        return False
    try:
        with torch.device("meta"):
            method = build_method(run, registry)
    except Exception:  # the method itself cannot be built: the error is not the data's
        return False
    try:
        make_source(run, method)
    except MimError as again:
        return str(again) == str(error)
    return False


def _print(result: benchmark.Result, as_json: bool) -> None:
    if as_json:
        tell(json.dumps(dataclasses.asdict(result), indent=1))
        return
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for label, text in _rows(result).items():
        table.add_row(label, escape(text))
    screen = console()
    screen.print(table)
    for note in result.notes:
        screen.print(note, markup=False)


def _rows(result: benchmark.Result) -> dict[str, str]:
    """The result for people, label by label."""
    s, step = result.settings, result.seconds_per_step
    ranks = f"{counted(s['ranks'], 'rank')} x {counted(s['accumulation'], 'micro-batch', 'micro-batches')}"
    modes = [s["precision"], s["strategy"], "compiled" if s["compile"] else "not compiled"]
    modes += ["activation checkpointing"] if s["activation_checkpointing"] else []
    each = f"; each gives {s['samples_per_item']} samples, which the speed counts" if s["samples_per_item"] > 1 else ""
    steps = counted(result.steps, "step")
    rows = {
        "recipe": f"{result.recipe}, data {s['data']}",
        "device": f"{s['device_name']} ({s['device']}); threads of torch on the host: {s['threads']}",
        "batch": f"{s['batch_size']:,} samples: {ranks} of {s['micro_batch']}" + each,
        "mode": f"{', '.join(modes)}, {s['workers']} workers",
        "measured": f"{steps} in {result.seconds:.1f} s, after {result.warmup_steps} to warm up",
        "speed": f"{result.samples_per_second:,.1f} samples/s",
        "step": f"{step['median']:.4g} s (median; 10th to 90th percentile {step['p10']:.4g} to {step['p90']:.4g})",
        "time": ", ".join(f"{LABELS.get(name, name)} {share:.1%}" for name, share in result.shares.items()),
        "memory": f"{amount(result.memory, 'B')}, most that "
        + ("torch held on a GPU" if s["device"].startswith("cuda") else "a process held, without those that read data"),
    }
    if result.run_seconds is not None:
        rows["whole run"] = f"about {lasting(result.run_seconds)} at this speed: {counted(result.run_steps, 'step')}"
    if result.flop_per_sample is not None and result.flop_per_second is not None:
        rows["operations"] = (
            f"{amount(result.flop_per_sample, 'FLOP')} per sample (counted), {amount(result.flop_per_second, 'FLOP/s')}"
        )
    if result.mfu is not None and result.peak_flop_per_second is not None:
        rows["MFU"] = f"{result.mfu:.1%} of {amount(result.peak_flop_per_second, 'FLOP/s')} ({result.peak_source})"
    rows["versions"] = ", ".join(f"{name} {version}" for name, version in result.versions.items())
    return rows
