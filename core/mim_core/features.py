"""A run's features of labelled samples, for every row of the table, kept on disk once they are made."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor

from mim_core import checkpoint
from mim_core.build import build_method, make_source
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


def load_run(folder: Path, registry: Registry) -> tuple[ResolvedRun, Method, Path]:
    """A run's recipe, its method with the newest weights, and the checkpoint that they are from. Where the run kept an
    average of its weights (``--train.ema``), the weights are that.

    Raises:
        MimError: The folder holds no whole checkpoint.
    """
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
    """Pooled features of a split, or of its ``chosen`` samples (int64 [n]), float32 [n, D]; the raw input where no
    method is given. NaN where a file cannot be read. ``change`` is one of the source's controls."""
    wanted, back = (torch.arange(len(split.labels)) if chosen is None else chosen).unique(return_inverse=True)
    count = len(wanted)
    sampler = [part.tolist() for part in wanted.split(config.batch_size)]
    if method is not None:
        method.eval().to(device)
    found: list[Tensor] = []
    places: list[Tensor] = []
    for batch in loader(Readable(split.items), sampler, 0, Readable.collate):
        if not batch:
            if method is not None and dist.is_initialized():  # a sharded method needs all ranks for each call
                method.encode({name: torch.zeros(1, *shape, device=device) for name, shape in source.shapes.items()})
            continue
        places.append(batch.pop("index"))
        ready = source.finish({name: value.to(device) for name, value in batch.items()})
        if change is not None:
            ready = change({**ready, "index": places[-1].to(device)})
        if method is None:
            found.append(source.raw(ready).float().cpu())
            continue
        features = method.encode(ready)
        if config.pool == "prefix" and features.prefix.shape[1] == 0:
            raise MimError("--evaluate.pool prefix needs an encoder with a class token; this one has none.")
        found.append(_pooled(features, config.pool).float().cpu())
    if not found:
        raise MimError(f"None of the {count:,} labelled {split.name} samples can be read.")
    rows = torch.full((count, found[0].shape[1]), torch.nan)
    rows[torch.searchsorted(wanted, torch.cat(places))] = torch.cat(found)
    return rows[back]


def _pooled(features: Encoded, pool: str) -> Tensor:
    """One vector per sample [B, D], or [B, 2 D] for "mean-max"."""
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


def prepare_study(folder: Path, registry: Registry, config: EvaluateConfig | None = None, data: Any = None) -> Study:
    """Features of every row for a run, from ``RUN/features`` where they are known.

    Args:
        folder: The run.
        registry: Where names are looked up.
        config: Evaluation options; the run's own by default.
        data: Options of the data source, to evaluate on other data than the run was trained on.
    """
    run, method, path = load_run(folder, registry)
    config = config or run.evaluate
    if data is not None:
        run = replace(run, parts={**run.parts, "data": replace(run.parts["data"], options=data)})
    device = choose_device(run.train)
    source = make_source(run, method)
    train, test = source.labelled("train"), source.labelled("test")
    if min(len(train.labels), len(test.labels)) == 0:
        raise MimError("There are no labelled samples to train or to test the probes on.")
    about = json.dumps(
        [plain(run.parts["data"].options), config.pool, len(train.labels), len(test.labels)], sort_keys=True
    )
    code = hashlib.sha256(about.encode()).hexdigest()[:12]
    store = folder / "features" if path.parent != folder else path / "features"

    def both(network: Method | None, change: Callable[[Sample], Sample] | None = None) -> Features:
        splits = (extract(network, source, split, config, device, change=change) for split in (train, test))
        return Features(*splits)

    rows = {
        RAW: _cached(store / f"raw-{code}.safetensors", lambda: both(None)),
        UNTRAINED: _cached(store / f"untrained-{code}.safetensors", lambda: both(build_method(run, registry))),
        PRETRAINED: _cached(store / f"{path.name}-{code}.safetensors", lambda: both(method)),
    }
    for label, change in source.controls().items():
        file = store / f"{path.name}-{label.replace(' ', '-')}-{code}.safetensors"
        rows[f"{PRETRAINED}, {label}"] = _cached(file, partial(both, method, change))
    rows, labels = _readable(rows, train.labels, test.labels)
    notes = [
        f"{len(labels[0]):,} labelled training samples, {len(labels[1]):,} test samples, {len(test.classes)} classes."
    ]
    notes += ["The encoder has the average of the run's weights (--train.ema)."] if checkpoint.has_average(path) else []
    lost = len(train.labels) + len(test.labels) - len(labels[0]) - len(labels[1])
    notes += [f"{lost:,} files cannot be used and are left out."] if lost else []
    notes += [note for note in {train.note, test.note} if note]
    return Study(config, labels, test.classes, rows, notes)
