"""embed: features of files that a run has never seen, as a table, and which of them are alike."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from torch import Tensor

from mim_core.commands.asking import Asked, AskingOptions, open_asked, told_of_skipped, unless_there, write_csv
from mim_core.commands.options import parse, take_name, with_data
from mim_core.errors import MimError
from mim_core.host.loading import installed
from mim_core.inference import embedding
from mim_core.inference.chunks import Chunks
from mim_core.inference.inputs import ask, data_of
from mim_core.runs.load import load_run
from mim_core.terminal import tell
from mim_core.text import counted

CHUNK = 256
"""Samples whose features are kept together while the command works."""


@dataclass(frozen=True)
class EmbedOptions(AskingOptions):
    """Features of files, whatever folders they lie in: one vector for each, by the run's frozen encoder. A command that
    was stopped goes on where it was. The options of the run's data may be changed too (--data.NAME)."""

    out: Path | None = None
    """File to write: .npz, or .parquet (needs pyarrow); features.npz by default, unless one is there."""
    pool: Literal["mean", "prefix", "max", "mean-max"] = "mean"
    """One vector for each sample: the mean of its units, its class token ("prefix"), their largest values, or the mean
    and these side by side."""
    units: bool = False
    """The features of every unit too."""
    neighbours: int = 0
    """Write the nearest so many others of each file, by cosine similarity, to NAME-neighbours.csv beside --out."""
    alike: float = 0.99
    """With --neighbours: neighbours at least so similar are listed in NAME-alike.csv, as likely duplicates."""


def embed(program: str, plugin: str | None, arguments: list[str]) -> int:
    """``embed RUN INPUT --out features.npz``.

    Raises:
        MimError: --neighbours is negative, or --alike lies outside (0, 1].
    """
    name, rest = take_name(arguments, "run", f"Usage: {program} embed RUN INPUT [OPTIONS]")
    if name in ("-h", "--help"):
        parse(EmbedOptions, f"{program} embed RUN", arguments)
    registry = installed()
    run, method, checkpoint = load_run(Path(name), registry)
    default = with_data(EmbedOptions, data_of(run).options, input=tyro.MISSING)
    options: Any = parse(type(default), f"{program} embed {name}", rest, default)
    out = unless_there(options.out, "features.npz")
    embedding.check_format(out)
    if options.neighbours < 0 or not 0 < options.alike <= 1:
        raise MimError("--neighbours must not be negative, and --alike must lie in (0, 1].")
    asked = open_asked(run, method, checkpoint, options, registry)
    question = embedding.question(method, options.pool, options.units)
    with asked.chunks(out.parent / f".{out.name}.parts", [options.pool, options.units], CHUNK, out) as chunks:
        _embedded(out, options, asked, method, question, chunks)
    return 0


def _embedded(out: Path, options: Any, asked: Asked, method: Any, question: Any, chunks: Chunks) -> None:
    def make(some: range) -> tuple[dict[str, Tensor], dict[str, Any]]:
        answers = ask(asked.inputs, method, question, some, options.batch_size, options.workers, asked.device)
        return answers.values, {"skipped": {str(row): why for row, why in answers.skipped.items()}}

    names, values, skipped = _gathered(asked, chunks.fill(make, asked.progress(chunks.resumed)))
    if not names:
        chunks.remove()
        told_of_skipped(skipped)
        raise MimError("None of the files can be used, so there are no features.")
    embedding.write(out, names, values, skipped)
    shape = " x ".join(map(str, values["features"].shape[1:]))
    tell(f"{out}: {counted(len(names), 'sample')}, {shape} numbers each")
    if options.neighbours:
        _write_neighbours(out, options, names, values["features"])
    chunks.remove()
    told_of_skipped(skipped)


def _gathered(asked: Asked, parts: Any) -> tuple[list[str], dict[str, Tensor], dict[str, str]]:
    """Names and features of the samples that could be used, and the others with why."""
    names, values, skipped = list[str](), dict[str, list[Tensor]](), dict[str, str]()
    for some, tensors, facts in parts:
        bad = {int(row): why for row, why in facts["skipped"].items()}
        skipped.update({asked.inputs.name(some.start + row): why for row, why in bad.items()})
        good = [row for row in range(len(some)) if row not in bad]
        names += [asked.inputs.name(some.start + row) for row in good]
        for name, value in tensors.items():
            if name != "none":
                values.setdefault(name, []).append(value[good])
    return names, {name: torch.cat(chunks) for name, chunks in values.items()}, skipped


def _write_neighbours(out: Path, options: Any, names: list[str], features: Tensor) -> None:
    near, alike = list[tuple[object, ...]](), dict[tuple[int, int], float]()
    for row, neighbours in embedding.neighbours(features, options.neighbours):
        for rank, (other, similarity) in enumerate(neighbours, 1):
            near.append((names[row], rank, names[other], f"{similarity:.6f}"))
            if similarity >= options.alike:  # one of the two may have nearer neighbours
                alike.setdefault((min(row, other), max(row, other)), similarity)
    path = out.with_name(f"{out.stem}-neighbours.csv")
    write_csv(path, ("name", "rank", "neighbour", "similarity"), near)
    tell(path)
    path = out.with_name(f"{out.stem}-alike.csv")
    pairs = ((names[one], names[two], f"{similarity:.6f}") for (one, two), similarity in sorted(alike.items()))
    write_csv(path, ("name", "other", "similarity"), pairs)
    tell(f"{path}: {counted(len(alike), 'pair')} of files at least {options.alike:g} similar")
