"""Frozen features judged by k-NN and linear probes. A score never stands alone: beside it are the majority class, the
raw input and the same encoder untrained."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from mim_core import checkpoint, randomness
from mim_core.build import build_method
from mim_core.data import DataSource, Labelled, loader
from mim_core.errors import MimError
from mim_core.loop import choose_device, make_source
from mim_core.method import Method
from mim_core.options import plain
from mim_core.recipe import EvaluateConfig, ResolvedRun, from_toml
from mim_core.registry import Registry

MAJORITY, RAW, UNTRAINED, PRETRAINED = "majority class", "raw input", "untrained encoder", "pre-trained encoder"


@dataclass(frozen=True)
class Score:
    """One cell of the table: an accuracy in [0, 1] on the test split; the spread is the standard deviation over
    draws."""

    row: str
    column: str
    value: float
    spread: float | None = None


@dataclass(frozen=True)
class Features:
    """What a row's encoder makes of both splits: float32 [n, D] and [m, D]."""

    train: Tensor
    test: Tensor


@dataclass
class Study:
    """What an evaluation works on.

    Attributes:
        config: The evaluation options.
        labels: int64 [n] of the training split, and [m] of the test split.
        classes: Names of the classes.
        rows: Features by row.
        notes: What to print under the table.
    """

    config: EvaluateConfig
    labels: tuple[Tensor, Tensor]
    classes: tuple[str, ...]
    rows: dict[str, Features]
    notes: list[str] = field(default_factory=list)


# ---- probes ----------------------------------------------------------------------------------------------------------


def knn(study: Study) -> list[Score]:
    """Vote of the k most similar training samples by cosine, each with weight exp(similarity / temperature) (DINO,
    arXiv 2104.14294)."""
    (train, test), config = study.labels, study.config
    scores = [Score(MAJORITY, "k-NN", _majority(train, test))]
    for row, features in study.rows.items():
        found = vote(features.train, train, features.test, len(study.classes), config.k, config.temperature)
        scores.append(Score(row, "k-NN", _accuracy(found, test)))
    return scores


def vote(
    train: Float[Tensor, "n D"],
    labels: Int[Tensor, " n"],
    test: Float[Tensor, "m D"],
    classes: int,
    k: int,
    temperature: float,
) -> Int[Tensor, " m"]:
    """The class that each test sample's neighbours vote for."""
    train, k = F.normalize(train, dim=1), min(k, len(train))
    found = []
    for chunk in F.normalize(test, dim=1).split(2048):
        similarity, neighbour = (chunk @ train.T).topk(k, dim=1)
        votes = torch.zeros(len(chunk), classes, device=chunk.device)
        votes.scatter_add_(
            1, labels[neighbour], ((similarity - 1) / temperature).exp()
        )  # -1 keeps the exponent small; no effect on ranks
        found.append(votes.argmax(dim=1))
    return torch.cat(found)


def linear(study: Study) -> list[Score]:
    """Logistic regression on standardised features: on all labels, and on few, drawn evenly over the classes."""
    (train, test), config, classes = study.labels, study.config, len(study.classes)
    columns: list[tuple[str, list[Tensor]]] = [("linear", [torch.arange(len(train))])]
    for count in config.few_labels:
        if count < classes or count >= len(train):
            study.notes.append(
                f"No probe with {count:,} labels: there are {classes} classes and {len(train):,} training samples."
            )
            continue
        columns.append((f"linear, {count:,} labels", few_labels(train, count, classes, config.draws)))
    scores = []
    for column, draws in columns:
        scores.append(Score(MAJORITY, column, _majority(train, test)))
        for row, features in study.rows.items():
            chosen = torch.stack(draws)
            found = probe(features.train, train, chosen, features.test, classes, config.l2)
            each = (found == test).float().mean(dim=1)
            spread = float(each.std()) if len(each) > 1 else None
            scores.append(Score(row, column, float(each.mean()), spread))
    return scores


def few_labels(labels: Int[Tensor, " n"], count: int, classes: int, draws: int) -> list[Tensor]:
    """Indices of ``count`` samples, as even over the classes as they go, once per draw; the same for every row of the
    table.

    Ranks the samples within their class, then takes the first ranks of all classes.
    """
    chosen = []
    for draw in range(draws):
        key = randomness.make_key(draw, 0, torch.zeros(1, dtype=torch.int64))
        order = randomness.permutation(key, "few labels", len(labels))[0]
        shuffled = F.one_hot(labels[order], classes)
        rank = (shuffled.cumsum(dim=0) * shuffled).sum(dim=1)
        chosen.append(order[rank.argsort(stable=True)[:count]])
    return chosen


