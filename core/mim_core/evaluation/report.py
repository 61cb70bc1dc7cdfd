"""report.html of a run: one static file with curves, reconstructions, scores, and where data and time went; beside it,
where the data source makes one, a page per head on which samples can be turned."""

from __future__ import annotations

import base64
import re
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, PackageLoader
from torch import Tensor

from mim_core.data.source import DataSource, Picture
from mim_core.disk import write_whole
from mim_core.errors import MimError, one_line, warn
from mim_core.evaluation import curves
from mim_core.evaluation.anomaly import finished
from mim_core.evaluation.anomaly_maps import score_maps
from mim_core.evaluation.feature_pictures import feature_pictures
from mim_core.evaluation.mistakes import Matrix, Mistakes, matrix_of, mistakes_of
from mim_core.evaluation.reconstruction import Rebuilt, across, held_out_samples, names_of, reconstruct
from mim_core.evaluation.study import Study
from mim_core.evaluation.worst_answers import WorstAnswers, worst_answers
from mim_core.host.registry import Registry
from mim_core.methods.build import make_source
from mim_core.methods.classifier import Classifier
from mim_core.methods.method import Method
from mim_core.methods.supervised import Supervised
from mim_core.parts.samples import known_entries
from mim_core.ranks.world import choose_device
from mim_core.recipes.changes import changes_of
from mim_core.recipes.config import EvaluateConfig, ResolvedRun
from mim_core.recipes.toml import to_toml
from mim_core.runs import logs, origins
from mim_core.runs.load import load_run
from mim_core.runs.state import MADE, StateError, read_json, read_state
from mim_core.scores import FINE_TUNED, PRETRAINED, SCRATCH, Score, best_cells, cell, columns_of, headline
from mim_core.text import counted, shown, times


def try_report(folder: Path, registry: Registry) -> bool:
    """`write_report` after work that is done: what goes wrong in it is a warning. Says whether it was written."""
    try:
        write_report(folder, registry)
    except Exception as error:
        what = " ".join(str(error).split()) if isinstance(error, MimError) else one_line(error)
        warn(
            f"{folder / 'report.html'} could not be written; all else is done and kept. The reason: {what} Once that "
            f"is fixed: mim-core show {folder}"
        )
        return False
    return True


def write_report(folder: Path, registry: Registry, samples: int = 12, data: Any = None) -> Path:
    """Writes ``folder/report.html`` from what the run has left on disk, and the pages that it links to. Those that an
    earlier report linked to and this one does not are removed. ``data`` are options of the data source; the run's by
    default."""
    run, method, checkpoint = load_run(folder, registry)
    run = run.on_data(data)
    source = make_source(run, method)
    metrics, probes = curves.read(folder)
    heads = _pictures(method, source, samples)
    path = folder / "report.html"
    before = _links(path)
    for head in heads:
        if head["page"] is not None:
            write_whole(folder / head["link"], head["page"])
    state, own = read_state(checkpoint), _own_row(run, method)
    labelled = not source.judges_anomalies
    report = (
        environment()
        .get_template("report.html.jinja")
        .render(
            title=_title(run, method),
            folder=str(folder),
            checkpoint=checkpoint.name,
            verdict=headline(_scores(folder), own, labelled) or [_unjudged(run, method, folder)],
            curves=curves.draw(metrics, probes),
            facts={**source.plan(), **_imported(state), **curves.facts(metrics), **_made(method, state)},
            heads=heads,
            anomalies=_anomalies(method, source, run.evaluate, samples),
            mistakes=_mistakes(run, method, source),
            answers=_answers(run, method, source),
            confusion=_confusion(folder, method),
            classes=_classes(folder),
            table=scores_of(folder),
            wins=best_cells(_scores(folder), own),
            skipped=_skipped(folder / logs.SKIPPED),
            changes={name: tuple(map(_option, pair)) for name, pair in changes_of(run, registry).items()},
            recipe=in_rows(to_toml(run, registry)),
            address=address,
        )
    )
    write_whole(path, shown(report))
    for name in before - _links(path):
        (folder / name).unlink(missing_ok=True)
    return path


