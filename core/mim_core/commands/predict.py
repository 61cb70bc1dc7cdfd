"""predict: what a run answers about files that it has never seen, as tables and files."""

from __future__ import annotations

import io
import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from torch import Tensor

from mim_core.commands.asking import Asked, AskingOptions, open_asked, told_of_skipped, unless_there, write_csv
from mim_core.commands.options import parse, take_name, with_data
from mim_core.data.source import DataSource, Sample
from mim_core.disk import folder_made, replaced, write_whole
from mim_core.errors import MimError, unknown
from mim_core.evaluation.anomaly_maps import score_maps
from mim_core.host.loading import installed
from mim_core.inference.chunks import Chunks
from mim_core.inference.inputs import Inputs, ask, check_question, data_of
from mim_core.methods.generation import Generation
from mim_core.methods.method import Method, Record
from mim_core.runs.load import load_run
from mim_core.terminal import tell
from mim_core.text import counted, shown

LONGEST = 180
"""Bytes of a name that files are called after, so that what follows fits too."""

SCORES = "anomaly scores"
"""What scores are called among the answers."""

CHUNK = 64
"""Samples that are answered before anything is written."""


@dataclass(frozen=True)
class PredictOptions(AskingOptions):
    """What a run answers about files: the classes of one that was trained on labels (predictions.csv and .json), or, of
    several modalities, those that --given leaves out, as files. A command that was stopped goes on where it was. The
    options of the run's data may be changed too (--data.NAME)."""

    out: Path | None = None
    """Folder to write into; predictions by default, unless the answers of an earlier command lie there."""
    label: str = ""
    """What is known of all files, for methods that must be told: the category of shapes whose parts are asked."""
    anomaly: bool = False
    """How abnormal each file is: its highest and mean score, the score of each place (.npy), and a heat map. For runs
    that were trained on normal data."""
    covers: int = 4
    """With --anomaly, of masked autoencoders: how often masks that together hide every unit are drawn."""
    predict: tuple[str, ...] = ()
    """Of a run that generates (4M): which of its heads, and in which order, such as: depth semseg; all that can be."""
    steps: int = 8
    """Of such a run: in how many steps the ids of a picture are decided."""
    temperature: float = 1.0
    """Of such a run: 0 takes the likeliest id each time, 1 draws as the model says."""
    schedule: Literal["cosine", "linear"] = "cosine"
    """Of such a run: few ids are decided at first, or as many in each step."""
    seed: int = 0
    """Of such a run: seed of the draws."""


def predict(program: str, plugin: str | None, arguments: list[str]) -> int:
    """``predict RUN INPUT --out FOLDER``.

    Raises:
        MimError: --out is a file.
    """
    name, rest = take_name(arguments, "run", f"Usage: {program} predict RUN INPUT [OPTIONS]")
    if name in ("-h", "--help"):
        parse(PredictOptions, f"{program} predict RUN", arguments)
    registry = installed()
    run, method, checkpoint = load_run(Path(name), registry)
    default = with_data(PredictOptions, data_of(run).options, input=tyro.MISSING)
    options: Any = parse(type(default), f"{program} predict {name}", rest, default)
    out = unless_there(options.out, "predictions", "predictions.csv")
    if out.exists() and not out.is_dir():
        raise MimError(f"--out {out} is a file; predict writes into a folder.")
    _set_generation(method, options)
    question = _scored(method, options) if options.anomaly else _question(method, options.label)
    record = scored_record if options.anomaly else method.record
    check_question(method, question, options.given)
    asked = open_asked(run, method, checkpoint, options, registry)
    with folder_made(out), asked.chunks(out / ".parts", _asked_for(options), CHUNK, out) as chunks:
        _answered(out, options, asked, method, question, record, chunks)
    return 0


