"""Fine-tuning recipes: the papers' settings of training on labels, alone with weights from anywhere, or over a run."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import tyro

from mim_core.commands.fitting import on_data
from mim_core.commands.options import apply, command_class, parse, swap_all, used
from mim_core.commands.seeds import Asked, seeded, train_seeds
from mim_core.commands.starting import fitted, recipe_behind, take_encoder_from
from mim_core.errors import MimError
from mim_core.host.registry import Entry, Registry
from mim_core.interop.own_encoders import read_alike
from mim_core.methods.assembly import Parts
from mim_core.methods.build import open_source
from mim_core.methods.supervised import Supervised
from mim_core.recipes.config import Part, ResolvedPart, ResolvedRun, TrainConfig
from mim_core.recipes.resolve import load_recipe, resolve_part
from mim_core.runs import origins
from mim_core.runs.folder import FREE

INPUT = ("size", "patch", "channels")
"""Options of a tokenizer that the command line may state beside a run that is started from."""


@dataclass(frozen=True)
class RecipeOptions:
    """Options of the run itself; those of its parts follow."""

    out: Path | None = None
    """Folder of the run; runs/RECIPE by default. One that holds a checkpoint resumes."""
    use: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Another part in a role: --use method=core:classifier. May be given several times."""
    init: Path | None = None
    """Start from the encoder of a run, of an export, or of any file or folder of weights of a plain ViT (timm,
    transformers, DINO, MAE); timm:NAME takes what timm has on this disk."""
    dry_run: bool = False
    """Print the plan and stop."""
    plan_for: str | None = None
    """With --dry-run: hours and memory on devices that are not here too, such as h100:8; from counted operations."""
    twin: bool = False
    """The recipe's small twin, for trying things out."""
    seeds: int = 1
    """Train with so many seeds, from --train.seed on, each a run below the folder (FOLDER/seed-0 ...), and print the
    mean and the deviation of their scores. What was done is not done again."""
    quiet: bool = False
    """No progress."""


def recipe_named(arguments: list[str]) -> str | None:
    """What ``--recipe`` names, which decides what other options there are, and so is read first."""
    for number, argument in enumerate(arguments):
        if argument.startswith("--recipe="):
            return argument.partition("=")[2]
        if argument == "--recipe":
            return arguments[number + 1] if number + 1 < len(arguments) else ""
    return None


def of_machine(train: TrainConfig) -> dict[str, Any]:
    """Training options that concern the machine and not the result."""
    return {name: getattr(train, name) for name in FREE["train"] if name not in ("micro_batch", "max_hours")}


def under_recipe(base: ResolvedRun, recipe: ResolvedRun, registry: Registry) -> ResolvedRun:
    """A pre-trained run's tokenizer, encoder and data under a fine-tuning recipe's method and training options; the
    encoder has its drop path, and trained positions where it has them."""
    kept = _kept(base, recipe)
    data = {"data": base.parts["data"]} if "data" in base.parts else {}
    train = replace(recipe.train, seed=base.train.seed, **of_machine(base.train))
    method = recipe.parts["method"]
    if hasattr(method.options, "classes"):  # those of the paper's data set
        method = replace(method, options=replace(method.options, classes=0))
    return replace(base, parts={**data, "method": method, **kept}, train=train)


def _kept(base: ResolvedRun, recipe: ResolvedRun) -> dict[str, ResolvedPart]:
    """The tokenizers and the encoder of a run as a fine-tuning recipe trains them."""
    kept = {role: part for role, part in base.parts.items() if _is_kept(role)}
    own, theirs = kept["encoder"], recipe.parts["encoder"]
    if own.name == theirs.name:
        names = [name for name in ("drop_path", "class_position") if hasattr(theirs.options, name)]
        changed = {name: getattr(theirs.options, name) for name in names}
        if getattr(theirs.options, "position", "") == "learned" and str(own.options.position).startswith("sincos"):
            changed["position"] = "learned"
        kept["encoder"] = replace(own, options=replace(own.options, **changed))
    return kept


