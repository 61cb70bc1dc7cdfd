"""finetune: from a pre-trained run to an encoder that was trained on labels, and its scores on held-out samples."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import tyro

from mim_core.commands.finetune_recipes import of_machine, recipe_named, train_recipe, under_recipe, with_data_of
from mim_core.commands.fitting import on_data
from mim_core.commands.judging import FOLDERS, start_of
from mim_core.commands.options import apply, command_class, parse, swap_all, take_name
from mim_core.commands.seeds import Asked, seeded, train_seeds
from mim_core.errors import MimError
from mim_core.host.loading import installed
from mim_core.host.registry import Registry
from mim_core.interop.own_encoders import encoder_within, have_other_patches
from mim_core.methods.assembly import Parts
from mim_core.methods.build import open_source
from mim_core.methods.method import Method
from mim_core.methods.supervised import Supervised
from mim_core.recipes.config import Part, ResolvedRun, TrainConfig
from mim_core.recipes.fine_tuning import METHOD, TRAINING, recipe_entry
from mim_core.recipes.resolve import load_recipe, resolve_part
from mim_core.recipes.toml import from_toml, parsed
from mim_core.runs import checkpoint, origins
from mim_core.runs import run as running
from mim_core.runs.folder import read_recipe
from mim_core.runs.initial_weights import take_encoder, take_standing
from mim_core.runs.load import load_run


@dataclass(frozen=True)
class FinetuneOptions:
    """Options of the run itself; those of its parts follow."""

    out: Path | None = None
    """Folder of the run; RUN/finetune by default, or RUN/scratch; with another method, its name follows, as in
    RUN/finetune-NAME. One that holds a checkpoint resumes."""
    use: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Another part in a role: --use method=core:classifier. May be given several times."""
    recipe: str | None = None
    """Train as this fine-tuning recipe does: its method, its training options and its drop path. See: mim-core list
    finetunings."""
    scratch: bool = False
    """The same training from untrained weights, to compare with."""
    seeds: int = 1
    """Train with so many seeds, from --train.seed on, each a run below the folder (FOLDER/seed-0 ...), and print the
    mean and the deviation of their scores. What was done is not done again."""
    dry_run: bool = False
    """Print the plan and stop."""
    plan_for: str | None = None
    """With --dry-run: hours and memory on devices that are not here too, such as h100:8; from counted operations."""
    quiet: bool = False
    """No progress."""


def finetune(program: str, plugin: str | None, arguments: list[str]) -> int:
    """``finetune RUN [OPTIONS]``: RUN is the folder of a pre-trained run, or one of its checkpoints; or the name of a
    fine-tuning recipe, which ``--init`` gives weights to.

    Raises:
        MimError: RUN is a recipe for pre-training or was trained on labels, or the method learns from none.
    """
    registry = installed()
    known = ", ".join(entry.name for entry in registry.of_kind("finetunings", plugin)) or "none"
    hint = f"Fine-tuning recipes: {known}. Usage: {program} finetune RUN|RECIPE [OPTIONS]"
    name, rest = take_name(arguments, "run or fine-tuning recipe", hint)
    entry = recipe_entry(name, plugin, registry)
    if entry is not None:
        return train_recipe(program, name, entry, rest, registry)
    others = [each for each in registry.of_kind("recipes", plugin) if name in (each.name, each.full_name)]
    if others and not Path(name).exists():
        raise MimError(
            f"{name} is a recipe for pre-training, which learns from no labels. To pre-train from weights, such as a "
            f"run or its export: {program} pretrain {name} --init WEIGHTS. To train a pre-trained run on labels: "
            f"{program} finetune RUN. {hint}"
        )
    base, method, weights = load_run(Path(name), registry)
    if isinstance(method, Supervised):
        raise MimError(
            f"{name} was itself trained on labels ({base.parts['method'].name}). Name the pre-trained run; to go on "
            "with this one, give the command that started it again."
        )
    run = swap_all(_recipe(base, registry, recipe_named(rest)), rest, registry)
    if not issubclass(run.parts["method"].cls, Supervised):
        raise MimError(
            f"{run.parts['method'].name} does not learn from labels, so finetune cannot train it; core:classifier does."
        )
    run = with_data_of(run, rest, registry)
    if recipe_named(rest) is None:
        run = replace(run, train=replace(run.train, **run.parts["method"].cls.train_options))
    options = parse(command_class(run, FinetuneOptions, "Train on labels:"), f"{program} finetune {name}", rest)
    folder = options.out or _home(Path(name)) / (FOLDERS[options.scratch] + _task(run))
    run = on_data(replace(apply(run, options), told=frozenset()), rest, registry)
    runs = seeded(run, folder, options.seeds)
    runs = [
        (_completed(each, None if options.scratch else _recorded(place, weights), place), place) for each, place in runs
    ]
    command = origins.command_of(program, "finetune", arguments)

    def take(started: running.Run) -> list[str]:
        return take_standing(started.method, method) if options.scratch else _take(started, method, base, weights)

    said = "" if options.scratch else str(weights)
    return train_seeds(runs, folder, registry, Asked(options, program, command, said, take))


