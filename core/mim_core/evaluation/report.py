"""report.html of a run: one static file with curves, reconstructions, scores, and where data and time went; beside it,
where the data source makes one, a page per head on which samples can be turned."""

from __future__ import annotations

import base64
import re
import textwrap
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from torch import Tensor

from mim_core.data.source import DataSource, Picture
from mim_core.disk import write_whole
from mim_core.errors import MimError, one_line, warn
from mim_core.evaluation import curves
from mim_core.evaluation.reconstruction import across, held_out_samples, reconstruct
from mim_core.host.registry import Registry
from mim_core.methods.build import make_source
from mim_core.methods.masked_autoencoder import MaskedAutoencoder
from mim_core.methods.method import Method
from mim_core.methods.quantised import QuantisedAutoencoder
from mim_core.recipes.toml import to_toml
from mim_core.runs import logs
from mim_core.runs.load import load_run
from mim_core.runs.state import read_state
from mim_core.scores import cell, columns_of
from mim_core.text import counted, shown


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


def write_report(folder: Path, registry: Registry, samples: int = 12) -> Path:
    """Writes ``folder/report.html`` from what the run has left on disk, and the pages that it links to. Those that an
    earlier report linked to and this one does not are removed."""
    run, method, checkpoint = load_run(folder, registry)
    source = make_source(run, method)
    metrics, probes = curves.read(folder)
    heads = _pictures(method, source, samples)
    path = folder / "report.html"
    before = _links(path)
    for head in heads:
        if head["page"] is not None:
            write_whole(folder / head["link"], head["page"])
    report = (
        _environment()
        .get_template("report.html.jinja")
        .render(
            title=run.recipe or folder.name,
            folder=str(folder),
            checkpoint=checkpoint.name,
            curves=curves.draw(metrics, probes),
            facts={**source.plan(), **_imported(checkpoint), **curves.facts(metrics)},
            heads=heads,
            table=_scores(folder),
            skipped=_skipped(folder / logs.SKIPPED),
            recipe=_in_rows(to_toml(run, registry)),
        )
    )
    write_whole(path, shown(report))
    for name in before - _links(path):
        (folder / name).unlink(missing_ok=True)
    return path


def _imported(checkpoint: Path) -> dict[str, str]:
    """Where the weights of a run that was imported are from."""
    found = read_state(checkpoint).get("imported")
    if found is None:
        return {}
    return {"weights": " ".join([f"imported, {found['format']}: {found['file']}", *found["sizes"]])}


def _links(report: Path) -> set[str]:
    """Names of the pages that a report links to."""
    return (
        set(re.findall(r'href="(report-[\w.-]+\.html)"', report.read_text(encoding="utf-8", errors="replace")))
        if report.is_file()
        else set()
    )


def _environment() -> Environment:
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
    if not isinstance(method, MaskedAutoencoder | QuantisedAutoencoder):
        return []
    sample, where = held_out_samples(source, count)
    sample = _served(method, sample) if sample else {}
    if not sample:
        return []
    heads, crossed = [], {} if isinstance(method, QuantisedAutoencoder) else across(method, sample)
    for name, rebuilt in reconstruct(method, sample).items():
        rows = {"input": rebuilt.input, "masked": rebuilt.masked, "rebuilt": rebuilt.rebuilt}
        if rebuilt.hidden is not None and bool(rebuilt.hidden.all()):  # nothing of it is left to be shown
            del rows["masked"]
        rows |= {f"from {seen} alone": made for seen, made in crossed.get(name, {}).items()}
        moves = source.animation(rebuilt.modality, rebuilt.input[0]) is not None
        shown = _films(source, rebuilt.modality, rows) if moves else {}
        draw, drawn = source.animation if moves else source.picture, False
        for label, items in rows.items():
            pictures = [each for item in items if (each := draw(rebuilt.modality, item))]
            if label == "masked" and not moves and rebuilt.hidden is not None:
                both = zip(items, rebuilt.hidden, strict=True)
                pictures = [source.masked_picture(rebuilt.modality, item, hidden) for item, hidden in both]
            shown[label] = [_address(each) for each in pictures]
            drawn = any(each.drawn for each in pictures)
        heads.append(
            {
                "name": name,
                "where": where,
                "needs_truth": rebuilt.needs_truth,
                "rows": shown,
                "films": [label for label in shown if label not in rows],
                "drawn": drawn,
                "page": source.page(rebuilt.modality, rows),
                "link": f"report-{re.sub(r'[^0-9A-Za-z_.-]', '-', name)}.html",
            }
        )
    return heads


def _served(method: MaskedAutoencoder | QuantisedAutoencoder, sample: dict[str, Tensor]) -> dict[str, Tensor]:
    """Those samples of which enough units may be seen: one may lack modalities."""
    layout = method.tokenizer.split(sample).layout
    if layout.valid is None or isinstance(method, QuantisedAutoencoder):
        return sample
    usable = method.masker.usable(layout)
    if usable is None:
        return sample
    enough = usable.sum(dim=1) >= layout.count - method.masker.count(layout)
    return {name: value[enough] for name, value in sample.items()} if bool(enough.any()) else {}


def _films(source: DataSource, modality: str, rows: dict[str, Tensor], count: int = 3) -> dict[str, list[str]]:
    """Film strips of the first samples, each over the whole width: three below each other are one sample."""
    return {
        f"{label} {number + 1}": [_address(source.picture(modality, items[number]))]
        for number in range(min(count, len(rows["input"])))
        for label, items in rows.items()
    }


def _address(picture: Picture) -> str:
    return f"data:{picture.media_type};base64,{base64.b64encode(picture.content).decode()}"


def _scores(folder: Path) -> dict[str, Any] | None:
    content = logs.read_scores(folder / "scores.json")
    if content is None:
        return None
    scores = content["scores"]
    rows, columns = columns_of(scores)
    return {
        "title": content.get("title", "Probes of frozen features"),
        "columns": columns,
        "rows": {row: [cell(scores, row, column) for column in columns] for row in rows},
        "notes": content["notes"],
    }


def _in_rows(toml: str) -> str:
    """Lists of plain numbers in rows instead of a line for each; still TOML."""

    def row(found: re.Match[str]) -> str:
        values = " ".join(found[1].split()).removesuffix(",")
        wrapped = textwrap.indent(textwrap.fill(values, 90), "    ")
        return f"[{values}]" if len(values) < 90 else f"[\n{wrapped},\n]"

    return re.sub(r"\[\n((?:    [-+\w.]+,\n)+)\]", row, toml)
