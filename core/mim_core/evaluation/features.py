"""A run's features of labelled samples, for every row of the table, kept on disk once they are made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mim_core.data.loading import Readable, loader
from mim_core.data.source import DataSource, Labelled, Sample
from mim_core.errors import MimError, unknown
from mim_core.evaluation.feature_cache import Store
from mim_core.evaluation.input_size import size_of, tokenizer_at
from mim_core.evaluation.study import SplitFeatures, Study
from mim_core.host.registry import Registry
from mim_core.methods.build import build_method, make_source, open_source, working
from mim_core.methods.method import Features, Method
from mim_core.parts.position import moved_positions
from mim_core.parts.samples import finite_rows, known_entries
from mim_core.parts.tokenizer import zeros
from mim_core.ranks.world import choose_device
from mim_core.recipes.config import EvaluateConfig, ResolvedRun
from mim_core.recipes.options import plain
from mim_core.runs import checkpoint, inventory
from mim_core.runs.load import load_run
from mim_core.scores import PRETRAINED, RAW, UNTRAINED
from mim_core.text import counted, times
from mim_core.version import __version__


@torch.no_grad()
def extract(
    method: Method | None,
    source: DataSource,
    split: Labelled,
    config: EvaluateConfig,
    device: torch.device,
    chosen: Tensor | None = None,
    change: Callable[[Sample], Sample] | None = None,
) -> Tensor:
    """Pooled features of a split, or of its ``chosen`` samples (int64 [n]), float32 [n, D]: the mean over a sample's
    views; the raw input where no method is given. NaN where a view cannot be read, or lacks all of ``config.inputs``.
    ``change`` is one of the source's controls.

    Raises:
        MimError: None of the samples can be read.
    """
    wanted, back = (torch.arange(len(split.labels)) if chosen is None else chosen).unique(return_inverse=True)
    sampler = [part.tolist() for part in split.items_of(wanted).split(config.batch_size)]
    if method is not None:
        method.eval().to(device)
    rows, seen = torch.empty(0), torch.zeros(len(wanted))
    for batch in loader(Readable(split.items, source.item_seconds), sampler, 0, Readable.collate):
        item = batch.pop("index", torch.empty(0))
        ready = source.finish({name: value.to(device) for name, value in batch.items()}) if batch else {}
        if change is not None and batch:
            ready = change({**ready, "index": item.to(device)})
        ready, item = chosen_inputs(ready, item, source.shapes, config.inputs)
        if not len(item):
            if method is not None and dist.is_initialized():  # a sharded method needs all ranks for each call
                method.encode(zeros(source.shapes, source.ids, 1, device))
            continue
        if method is None:
            vectors = source.raw(ready)
        else:
            with working(method):
                vectors = pooled(method.encode(known_entries(ready, source.shapes)), config.pool)
        rows = rows if len(rows) else torch.zeros(len(wanted), vectors.shape[1])
        place = torch.searchsorted(wanted, item // split.views)
        rows.index_add_(0, place, vectors.float().cpu())
        seen.index_add_(0, place, torch.ones(len(place)))
    if not len(rows):
        raise MimError(f"None of the {len(wanted):,} labelled {split.name} samples can be read.")
    rows[seen < split.views] = torch.nan
    return rows.div_(split.views)[back]


def chosen_inputs(
    sample: Sample, item: Tensor, shapes: Mapping[str, tuple[int, ...]], inputs: tuple[str, ...]
) -> tuple[Sample, Tensor]:
    """The modalities of a batch that are given to the encoder, of the samples that have any of them in finite values;
    and their numbers."""
    wanted = [name for name in shapes if name in sample and (not inputs or name in inputs)]
    others = {name for name in shapes if name not in wanted}
    kept = {name: value for name, value in sample.items() if name.removesuffix(".present") not in others}
    if not wanted:
        return kept, item[:0]
    every = torch.ones(len(item), dtype=torch.bool, device=kept[wanted[0]].device)
    present = {name: kept.get(f"{name}.present", every) for name in wanted}
    some = torch.stack(list(present.values())).any(dim=0)
    for name in wanted:
        if kept[name].is_floating_point():
            some &= finite_rows(kept[name]) | ~present[name]
    if bool(some.all()):
        return kept, item
    return {name: value[some] for name, value in kept.items()}, item[some.cpu()]


def check_inputs(inputs: tuple[str, ...], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises MimError for modalities that a run has not, with the nearest."""
    for name in inputs:
        if name not in shapes:
            raise unknown("modality in --evaluate.inputs", name, shapes, "Several are written with spaces between.")


