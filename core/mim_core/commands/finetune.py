"""finetune: from a pre-trained run to an encoder that was trained on labels, and its scores on held-out samples."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tyro

from mim_core.commands.options import apply, command_class, parse, swap_all, take_name
from mim_core.commands.tables import print_table
from mim_core.disk import write_whole
from mim_core.errors import MimError
from mim_core.evaluation.report import try_report
from mim_core.host.loading import installed
from mim_core.host.registry import Registry
from mim_core.methods.assembly import Parts
from mim_core.methods.build import make_source, open_source
from mim_core.methods.method import Method
from mim_core.methods.supervised import Supervised
from mim_core.ranks import world as ranks
from mim_core.recipes.config import EvaluateConfig, Part, ResolvedRun, TrainConfig
from mim_core.recipes.fine_tuning import METHOD, TRAINING
from mim_core.recipes.resolve import resolve_part
from mim_core.recipes.toml import from_toml, parsed
from mim_core.runs import checkpoint, logs, origins
from mim_core.runs import run as running
from mim_core.runs.folder import FREE, read_recipe
from mim_core.runs.initial_weights import take_encoder
from mim_core.runs.load import load_run
from mim_core.scores import FINE_TUNED, SCRATCH, Score, columns_of
from mim_core.terminal import tell
from mim_core.training import loop
from mim_core.training.plan import dry_run
from mim_core.training.signals import STOPPED

FOLDERS = {False: "finetune", True: "scratch"}
"""Where in RUN the run goes, by whether it starts from untrained weights; another method's name follows."""


