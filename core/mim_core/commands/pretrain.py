"""pretrain: from a recipe's name and the command line to a trained run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from mim_core.commands.fitting import on_data, suited
from mim_core.commands.options import apply, command_class, full_recipe_name, parse, swap_all, take_name
from mim_core.commands.starting import compare_statistics, fitted, origin_of, read_as_plain, take_encoder_from
from mim_core.errors import MimError, warn
from mim_core.evaluation.report import try_report
from mim_core.host.loading import installed
from mim_core.host.registry import Registry
from mim_core.interop.encoders import statistics_in
from mim_core.interop.weights import import_checkpoint, read_export
from mim_core.methods.supervised import Supervised
from mim_core.ranks import world as ranks
from mim_core.recipes.config import ResolvedRun
from mim_core.recipes.resolve import load_recipe
from mim_core.recipes.toml import read_file
from mim_core.recipes.twins import STEPS
from mim_core.runs import checkpoint, origins
from mim_core.runs import load as run_load
from mim_core.runs import run as running
from mim_core.runs.initial_weights import take_weights
from mim_core.terminal import tell
from mim_core.training import loop
from mim_core.training.collection_size import FEW
from mim_core.training.plan import check_plan, dry_run
from mim_core.training.signals import STOPPED


def pretrain(program: str, plugin: str | None, arguments: list[str]) -> int:
    """``pretrain RECIPE [OPTIONS]``: RECIPE is a name or a TOML file."""
    registry = installed()
    known = ", ".join(entry.name for entry in registry.of_kind("recipes", plugin)) or "none"
    name, rest = take_name(arguments, "recipe", f"Recipes: {known}. Usage: {program} pretrain RECIPE [OPTIONS]")
    run = swap_all(load_named(name, plugin, registry, "--twin" in rest), rest, registry)
    options = parse(command_class(run), f"{program} pretrain {name}", rest)
    check_plan(options.dry_run, options.plan_for)
    run = apply(run, options)
    folder = options.out or Path("runs") / (_run_name(name) + ("-twin" if options.twin else ""))
    run = on_data(run, rest, registry)
    if options.init is not None and options.init_format is None:
        run = fitted(run, options.init, registry)
    elif options.init is not None:
        compare_statistics(run, f"--init {options.init}", statistics_in(options.init))
    with ranks.world(run.train.device, run.train.timeout) as world:
        run, changed = world.together(lambda: suited(run, folder, registry, options.twin))
        started = world.together(lambda: loop.start(run, folder, registry, world, True, options.dry_run))
        started.sizes = (*changed, *started.sizes)
        started.command = origins.command_of(program, "pretrain", arguments)
        if world.on_first(lambda: checkpoint.newest(folder) is None):
            world.together(lambda: _begin(started, options, registry))
        if options.dry_run:
            dry_run(started, options.plan_for)
            return 0
        done = loop.train(started, quiet=options.quiet)
    if world.first and try_report(folder, registry) and done and not options.quiet:
        tell(f"Report: {folder / 'report.html'}    Next: {started.method.comes_next(program, folder)}")
    return 0 if done else STOPPED


def _run_name(name: str) -> str:
    """The name of a recipe or of its file; for the recipe.toml of a run, that of the run."""
    path = Path(name)
    return path.resolve().parent.name if path.name == "recipe.toml" else path.stem.split(":")[-1]


def load_named(name: str, plugin: str | None, registry: Registry, twin: bool) -> ResolvedRun:
    """The run of a recipe's name, or of a TOML file; a plugin's own script knows its recipes by their short names.

    Raises:
        MimError: --twin is given with a file, or the name is the folder of a run.
    """
    if name.endswith(".toml"):
        if twin:
            raise MimError(f"--twin goes with a recipe's name; {name} is a file.")
        return replace(read_file(Path(name), registry), least=FEW)
    if (Path(name) / "recipe.toml").is_file():
        raise MimError(f"{name} is a run, not a recipe. Its recipe is {Path(name) / 'recipe.toml'}.")
    run = load_recipe(full_recipe_name(name, plugin, registry), registry, twin)
    if twin:  # small as it is; 20 steps on any data
        return replace(run, told=frozenset({"train.batch_size", "train.base_lr"}), least=STEPS)
    return replace(run, told=frozenset(), least=FEW)


def _begin(run: running.Run, options: Any, registry: Registry) -> None:
    """The weights that a run starts from: those of ``--init``, or those that the recipe of a fine-tuned run names."""
    named = getattr(run.config.parts["method"].options, "init", None)
    if options.init is not None:
        _take_weights(run, options.init, options.init_format, registry)
    elif isinstance(run.method, Supervised) and named is not None:
        for line in take_encoder_from(run, named, registry):
            warn(f"{named}: {line}")


def _take_weights(run: running.Run, path: Path, form: str | None, registry: Registry) -> None:
    """Another method's weights for those of this one, see `mim_core.runs.initial_weights.take_weights`; says what
    starts fresh and what is not used."""
    other: nn.Module | None
    start = path
    if form is not None:
        other = import_checkpoint(path, format=form, registry=registry)
    elif (weights := read_as_plain(run.config, path, registry)) is not None:
        run.origins = origin_of(weights, registry)
        for line in weights.fill(run.method):
            warn(f"--init {path}: {line}")
        return
    else:
        other = read_export(path, registry)
        if other is None:
            _, other, start = run_load.load_run(path, registry)
    run.origins = origins.behind(start, form)
    for line in take_weights(run.method, other, path):
        warn(f"--init {path}: {line}")
