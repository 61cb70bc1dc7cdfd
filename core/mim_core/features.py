"""A run's features of labelled samples, for every row of the table, kept on disk once they are made."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor

from mim_core import checkpoint
from mim_core.build import Parts, build_method, make_source, open_source
from mim_core.data import DataSource, Labelled, Readable, loader
from mim_core.distributed import choose_device
from mim_core.errors import MimError
from mim_core.evaluation import PRETRAINED, RAW, UNTRAINED, Features, Study
from mim_core.layout import Sample
from mim_core.method import Features as Encoded
from mim_core.method import Method
from mim_core.options import plain
from mim_core.recipe import EvaluateConfig, ResolvedRun, from_toml
from mim_core.registry import Registry
from mim_core.tokenizer import Tokenizer, times, zeros
from mim_core.words import counted


def load_run(folder: Path, registry: Registry) -> tuple[ResolvedRun, Method, Path]:
    """A run's recipe, its method with the newest weights, and the checkpoint that they are from. Where the run kept an
    average of its weights (``--train.ema``), the weights are that.

    Raises:
        MimError: The folder holds no whole checkpoint, or is a file.
    """
    if folder.is_file():
        formats = ", ".join(sorted(entry.full_name for entry in registry.of_kind("importers")))
        raise MimError(
            f"{folder} is a weights file, not a run. To start from it: pretrain RECIPE --init {folder}, and add "
            f"--init-format NAME; the formats are {formats or 'none'}. What that writes is a run."
        )
    path = folder if (folder / "state.json").exists() else checkpoint.newest(folder)
    if path is None:
        near = sorted(p.parent.name for p in folder.parent.glob("*/recipe.toml")) if folder.parent.is_dir() else []
        there = f" Runs beside it: {', '.join(near)}." if near else ""
        raise MimError(
            f"{folder} holds no whole checkpoint.{there} Train first: mim-core pretrain RECIPE --out {folder}"
        )
    config = from_toml((path / "recipe.toml").read_text(), registry)
    method = build_method(config, registry)
    checkpoint.load_weights(method, checkpoint.load(path), averaged=checkpoint.has_average(path))
    return config, method, path


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
    views; the raw input where no method is given. NaN where a view cannot be read. ``change`` is one of the source's
    controls."""
    wanted, back = (torch.arange(len(split.labels)) if chosen is None else chosen).unique(return_inverse=True)
    sampler = [part.tolist() for part in split.items_of(wanted).split(config.batch_size)]
    if method is not None:
        method.eval().to(device)
    rows, seen = torch.empty(0), torch.zeros(len(wanted))
    for batch in loader(Readable(split.items), sampler, 0, Readable.collate):
        if not batch:
            if method is not None and dist.is_initialized():  # a sharded method needs all ranks for each call
                method.encode(zeros(source.shapes, source.ids, 1, device))
            continue
        item = batch.pop("index")
        ready = source.finish({name: value.to(device) for name, value in batch.items()})
        if change is not None:
            ready = change({**ready, "index": item.to(device)})
        vectors = source.raw(ready) if method is None else _pooled(method.encode(ready), config.pool)
        rows = rows if len(rows) else torch.zeros(len(wanted), vectors.shape[1])
        place = torch.searchsorted(wanted, item // split.views)
        rows.index_add_(0, place, vectors.float().cpu())
        seen.index_add_(0, place, torch.ones(len(place)))
    if not len(rows):
        raise MimError(f"None of the {len(wanted):,} labelled {split.name} samples can be read.")
    rows[seen < split.views] = torch.nan
    return rows.div_(split.views)[back]


def _pooled(features: Encoded, pool: str) -> Tensor:
    """One vector per sample [B, D], or [B, 2 D] for "mean-max".

    Raises:
        MimError: A prefix token is asked for, and there is none.
    """
    if pool == "prefix" and features.prefix.shape[1] == 0:
        raise MimError("--evaluate.pool prefix needs an encoder with a class token; this one has none.")
    if pool == "prefix":
        return features.prefix[:, 0]
    largest = features.tokens.amax(dim=1)
    return {"mean": features.pooled, "max": largest, "mean-max": torch.cat([features.pooled, largest], dim=1)}[pool]


def _readable(
    rows: dict[str, Features], train: Tensor, test: Tensor
) -> tuple[dict[str, Features], tuple[Tensor, Tensor]]:
    """Features and labels of the samples that could be read: those of the raw input are not NaN."""
    a, b = (~values.isnan().any(dim=1) for values in (rows[RAW].train, rows[RAW].test))
    kept = {row: Features(features.train[a], features.test[b]) for row, features in rows.items()}
    return kept, (train[a], test[b])


def _cached(path: Path, make: Any) -> Features:
    """Features from disk, or made and written there."""
    if path.exists():
        return Features(**load_file(path))
    made: Features = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    save_file({name: value.contiguous() for name, value in vars(made).items()}, part)
    part.rename(path)
    return made


def tokenizer_at(run: ResolvedRun, size: tuple[int, ...]) -> Tokenizer:
    """The run's tokenizer, without weights, for another input size: what shapes the data then have.

    Raises:
        MimError: The tokenizer has no input size, or its patches do not divide that one.
    """
    part = run.parts.get("tokenizer")
    if part is None or not isinstance(getattr(part.options, "size", None), tuple):
        what = "has several tokenizers" if part is None else f"has the tokenizer {part.name}, which has no input size"
        raise MimError(f"--size {times(size)} replaces the tokenizer's input size, but this run {what}.")
    options = replace(part.options, size=size)
    with torch.device("meta"):
        return Parts({**run.parts, "tokenizer": replace(part, options=options)}).tokenizer()


@torch.no_grad()
def _source(run: ResolvedRun, method: Method, size: tuple[int, ...] | None) -> tuple[DataSource, list[str]]:
    """The run's data, at another size if one is given, and what to say of that.

    Raises:
        MimError: The encoder takes no inputs of that size.
    """
    if size is None:
        return make_source(run, method), []
    tokenizer, own = tokenizer_at(run, size), run.parts["tokenizer"].options.size
    try:
        method.eval().encode(zeros(tokenizer.shapes, tokenizer.ids, 1))
    except ValueError as error:
        raise MimError(f"--size {times(size)}: {error}.") from error
    note = f"Inputs of {times(size)}; the encoder was trained at {times(own)}, its positions follow the grid."
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
        self.notes, self.source = [*notes], more["source"]
        self.methods, self.device = more["methods"], more["device"]

    def __getattr__(self, name: str) -> Any:
        """Called for what is not there yet."""
        if name not in ("labels", "classes", "rows"):
            raise AttributeError(name)
        made = self._pooled()
        self.labels, self.classes, self.rows = made.labels, made.classes, made.rows
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
    if data is not None:
        run = replace(run, parts={**run.parts, "data": replace(run.parts["data"], options=data)})
    source, sized = _source(run, method, size)
    device = choose_device(run.train)
    sized += ["The encoder has the average of the run's weights (--train.ema)."] if checkpoint.has_average(path) else []
    store = folder / "features" if path.parent != folder else path / "features"
    methods = {UNTRAINED: lambda: build_method(run, registry), PRETRAINED: lambda: method}

    def pooled() -> Study:
        about = [plain(run.parts["data"].options), source.shapes, config.pool]
        return _pooled_study(source, config, methods, device, (store, path.name, about))

    return RunStudy(config, pooled, sized, source=source, methods=methods, device=device)


def _pooled_study(
    source: DataSource,
    config: EvaluateConfig,
    methods: Mapping[str, Callable[[], Method]],
    device: torch.device,
    kept: tuple[Path, str, list[Any]],
) -> Study:
    """Features of whole samples for every row. ``kept`` is the folder that keeps them, the checkpoint's name in it,
    and what they depend on.

    Raises:
        MimError: There are no labels.
    """
    train, test = source.labelled("train"), source.labelled("test")
    if min(len(train.labels), len(test.labels)) == 0:
        raise MimError("There are no labelled samples to train or to test the probes on.")
    store, name, about = kept
    text = json.dumps([*about, len(train.labels), len(test.labels)], sort_keys=True)
    code = hashlib.sha256(text.encode()).hexdigest()[:12]

    def both(row: str, change: Callable[[Sample], Sample] | None = None) -> Features:
        network = methods[row]() if row in methods else None
        splits = (extract(network, source, split, config, device, change=change) for split in (train, test))
        return Features(*splits)

    files = {RAW: "raw", UNTRAINED: "untrained", PRETRAINED: name}
    rows = {row: _cached(store / f"{file}-{code}.safetensors", partial(both, row)) for row, file in files.items()}
    for label, change in source.controls().items():
        file = store / f"{name}-{label.replace(' ', '-')}-{code}.safetensors"
        rows[f"{PRETRAINED}, {label}"] = _cached(file, partial(both, PRETRAINED, change))
    rows, labels = _readable(rows, train.labels, test.labels)
    return Study(config, labels, test.classes, rows, _notes((train, test), labels))


def _notes(splits: tuple[Labelled, Labelled], kept: tuple[Tensor, Tensor]) -> list[str]:
    """How many samples the scores are from, and what else to know of them."""
    (train, test), (a, b) = splits, kept
    classes = counted(len(test.classes), "class", "classes")
    notes = [f"{len(a):,} labelled training samples, {len(b):,} test samples, {classes}."]
    lost = len(train.labels) + len(test.labels) - len(a) - len(b)
    notes += [f"{lost:,} files cannot be used and are left out."] if lost else []
    return notes + [note for note in {train.note, test.note} if note]
