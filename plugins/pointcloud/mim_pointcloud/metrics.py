"""Intersection over union of parts, as PointNet defines it (arXiv 1612.00593, section 5.1)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor


def part_iou(
    predicted: Int[Tensor, "n P"],
    truth: Int[Tensor, "n P"],
    categories: Int[Tensor, " n"],
    parts_of: Mapping[int, tuple[int, ...]],
) -> tuple[float, float, dict[int, float]]:
    """How well the parts of shapes were found, see `shape_iou`.

    Args:
        predicted: The part of each point.
        truth: The same, as labelled.
        categories: Of each shape.
        parts_of: The parts that a category has.

    Returns:
        (class mIoU: the mean over the categories present, instance mIoU: the mean over shapes, mean by category), all
        in [0, 1].

    Raises:
        ValueError: As `shape_iou`.
    """
    values = shape_iou(predicted, truth, categories, parts_of)
    by_category = {int(one): float(values[categories == one].mean()) for one in categories.unique()}
    return sum(by_category.values()) / len(by_category), float(values.mean()), by_category


def shape_iou(
    predicted: Int[Tensor, "n P"],
    truth: Int[Tensor, "n P"],
    categories: Int[Tensor, " n"],
    parts_of: Mapping[int, tuple[int, ...]],
) -> Float[Tensor, " n"]:
    """How well the parts of each shape were found.

    A shape's value is the mean over the parts of its category of intersection over union; a part that is in neither
    prediction nor truth counts as 1. What is predicted as a part of another category is wrong everywhere.

    Args:
        predicted: The part of each point.
        truth: The same, as labelled.
        categories: Of each shape.
        parts_of: The parts that a category has.

    Raises:
        ValueError: There are no shapes, a category has no parts, or a labelled part is not one of its category's.
    """
    if predicted.numel() == 0:
        raise ValueError(f"no points to compare: predicted is {tuple(predicted.shape)}")
    values = torch.zeros(len(truth), dtype=torch.float64, device=truth.device)
    present = categories.unique().tolist()
    for category in present:
        parts = parts_of.get(category, ())
        if not parts:
            raise ValueError(f"category {category} has no parts; those that do: {sorted(parts_of)}")
        chosen = categories == category
        names = torch.tensor(parts, dtype=truth.dtype, device=truth.device)
        true = truth[chosen, :, None] == names
        strange = truth[chosen][~true.any(dim=2)].unique().tolist()
        if strange:
            raise ValueError(f"shapes of category {category} have parts {strange}; parts_of says {list(parts)}")
        guessed = predicted[chosen, :, None] == names
        shared, either = (both.sum(dim=1).double() for both in (true & guessed, true | guessed))
        values[chosen] = torch.where(either == 0, 1.0, shared / either.clamp(min=1)).mean(dim=1)
    return values
