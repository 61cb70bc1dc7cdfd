"""Frozen features judged by k-NN and linear probes. A score never stands alone: beside it are the majority class, the
raw input and the same encoder untrained."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from mim_core import randomness
from mim_core.errors import MimError
from mim_core.recipe import EvaluateConfig
from mim_core.registry import Registry

if TYPE_CHECKING:
    from mim_core.data import DataSource
    from mim_core.method import Method

MAJORITY, RAW, UNTRAINED, PRETRAINED = "majority class", "raw input", "untrained encoder", "pre-trained encoder"

MEAN_CLASS = "mean class accuracy"
UNEVEN = 1.5
"""Classes are uneven where the largest has more than this times an even share of the test split."""


@dataclass(frozen=True)
class Score:
    """One cell of the table: an accuracy in [0, 1] on the test split, unless the column says another measure; the
    spread is the standard deviation over draws. Of errors, ``lower_is_better``."""

    row: str
    column: str
    value: float
    spread: float | None = None
    lower_is_better: bool = False


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
        source: The data, for evaluations that need more than one vector per sample.
        methods: What gives the methods of the rows that have one, by row; each is built when it is called for.
        device: Where to compute.
    """

    config: EvaluateConfig
    labels: tuple[Tensor, Tensor]
    classes: tuple[str, ...]
    rows: dict[str, Features]
    notes: list[str] = field(default_factory=list)
    source: DataSource | None = None
    methods: Mapping[str, Callable[[], Method]] = field(default_factory=dict)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


# ---- probes ----------------------------------------------------------------------------------------------------------


def knn(study: Study) -> list[Score]:
    """Vote of the k most similar training samples by cosine, each with weight exp(similarity / temperature) (DINO,
    arXiv 2104.14294)."""
    (train, test), config = study.labels, study.config
    scores = [Score(MAJORITY, "k-NN", _majority(train, test))]
    even = [Score(MAJORITY, f"k-NN, {MEAN_CLASS}", _class_accuracy(_most(train, test), test))]
    for row, features in study.rows.items():
        found = vote(features.train, train, features.test, len(study.classes), config.k, config.temperature)
        scores.append(Score(row, "k-NN", _accuracy(found, test)))
        even.append(Score(row, f"k-NN, {MEAN_CLASS}", _class_accuracy(found, test)))
    return scores + _where_uneven(study, even)


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
    """Logistic regression on the features: on all labels, and on few, drawn evenly over the classes."""
    (train, test), config, classes = study.labels, study.config, len(study.classes)
    columns: list[tuple[str, list[Tensor]]] = [("linear", [torch.arange(len(train))])]
    for count in config.few_labels:
        if count < classes or count >= len(train):
            study.notes.append(
                f"No probe with {count:,} labels: there are {classes} classes and {len(train):,} training samples."
            )
            continue
        columns.append((f"linear, {count:,} labels", few_labels(train, count, classes, config.draws)))
    scores: list[Score] = []
    even: list[Score] = []
    for column, draws in columns:
        scores.append(Score(MAJORITY, column, _majority(train, test)))
        even.append(Score(MAJORITY, f"{column}, {MEAN_CLASS}", _class_accuracy(_most(train, test), test)))
        for row, features in study.rows.items():
            chosen = torch.stack(draws)
            found = probe(features.train, train, chosen, features.test, classes, config.l2, config.standardize)
            each = (found == test).float().mean(dim=1)
            spread = float(each.std()) if len(each) > 1 else None
            scores.append(Score(row, column, float(each.mean()), spread))
            alike = torch.tensor([_class_accuracy(one, test) for one in found])
            spread = float(alike.std()) if len(alike) > 1 else None
            even.append(Score(row, f"{column}, {MEAN_CLASS}", float(alike.mean()), spread))
    return scores + _where_uneven(study, even)


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
    standardize: bool = False,
    steps: int = 300,
) -> Int[Tensor, "draws m"]:
    """Multinomial logistic regression by L-BFGS, all draws at once.

    Minimises the sum of cross-entropies + l2 / 2 * |W|^2, the bias free: scikit-learn's LogisticRegression with
    C = 1 / l2. Features are centred, which does not move the minimum but is reached in fewer steps; with
    ``standardize`` they are also divided by their deviation over the training split.
    """
    mean = train.mean(dim=0)
    x, t = train - mean, test - mean
    if standardize:
        scale = train.std(dim=0)
        scale = scale.where(scale > 1e-6, torch.ones_like(scale))  # a constant feature says nothing: leave it
        x, t = x / scale, t / scale
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


def _most(train: Tensor, test: Tensor) -> Tensor:
    """The most frequent training class, as the answer for every test sample."""
    return train.bincount().argmax().expand_as(test)


def _class_accuracy(found: Tensor, labels: Tensor) -> float:
    """The share of right answers per class that the test split has, averaged over these classes."""
    right = (found == labels).double()
    return float(torch.stack([right[labels == one].mean() for one in labels.unique()]).mean())


def _where_uneven(study: Study, scores: list[Score]) -> list[Score]:
    """The scores that weigh classes alike, with a note, where the classes of the test split are uneven; else none."""
    test = study.labels[1]
    share = float(test.bincount().max()) / len(test)
    if share <= UNEVEN / len(test.unique()):
        return []
    note = (
        f"The classes are uneven: {share:.0%} of the test samples are of one class. The columns of mean class accuracy "
        "weigh every class alike."
    )
    if note not in study.notes:
        study.notes.append(note)
    return scores


def _majority(train: Tensor, test: Tensor) -> float:
    return _accuracy(train.bincount().argmax(), test)


def run_study(study: Study, registry: Registry) -> list[Score]:
    """All evaluations that the study asks for."""
    scores: list[Score] = []
    for name in study.config.on:
        scores += registry.get("evaluations", name).resolve()(study)
    return scores


def run_usable(study: Study, registry: Registry) -> list[Score]:
    """The same; evaluations that these data or this encoder do not serve are left out, with a note that says why.

    Raises:
        MimError: None of them can be run.
    """
    scores: list[Score] = []
    refused: dict[str, list[str]] = {}
    for name in study.config.on:
        entry = registry.get("evaluations", name)
        try:
            scores += entry.resolve()(study)
        except MimError as error:
            refused.setdefault(str(error), []).append(entry.full_name)
    if refused and not scores:
        raise MimError("\n".join(f"{', '.join(names)}: {why}" for why, names in refused.items()))
    study.notes += [f"Left out: {', '.join(names)}. {why}" for why, names in refused.items()]
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
    encoder; and where a lower value is the better one."""
    scores = list(scores)
    columns = columns_of(scores)[1]
    if not columns:
        return []
    errors = [column for column in columns if any(s.lower_is_better for s in scores if s.column == column)]
    value = {(s.row, s.column): s.value for s in scores}
    lines = [f"Lower is better in: {'; '.join(errors)}."] if errors else []
    for other in (UNTRAINED, RAW):
        worse = []
        for column in columns:
            own, theirs = value.get((PRETRAINED, column)), value.get((other, column))
            if own is None or theirs is None or not (own < theirs if column in errors else own > theirs):
                worse.append(column)
        if not worse:
            lines.append(f"The pre-trained encoder beats the {other} in every column.")
        else:
            lines.append(f"The pre-trained encoder does not beat the {other} in: {'; '.join(worse)}.")
    return lines
