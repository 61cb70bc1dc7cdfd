"""Judgements of frozen features as papers on point clouds have them: linear support vector machines, on the given
split, in five folds, and on a few shapes of a few classes.

All use scikit-learn's LinearSVC (one class against the rest, squared hinge) with C = 0.01, on features of mean 0 and
deviation 1 over the shapes that it is fitted to. Scripts of the field leave features as they are and choose C by hand
for one encoder; here rows of very different scale stand in one table, so they are brought to one scale, and C is the
same for all and chosen on none.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from mim_core import MAJORITY, MimError, Score, Study, randomness, standard_errors
from torch import Tensor

Array = npt.NDArray[Any]

C = 0.01
"""Weight of the hinge losses against the squared weights."""
ITERATIONS = 10_000
"""Of the solver, at most."""
FOLDS = 5
WAYS, SHOTS, RUNS, QUERIES = (5, 10), (10, 20), 10, 20
"""Few-shot: classes, shapes of each to learn from, draws, and shapes of each to be judged on at most."""
RULE = f"LinearSVC with C = {C:g} on features of mean 0 and deviation 1 over the shapes that it is fitted to"
POOLED = (
    "Both labelled splits are taken together, so labels are held out and not shapes: a run that was trained on the "
    "training split has seen those of its shapes before, without labels, and none of the test split"
)


@dataclass
class Fits:
    """Fits support vector machines, and counts those that did not converge."""

    unfinished: int = 0
    made: int = 0

    def accuracy(self, features: Array, labels: Array, train: Array, test: Array) -> float:
        """Of a machine fitted to the samples numbered in ``train``, on those in ``test``."""
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
        from sklearn.svm import LinearSVC

        machine = make_pipeline(StandardScaler(), LinearSVC(C=C, max_iter=ITERATIONS, random_state=0))
        with warnings.catch_warnings(record=True) as raised:
            warnings.simplefilter("always", ConvergenceWarning)
            machine.fit(features[train], labels[train])
        self.made += 1
        self.unfinished += any(issubclass(each.category, ConvergenceWarning) for each in raised)
        return float((machine.predict(features[test]) == labels[test]).mean())

    def notes(self, name: str) -> list[str]:
        """What a reader of the scores should know about the solver."""
        if not self.unfinished:
            return []
        return [f"{name}: {self.unfinished} of {self.made} fits had not converged after {ITERATIONS:,} iterations."]


def svm(study: Study) -> list[Score]:
    """Linear SVM on the training split, judged on the test split: the ModelNet40 protocol.

    Raises:
        MimError: The training split holds one class only.
    """
    labels, rows = _pooled(study, "svm")
    count = len(study.labels[0])
    train, test = np.arange(count), np.arange(count, len(labels))
    if len(np.unique(labels[train])) < 2:
        raise MimError("evaluation svm: all labelled training samples are of one class; it needs two.")
    fits = Fits()
    shares = {MAJORITY: _majority(labels, train, test)}
    shares |= {row: fits.accuracy(features, labels, train, test) for row, features in rows.items()}
    scores = [
        Score(row, "SVM", share, error=standard_errors.share_error(share, len(test))) for row, share in shares.items()
    ]
    study.notes += [f"SVM: {RULE}. In brackets: binomial standard errors.", *fits.notes("SVM")]
    return scores


def folds(study: Study) -> list[Score]:
    """Linear SVM in five stratified folds over both splits together: mean and standard deviation over the folds.

    Raises:
        MimError: No class has as many samples as there are folds, or there is one class only.
    """
    from sklearn.model_selection import StratifiedKFold

    name = f"SVM, {FOLDS} folds"
    labels, rows = _pooled(study, "folds")
    sizes = np.bincount(labels)
    if sizes.max() < FOLDS:
        raise MimError(f"evaluation folds: no class has {FOLDS} labelled samples; the largest has {sizes.max()}.")
    seed = randomness.torch_seed(_key(0, 0), "folds") % 2**32
    splitter = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)  # said below, with numbers
        parts = list(splitter.split(labels, labels))
    fits = Fits()
    scores = [_over_draws(MAJORITY, name, [_majority(labels, *part) for part in parts])]
    for row, features in rows.items():
        scores.append(_over_draws(row, name, [fits.accuracy(features, labels, *part) for part in parts]))
    scores = [replace(score, error=standard_errors.share_error(score.value, len(labels))) for score in scores]
    study.notes.append(
        f"{name}: {RULE}; stratified; mean and standard deviation over the folds, in brackets the binomial standard "
        f"error over all shapes. {POOLED}."
    )
    rare = int((sizes < FOLDS).sum())
    study.notes += [f"{name}: {rare} classes have fewer than {FOLDS} shapes and are not in every fold."] if rare else []
    study.notes += fits.notes(name)
    return scores


def few_shot(study: Study) -> list[Score]:
    """K classes, N shapes of each to learn from and up to 20 others of each to be judged on, all drawn anew in each of
    10 runs: mean and standard deviation over the runs, for 5 and 10 classes with 10 and 20 shapes.

    The splits and their numbers are those of Point-MAE's table (arXiv 2203.06604, section 4.2), which fine-tunes the
    whole network in each run; here the features stay frozen.
    """
    labels, rows = _pooled(study, "few-shot")
    sizes, fits, scores = np.bincount(labels), Fits(), []
    for ways in WAYS:
        for shots in SHOTS:
            name = f"{ways}-way {shots}-shot"
            fitting = np.flatnonzero(sizes > shots)
            if len(fitting) < ways:
                study.notes.append(
                    f"No {name}: {len(fitting)} of {len(sizes)} classes have more than {shots} labelled shapes, and "
                    f"it needs {ways}."
                )
                continue
            if len(fitting) < len(sizes) or sizes[fitting].min() < shots + QUERIES:
                fewest = min(QUERIES, int(sizes[fitting].min()) - shots)
                study.notes.append(
                    f"{name}: drawn from the {len(fitting)} of {len(sizes)} classes with more than {shots} shapes; "
                    f"{fewest} to {QUERIES} of each are judged."
                )
            parts = [draw(labels, fitting, ways, shots, run) for run in range(RUNS)]
            scores.append(Score(MAJORITY, name, 1 / ways))
            for row, features in rows.items():
                scores.append(_over_draws(row, name, [fits.accuracy(features, labels, *part) for part in parts]))
    if scores:
        study.notes.append(
            f"Few-shot: {RULE}. The features stay frozen, where Point-MAE's table has the whole network fine-tuned, so "
            f"the two do not compare. Mean and standard deviation over {RUNS} draws, in brackets the "
            "standard error of that mean; the majority class's row is "
            f"chance. {POOLED}."
        )
    study.notes += fits.notes("Few-shot")
    return scores


def draw(labels: Array, fitting: Array, ways: int, shots: int, run: int) -> tuple[Array, Array]:
    """Numbers of the samples to learn from [ways * shots] and to be judged on, for one run: ``ways`` of the classes
    ``fitting``, then samples of each. All follows from (ways, shots, run)."""
    key = _key(ways * 1000 + shots, run)
    train, test = [], []
    for label in fitting[_permutation(key, "classes", len(fitting))[:ways]]:
        own = np.flatnonzero(labels == label)
        own = own[_permutation(key, f"shapes of {label}", len(own))]
        train.append(own[:shots])
        test.append(own[shots : shots + QUERIES])
    return np.concatenate(train), np.concatenate(test)


def _pooled(study: Study, name: str) -> tuple[Array, dict[str, Array]]:
    """Labels of both splits, the training split first, and each row's features alike. Classes are numbered by first
    appearance, so that draws and ties do not depend on how they were numbered."""
    labels = torch.cat(study.labels).cpu().numpy()
    _, first, numbers = np.unique(labels, return_index=True, return_inverse=True)
    if len(first) < 2:
        raise MimError(f"evaluation {name}: all labelled samples are of one class; it needs two.")
    rows = {row: _array(torch.cat([features.train, features.test])) for row, features in study.rows.items()}
    broken = [row for row, features in rows.items() if not np.isfinite(features).all()]
    if broken:
        raise MimError(
            f"evaluation {name}: features of {', '.join(broken)} are not finite; the weights may have diverged."
        )
    return first.argsort().argsort()[numbers], rows


def _array(features: Tensor) -> Array:
    return np.asarray(features.detach().cpu().double().numpy())


def _key(about: int, run: int) -> int:
    return int(randomness.make_key(about, 0, torch.tensor([run]))[0])


def _permutation(key: int, stream: str, count: int) -> Array:
    return np.asarray(randomness.permutation(torch.tensor([key]), stream, count)[0].numpy())


def _majority(labels: Array, train: Array, test: Array) -> float:
    return float((labels[test] == np.bincount(labels[train]).argmax()).mean())


def _over_draws(row: str, column: str, values: list[float]) -> Score:
    spread = float(np.std(values, ddof=1))
    return Score(row, column, float(np.mean(values)), spread, error=spread / len(values) ** 0.5)
