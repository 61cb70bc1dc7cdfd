"""report.html of a run: one static file with curves, reconstructions, scores, and where data and time went; beside it,
where the data source makes one, a page per head on which samples can be turned."""

from __future__ import annotations

import base64
import re
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, PackageLoader
from torch import Tensor
from torch.utils.data import Dataset

from mim_core import curves, logs
from mim_core.build import make_source
from mim_core.data import DataSource, Picture
from mim_core.errors import MimError, one_line, warn
from mim_core.evaluation import cell, columns_of
from mim_core.features import load_run
from mim_core.folders import write_whole
from mim_core.layout import Layout, Patches
from mim_core.loading import Readable
from mim_core.method import Head, MaskedAutoencoder, Method
from mim_core.recipe import to_toml
from mim_core.registry import Registry
from mim_core.state import read_state
from mim_core.tokenizer import JoinedTokenizer, Tokenizer
from mim_core.words import counted, shown


@dataclass(frozen=True)
class Rebuilt:
    """One head's pictures: the input, what was left of it, and the input with hidden units as predicted; in the
    modality's own shape. ``hidden`` is what was hidden, bool, of units on a grid."""

    modality: str
    input: Tensor
    masked: Tensor
    rebuilt: Tensor
    needs_truth: bool
    hidden: Tensor | None = None


@torch.no_grad()
def reconstruct(
    method: MaskedAutoencoder, sample: dict[str, Tensor], mask: Mapping[str, Tensor] | None = None
) -> dict[str, Rebuilt]:
    """Hides, predicts and joins, for every head whose target has a way back to the input space. The first mask of each
    sample is shown; ``mask`` is drawn, or given as `Method.prepare` takes it."""
    with _evaluating(method):
        prepared = method.prepare(sample, mask)
        outcome = method(prepared)
    patches = method.tokenizer.split(sample)
    found = {}
    for name, head in method.heads.items():
        assert isinstance(head, Head)
        own, asked = head.local(patches, prepared.mask)
        answers = head.target.to_input_space(outcome.predictions[name], own, asked)
        tokenizer = method.tokenizer
        if head.segment is not None and isinstance(tokenizer, JoinedTokenizer):
            tokenizer = tokenizer.part(head.segment)
        if answers is None or not isinstance(own.values, Tensor):
            continue
        step = asked.per_sample
        hidden = asked.hidden[::step]
        shape = (*hidden.shape, *([1] * (own.values.ndim - 2)))
        filled = _place(own.values, asked.query_ids[::step], answers[::step])
        pick = hidden.reshape(shape)
        rebuilt = torch.where(pick, filled, own.values)
        found[name] = Rebuilt(
            modality=_modality(tokenizer),
            input=tokenizer.join(own.values, own.layout),
            masked=tokenizer.join(tokenizer.blank(own.values, hidden), own.layout),
            rebuilt=tokenizer.join(rebuilt, own.layout),
            needs_truth=head.target.needs_truth,
            hidden=None if own.layout.grid is None else _spread(tokenizer, pick, own),
        )
    return found


@contextmanager
def _evaluating(method: Method) -> Iterator[None]:
    """In evaluation mode, where nothing is reduced over ranks and no statistics change."""
    was_training = method.training
    method.eval()
    try:
        yield
    finally:
        method.train(was_training)


def _spread(tokenizer: Tokenizer, hidden: Tensor, own: Patches) -> Tensor:
    """Hidden units [B, N, 1, ...] in the modality's own shape, bool."""
    assert isinstance(own.values, Tensor)
    return tokenizer.join(hidden.expand_as(own.values).to(own.values.dtype), own.layout).bool()