@dataclass(frozen=True)
class FinetuneOptions:
    """Options of the run itself; those of its parts follow."""

    out: Path | None = None
    """Folder of the run; RUN/finetune by default, or RUN/scratch; with another method, its name follows, as in
    RUN/finetune-NAME. One that holds a checkpoint resumes."""
    use: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Another part in a role: --use method=core:classifier. May be given several times."""
    scratch: bool = False
    """The same training from untrained weights, to compare with."""
    dry_run: bool = False
    """Print the plan and stop."""
    quiet: bool = False
    """No progress."""


def finetune(program: str, plugin: str | None, arguments: list[str]) -> int:
    """``finetune RUN [OPTIONS]``: RUN is the folder of a pre-trained run, or one of its checkpoints."""
    registry = installed()
    name, rest = take_name(arguments, "run", f"Usage: {program} finetune RUN [OPTIONS]")
    base, method, weights = load_run(Path(name), registry)
    if isinstance(method, Supervised):
        raise MimError(
            f"{name} was itself trained on labels ({base.parts['method'].name}). Name the pre-trained run; to go on "
            "with this one, give the command that started it again."
        )
    run = swap_all(_recipe(base, registry), rest, registry)
    if not issubclass(run.parts["method"].cls, Supervised):
        raise MimError(
            f"{run.parts['method'].name} does not learn from labels, so finetune cannot train it; core:classifier does."
        )
    run = replace(run, train=replace(run.train, **run.parts["method"].cls.train_options))
    options = parse(command_class(run, FinetuneOptions, "Train on labels:"), f"{program} finetune {name}", rest)
    folder = options.out or _home(Path(name)) / (FOLDERS[options.scratch] + _task(run))
    run = _completed(apply(run, options), None if options.scratch else _recorded(folder, weights), folder)
    with ranks.world(run.train.device, run.train.timeout) as world:
        started = world.together(lambda: loop.start(run, folder, registry, world, plans=options.dry_run))
        started.command = origins.command_of(program, "finetune", arguments)
        if not options.scratch and world.on_first(lambda: checkpoint.newest(folder) is None):
            left = world.together(lambda: _take(started, method, weights))
            if world.first and not options.quiet:
                tell("\n".join([f"Weights of tokenizer and encoder: {weights}", *left]))
        if options.dry_run:
            dry_run(started)
            return 0
        done = loop.train(started, quiet=options.quiet)
    if world.first and done:
        if judge(folder, registry, quiet=options.quiet) and not options.quiet:
            tell(f"Report: {folder / 'report.html'}")
    elif world.first:
        try_report(folder, registry)
    return 0 if done else STOPPED


def _recipe(base: ResolvedRun, registry: Registry) -> ResolvedRun:
    """The run's tokenizer, encoder and data under `core:classifier`, trained as `mim_core.recipes.fine_tuning` says.
    What concerns the machine stays as it was."""
    kept = {role: part for role, part in base.parts.items() if role.rpartition(".")[2] in ("tokenizer", "encoder")}
    method = resolve_part("method", Part.of(METHOD), registry)
    data = {"data": base.parts["data"]} if "data" in base.parts else {}
    machine = {name: getattr(base.train, name) for name in FREE["train"] if name not in ("micro_batch", "max_hours")}
    train = TrainConfig(**TRAINING, seed=base.train.seed, **machine)
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
    named = _start(from_toml(read_recipe(path / "recipe.toml"), installed()))
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


def _take(run: running.Run, other: Method, path: Path) -> list[str]:
    assert isinstance(run.method, Supervised)
    run.origins = origins.behind(path, None)
    return take_encoder(run.method, other, path)


# ---- scores ----------------------------------------------------------------------------------------------------------


def judge(
    folder: Path,
    registry: Registry,
    config: EvaluateConfig | None = None,
    data: Any = None,
    other: Sequence[str] = (),
    quiet: bool = False,
) -> bool:
    """Tests a run that was trained on labels; writes its scores and its report, and shows the table. Beside it stand
    the majority and, where it exists, the run from scratch (or, for that one, the fine-tuned run).

    Args:
        folder: The run.
        registry: Where names are looked up.
        config: Evaluation options; the run's own by default.
        data: Options of other data, or of the same read otherwise; the run's own by default.
        other: How those differ, for the scores go to a file of their own; empty for the run's own.
        quiet: Show nothing.

    Returns:
        Whether its report was written too.

    Raises:
        MimError: The folder holds no such run, or the data no test samples.
    """
    run, method, _ = load_run(folder, registry)
    assert isinstance(method, Supervised)
    if other:
        run = replace(run, parts={**run.parts, "data": replace(run.parts["data"], options=data)})
    row, notes = FINE_TUNED if _start(run) else SCRATCH, list[str]()
    size = (config or run.evaluate).batch_size
    found = method.test(make_source(run, method), ranks.choose_device(run.train.device), size, notes)
    scores = [replace(score, row=row) if score.row == FINE_TUNED else score for score in found]
    scores = sorted([*scores, *_beside(folder, run, registry, notes)], key=lambda s: (s.row == FINE_TUNED, s.row))
    lines = notes + _compared(scores)
    content = {"title": f"Test of {run.parts['method'].name}", "scores": [vars(s) for s in scores], "notes": lines}
    path = folder / ("-".join(["scores", *other]) + ".json")
    write_whole(path, json.dumps(content, indent=1))
    if not quiet:
        print_table(scores, lines, "test")
    return bool((folder / "checkpoints").exists() and not other) and try_report(folder, registry)


def _start(run: ResolvedRun) -> Path | None:
    """The weights that a run started from."""
    named: Path | None = getattr(run.parts["method"].options, "init", None)
    return named


def _beside(folder: Path, run: ResolvedRun, registry: Registry, notes: list[str]) -> list[Score]:
    """The scores of RUN/scratch for RUN/finetune, and the reverse, if both are on the same data; what else differs is
    noted."""
    pairs = {FOLDERS[False]: FOLDERS[True], FOLDERS[True]: FOLDERS[False]}
    start, dash, task = folder.name.partition("-")
    other = folder.parent / (pairs.get(start, "") + dash + task)
    if start not in pairs or not (other / "scores.json").exists():
        return []
    there = from_toml(read_recipe(other / "recipe.toml"), registry)
    if there.parts["data"] != run.parts["data"]:
        notes.append(f"{other} was trained on other data, or read in another way, and is left out.")
        return []
    differ = [f"method.{n}" for n in _different(run.parts["method"].options, there.parts["method"].options, "init")]
    differ += [f"train.{n}" for n in _different(run.train, there.train, *FREE["train"])]
    if differ:
        notes.append(f"{other} was trained with other options: {', '.join(differ)}.")
    own = SCRATCH if _start(there) is None else FINE_TUNED
    content = logs.read_scores(other / "scores.json")
    return [] if content is None else [score for score in content["scores"] if score.row == own]


def _different(one: Any, other: Any, *free: str) -> list[str]:
    a, b = vars(one), vars(other)
    return [name for name in a if name not in free and a[name] != b.get(name)]


def _compared(scores: list[Score]) -> list[str]:
    """Fine-tuning against training from scratch in words, good or bad."""
    value = {(score.row, score.column): score.value for score in scores}
    columns = [c for c in columns_of(scores)[1] if (FINE_TUNED, c) in value and (SCRATCH, c) in value]
    if not columns:
        return []
    worse = [column for column in columns if value[FINE_TUNED, column] <= value[SCRATCH, column]]
    if not worse:
        return ["Fine-tuning beats training from scratch in every column."]
    return [f"Fine-tuning does not beat training from scratch in: {'; '.join(worse)}."]
