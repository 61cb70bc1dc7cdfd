"""evaluate: judges a run's features by k-NN and linear probes."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from mim_core.commands.judging import judge, scores_file
from mim_core.commands.options import parse, take_name, with_data
from mim_core.commands.seeds import judge_together, seed_folders
from mim_core.commands.tables import print_table
from mim_core.disk import write_whole
from mim_core.errors import MimError
from mim_core.evaluation import study as studies
from mim_core.evaluation.features import prepare_study
from mim_core.evaluation.next_steps import next_steps
from mim_core.evaluation.report import try_report
from mim_core.host.loading import installed
from mim_core.host.registry import Registry
from mim_core.methods.supervised import Supervised
from mim_core.recipes.config import EvaluateConfig
from mim_core.runs.load import load_run
from mim_core.runs.logs import read_scores
from mim_core.scores import Score, verdict
from mim_core.terminal import tell


@dataclass(frozen=True)
class EvaluateOptions:
    """Judge a run's frozen features. Beside them stand the majority class, the raw input and the same encoder
    untrained. A run that was trained on labels is tested instead; with --on, its features are judged too. The options
    of the run's data may be changed too (--data.NAME; evaluate RUN --help lists them)."""

    on: str = ""
    """Evaluations, with commas between: knn,linear. Those of the recipe by default."""
    data_root: Path | None = None
    """Other data than the run's, in a form that the run's data source reads."""
    size: tuple[int, ...] | None = None
    """Another input size along each axis than the run's, outermost first: --size 16 48 64. Positions are interpolated
    to its grid, as in an exported encoder, unless their kind has a rule of its own; a note under the table says it."""
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    """Options of the evaluations; the run's by default."""


def evaluate(program: str, plugin: str | None, arguments: list[str]) -> int:
    """``evaluate RUN [--on knn,linear]``."""
    name, rest = take_name(arguments, "run", f"Usage: {program} evaluate RUN [OPTIONS]")
    registry = installed()
    if name in ("-h", "--help"):
        parse(EvaluateOptions, f"{program} evaluate RUN", arguments)
    folder = Path(name)
    runs = seed_folders(folder)
    if runs:
        files = [_evaluate(program, run, rest, registry) for run in runs]
        judge_together(folder, runs, files[0])
    else:
        _evaluate(program, folder, rest, registry)
    return 0


def _evaluate(program: str, folder: Path, rest: list[str], registry: Registry) -> str:
    """Judges one run; the name of the file of its scores."""
    run, method, _ = load_run(folder, registry)
    own = run.parts["data"].options
    default = with_data(EvaluateOptions, own, evaluate=run.evaluate)
    options: Any = parse(type(default), f"{program} evaluate {folder}", rest, default)
    config = options.evaluate
    if options.on:
        config = replace(config, on=tuple(name.strip() for name in options.on.split(",") if name.strip()))
    for name in config.on:
        registry.get("evaluations", name)
    data = replace(options.data, root=options.data_root) if options.data_root else options.data
    changes = _changes(own, data)
    if isinstance(method, Supervised) and not options.on:
        if options.size:
            raise MimError("--size is for frozen features: name what judges them, such as --on knn,linear.")
        judge(folder, registry, config, data, list(changes.values()))
        return scores_file(list(changes.values()))
    if not config.on:
        known = ", ".join(entry.full_name for entry in registry.of_kind("evaluations"))
        raise MimError(f"{run.recipe} names no evaluation of its own. Name some with --on: {known}.")
    study = prepare_study(folder, registry, config, data if changes else None, options.size)
    scores = studies.run_usable(study, registry)
    read = [f"--data.{name.replace('_', '-')}" for name in changes if name != "root"]
    notes = [f"Data options differ from the run: {', '.join(read)}."] if read else []
    labelled = study.source is None or not study.source.judges_anomalies
    lines = study.notes + notes + verdict(scores) + next_steps(scores, run, method, folder, labelled)
    print_table(scores, lines, "score")
    content = {"title": "; ".join(study.headings), "scores": [vars(score) for score in scores], "notes": lines}
    other = list(changes.values()) + (["x".join(map(str, options.size))] if options.size else [])
    name = scores_file(other)
    name = name.replace("scores", "probes") if isinstance(method, Supervised) else name
    gone = _replaced(folder / name, scores)
    if gone:
        tell(
            f"{folder / name} also had {', '.join(gone)}. A table is of one judgement: it is replaced. To have all, "
            "name them at once, with commas: --on knn,linear."
        )
    write_whole(folder / name, json.dumps(content, indent=1))
    if (folder / "checkpoints").exists() and name == "scores.json":
        try_report(folder, registry)
    return name


def _changes(own: Any, data: Any) -> dict[str, str]:
    """Options of the data that are not as in the run: their values as part of a file's name, such as ``views-5x3``,
    and of another root its own name."""
    changes = {}
    for name in (f.name for f in fields(own) if getattr(data, f.name) != getattr(own, f.name)):
        value = getattr(data, name)
        text = "x".join(map(str, value)) if isinstance(value, tuple) else str(value)
        plain = re.sub(r"[^\w.]+", "-", text).strip("-")
        changes[name] = value.name if isinstance(value, Path) else f"{name.replace('_', '-')}-{plain}"
    return changes


def _replaced(path: Path, scores: list[Score]) -> list[str]:
    """Columns of the scores in a file that the new ones do not have."""
    content = read_scores(path)
    if content is None:
        return []
    before = [score.column for score in content["scores"]]
    return [column for column in dict.fromkeys(before) if column not in {score.column for score in scores}]