def across(method: MaskedAutoencoder, sample: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Of several joined modalities, each predicted from each other one alone: head -> modality that is seen -> what is
    made of it. Heads whose pictures need the truth are left out, and so are modalities that a sample lacks."""
    with _evaluating(method):
        prepared = method.prepare(sample)
    layout = prepared.layout
    if len(layout.segments) < 2:
        return {}
    found: dict[str, dict[str, Tensor]] = {}
    for seen, part in layout.segments:
        start = layout.span(seen)[0]
        if bool(prepared.mask.hidden[:, start : start + part.count].all()):  # never an input of this run
            continue
        for name, rebuilt in _from_one(method, sample, layout, seen).items():
            head = method.heads[name]
            if isinstance(head, Head) and head.segment != seen and not rebuilt[0].needs_truth:
                found.setdefault(name, {})[seen] = torch.cat([each.rebuilt for each in rebuilt])
    return found


def _from_one(
    method: MaskedAutoencoder, sample: dict[str, Tensor], layout: Layout, seen: str
) -> dict[str, list[Rebuilt]]:
    """What every head makes of one modality, in parts of the batch: whole, or sample by sample where these have
    different numbers of its units; nothing where one has none."""
    start, count = layout.span(seen)[0], dict(layout.segments)[seen].count
    rows = 1 if layout.valid is None else len(layout.valid)
    there = torch.ones(rows, count, dtype=torch.bool)
    if layout.valid is not None:
        there = layout.valid[:, start : start + count].cpu()
    if not bool(there.any(dim=1).all()):
        return {}
    size = len(next(iter(sample.values())))
    alike = bool((there == there[:1]).all())
    found: dict[str, list[Rebuilt]] = {}
    for some in [slice(0, size)] if alike else [slice(i, i + 1) for i in range(size)]:
        part = {name: value[some] for name, value in sample.items()}
        hidden = ~there[:1] if alike else ~there[some]
        mask = {name: torch.ones(1, other.count, dtype=torch.bool) for name, other in layout.segments}
        mask = {name: value.repeat(some.stop - some.start, 1) for name, value in {**mask, seen: hidden}.items()}
        for name, rebuilt in reconstruct(method, part, mask).items():
            found.setdefault(name, []).append(rebuilt)
    return found


def _modality(tokenizer: Tokenizer) -> str:
    return next(iter(tokenizer.shapes))


def _place(values: Tensor, ids: Tensor, answers: Tensor) -> Tensor:
    """A copy of values [B, N, ...] with answers [B, Q, ...] at ids."""
    flat = answers.reshape(*ids.shape, -1).to(values.dtype)
    index = ids[:, :, None].expand_as(flat)
    return values.flatten(2).scatter(1, index, flat).reshape(values.shape)


def try_report(folder: Path, registry: Registry) -> bool:
    """`write_report` after work that is done: what goes wrong in it is a warning. Says whether it was written."""
    try:
        write_report(folder, registry)
    except Exception as error:
        what = " ".join(str(error).split()) if isinstance(error, MimError) else one_line(error)
        warn(
            f"{folder / 'report.html'} could not be written; all else is done and kept. The reason: {what} Once that "
            f"is mended: mim-core show {folder}"
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


def held_out_samples(source: DataSource, count: int) -> tuple[dict[str, Tensor], str]:
    """Held-out samples if there are any, else the first of the training data, without those that cannot be read; and
    which these are."""
    try:
        split = source.labelled("test")
        if len(split.labels) == 0:
            raise MimError("There are no held-out samples.")
        chosen = torch.linspace(0, len(split.labels) - 1, min(count, len(split.labels))).long().unique().tolist()
        chosen = [split.middle(index) for index in chosen]
        items, where = Readable(split.items, source.item_seconds), "held-out samples"
    except MimError:
        held: Any = source.held_out()
        where = "samples of the training data" if held is None else "held-out samples"
        size = len(source) if held is None else len(held)
        chosen = list(range(min(count, size)))
        if held is not None:
            chosen = torch.linspace(0, size - 1, len(chosen)).long().unique().tolist()
        items = Readable(_Augmented(source) if held is None else held, source.item_seconds)
    sample = Readable.collate([items[index] for index in chosen])
    if not sample:
        return {}, where
    sample["key"] = sample["index"]
    return source.finish(sample), where


class _Augmented(Dataset[Any]):
    """Training items, each under its index as key."""

    def __init__(self, source: DataSource) -> None:
        self.source = source

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.source.read(index, index)


def _pictures(method: Method, source: DataSource, count: int) -> list[dict[str, Any]]:
    """Rows of pictures per head, as data addresses."""
    if not isinstance(method, MaskedAutoencoder):
        return []
    sample, where = held_out_samples(source, count)
    sample = _served(method, sample) if sample else {}
    if not sample:
        return []
    heads, crossed = [], across(method, sample)
    for name, rebuilt in reconstruct(method, sample).items():
        rows = {"input": rebuilt.input, "masked": rebuilt.masked, "rebuilt": rebuilt.rebuilt}
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


def _served(method: MaskedAutoencoder, sample: dict[str, Tensor]) -> dict[str, Tensor]:
    """Those samples of which enough units may be seen: one may lack modalities."""
    layout = method.tokenizer.split(sample).layout
    usable = method.masker.usable(layout) if layout.valid is not None else None
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
