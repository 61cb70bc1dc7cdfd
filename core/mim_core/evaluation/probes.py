"""Frozen features judged by k-NN and linear probes. A score never stands alone: beside it are the majority class, the
raw input and the same encoder untrained."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from mim_core import randomness, standard_errors
from mim_core.evaluation.study import Study
from mim_core.scores import MAJORITY, Score, class_weights

MEAN_CLASS = "mean class accuracy"
UNEVEN = (0.5, 1.3)
"""Classes are uneven where the smallest has less, or the largest more, than this times an even share of the test
split, beyond what chance does to a small one."""


# ---- probes ----------------------------------------------------------------------------------------------------------


def knn(study: Study) -> list[Score]:
    """Vote of the k most similar training samples by cosine, each with weight exp(similarity / temperature) (DINO,
    arXiv 2104.14294)."""
    (train, test), config = study.labels, study.config
    answers = {MAJORITY: _most(train, test)[None]}
    for row, features in study.rows.items():
        predictions = vote(features.train, train, features.test, len(study.classes), config.k, config.temperature)
        answers[row] = predictions[None]
    return _tabled(study, "k-NN", answers)


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
    predictions = []
    for chunk in F.normalize(test, dim=1).split(2048):
        similarity, neighbour = (chunk @ train.T).topk(k, dim=1)
        votes = torch.zeros(len(chunk), classes, device=chunk.device)
        votes.scatter_add_(
            1, labels[neighbour], ((similarity - 1) / temperature).exp()
        )  # -1 keeps the exponent small; no effect on ranks
        predictions.append(votes.argmax(dim=1))
    return torch.cat(predictions)


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
    for column, draws in columns:
        answers = {MAJORITY: _most(train, test)[None]}
        for row, features in study.rows.items():
            options = (config.l2, config.standardize, config.balance)
            answers[row] = probe(features.train, train, torch.stack(draws), features.test, classes, *options)
        scores += _tabled(study, column, answers)
    return scores


def _tabled(study: Study, column: str, answers: dict[str, Int[Tensor, "draws m"]]) -> list[Score]:
    """A column of accuracies by row, the mean over the draws; and, where classes are uneven, one of mean class
    accuracies."""
    test = study.labels[1]
    scores, even = list[Score](), list[Score]()
    if standard_errors.HOW not in study.notes:
        study.notes.append(standard_errors.HOW)
    for row, predictions in answers.items():
        right = (predictions == test).float()
        each, share = right.mean(dim=1), right.mean(dim=0)  # of every draw; of every sample, how often it is right
        alike = torch.tensor([_class_accuracy(one, test) for one in predictions])
        error = standard_errors.share_error(float(each.mean()), len(test)) if len(predictions) == 1 else None
        error = standard_errors.mean_error(share) if error is None else error
        scores.append(Score(row, column, float(each.mean()), _deviation(each), error=error))
        error = standard_errors.class_mean_error(share, test)
        even.append(Score(row, f"{column}, {MEAN_CLASS}", float(alike.mean()), _deviation(alike), error=error))
    return scores + _where_uneven(study, even)


def _deviation(draws: Tensor) -> float | None:
    return float(draws.std()) if len(draws) > 1 else None


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
    balance: bool = False,
    steps: int = 300,
) -> Int[Tensor, "draws m"]:
    """Multinomial logistic regression by L-BFGS, all draws at once.

    Minimises the sum of cross-entropies + l2 / 2 * |W|^2, the bias free: scikit-learn's LogisticRegression with
    C = 1 / l2. Features are centred, which does not move the minimum but is reached in fewer steps; with
    ``standardize`` they are also divided by their deviation over the training split. With ``balance`` samples count by
    one over the share of their class, in each draw.
    """
    mean = train.mean(dim=0)
    x, t = train - mean, test - mean
    if standardize:
        scale = train.std(dim=0)
        scale = scale.where(scale > 1e-6, torch.ones_like(scale))  # a constant feature says nothing: leave it
        x, t = x / scale, t / scale
    inputs, targets = x[chosen], labels[chosen].flatten()
    counts = torch.stack([class_weights(labels[one], classes)[labels[one]] for one in chosen]).flatten()
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
        each = F.cross_entropy(logits, targets, reduction="none")
        sums = (each * counts).sum() if balance else each.sum()
        loss = (sums + l2 / 2 * weight.square().sum()) / chosen.shape[1]
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        return (t @ weight + bias).argmax(dim=-1)


def _most(train: Tensor, test: Tensor) -> Tensor:
    """The most frequent training class, as the answer for every test sample."""
    return train.bincount().argmax().expand_as(test)


def _class_accuracy(predictions: Tensor, labels: Tensor) -> float:
    """The share of right answers per class that the test split has, averaged over these classes."""
    right = (predictions == labels).double()
    return float(torch.stack([right[labels == one].mean() for one in labels.unique()]).mean())


def _where_uneven(study: Study, scores: list[Score]) -> list[Score]:
    """The scores that weigh classes alike, with a note, where the classes of the test split are uneven; else none."""
    test = study.labels[1]
    counts = test.unique(return_counts=True)[1]
    even = len(test) / len(counts)
    noise = 2.5 * even**0.5  # what a random split of even classes hardly passes
    low, high = min(UNEVEN[0] * even, even - noise), max(UNEVEN[1] * even, even + noise)
    if int(counts.min()) >= low and int(counts.max()) <= high:
        return []
    share, rare = int(counts.max()) / len(test), int(counts.min()) / len(test)
    more = "" if study.config.balance else " To weigh them alike in the linear probe itself: --evaluate.balance"
    note = (
        f"The classes are uneven: the largest has {share:.0%} of the test samples, the smallest {rare:.1%}. The "
        "columns of mean class accuracy "
        f"weigh every class alike.{more}"
    )
    if note not in study.notes:
        study.notes.append(note)
    return scores