def _own_row(run: ResolvedRun, method: Method) -> str:
    """The row of a table that is this run's."""
    if not isinstance(method, Supervised):
        return PRETRAINED
    return FINE_TUNED if getattr(run.parts["method"].options, "init", None) else SCRATCH


def _title(run: ResolvedRun, method: Method) -> str:
    """What was done, and by which recipe."""
    part = run.parts["method"]
    if not isinstance(method, Supervised):
        return f"Pre-training: {run.recipe or part.name}"
    how = "Fine-tuning" if _own_row(run, method) == FINE_TUNED else "Training from scratch"
    return f"{how} ({part.name.rpartition(':')[2]}): {run.recipe or part.name}"


def _scores(folder: Path) -> list[Score]:
    content = logs.read_scores(folder / "scores.json")
    return [] if content is None else list(content["scores"])


def _unjudged(run: ResolvedRun, method: Method, folder: Path) -> str:
    """What to do with a run without scores; some methods, such as tokenizers, have no evaluation of their own."""
    plugin = run.recipe.partition(":")[0]
    program = f"mim-{plugin if ':' in run.recipe else 'core'}"
    if isinstance(method, Supervised) or run.evaluate.on:
        return f"Not judged yet: {program} evaluate {folder}"
    return f"{run.recipe} names no evaluation of its own. Next: {method.comes_next(program, folder)}"


def _made(method: Method, state: Mapping[str, Any]) -> dict[str, str]:
    """Size of the method, and when, where and by which command the last checkpoint was made."""
    shapes: Mapping[str, tuple[int, ...]] = getattr(getattr(method, "tokenizer", None), "shapes", {})
    inputs = ", ".join(f"{name} {times(shape)}" for name, shape in shapes.items())
    entries = {"size": f"{sum(p.numel() for p in method.parameters()):,} parameters; inputs {inputs}"}
    made = state.get(MADE, {})
    entries |= {"made on": f"{made['date'][:16].replace('T', ' ')} UTC, {made['device']}"} if made.get("date") else {}
    return entries | ({"command": made["command"]} if made.get("command") else {})


def _mistakes(run: ResolvedRun, method: Method, source: DataSource) -> Mistakes | None:
    if not isinstance(method, Classifier):
        return None
    return mistakes_of(method, source, choose_device(run.train.device), run.evaluate.batch_size)


def _answers(run: ResolvedRun, method: Method, source: DataSource) -> WorstAnswers | None:
    if not isinstance(method, Supervised):
        return None
    return worst_answers(method, source, choose_device(run.train.device), run.evaluate.batch_size)


def _confusion(folder: Path, method: Method) -> Matrix | None:
    """What was taken for what as the run was judged, of methods that no samples of a class are shown of."""
    cells = [] if isinstance(method, Classifier) else [list(row.values()) for row in _rows(folder / "confusion.json")]
    counts = [row[1:] for row in cells]
    if not cells or any(len(row) != len(cells) or not all(isinstance(c, int) for c in row) for row in counts):
        return None
    return matrix_of(torch.tensor(counts), [str(row[0]) for row in cells])


def _rows(path: Path) -> list[dict[str, Any]]:
    """A table that was written when the run was judged; none where there is none that can be read."""
    if not path.is_file():
        return []
    try:
        rows = read_json(path)
    except StateError as error:
        warn(f"{path} is damaged and left out of the report: {error}.")
        return []
    return rows if isinstance(rows, list) and all(isinstance(row, dict) for row in rows) else []


