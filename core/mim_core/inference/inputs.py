"""Files for a trained run: its own data source on another folder, every file as evaluation reads it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mim_core.data.loading import Reported, end_readers, loader, readers_gone
from mim_core.data.source import DataSource, PlainItems, Sample
from mim_core.data.time_limits import Places, Watch, of_reading
from mim_core.errors import MimError, ReadersGone, one_line, unknown
from mim_core.methods.assembly import building
from mim_core.methods.build import working
from mim_core.methods.method import Method
from mim_core.parts.samples import finite_rows, known_entries
from mim_core.parts.tokenizer import zeros
from mim_core.recipes.config import ResolvedPart, ResolvedRun

NOT_FINITE = "it has values that are not finite"
NOTHING_GIVEN = "it has nothing of what is given"


STUCK_SECONDS = 30.0
"""How much longer than it may a process can be at one item, before it is ended: it did not hear that its time was up.
"""


@dataclass(frozen=True)
class Inputs:
    """What a run is asked about.

    Attributes:
        source: The run's data source, opened there.
        items: Every file.
        kept: Numbers of the samples that are asked about, in their order.
        shapes: The modalities that the method is given, and the shape of each without the batch.
    """

    source: DataSource
    items: PlainItems
    kept: tuple[int, ...]
    shapes: Mapping[str, tuple[int, ...]]

    def name(self, number: int) -> str:
        """Of a sample that is kept, as the source has it."""
        return self.items.names[self.kept[number]]

    def __len__(self) -> int:
        return len(self.kept)


def data_of(run: ResolvedRun) -> ResolvedPart:
    """The run's data source.

    Raises:
        MimError: It has none, so it cannot read files.
    """
    if "data" not in run.parts:
        raise MimError(f"{run.recipe} has no data source, so it cannot read files.")
    return run.parts["data"]


def open_inputs(run: ResolvedRun, method: Method, path: Path, data: Any = None, given: Sequence[str] = ()) -> Inputs:
    """Files below a folder, or one file, whatever splits and classes folders are called after.

    Args:
        run: The run's recipe.
        method: Its method.
        path: The folder, or the file.
        data: Options of the data source; the run's by default. Its root is replaced.
        given: Of several modalities, those that are read; all by default.

    Raises:
        MimError: Nothing there that the run's data source reads.
    """
    part = data_of(run)
    tokenizer: Any = method.tokenizer
    shapes = given_shapes(method, given)
    options = part.options if data is None else data
    try:
        source, alone = _opened(part, options, path, shapes)
    except MimError as error:
        if not given:
            raise
        try:  # it may read all of them together
            source, alone = _opened(part, options, path, tokenizer.shapes)
        except MimError:
            raise error from None
    source.take_ids({name: count for name, count in tokenizer.ids.items() if name in source.shapes})
    source.item_seconds = run.train.item_timeout
    items = source.plain()
    own = re.compile(re.escape(path.name) + r"( \(.*|\[.*)?")  # with the part of the file that counts, or its row
    kept = tuple(i for i, name in enumerate(items.names) if not alone or own.fullmatch(name))
    if not kept:
        raise MimError(f"{path} is no file that {part.name} reads.")
    return Inputs(source, items, kept, shapes)


def given_shapes(method: Method, given: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """The modalities that are given, all where none is named, and the shape of each.

    Raises:
        MimError: The method has no such modality; says the nearest.
    """
    shapes: dict[str, tuple[int, ...]] = method.tokenizer.shapes  # type: ignore[assignment,union-attr]
    for name in given:
        if name not in shapes:
            raise unknown("modality in --given", name, shapes, "Several are written with spaces between.")
    return {name: shape for name, shape in shapes.items() if not given or name in given}


def check_question(method: Method, question: Callable[[Sample], dict[str, Tensor]], given: Sequence[str]) -> None:
    """Asks about nothing, so that a method that cannot answer says so before files are read.

    Raises:
        MimError: It cannot.
    """
    tokenizer: Any = method.tokenizer
    shapes = given_shapes(method, given)
    with torch.no_grad(), working(method.eval()):
        question(zeros(shapes, tokenizer.ids, 1))


def _opened(
    part: ResolvedPart, options: Any, path: Path, shapes: dict[str, tuple[int, ...]]
) -> tuple[DataSource, bool]:
    """The source on a path as one collection; of a single file that it does not take as one, on its folder. And whether
    that file alone is meant."""
    names = {f.name for f in fields(options)}
    if "root" not in names:
        raise MimError(f"{part.name} reads no folders that could be named: it has no option root.")
    whole = {"splits": False} if "splits" in names else {}

    def opened(root: Path) -> DataSource:
        with building("data", part):
            source: DataSource = part.cls(replace(options, root=root, **whole), shapes)
        return source

    try:
        return opened(path), False
    except MimError:
        if not path.is_file():
            raise
    return opened(path.parent), True  # the source wants a folder


@dataclass(frozen=True)
class Answered:
    """What was asked of some samples, in their order.

    Attributes:
        values: Answers by name, float32 [n, ...]; rows of those that cannot be used are zero.
        skipped: Number of a sample, from 0 for the first of these -> why it cannot be used.
    """

    values: dict[str, Tensor]
    skipped: dict[int, str]


@torch.no_grad()
def ask(
    inputs: Inputs,
    method: Method,
    question: Callable[[Sample], dict[str, Tensor]],
    some: range,
    batch_size: int,
    workers: int,
    device: torch.device,
) -> Answered:
    """Asks about some of the samples; the mean over the views of each.

    Args:
        inputs: All samples.
        method: What is asked, in evaluation mode on the device.
        question: A batch -> answers [B, ...] by name.
        some: Which of the samples.
        batch_size: Items for each call; no effect on results beyond rounding.
        workers: Processes that read; no effect on results.
        device: Where to compute.

    Raises:
        MimError: A process that reads is gone, or hung at an item.
    """
    with _explained():
        return _asked(inputs, method, question, some, _batches(inputs, some, batch_size, workers), device)


def _asked(
    inputs: Inputs,
    method: Method,
    question: Callable[[Sample], dict[str, Tensor]],
    some: range,
    batches: Iterator[tuple[Sample, list[tuple[int, str]]]],
    device: torch.device,
) -> Answered:
    views, values, skipped = inputs.items.views, dict[str, Tensor](), dict[int, str]()
    row_of = {inputs.kept[number]: row for row, number in enumerate(some)}
    seen = torch.zeros(len(some))
    for sample, bad in batches:
        skipped.update({row_of[place // views]: reason for place, reason in bad})
        rows = torch.tensor([row_of[place // views] for place in sample.pop("index", torch.empty(0)).tolist()])
        ready = inputs.source.finish({name: value.to(device) for name, value in sample.items()}) if len(rows) else {}
        ready, rows = _usable(ready, rows.long(), inputs.shapes, skipped)
        ready, rows = _with_units(method, inputs, ready, rows, skipped)
        if not len(rows):
            continue
        with working(method):
            answers = _in_company(question, _given(ready, inputs, method.tokenizer.shapes))  # type: ignore[union-attr]
        for name, value in answers.items():
            _check_answer(name, value, views)
            if name not in values:
                values[name] = torch.zeros(len(some), *value.shape[1:])
            values[name].index_add_(0, rows, value.float().cpu())
        seen.index_add_(0, rows, torch.ones(len(rows)))
    for row in (seen < views).nonzero().flatten().tolist():
        skipped.setdefault(row, "one of its views cannot be read")
    return Answered({name: value / views for name, value in values.items()}, dict(sorted(skipped.items())))


def _in_company(question: Callable[[Sample], dict[str, Tensor]], sample: Sample) -> dict[str, Tensor]:
    """The answers of a batch. A sample alone is asked about twice: libraries multiply a matrix and a single row in
    another order, so that the last digits would depend on how many files there are."""
    if len(next(iter(sample.values()))) > 1:
        return question(sample)
    answers = question({name: torch.cat([value, value]) for name, value in sample.items()})
    return {name: value[:1] for name, value in answers.items()}


def _batches(
    inputs: Inputs, some: range, batch_size: int, workers: int
) -> Iterator[tuple[Sample, list[tuple[int, str]]]]:
    views = inputs.items.views
    places = [inputs.kept[number] * views + view for number in some for view in range(views)]
    sampler = [places[first : first + batch_size] for first in range(0, len(places), batch_size)]
    workers, seconds = min(workers, len(sampler)), inputs.source.item_seconds
    at = Places(workers)
    items = Reported(inputs.items.items, seconds, at, inputs.items.names, views)
    batches = iter(loader(items, sampler, workers, Reported.collate))
    watch = Watch(at, seconds + STUCK_SECONDS, lambda: end_readers(batches), of_item=True)
    if workers and seconds:
        watch.start()
    try:
        while True:
            try:
                with watch.over():
                    batch = next(batches)
            except StopIteration:
                return
            except (OSError, EOFError, RuntimeError) as error:
                if not workers or (isinstance(error, RuntimeError) and not readers_gone(error)):
                    raise
                why = "it did not hear that its time was up" if watch.tripped else one_line(error)
                raise ReadersGone(f"{why}.{of_reading(watch.stuck or at.longest())}") from error
            yield batch
    finally:
        watch.stop()
        end_readers(batches)


@contextmanager
def _explained() -> Iterator[None]:
    """A process that reads and is gone, as an error that says what to do."""
    try:
        yield
    except RuntimeError as error:
        if not readers_gone(error):
            raise
        end_readers()
        raise MimError(
            f"a process that reads data is gone: {str(error).splitlines()[0]} What was answered is kept, and the same "
            "command goes on from there. --workers 0 shows where it happens."
        ) from error


def _usable(sample: Sample, rows: Tensor, shapes: Any, skipped: dict[int, str]) -> tuple[Sample, Tensor]:
    """The samples of a batch that have something of what is given, in finite values; the others are noted."""
    fine = torch.ones(len(rows), dtype=torch.bool)
    some = torch.zeros(len(rows), dtype=torch.bool)
    for name in shapes:
        present = sample.get(f"{name}.present")
        some |= torch.ones_like(some) if present is None else present.cpu()
        if name in sample and sample[name].is_floating_point():
            own = finite_rows(sample[name])
            fine &= (own if present is None else own | ~present).cpu()
    skipped.update(dict.fromkeys(rows[~fine].tolist(), NOT_FINITE))
    skipped.update(dict.fromkeys(rows[~some].tolist(), NOTHING_GIVEN))
    fine &= some
    if bool(fine.all()):
        return sample, rows
    return {name: value[fine.to(value.device)] for name, value in sample.items()}, rows[fine]


def _with_units(
    method: Method, inputs: Inputs, sample: Sample, rows: Tensor, skipped: dict[int, str]
) -> tuple[Sample, Tensor]:
    """The samples of a batch of which at least one unit is there; the others are noted. Of ids and class maps units
    may be empty, such as those of a map without any class."""
    tokenizer: Any = method.tokenizer
    given = _given(sample, inputs, tokenizer.shapes)
    if not len(rows) or all(value.is_floating_point() for value in given.values()):
        return sample, rows
    valid = tokenizer.split(given).layout.valid
    some = torch.ones(len(rows), dtype=torch.bool) if valid is None else valid.any(dim=1).cpu()
    skipped.update(dict.fromkeys(rows[~some].tolist(), NOTHING_GIVEN))
    return {name: value[some.to(value.device)] for name, value in sample.items()}, rows[some]


def _given(sample: Sample, inputs: Inputs, shapes: Any) -> Sample:
    """The entries of a batch that a method of these modalities takes, without those that are not given."""
    others = {name for name in inputs.source.shapes if name not in inputs.shapes}
    kept = known_entries(sample, shapes)
    return {name: value for name, value in kept.items() if name.removesuffix(".present") not in others}


def _check_answer(name: str, value: Tensor, views: int) -> None:
    """Refuses answers that say nothing: no numbers, or names of which several views would be averaged."""
    if value.is_floating_point() and not bool(value.isfinite().all()):
        raise MimError(f"{name} is answered with values that are not finite; the run's weights may have diverged.")
    if views > 1 and not value.is_floating_point():
        raise MimError(
            f"{name} is answered in whole numbers, of which {views} views of a sample have no mean. Read one view of "
            "each: --data.views 1 1"
        )