def _answered(
    out: Path, options: Any, asked: Asked, method: Method, question: Any, record: Any, chunks: Chunks
) -> None:
    inputs = asked.inputs
    homes = homes_of([inputs.name(number) for number in range(len(inputs))])

    def make(some: range) -> tuple[dict[str, Tensor], dict[str, Any]]:
        answers = ask(inputs, method, question, some, options.batch_size, options.workers, asked.device)
        rows, facts = dict[str, Any](), dict[str, Any]()
        for row in range(len(some)):
            if row not in answers.skipped:
                made = record({n: v[row] for n, v in answers.values.items()}, inputs.source)
                if made.files:
                    _refuse_within(out, options.input)
                files = _write_files(out, homes[some.start + row], made.files)
                where = _shown_part(inputs, some.start + row) if files else {}
                rows[str(row)] = {**made.row, **files, **where}
                facts |= {} if made.facts is None else {str(row): made.facts}
        return {}, {"rows": rows, "facts": facts, "skipped": {str(row): why for row, why in answers.skipped.items()}}

    parts = ((some, facts) for some, _, facts in chunks.fill(make, asked.progress(chunks.resumed)))
    rows, every, skipped = _gathered(parts, inputs)
    if not rows:
        chunks.remove()
        told_of_skipped(skipped)
        raise MimError("None of the files can be used, so there are no answers.")
    _write_tables(out, rows, skipped)
    _write_files(out, "", method.together(every, inputs.source) if every else {})
    chunks.remove()
    tell(f"{out / 'predictions.csv'}: {counted(len(rows), 'sample')}")
    told_of_skipped(skipped)


def _refuse_within(out: Path, read: Path) -> None:
    """Raises MimError where files would be written into what is read: some could be lost, and the others are read
    themselves the next time."""
    if out.resolve() == read.resolve():
        raise MimError(f"--out {out} is the folder that is read; name another, so that no file is lost.")
    if out.resolve().is_relative_to(read.resolve()):
        raise MimError(
            f"--out {out} lies in {read}, which is read: what is written there would be read the next time. Name a "
            "folder outside it."
        )


def _generation(options: Any) -> Generation:
    return Generation(options.predict, options.steps, options.temperature, options.schedule, options.seed)


def _asked_for(options: Any) -> list[Any]:
    """What answers depend on besides the run and the files."""
    how = _generation(options)
    scored = [options.covers] if options.anomaly else []
    return [options.label, *scored, *([] if how == Generation() else [repr(how)])]


def _set_generation(method: Method, options: Any) -> None:
    """How a method generates, where it does.

    Raises:
        MimError: It does not, and is told how.
    """
    how = _generation(options)
    if getattr(method, "generates", False):
        method.generation = how  # type: ignore[assignment]
    elif how != Generation():
        raise MimError(
            "This run answers in one pass: --predict, --steps, --temperature, --schedule and --seed are for runs that "
            "generate, such as those of multimodal:4m-vit-tiny."
        )


def _question(method: Method, label: str) -> Callable[[Sample], dict[str, Tensor]]:
    """What the method is asked of a batch, which is told the label where one is known.

    Raises:
        MimError: The method knows no such label.
    """
    if not label:
        return method.predict
    names = tuple(getattr(getattr(method, "config", None), "names", ()))
    if label not in names:
        raise unknown("label", label, names, "This run is told none." if not names else "")
    number = names.index(label)

    def ask(sample: Sample) -> dict[str, Tensor]:
        first = next(iter(sample.values()))
        return method.predict({**sample, "label": torch.full((len(first),), number, device=first.device)})

    return ask


def _scored(method: Method, options: Any) -> Callable[[Sample], dict[str, Tensor]]:
    """How abnormal each place is, beside the input itself.

    Raises:
        MimError: Options that do not go together.
    """
    if options.covers < 1:
        raise MimError(f"--covers must be at least 1, got {options.covers}.")
    if options.label or options.given:
        raise MimError("--anomaly goes with neither --label nor --given.")

    def ask(sample: Sample) -> dict[str, Tensor]:
        return {**sample, SCORES: score_maps(method, sample, options.covers)}

    return ask