def _is_kept(role: str) -> bool:
    return role.rpartition(".")[2] in ("tokenizer", "encoder")


def as_pretrained(run: ResolvedRun, base: ResolvedRun, arguments: list[str]) -> ResolvedRun:
    """A fine-tuning recipe with its tokenizers and its encoder as the run has them that it starts from, at the input
    size, patch and channels that the command line names."""
    kept = {role: part for role, part in _kept(base, run).items() if role in run.parts}
    for role, part in kept.items():
        own = run.parts.get(role)
        stated = {argument.partition("=")[0] for argument in arguments}
        given = [name for name in INPUT if f"--{role}.{name}" in stated and hasattr(part.options, name)]
        if given and own is not None and own.name == part.name:
            changed = {name: getattr(own.options, name) for name in given}
            kept[role] = replace(part, options=replace(part.options, **changed))
    others = {role: part for role, part in run.parts.items() if not _is_kept(role)}
    return replace(run, parts={**others, **kept})


def with_data_of(run: ResolvedRun, arguments: list[str], registry: Registry) -> ResolvedRun:
    """The run with the data source that its method learns from, see `Supervised.learns_from`, unless ``--use data=``
    names one."""
    name, present = run.parts["method"].cls.learns_from, run.parts.get("data")
    if not name or any(role == "data" for role, _ in used(arguments)):
        return run
    part = resolve_part("data", Part(name), registry)
    if present is None or issubclass(present.cls, part.cls):
        return run
    own = {field.name for field in fields(part.options)} - {"root"}
    both = {field.name: getattr(present.options, field.name) for field in fields(present.options) if field.name in own}
    part = replace(part, options=replace(part.options, **both))
    return replace(run, parts={**run.parts, "data": part})


def train_recipe(program: str, name: str, entry: Entry, rest: list[str], registry: Registry) -> int:
    """``finetune RECIPE --init WEIGHTS``: as a run of its own.

    Raises:
        MimError: The method does not learn from labels.
    """
    run = load_recipe(entry.full_name, registry, "--twin" in rest, kind="finetunings")
    of_recipe = run.parts["method"].options.classes if hasattr(run.parts["method"].options, "classes") else None
    run = swap_all(run, rest, registry)
    if not issubclass(run.parts["method"].cls, Supervised):
        raise MimError(f"{run.parts['method'].name} does not learn from labels, so finetune cannot train it.")
    cls = command_class(run, RecipeOptions, "Train on labels as")
    options = parse(cls, f"{program} finetune {name}", rest)
    run = on_data(replace(apply(run, options), told=None if options.twin else frozenset()), rest, registry)
    folder = options.out or Path("runs") / (entry.name + ("-twin" if options.twin else ""))
    if options.init is not None:
        base = recipe_behind(options.init, registry)
        own = base is not None and read_alike(run, base)
        run = as_pretrained(run, base, rest) if base is not None and own else fitted(run, options.init, registry)
    run = _completed(run, of_recipe, options.init)
    command = origins.command_of(program, "finetune", [name, *rest])
    take = None if options.init is None else lambda started: take_encoder_from(started, options.init, registry)
    asked = Asked(options, program, command, str(options.init), take, refuses=True)
    return train_seeds(seeded(run, folder, options.seeds), folder, registry, asked)


def _completed(run: ResolvedRun, of_recipe: int | None, init: Path | None) -> ResolvedRun:
    """With what the data alone knows: its classes take the place of those of the paper's data set."""
    part = run.parts["method"]
    options = part.options
    if of_recipe is not None and options.classes == of_recipe:
        options = replace(options, classes=0)
    options = part.cls.completed(options, open_source(run, Parts(run.parts).tokenizer()))
    given = None if init is None else Path(str(init)) if str(init).startswith("timm:") else init.resolve()
    return replace(run, parts={**run.parts, "method": replace(part, options=replace(options, init=given))})
