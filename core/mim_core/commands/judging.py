"""Scores of runs that were trained on labels, beside what they are compared with."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mim_core.commands.asking import write_csv
from mim_core.commands.tables import print_table
from mim_core.disk import write_whole
from mim_core.evaluation.report import try_report
from mim_core.host.registry import Registry
from mim_core.methods.build import make_source
from mim_core.methods.supervised import Supervised
from mim_core.ranks import world as ranks
from mim_core.recipes.config import EvaluateConfig, ResolvedRun
from mim_core.recipes.toml import from_toml
from mim_core.runs import logs
from mim_core.runs.folder import FREE, read_recipe
from mim_core.runs.load import load_run
from mim_core.scores import FINE_TUNED, SCRATCH, Score, columns_of
from mim_core.terminal import tell

TRY_BESIDE_SCRATCH = (
    "Try: a longer pre-training, or one on more data like these; lower rates for the encoder than for the head "
    "(--train.layer-decay 0.75); fewer labels (--data.labels 0.1), with which a pre-trained start counts for more."
)
"""What may help where the pre-trained start does not win."""
FOLDERS = {False: "finetune", True: "scratch"}
"""Where in RUN the run goes, by whether it starts from untrained weights; another method's name follows."""


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
    row, notes = FINE_TUNED if start_of(run) else SCRATCH, list[str]()
    size = (config or run.evaluate).batch_size
    test_scores = method.test(make_source(run, method), ranks.choose_device(run.train.device), size, notes)
    scores = [replace(score, row=row) if score.row == FINE_TUNED else score for score in test_scores]
    scores = sorted([*scores, *_beside(folder, run, registry, notes)], key=lambda s: (s.row == FINE_TUNED, s.row))
    lines = notes + compared(scores)
    content = {"title": f"Test of {run.parts['method'].name}", "scores": [vars(s) for s in scores], "notes": lines}
    write_whole(folder / scores_file(other), json.dumps(content, indent=1))
    files = _write_tables(folder, method, other)
    if not quiet:
        print_table(scores, lines, "test")
        if files:
            tell(f"Beside the scores in {folder}: {', '.join(files)}")
    return bool((folder / "checkpoints").exists() and not other) and try_report(folder, registry)


def _write_tables(folder: Path, method: Supervised, other: Sequence[str]) -> list[str]:
    """What a test found beside its scores, as csv and json; the names of the csv files."""
    files = []
    for name, table in method.tables.items():
        stem = "-".join([name, *other])
        write_csv(folder / f"{stem}.csv", table.columns, table.rows)
        rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
        write_whole(folder / f"{stem}.json", json.dumps(rows, indent=1))
        files.append(f"{stem}.csv")
    return files


def scores_file(other: Sequence[str] = ()) -> str:
    """The name of a run's file of scores; of those of other data, see `judge`, one of their own."""
    return "-".join(["scores", *other]) + ".json"


def start_of(run: ResolvedRun) -> Path | None:
    """The weights that a run started from."""
    named: Path | None = getattr(run.parts["method"].options, "init", None)
    return named


def _beside(folder: Path, run: ResolvedRun, registry: Registry, notes: list[str]) -> list[Score]:
    """The scores of RUN/scratch for RUN/finetune, and the reverse, if both are on the same data; what else differs is
    noted."""
    other = _counterpart(folder)
    if other is None or not (other / "scores.json").exists():
        return []
    other_run = from_toml(read_recipe(other / "recipe.toml"), registry)
    if other_run.parts["data"] != run.parts["data"]:
        notes.append(f"{other} was trained on other data, or read in another way, and is left out.")
        return []
    differ = [f"method.{n}" for n in _different(run.parts["method"].options, other_run.parts["method"].options, "init")]
    differ += [f"train.{n}" for n in _different(run.train, other_run.train, *FREE["train"])]
    if differ:
        notes.append(f"{other} was trained with other options: {', '.join(differ)}.")
    own = SCRATCH if start_of(other_run) is None else FINE_TUNED
    content = logs.read_scores(other / "scores.json")
    return [] if content is None else [score for score in content["scores"] if score.row == own]


def _counterpart(folder: Path) -> Path | None:
    """RUN/scratch for RUN/finetune and the reverse, of the same task and, where there are several, of the same seed."""
    if re.fullmatch(r"seed-\d+", folder.name):
        above = _counterpart(folder.parent)
        return None if above is None else above / folder.name
    pairs = {FOLDERS[False]: FOLDERS[True], FOLDERS[True]: FOLDERS[False]}
    start, dash, task = folder.name.partition("-")
    return folder.parent / (pairs[start] + dash + task) if start in pairs else None


def _different(one: Any, other: Any, *free: str) -> list[str]:
    a, b = vars(one), vars(other)
    return [name for name in a if name not in free and a[name] != b.get(name)]


def compared(scores: Sequence[Score], seeds: int = 1) -> list[str]:
    """Fine-tuning against training from scratch in words, good or bad, and where the difference may be chance: it is
    smaller than twice its standard error, over the test samples and over the seeds; both rows saw the same samples, so
    that this is rather too large.

    Args:
        scores: The table.
        seeds: How many seeds each cell is the mean of.
    """
    cells = {(score.row, score.column): score for score in scores}
    pairs = {c: (cells.get((FINE_TUNED, c)), cells.get((SCRATCH, c))) for c in columns_of(scores)[1]}
    worse, close, both = list[str](), list[str](), False
    for column, (own, other) in pairs.items():
        if own is None or other is None:
            continue
        both = True
        lead = (other.value - own.value) if own.lower_is_better else (own.value - other.value)
        noise = sum((s.error or 0.0) ** 2 + (s.spread or 0.0) ** 2 / seeds for s in (own, other)) ** 0.5
        worse += [column] if lead <= 0 else []
        close += [column] if abs(lead) < 2 * noise else []
    if not both:
        return []
    lines = [
        f"Fine-tuning does not beat training from scratch in: {'; '.join(worse)}. {TRY_BESIDE_SCRATCH}"
        if worse
        else "Fine-tuning beats training from scratch in every column."
    ]
    return lines + ([f"Less than two standard errors of the difference apart: {'; '.join(close)}."] if close else [])