def _recipe(base: ResolvedRun, registry: Registry, recipe: str | None) -> ResolvedRun:
    """The run's tokenizer, encoder and data under `core:classifier`, trained as `mim_core.recipes.fine_tuning` says; or
    under the method of a fine-tuning recipe, trained as that says. What concerns the machine stays as it was."""
    if recipe is not None:
        return under_recipe(base, load_recipe(recipe, registry, kind="finetunings"), registry)
    kept = {role: part for role, part in base.parts.items() if role.rpartition(".")[2] in ("tokenizer", "encoder")}
    method = resolve_part("method", Part.of(METHOD), registry)
    data = {"data": base.parts["data"]} if "data" in base.parts else {}
    train = TrainConfig(**TRAINING, seed=base.train.seed, **of_machine(base.train))
    return replace(base, parts={**data, "method": method, **kept}, train=train)


def _task(run: ResolvedRun) -> str:
    """What follows the folder's name, so that two tasks of one run do not meet in it."""
    method = run.parts["method"].name
    return "" if method == METHOD else f"-{method.rpartition(':')[2]}"


def _home(named: Path) -> Path:
    """The folder of a run, which may be named by one of its checkpoints."""
    return named.parent.parent if named.parent.name == checkpoint.folder_of(named).name else named


def _recorded(folder: Path, weights: Path) -> Path:
    """The weights as the recipe names them. A run that goes on has its own, and keeps the old name where that is gone:
    pre-training went on, or the folder was moved."""
    path = checkpoint.newest(folder)
    if path is None:
        return weights.resolve()
    named = start_of(from_toml(read_recipe(path / "recipe.toml"), installed()))
    return weights.resolve() if named is None or named.exists() else named


def _completed(run: ResolvedRun, weights: Path | None, folder: Path) -> ResolvedRun:
    """With what the data alone knows, and the weights that it starts from. Options that the recipe of a run that goes
    on does not have, for it was written by an older version, stay as they were."""
    part = run.parts["method"]
    if part.options.init is not None:
        raise MimError("finetune starts from the weights of RUN, or from none with --scratch; leave --method.init out.")
    options = part.cls.completed(part.options, open_source(run, Parts(run.parts).tokenizer()))
    path = checkpoint.newest(folder)
    if path is not None:
        known = parsed(read_recipe(path / "recipe.toml"), path / "recipe.toml").get("method", {})
        options = replace(options, **{name: old for name, old in vars(part.options).items() if name not in known})
    return replace(run, parts={**run.parts, "method": replace(part, options=replace(options, init=weights))})


def _take(run: running.Run, other: Method, base: ResolvedRun, path: Path) -> list[str]:
    assert isinstance(run.method, Supervised)
    run.origins = origins.behind(path, None)
    if have_other_patches(run.config, base):
        return encoder_within(other, base, path).fill(run.method)
    return take_encoder(run.method, other, path)
