"""Training with several seeds: a run of its own for each, below one folder, and one table of all."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mim_core.commands.judging import compared, judge
from mim_core.commands.tables import print_table
from mim_core.disk import write_whole
from mim_core.errors import MimError
from mim_core.evaluation.report import try_report
from mim_core.host.registry import Registry
from mim_core.ranks import world as ranks
from mim_core.ranks.world import World
from mim_core.recipes.config import ResolvedRun
from mim_core.runs import checkpoint, logs
from mim_core.runs.run import Run
from mim_core.scores import Score
from mim_core.terminal import tell
from mim_core.training import loop
from mim_core.training.plan import check_plan, dry_run
from mim_core.training.signals import STOPPED

MOST = 100
"""Seeds that one command trains with at most."""

_NAME = re.compile(r"seed-(\d{1,12})")


def seed_folders(folder: Path) -> list[Path]:
    """The runs of several seeds below a folder, by seed; none where it is a run itself."""
    if not folder.is_dir() or checkpoint.newest(folder) is not None:
        return []
    folders = [path for path in folder.iterdir() if _NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(folders, key=lambda path: int(path.name.partition("-")[2]))


def seeded(run: ResolvedRun, folder: Path, count: int) -> list[tuple[ResolvedRun, Path]]:
    """The run with each seed, from its own on, and the folder of each; one seed alone is the run in the folder itself.

    Args:
        run: The run.
        folder: Where it goes, or where the runs of several seeds go: FOLDER/seed-0, FOLDER/seed-1 ...
        count: How many seeds.

    Raises:
        MimError: No such number of seeds, or the folder holds a run of the other kind.
    """
    if not 1 <= count <= MOST:
        raise MimError(f"--seeds must be 1 to {MOST}, got {count}.")
    existing = seed_folders(folder)
    if count == 1 and existing:
        raise MimError(
            f"{folder} holds the runs of {len(existing)} seeds. To go on with them: --seeds {len(existing)}; or choose "
            "another folder with --out."
        )
    if count == 1:
        return [(run, folder)]
    if checkpoint.newest(folder) is not None:
        raise MimError(
            f"{folder} holds a run of one seed, and the runs of several would lie below it. Choose another folder "
            "with --out."
        )
    seeds = range(run.train.seed, run.train.seed + count)
    return [(replace(run, train=replace(run.train, seed=seed)), folder / f"seed-{seed}") for seed in seeds]


@dataclass(frozen=True)
class Asked:
    """What a command that trains on labels was asked for.

    Attributes:
        options: Its own, with ``dry_run``, ``plan_for`` and ``quiet``.
        program: The program that was called, such as ``mim-core``.
        command: The command as it was given.
        weights: What the weights are from, as it is said; empty where nothing that learns is taken.
        take: Copies them into a run that begins, and says what starts fresh; None where there are none.
        refuses: A run of less than half a step is refused, not taken for one step.
    """

    options: Any
    program: str
    command: str
    weights: str
    take: Callable[[Run], list[str]] | None
    refuses: bool = False


def train_seeds(runs: Sequence[tuple[ResolvedRun, Path]], folder: Path, registry: Registry, asked: Asked) -> int:
    """Trains and judges each run in turn, and all together where there are several; the exit code of the command.

    Args:
        runs: The runs, and the folder of each, see `seeded`.
        folder: Gets the table of several.
        registry: Where names are looked up.
        asked: What is asked for.
    """
    check_plan(asked.options.dry_run, asked.options.plan_for)
    train = runs[0][0].train
    with ranks.world(train.device, train.timeout) as world:
        for run, place in runs:
            started = _started(run, place, registry, world, asked)
            if asked.options.dry_run:
                dry_run(started, asked.options.plan_for)
                if len(runs) > 1 and world.first:
                    tell(f"The same {len(runs)} times, with the seeds {train.seed} to {runs[-1][0].train.seed}.")
                return 0
            if not _finished(started, registry, asked.options.quiet, len(runs) == 1, asked.program):
                return STOPPED
        if world.first and len(runs) > 1:
            judge_together(folder, [place for _, place in runs], quiet=asked.options.quiet)
    return 0


def _started(run: ResolvedRun, place: Path, registry: Registry, world: World, asked: Asked) -> Run:
    """A run with the weights that it starts from."""
    take = asked.take
    started = world.together(lambda: loop.start(run, place, registry, world, asked.refuses, asked.options.dry_run))
    started.command = asked.command
    if take is not None and world.on_first(lambda: checkpoint.newest(place) is None):
        notes = world.together(lambda: take(started))
        if world.first and not asked.options.quiet and (asked.weights or notes):
            whose = [f"Weights of tokenizer and encoder: {asked.weights}"] if asked.weights else []
            tell("\n".join([*whose, *notes]))
    return started


def _finished(run: Run, registry: Registry, quiet: bool, alone: bool, program: str) -> bool:
    """Trains a run to its end and judges it; says whether it came there. Scores of a run that is not alone are shown
    later."""
    done = loop.train(run, quiet=quiet)
    if run.world.first and done:
        if judge(run.folder, registry, quiet=quiet or not alone) and not quiet:
            tell(f"Report: {run.folder / 'report.html'}")
            tell(f"Next: {program} predict {run.folder} FILES, or {program} export {run.folder}")
    elif run.world.first:
        try_report(run.folder, registry)
    return done


def judge_together(folder: Path, runs: Sequence[Path], name: str = "scores.json", quiet: bool = False) -> None:
    """Writes the table of several runs, which are judged, into their folder, and shows it.

    Args:
        folder: Gets the table.
        runs: The folders of the runs.
        name: The file of scores in each of them, and in the folder.
        quiet: Show nothing.

    Raises:
        MimError: A run has no such scores.
    """
    tables = []
    for run in runs:
        content = logs.read_scores(run / name)
        if content is None:
            raise MimError(f"{run / name} is missing or damaged. To judge all again: mim-core evaluate {folder}")
        tables.append(content)
    scores = over_seeds([table["scores"] for table in tables])
    own = [line for table in tables for line in compared(table["scores"])]
    alike = [note for note in tables[0]["notes"] if note not in own and all(note in t["notes"] for t in tables)]
    seeds = [int(run.name.partition("-")[2]) for run in runs]
    summary = f"Mean and standard deviation (±) over {len(runs)} seeds, {', '.join(map(str, seeds))}."
    notes = [summary, *alike, *compared(scores, len(runs))]
    title = f"{tables[0].get('title', '')}, {len(runs)} seeds".lstrip(", ")
    content = {"title": title, "seeds": seeds, "scores": [vars(score) for score in scores], "notes": notes}
    write_whole(folder / name, json.dumps(content, indent=1))
    if not quiet:
        print_table(scores, notes, title)


def over_seeds(tables: Sequence[Sequence[Score]]) -> list[Score]:
    """The mean of each cell over tables that have it, and its deviation where the values differ.

    Cells keep the order of the first table that has them.
    """
    cells: dict[tuple[str, str], list[Score]] = {}
    for table in tables:
        for score in table:
            cells.setdefault((score.row, score.column), []).append(score)
    scores = []
    for same in cells.values():
        values = [score.value for score in same]
        spread = statistics.stdev(values) if len(set(values)) > 1 else None
        errors = [score.error for score in same if score.error is not None]
        error = statistics.fmean(errors) if errors else None
        scores.append(replace(same[0], value=statistics.fmean(values), spread=spread, error=error))
    return scores
