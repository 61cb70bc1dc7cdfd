"""Scores of predictions for every pixel: intersection over union of classes, and errors of depth."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from mim_core import standard_errors
from torch import Tensor

SMALLEST = 1e-6
"""Depths are at least this in ratios and logarithms."""


@dataclass
class ClassCounts:
    """Pixels of each class over all pictures, from which scores of classes follow. They are pooled, not averaged over
    pictures.

    Attributes:
        classes: How many there are.
        ignored: The label of pixels that do not count; so do all labels beyond the classes.
        table: [labelled class, predicted class] pixels; predictions that are no class stand in the last column.
    """

    classes: int
    ignored: int = 255
    table: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.table = torch.zeros(self.classes, self.classes + 1, dtype=torch.int64)

    def add(self, predicted: Int[Tensor, "*n"], labels: Int[Tensor, "*n"]) -> None:
        """Counts more pixels."""
        counts = (labels >= 0) & (labels < self.classes) & (labels != self.ignored)
        label, answer = labels[counts].long(), predicted[counts].long()
        answer = torch.where((answer >= 0) & (answer < self.classes), answer, self.classes)
        pairs = label * (self.classes + 1) + answer
        self.table += pairs.bincount(minlength=self.table.numel()).reshape(self.table.shape).cpu()

    def scores(self) -> dict[str, Tensor]:
        """ "pixel_accuracy", and of each class "class_accuracy", "iou" and "dice" with their means "mean_accuracy",
        "mean_iou" and "mean_dice", in float64. A class that is in neither map is nan and left out of the means; one
        that is predicted only has 0."""
        table = self.table.double()
        right, labelled, predicted = table.diagonal(), table.sum(dim=1), table[:, :-1].sum(dim=0)
        each = {
            "class_accuracy": right / labelled,
            "iou": right / (labelled + predicted - right),
            "dice": 2 * right / (labelled + predicted),
        }
        means = {"mean_accuracy": "class_accuracy", "mean_iou": "iou", "mean_dice": "dice"}
        return {
            "pixel_accuracy": right.sum() / labelled.sum(),
            **each,
            **{mean: each[name].nanmean() for mean, name in means.items()},
        }


def depth_scores(preds: Float[Tensor, "*n"], depth: Float[Tensor, "*n"], valid: Bool[Tensor, "*n"]) -> dict[str, float]:
    """Errors of depth over all valid pixels together, in the unit of the depths (Eigen et al., arXiv 1406.2283, section
    4.3): "rmse", "abs_rel", "sq_rel", "delta_1" to "delta_3" (the share whose ratio is below 1.25 to its power),
    "rmse_log" (natural logarithm) and "log10".

    Raises:
        ValueError: No pixel is valid.
    """
    if not bool(valid.any()):
        raise ValueError("no pixel has a depth to compare with")
    preds, depth = preds[valid].double(), depth[valid].double()
    safe, real = preds.clamp(min=SMALLEST), depth.clamp(min=SMALLEST)
    ratio = torch.maximum(safe / real, real / safe)
    logarithm = safe.log() - real.log()
    values = {
        "rmse": (preds - depth).square().mean().sqrt(),
        "abs_rel": ((preds - depth).abs() / real).mean(),
        "sq_rel": ((preds - depth).square() / real).mean(),
        **{f"delta_{power}": (ratio < 1.25**power).double().mean() for power in (1, 2, 3)},
        "rmse_log": logarithm.square().mean().sqrt(),
        "log10": (safe.log10() - real.log10()).abs().mean(),
    }
    return {name: float(value.detach()) for name, value in values.items()}


def depth_errors(
    preds: Float[Tensor, "n ..."], depth: Float[Tensor, "n ..."], valid: Bool[Tensor, "n ..."]
) -> dict[str, float | None]:
    """Standard errors of `depth_scores` over the n samples, by the jackknife with groups, see
    `mim_core.standard_errors.jackknife_error`: each score is a mean over pixels, or its root, so that the groups' own
    scores tell what is left without one."""
    part = torch.arange(len(preds)) % standard_errors.GROUPS
    kept = [part == one for one in part.unique() if bool(valid[part == one].any())]
    groups = [depth_scores(preds[own], depth[own], valid[own]) for own in kept]
    weight = torch.tensor([int(valid[own].sum()) for own in kept], dtype=torch.float64)
    errors: dict[str, float | None] = {}
    for name in groups[0] if groups else ():
        power = 2 if name.startswith("rmse") else 1
        sums = torch.tensor([each[name] for each in groups], dtype=torch.float64) ** power * weight
        without = ((sums.sum() - sums) / (weight.sum() - weight)) ** (1 / power)
        errors[name] = standard_errors.grouped_error(without.tolist())
    return errors


@dataclass
class GroupedCounts:
    """The pixels of each class, of all samples and of each group of samples, see `mim_core.standard_errors`.

    Args:
        classes: How many there are.
        ignored: The label of pixels that do not count.
    """

    classes: int
    ignored: int = 255
    groups: list[ClassCounts] = field(init=False)

    def __post_init__(self) -> None:
        self.groups = [ClassCounts(self.classes, self.ignored) for _ in range(standard_errors.GROUPS)]

    def add(self, predicted: Int[Tensor, "B ..."], labels: Int[Tensor, "B ..."], samples: Int[Tensor, " B"]) -> None:
        """Counts more samples, which have these numbers."""
        for one in (samples % standard_errors.GROUPS).unique():
            own = samples % standard_errors.GROUPS == one
            self.groups[int(one)].add(predicted[own], labels[own])

    def whole(self, left_out: int | None = None) -> ClassCounts:
        """All pixels, or those without a group's."""
        total = ClassCounts(self.classes, self.ignored)
        total.table = sum(
            (each.table for number, each in enumerate(self.groups) if number != left_out), torch.zeros_like(total.table)
        )
        return total

    def errors(self) -> dict[str, float | None]:
        """Standard errors of the scores that are one number, by name."""
        used = [number for number, each in enumerate(self.groups) if bool(each.table.any())]
        parts = [self.whole(number).scores() for number in used]
        names = [name for name, value in self.whole().scores().items() if value.ndim == 0]
        return {name: standard_errors.grouped_error([float(part[name]) for part in parts]) for name in names}


def berhu(preds: Float[Tensor, "*n"], wanted: Float[Tensor, "*n"], valid: Bool[Tensor, "*n"]) -> Float[Tensor, ""]:
    """The reverse Huber loss (arXiv 1606.00373, equation 1): absolute errors, and quadratic beyond a fifth of the
    largest one in the batch; the mean over valid pixels."""
    error = (preds - wanted).abs().masked_fill(~valid, 0.0)
    limit = (0.2 * error.detach().max()).clamp(min=1e-5)
    large = (error.square() + limit.square()) / (2 * limit)
    loss = torch.where(error <= limit, error, large).masked_fill(~valid, 0.0)
    return loss.sum() / valid.sum().clamp(min=1)