def probe(
    train: Float[Tensor, "n D"],
    labels: Int[Tensor, " n"],
    chosen: Int[Tensor, "draws k"],
    test: Float[Tensor, "m D"],
    classes: int,
    l2: float,
    steps: int = 200,
) -> Int[Tensor, "draws m"]:
    """Multinomial logistic regression by L-BFGS, all draws at once, on features standardised over the training split.

    Minimises the sum of cross-entropies + l2 / 2 * |W|^2, the bias free.
    """
    mean, scale = train.mean(dim=0), train.std(dim=0)
    scale = scale.where(scale > 1e-6, torch.ones_like(scale))  # a constant feature says nothing and is left as it is
    x, t = (train - mean) / scale, (test - mean) / scale
    inputs, targets = x[chosen], labels[chosen].flatten()
    weight = torch.zeros(len(chosen), x.shape[1], classes, device=x.device, requires_grad=True)
    bias = torch.zeros(len(chosen), 1, classes, device=x.device, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=steps,
        history_size=10,
        line_search_fn="strong_wolfe",
        tolerance_grad=1e-5,
        tolerance_change=1e-7,
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        logits = (inputs @ weight + bias).flatten(0, 1)
        loss = (F.cross_entropy(logits, targets, reduction="sum") + l2 / 2 * weight.square().sum()) / chosen.shape[1]
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        return (t @ weight + bias).argmax(dim=-1)


def _accuracy(found: Tensor, labels: Tensor) -> float:
    return float((found == labels).float().mean())


def _majority(train: Tensor, test: Tensor) -> float:
    return _accuracy(train.bincount().argmax(), test)


# ---- features --------------------------------------------------------------------------------------------------------


def load_run(folder: Path, registry: Registry) -> tuple[ResolvedRun, Method, Path]:
    """A run's recipe, its method with the newest weights, and the checkpoint that they are from.

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
    checkpoint.load_weights(method, checkpoint.load(path))
    return config, method, path


@torch.no_grad()
def extract(
    method: Method | None, source: DataSource, split: Labelled, config: EvaluateConfig, device: torch.device
) -> Tensor:
    """Pooled features of a split, float32 [n, D]; the raw input where no method is given."""
    sampler = [
        list(range(i, min(i + config.batch_size, len(split.labels))))
        for i in range(0, len(split.labels), config.batch_size)
    ]
    if method is not None:
        method.eval().to(device)
    found = []
    for sample in loader(split.items, sampler, 0, torch.utils.data.default_collate):
        ready = source.finish({name: value.to(device) for name, value in sample.items()})
        if method is None:
            found.append(source.raw(ready).float().cpu())
            continue
        features = method.encode(ready)
        if config.pool == "prefix" and features.prefix.shape[1] == 0:
            raise MimError("--evaluate.pool prefix needs an encoder with a class token; this one has none.")
        pooled = features.pooled if config.pool == "mean" else features.prefix[:, 0]
        found.append(pooled.float().cpu())
    return torch.cat(found)


def _cached(path: Path, make: Any) -> Features:
    """Features from disk, or made and written there."""
    if path.exists():
        return Features(**load_file(path))
    made: Features = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    save_file({"train": made.train.contiguous(), "test": made.test.contiguous()}, part)
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

    def both(network: Method | None) -> Features:
        return Features(extract(network, source, train, config, device), extract(network, source, test, config, device))

    rows = {
        RAW: _cached(store / f"raw-{code}.safetensors", lambda: both(None)),
        UNTRAINED: _cached(store / f"untrained-{code}.safetensors", lambda: both(build_method(run, registry))),
        PRETRAINED: _cached(store / f"{path.name}-{code}.safetensors", lambda: both(method)),
    }
    notes = [
        f"{len(train.labels):,} labelled training samples, {len(test.labels):,} test samples, {len(test.classes)} "
        f"classes."
    ]
    notes += [note for note in {train.note, test.note} if note]
    return Study(config, (train.labels, test.labels), test.classes, rows, notes)


def run_study(study: Study, registry: Registry) -> list[Score]:
    """All evaluations that the study asks for."""
    scores: list[Score] = []
    for name in study.config.on:
        scores += registry.get("evaluations", name).resolve()(study)
    return scores


# ---- the table -------------------------------------------------------------------------------------------------------


def columns_of(scores: Iterable[Score]) -> tuple[list[str], list[str]]:
    """Rows and columns in order of appearance."""
    scores = list(scores)
    return list(dict.fromkeys(s.row for s in scores)), list(dict.fromkeys(s.column for s in scores))


def cell(scores: Iterable[Score], row: str, column: str) -> str:
    """A score as it is printed: accuracy, and the spread over draws."""
    for score in scores:
        if (score.row, score.column) == (row, column):
            return f"{score.value:.3f}" + ("" if score.spread is None else f" ± {score.spread:.3f}")
    return "-"


def verdict(scores: Iterable[Score]) -> list[str]:
    """What the table says in words, good or bad: the pre-trained encoder against the raw input and the untrained
    encoder."""
    scores = list(scores)
    value = {(s.row, s.column): s.value for s in scores}
    lines = []
    for other in (UNTRAINED, RAW):
        better = [c for c in columns_of(scores)[1] if value.get((PRETRAINED, c), 0) > value.get((other, c), 1)]
        worse = [c for c in columns_of(scores)[1] if c not in better]
        if not worse:
            lines.append(f"The pre-trained encoder beats the {other} in every column.")
        else:
            lines.append(f"The pre-trained encoder does not beat the {other} in: {'; '.join(worse)}.")
    return lines