def pooled(features: Features, pool: str) -> Tensor:
    """One vector per sample [B, D], or [B, 2 D] for "mean-max".

    Raises:
        MimError: A prefix token is asked for, and there is none.
    """
    if pool == "prefix" and features.prefix.shape[1] == 0:
        raise MimError("The pool prefix is the class token, which this encoder does not have; mean is over its units.")
    if pool == "prefix":
        return features.prefix[:, 0]
    largest = features.tokens.amax(dim=1)
    return {"mean": features.pooled, "max": largest, "mean-max": torch.cat([features.pooled, largest], dim=1)}[pool]


def _readable(
    rows: dict[str, SplitFeatures], train: Tensor, test: Tensor
) -> tuple[dict[str, SplitFeatures], tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Features, labels and numbers of the samples that could be read: those of the raw input are not NaN."""
    a, b = (~values.isnan().any(dim=1) for values in (rows[RAW].train, rows[RAW].test))
    kept = {row: SplitFeatures(features.train[a], features.test[b]) for row, features in rows.items()}
    return kept, (train[a], test[b]), (a.nonzero()[:, 0], b.nonzero()[:, 0])


@torch.no_grad()
def _source(run: ResolvedRun, method: Method, size: tuple[int, ...] | None) -> tuple[DataSource, list[str]]:
    """The run's data, at another size if one is given, and what to say of that.

    Raises:
        MimError: The encoder takes no inputs of that size.
    """
    if size is None:
        return make_source(run, method), []
    tokenizer, own = tokenizer_at(run, size), size_of(run, size)
    if own == size:
        return make_source(run, method), []
    try:
        method.eval().encode(zeros(tokenizer.shapes, tokenizer.ids, 1))
    except ValueError as error:
        raise MimError(f"--size {times(size)}: {error}.") from error
    moved = moved_positions(getattr(method, "encoder", method), tokenizer.layout)
    note = f"Inputs of {times(size)}; the encoder was trained at {times(own)}{moved and f', {moved}'}."
    return open_source(run, tokenizer), [note]


class RunStudy(Study):
    """A run's study. Labels and features of whole samples are made when an evaluation first asks for them, so that
    data without classes can be judged by those that need none.

    Args:
        config: The evaluation options.
        pooled: Makes the study of whole samples.
        notes: What to print, whatever is evaluated.
        more: The study's other attributes.
    """

    def __init__(self, config: EvaluateConfig, pooled: Callable[[], Study], notes: list[str], **more: Any) -> None:
        self.config, self._pooled = config, pooled
        self.notes, self.headings, self.source = [*notes], [], more["source"]
        self.methods, self.device = more["methods"], more["device"]

    def __getattr__(self, name: str) -> Any:
        """Called for what is not there yet."""
        if name not in ("labels", "classes", "rows"):
            raise AttributeError(name)
        made = self._pooled()
        self.labels, self.classes, self.rows = made.labels, made.classes, made.rows
        self.samples = made.samples
        self.notes[:0] = made.notes
        return self.__dict__[name]


def prepare_study(
    folder: Path,
    registry: Registry,
    config: EvaluateConfig | None = None,
    data: Any = None,
    size: tuple[int, ...] | None = None,
) -> Study:
    """What evaluations of a run work on. Features of whole samples are from ``RUN/features`` where they are known; a
    study of data without labels refuses when they are asked for.

    Args:
        folder: The run.
        registry: Where names are looked up.
        config: Evaluation options; the run's own by default.
        data: Options of the data source, to evaluate on other data than the run was trained on.
        size: Input size along each axis, to evaluate at another than the run's.

    Raises:
        MimError: Nothing to judge with, or a size that does not fit.
    """
    run, method, path = load_run(folder, registry)
    config = config or run.evaluate
    run = run.on_data(data)
    source, sized = _source(run, method, size)
    check_inputs(config.inputs, source.shapes)
    device = choose_device(run.train.device)
    sized += ["The encoder has the average of the run's weights (--train.ema)."] if checkpoint.has_average(path) else []
    store = folder / "features" if path.parent != folder else path / "features"
    methods = {UNTRAINED: lambda: build_method(run, registry), PRETRAINED: lambda: method}

    def pooled() -> Study:
        about = [plain(run.parts["data"].options), source.shapes, config.pool, *config.inputs]
        about += ["interpolated positions"] if size is not None else []
        return _pooled_study(source, config, methods, device, partial(_store, store, path, run, registry, about))

    return RunStudy(config, pooled, sized, source=source, methods=methods, device=device)


def _store(
    folder: Path,
    path: Path,
    run: ResolvedRun,
    registry: Registry,
    about: list[Any],
    source: DataSource,
    splits: tuple[Labelled, Labelled],
) -> Store:
    """What keeps features of a checkpoint, for these data as they are now."""
    versions = {**registry.versions(), "mim-core": __version__}
    parts = {role: [part.name, plain(part.options)] for role, part in run.parts.items() if role != "data"}
    return Store(
        folder,
        options=about,
        data=[inventory.digest_of(source, splits), versions],
        untrained=[parts, run.train.seed],
        trained=checkpoint.identity_of(path),
        step=path.name if path != folder.parent else "step",
    )


def _pooled_study(
    source: DataSource,
    config: EvaluateConfig,
    methods: Mapping[str, Callable[[], Method]],
    device: torch.device,
    keep: Callable[[DataSource, tuple[Labelled, Labelled]], Store],
) -> Study:
    """Features of whole samples for every row. ``keep`` gives what keeps them.

    Raises:
        MimError: There are no labels.
    """
    train, test = source.labelled("train"), source.labelled("test")
    if min(len(train.labels), len(test.labels)) == 0:
        raise MimError("There are no labelled samples to train or to test the probes on.")
    one_label(train)
    store, sizes = keep(source, (train, test)), (len(train.labels), len(test.labels))

    def both(row: str, change: Callable[[Sample], Sample] | None = None) -> SplitFeatures:
        network = methods[row]() if row in methods else None
        splits = (extract(network, source, split, config, device, change=change) for split in (train, test))
        return SplitFeatures(*splits)

    get = {RAW: store.raw, UNTRAINED: store.fresh, PRETRAINED: store.own}
    rows = {row: keep_row(partial(both, row), sizes) for row, keep_row in get.items()}
    for label, change in source.controls().items():
        rows[f"{PRETRAINED}, {label}"] = store.own(partial(both, PRETRAINED, change), sizes, label)
    rows, labels, samples = _readable(rows, train.labels, test.labels)
    notes = _notes((train, test), labels, config.inputs)
    if len(source.shapes) > 1:
        seen = ", ".join(config.inputs or source.shapes)
        notes.append(f"Features of whole samples are of: {seen}. Others: --evaluate.inputs {next(iter(source.shapes))}")
    return Study(config, labels, test.classes, rows, notes, samples=samples)


def one_label(split: Labelled) -> None:
    """Raises MimError where samples have several labels."""
    if split.labels.ndim > 1:
        raise MimError(
            "The probes of features take one class for each sample, and these samples have several labels. Judge the "
            "pre-trained run on data with classes; while training, leave --evaluate.every out."
        )


def _notes(splits: tuple[Labelled, Labelled], kept: tuple[Tensor, Tensor], inputs: tuple[str, ...]) -> list[str]:
    """How many samples the scores are from, and what else to know of them."""
    (train, test), (a, b) = splits, kept
    classes = counted(len(test.classes), "class", "classes")
    notes = [f"{len(a):,} labelled training samples, {len(b):,} test samples, {classes}."]
    lost = len(train.labels) + len(test.labels) - len(a) - len(b)
    lacking = f", or lack {' and '.join(inputs)}," if inputs else ""
    verb = "is" if lost == 1 else "are"
    notes += [f"{counted(lost, 'file')} cannot be used{lacking} and {verb} left out."] if lost else []
    return notes + [note for note in {train.note, test.note} if note]
