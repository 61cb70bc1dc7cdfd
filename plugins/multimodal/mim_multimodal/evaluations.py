"""Linear probes of frozen features at every place of a picture, for the classes and the depth there.

MultiMAE (arXiv 2204.01678, section 4) fine-tunes whole networks with heads for these tasks; here the encoder stays
frozen and one linear layer is fitted, so the scores do not compare with the paper's. What they compare is the rows of
one table, and inputs: colour alone, depth alone, and both. The modality that is predicted is never an input.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from mim_core import MAJORITY, MimError, Score, Study, counted, standard_errors
from torch import Tensor
from torch.nn import functional as F

from mim_multimodal.dense import Dense, cut

ERRORS = f"In brackets: standard errors over the test items, by the jackknife with {standard_errors.GROUPS} groups."
IGNORE = 255
"""The id that is no class."""
STEPS = 100
"""Of L-BFGS, at most."""
CHUNK = 8192
"""Places that are worked on at once."""
STEP = 1 / 255
"""The smallest depth, as a share of the largest: one step of an 8-bit map."""


def segmentation(study: Study) -> list[Score]:
    """Multinomial logistic regression from the features of a place to the classes of its positions: the mean over
    classes of intersection over union (mIoU), and the share of positions that are right.

    Raises:
        MimError: The run's data have no class ids, or no place of the training split has a class.
    """
    dense = Dense(study, "segmentation", "semseg", "semseg")
    train, test = dense.train.labels.long(), dense.test.labels.long()
    ids = torch.cat([train[train != IGNORE].unique(), test[test != IGNORE].unique()]).unique()
    if not len(ids) or not (train != IGNORE).any():
        raise MimError("evaluation segmentation: no pixel of the training split has a class.")
    classes = int(ids.max()) + 1
    common = commonest(train, classes).expand_as(test)
    scores: list[Score] = []
    for row, inputs, x, t in dense.rows():
        grid, text = dense.grid(inputs), " + ".join(inputs)
        if not any(score.column == f"mIoU, {text}" for score in scores):
            scores += _segmentation_scores(MAJORITY, text, common, test, classes)
        a, b = cut(train, grid), cut(test, grid)
        device = study.device
        predictions = classify(_rows(x, device), _rows(a, device), _rows(t, device), classes, study.config.l2)
        scores += _segmentation_scores(row, text, predictions.cpu().reshape(b.shape), b, classes)
    in_test = counted(len(test[test != IGNORE].unique()), "class", "classes")
    study.notes.append(
        "Segmentation: logistic regression of every unit's features of mean 0 and deviation 1 (L-BFGS, at most "
        f"{STEPS} steps). mIoU is over the {in_test} that the test maps show; "
        f"pixels without a class do not count. The row {MAJORITY!r} has, at each pixel, the commonest class there. "
        f"{ERRORS}"
    )
    return scores


def depth(study: Study) -> list[Score]:
    """Ridge regression from the features of a place to the depth of its pixels: root mean square error, and the share
    of pixels with max(p / t, t / p) below 1.25 (delta 1).

    Depth is the file's, as a share of the largest of the training split and at least 1/255; the predictions are held
    to the same least value.

    Raises:
        MimError: The run's data have no depth, or none that is positive.
    """
    dense = Dense(study, "depth", "depth_raw", "depth")
    train, test = dense.train.labels.double(), dense.test.labels.double()
    largest = float(train.nan_to_num(nan=0.0).max())
    if largest <= 0:
        raise MimError("evaluation depth: no pixel of the training split has a positive depth.")
    train, test = (maps.div(largest).clamp(min=STEP) for maps in (train, test))
    mean = train.nanmean(dim=0).nan_to_num(nan=float(train.nanmean()))
    scores: list[Score] = []
    for row, inputs, x, t in dense.rows():
        grid, text = dense.grid(inputs), " + ".join(inputs)
        if not any(score.column == f"RMSE, {text}" for score in scores):
            scores += _depth_scores(MAJORITY, text, mean.expand_as(test), test)
        a, b = cut(train, grid), cut(test, grid)
        device = study.device
        predictions = regress(_rows(x, device), _rows(a, device), _rows(t, device), study.config.l2)
        scores += _depth_scores(row, text, predictions.cpu().reshape(b.shape), b)
    study.notes.append(
        "Depth: ridge regression of every unit's features of mean 0 and deviation 1. In shares of the largest training "
        f"depth, which is {largest:g} in the files' unit. Pixels without measurement do "
        f"not count, and units that have any are left out of the fit. The row {MAJORITY!r} has, at each pixel, the "
        f"mean there. delta 1: the share of pixels within a factor of 1.25. {ERRORS}"
    )
    return scores


# ---- fits ------------------------------------------------------------------------------------------------------------


class Standardised(NamedTuple):
    """Features of two splits by the mean and the deviation of the first; constant ones are centred only."""

    train: Tensor
    test: Tensor


def standardise(train: Float[Tensor, "R D"], test: Float[Tensor, "S D"]) -> Standardised:
    """Both splits brought to one scale."""
    mean, scale = train.mean(dim=0), train.std(dim=0, correction=0)
    scale = scale.where(scale > 1e-6, torch.ones_like(scale))
    return Standardised((train - mean) / scale, (test - mean) / scale)


def classify(
    train: Float[Tensor, "R D"], labels: Int[Tensor, "R P"], test: Float[Tensor, "S D"], classes: int, l2: float
) -> Int[Tensor, "S P"]:
    """Multinomial logistic regression, one for each of P positions, all at once: the class of each position.

    Minimises the sum of cross-entropies + l2 / 2 * |W|^2, the biases free, as scikit-learn's LogisticRegression with
    C = 1 / l2 does on features of mean 0 and deviation 1. Labels of 255 do not count. Deterministic: it starts at
    zero.
    """
    x, t = standardise(train, test)
    kept = (labels != IGNORE).any(dim=1)
    x, labels = x[kept], labels[kept]
    count = int((labels != IGNORE).sum())
    weight = torch.zeros(x.shape[1], labels.shape[1] * classes, device=x.device, requires_grad=True)
    bias = torch.zeros(labels.shape[1] * classes, device=x.device, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=STEPS,
        history_size=10,
        line_search_fn="strong_wolfe",
        tolerance_grad=1e-6,
        tolerance_change=1e-9,
    )
    answers = F.one_hot(labels.where(labels != IGNORE, classes), classes + 1)[..., :-1].to(torch.bool)

    def closure() -> Tensor:
        loss = l2 / 2 * weight.square().sum()
        weight.grad, bias.grad = l2 * weight, torch.zeros_like(bias)
        for part, right in zip(x.split(CHUNK), answers.split(CHUNK), strict=True):
            log = torch.log_softmax((part @ weight + bias).reshape(right.shape), dim=2)
            loss = loss - log[right].sum()
            slope = ((log.exp() - right.float()) * right.any(dim=2, keepdim=True)).flatten(1)
            weight.grad += part.T @ slope
            bias.grad += slope.sum(dim=0)
        weight.grad /= count
        bias.grad /= count
        return loss / count

    with torch.no_grad():
        optimizer.step(closure)
        predictions = [(part @ weight + bias).reshape(len(part), -1, classes).argmax(dim=2) for part in t.split(CHUNK)]
    return torch.cat(predictions)


def regress(
    train: Float[Tensor, "R D"], values: Float[Tensor, "R P"], test: Float[Tensor, "S D"], l2: float
) -> Float[Tensor, "S P"]:
    """Ridge regression in closed form, in double precision: scikit-learn's Ridge with alpha = l2 on features of mean 0
    and deviation 1. Rows with a NaN are left out of the fit.

    Raises:
        MimError: All rows have one.
    """
    whole = ~values.isnan().any(dim=1)
    if not whole.any():
        raise MimError("evaluation depth: no unit of the training split is measured in all its pixels.")
    x, t = standardise(train[whole], test)
    mean = values[whole].double().mean(dim=0)
    covariance = x.new_zeros(x.shape[1], x.shape[1], dtype=torch.float64)
    products = x.new_zeros(x.shape[1], values.shape[1], dtype=torch.float64)
    middle = x.double().mean(dim=0)  # zero but for rounding
    for part, answers in zip(x.split(CHUNK), values[whole].split(CHUNK), strict=True):
        wide = part.double() - middle
        covariance += wide.T @ wide
        products += wide.T @ (answers.double() - mean)
    covariance.diagonal().add_(max(l2, 1e-9 * len(x)))  # a little, so that equal features have one solution
    weight = torch.linalg.solve(covariance, products)
    return torch.cat([(part.double() - middle) @ weight + mean for part in t.split(CHUNK)])


# ---- scores ----------------------------------------------------------------------------------------------------------


def commonest(maps: Int[Tensor, "n h w"], classes: int) -> Int[Tensor, "h w"]:
    """The commonest class at each pixel; where there is none, the commonest of all."""
    counts = torch.stack([(maps == number).sum(dim=0) for number in range(classes)])
    return counts.argmax(dim=0).where(counts.sum(dim=0) > 0, counts.sum(dim=(1, 2)).argmax())


def mean_iou(preds: Int[Tensor, ...], right: Int[Tensor, ...], classes: int) -> tuple[float, float]:
    """Mean of intersection over union of the classes that ``right`` shows, and the share of pixels that are right; 255
    does not count.

    Raises:
        MimError: No pixel has a class.
    """
    seen = right != IGNORE
    pairs = right[seen].long() * classes + preds[seen].long()
    table = pairs.bincount(minlength=classes * classes).reshape(classes, classes).double()
    hits, actual, guessed = table.diagonal(), table.sum(dim=1), table.sum(dim=0)
    present = actual > 0
    if not present.any():
        raise MimError("evaluation segmentation: no pixel of the test split has a class.")
    return float((hits / (actual + guessed - hits))[present].mean()), float(hits.sum() / table.sum())


def depth_errors(preds: Float[Tensor, ...], right: Float[Tensor, ...]) -> tuple[float, float]:
    """Root mean square error, and delta 1, over pixels that are no NaN in ``right``.

    Raises:
        MimError: No pixel was measured.
    """
    seen = ~right.isnan()
    if not seen.any():
        raise MimError("evaluation depth: no pixel of the test split was measured.")
    p, t = preds[seen].double().clamp(min=STEP), right[seen].double()
    return float((p - t).square().mean().sqrt()), float((torch.maximum(p / t, t / p) < 1.25).double().mean())


def _segmentation_scores(row: str, inputs: str, preds: Tensor, right: Tensor, classes: int) -> list[Score]:
    values, names = mean_iou(preds, right, classes), (f"mIoU, {inputs}", f"pixels, {inputs}")
    return [
        Score(row, name, values[n], error=_error(lambda kept: mean_iou(preds[kept], right[kept], classes)[n], preds))  # noqa: B023
        for n, name in enumerate(names)
    ]


def _depth_scores(row: str, inputs: str, preds: Tensor, right: Tensor) -> list[Score]:
    error, near = depth_errors(preds, right)
    noise = [_error(lambda kept: depth_errors(preds[kept], right[kept])[n], preds) for n in range(2)]  # noqa: B023
    return [
        Score(row, f"RMSE, {inputs}", error, lower_is_better=True, error=noise[0]),
        Score(row, f"delta 1, {inputs}", near, error=noise[1]),
    ]


def _error(score: Callable[[Tensor], float], preds: Tensor) -> float | None:
    """The standard error of a score of all items [n, ...]."""
    return standard_errors.jackknife_error(score, len(preds))


def _rows(values: Tensor, device: torch.device) -> Tensor:
    """[n, N, D] as one row per place, on the device."""
    return values.flatten(0, 1).to(device)