def _classes(folder: Path) -> dict[str, Any] | None:
    """Scores of each class, as the run was judged: columns, and rows of cells; None where there are none."""
    rows = _rows(folder / "classes.json")
    if not rows:
        return None
    cells = [[f"{v:.3f}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows]
    return {"columns": list(rows[0]), "rows": cells}


def _option(value: Any) -> str:
    each = [
        f"{one:.6g}" if isinstance(one, float) else str(one) for one in (value if isinstance(value, list) else [value])
    ]
    text = ", ".join(each)
    return text if len(text) <= 120 else f"{text[:120]} ..."


def _imported(state: Mapping[str, Any]) -> dict[str, str]:
    """Where the weights are from that a run is, or that it started from."""
    imported = state.get("imported")
    if imported is not None:
        return {"weights": " ".join([f"imported, {imported['format']}: {imported['file']}", *imported["sizes"]])}
    chain = [f"{each['file']} ({each['format']})" for each in origins.kept_in(state)]
    return {"started from": ", then ".join(chain)} if chain else {}


def _links(report: Path) -> set[str]:
    """Names of the pages that a report links to."""
    return (
        set(re.findall(r'href="(report-[\w.-]+\.html)"', report.read_text(encoding="utf-8", errors="replace")))
        if report.is_file()
        else set()
    )


def environment() -> Environment:
    """The templates of pages, in which all text is escaped."""
    return Environment(
        loader=PackageLoader("mim_core", "templates"),
        autoescape=True,  # names of files and of classes, notes and recipes are others' text
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _skipped(path: Path) -> str:
    """How many files were replaced, where any was."""
    count = len(logs.read(path))
    return f"{counted(count, 'file')} that cannot be used, named in {path.name}" if count else ""


def _pictures(method: Method, source: DataSource, count: int) -> list[dict[str, Any]]:
    """Rows of pictures per head, as data addresses."""
    if method.rebuilds == "nothing":
        return []
    sample, where = held_out_samples(source, count)
    sample = _served(method, sample) if sample else {}
    if not sample:
        return []
    heads, names = [], names_of(source, sample["index"])
    crossed = across(method, sample)
    for name, rebuilt in reconstruct(method, sample).items():
        rows = {"input": rebuilt.input, "masked": rebuilt.masked, "rebuilt": rebuilt.rebuilt}
        if rebuilt.hidden is not None and bool(rebuilt.hidden.all()):  # nothing of it is left to be shown
            del rows["masked"]
        if rebuilt.whole is not None:
            rows = {"input": rebuilt.whole, "as ids": rebuilt.input, **{k: v for k, v in rows.items() if k != "input"}}
        rows |= {f"from {seen} alone": made for seen, made in crossed.get(name, {}).items()}
        shown, drawn = _drawn(source, rebuilt, rows)
        heads.append(
            {
                "name": name,
                "where": where,
                "needs_truth": rebuilt.needs_truth,
                "unasked": rebuilt.unasked,
                "rows": shown,
                "films": [label for label in shown if label not in rows],
                "drawn": drawn,
                "names": names,
                "page": None if rebuilt.features else source.page(rebuilt.modality, rows, names),
                "link": f"report-{re.sub(r'[^0-9A-Za-z_.-]', '-', name)}.html",
            }
        )
    return heads


def _drawn(source: DataSource, rebuilt: Rebuilt, rows: dict[str, Tensor]) -> tuple[dict[str, list[str]], bool]:
    """(addresses of pictures by row, whether they are drawn large) of one head; of films some strips, and then all that
    move."""
    if rebuilt.features:
        images = feature_pictures(rows, rebuilt.hidden)
        return {label: [address(each) for each in pictures] for label, pictures in images.items()}, False
    moves = source.animation(rebuilt.modality, rebuilt.input[0]) is not None
    shown = _films(source, rebuilt.modality, rows) if moves else {}
    draw, drawn = source.animation if moves else source.picture, False
    for label, items in rows.items():
        pictures = [each for item in items if (each := draw(rebuilt.modality, item))]
        if label == "masked" and not moves and rebuilt.hidden is not None:
            both = zip(items, rebuilt.hidden, strict=True)
            pictures = [source.masked_picture(rebuilt.modality, item, hidden) for item, hidden in both]
        shown[label] = [address(each) for each in pictures]
        drawn = any(each.drawn for each in pictures)
    return shown, drawn


def _anomalies(method: Method, source: DataSource, config: EvaluateConfig, count: int) -> dict[str, Any] | None:
    """Test samples, half of them abnormal, with scores of their places laid over them; None where the data tell nothing
    of anomalies, or the method scores none."""
    if not source.judges_anomalies:
        return None
    study = Study(config, (torch.empty(0), torch.empty(0)), (), {}, source=source)
    try:
        split = source.labelled("test")
        chosen = [i for wanted in (False, True) for i in _evenly((split.labels != 0) == wanted, count // 2)]
        batches = [*finished(source, split.items, chosen, study)]
        maps = [score_maps(method.eval(), known_entries(ready, source.shapes), config.covers) for ready, _ in batches]
    except MimError:
        return None
    if not maps or maps[0].ndim == 1:  # of methods that score whole samples alone
        return None
    modality = next(iter(source.shapes))
    ready = {name: torch.cat([each[name] for each, _ in batches]) for name in batches[0][0]}
    scores, labels = torch.cat(maps), split.labels[torch.cat([index for _, index in batches])]
    highest = float(scores.flatten(1).amax(dim=1).median())
    rows = {"input": [source.picture(modality, values) for values in ready[modality]]}
    pairs = list(zip(ready[modality], scores, strict=True))
    rows["scores"] = [source.heat_map(modality, values, score, highest) for values, score in pairs]
    if "truth" in ready:
        both = zip(ready[modality], ready["truth"].float(), strict=True)
        rows["truth"] = [source.heat_map(modality, values, truth, 1.0) for values, truth in both]
    return {
        "rows": {label: [address(picture) for picture in pictures] for label, pictures in rows.items()},
        "normal": int((labels == 0).sum()),
        "highest": f"{highest:.3g}",
    }


def _evenly(flags: Tensor, count: int) -> list[int]:
    """Numbers of some of those that are True, evenly over them."""
    numbers = flags.nonzero()[:, 0]
    picked = torch.linspace(0, len(numbers) - 1, min(count, len(numbers))).long().unique()
    return numbers[picked].tolist()


def _served(method: Any, sample: dict[str, Tensor]) -> dict[str, Tensor]:
    """Those samples of which enough units may be seen: one may lack modalities."""
    layout = method.tokenizer.split(sample).layout
    if layout.valid is None or method.rebuilds != "hidden":
        return sample
    usable = method.masker.usable(layout)
    if usable is None:
        return sample
    enough = usable.sum(dim=1) >= layout.count - method.masker.count(layout)
    return {name: value[enough] for name, value in sample.items()} if bool(enough.any()) else {}


def _films(source: DataSource, modality: str, rows: dict[str, Tensor], count: int = 3) -> dict[str, list[str]]:
    """Film strips of the first samples, each over the whole width: three below each other are one sample."""
    return {
        f"{label} {number + 1}": [address(source.picture(modality, items[number]))]
        for number in range(min(count, len(rows["input"])))
        for label, items in rows.items()
    }


def address(picture: Picture) -> str:
    """The picture itself as the address of one, for pages that are one file."""
    return f"data:{picture.media_type};base64,{base64.b64encode(picture.content).decode()}"


def scores_of(folder: Path) -> dict[str, Any] | None:
    """The table of ``scores.json``: title, columns, rows of cells by name, notes; None where the run was not judged."""
    content = logs.read_scores(folder / "scores.json")
    if content is None:
        return None
    scores = content["scores"]
    rows, columns = columns_of(scores)
    return {
        "title": content.get("title") or "Scores",
        "columns": columns,
        "rows": {row: [cell(scores, row, column) for column in columns] for row in rows},
        "notes": content["notes"],
    }


def in_rows(toml: str) -> str:
    """Lists of plain numbers in rows instead of a line for each; still TOML."""

    def row(match: re.Match[str]) -> str:
        values = " ".join(match[1].split()).removesuffix(",")
        wrapped = textwrap.indent(textwrap.fill(values, 90), "    ")
        return f"[{values}]" if len(values) < 90 else f"[\n{wrapped},\n]"

    return re.sub(r"\[\n((?:    [-+\w.]+,\n)+)\]", row, toml)