def scored_record(answers: Mapping[str, Tensor], source: DataSource) -> Record:
    """A sample's highest and mean score, all of them as a file of numpy, and laid over the input: from 0 to the
    sample's own highest."""
    scores = answers[SCORES]
    highest = float(scores.max())
    row = {"highest score": highest, "mean score": float(scores.mean())}
    if scores.ndim == 0:  # of methods that score whole samples alone
        return Record(row)
    modality = next(name for name in answers if name != SCORES)
    content = io.BytesIO()
    np.save(content, scores.numpy())
    drawn = source.heat_map(modality, answers[modality], scores, highest)
    ending = "." + drawn.media_type.rpartition("/")[2]
    files = {f"-heat{ending}": drawn.content, "-scores.npy": content.getvalue()}
    return Record(row, files)


def homes_of(names: Sequence[str]) -> list[str]:
    """Where the files of each sample go, below the folder: its name without the ending, with it where two samples would
    meet; no two have the same."""
    whole = ["/".join(part for part in Path(shown(n).lstrip("/")).parts if part != "..") for n in names]
    short = [_fitting(re.sub(r"(?<=[^/])\.\w+(?=( \([^()]*\))?$)", "", name)) for name in whole]
    whole = list(map(_fitting, whole))
    often, taken = Counter(short), dict[str, None]()
    for stem, name in zip(short, whole, strict=True):
        numbered = (f"{name} {number}" for number in itertools.count(2))
        tried = itertools.chain([stem] if often[stem] == 1 else [], [name], numbered)
        taken[next(home for home in tried if home not in taken)] = None
    return list(taken)


def _fitting(path: str) -> str:
    """A path whose parts are cut where they are too long."""
    return "/".join(part.encode()[:LONGEST].decode(errors="ignore") for part in path.split("/"))


def _gathered(
    parts: Iterable[tuple[range, Mapping[str, Any]]], inputs: Inputs
) -> tuple[list[dict[str, Any]], list[tuple[str, Any]], dict[str, str]]:
    """(rows of the table, facts of each sample that has some, and why others are skipped), with their names."""
    rows, every, skipped = list[dict[str, Any]](), list[tuple[str, Any]](), dict[str, str]()
    for some, part in parts:
        rows += [{"name": inputs.name(some.start + int(row)), **content} for row, content in part["rows"].items()]
        every += [(inputs.name(some.start + int(row)), facts) for row, facts in part["facts"].items()]
        skipped.update({inputs.name(some.start + int(row)): why for row, why in part["skipped"].items()})
    return rows, every, skipped


def _write_files(out: Path, home: str, files: Any) -> dict[str, str]:
    """A sample's files below the folder, see `homes_of`; what follows the name -> the path there."""
    paths = {}
    for behind, content in files.items():
        path = Path(home + behind)
        (out / path.parent).mkdir(parents=True, exist_ok=True)
        with replaced(out / path) as file:
            file.write(content)
        paths[behind.partition(".")[0].strip("-") or "file"] = path.as_posix()
    return paths


def _shown_part(inputs: Inputs, number: int) -> dict[str, float]:
    """Which part of a sample's picture its files are of, as columns of the table; none where that is not known."""
    boxes = inputs.items.boxes
    if boxes is None or inputs.items.views > 1:
        return {}
    return {f"crop {side}": round(float(value), 3) for side, value in boxes(inputs.kept[number])._asdict().items()}


def _write_tables(out: Path, rows: list[dict[str, Any]], skipped: dict[str, str]) -> None:
    """predictions.csv, predictions.json, and skipped.json where a file cannot be used."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    write_csv(out / "predictions.csv", columns, ([row.get(name, "") for name in columns] for row in rows))
    plain = [{shown(n): shown(v) if isinstance(v, str) else v for n, v in row.items()} for row in rows]
    write_whole(out / "predictions.json", json.dumps(plain, indent=1))
    left = {shown(name): shown(why) for name, why in skipped.items()}
    (out / "skipped.json").unlink(missing_ok=True)
    if left:
        write_whole(out / "skipped.json", json.dumps(left, indent=1))
