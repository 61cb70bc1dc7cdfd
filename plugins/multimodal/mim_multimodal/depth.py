"""Depth maps made alike: no unit, and no pull of the nearest and farthest pixels."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

HUGE = 1e15
"""Values beyond this are divided by the largest of their map, which changes nothing of what is made of them."""


def standardise(depth: Float[Tensor, "B 1 H W"]) -> Float[Tensor, "B 1 H W"]:
    """Each map less the mean, by the deviation, of its middle values (MultiMAE, arXiv 2204.01678, section 3.3).

    Values that are not finite mean no measurement. Of a map's n measured values in rising order, those of rank
    floor(n / 10) up to but not floor(9 n / 10) count (ranks from 0; at least one), with their unbiased variance:
    ``(depth - mean) / sqrt(variance + 1e-6)``. Pixels without measurement become 0. All on the device, with no wait.

    Args:
        depth: Any unit, float32.
    """
    flat = depth.flatten(1).float()
    measured = flat.isfinite()
    largest = flat.abs().where(measured, 0).amax(dim=1, keepdim=True)
    flat = flat.where(measured, torch.nan) / largest.where(largest > HUGE, 1)  # so that squares stay finite
    count = measured.sum(dim=1, keepdim=True)
    rising = flat.sort(dim=1).values  # NaN is last
    rank = torch.arange(flat.shape[1], device=flat.device)
    first = count // 10
    last = torch.maximum(count * 9 // 10, first + 1).minimum(count)
    middle = (rank >= first) & (rank < last)
    number = middle.sum(dim=1, keepdim=True)
    mean = rising.where(middle, 0).sum(dim=1, keepdim=True) / number.clamp(min=1)
    squares = (rising - mean).where(middle, 0).square().sum(dim=1, keepdim=True)
    variance = squares / (number - 1).clamp(min=1)
    return ((flat - mean) / (variance + 1e-6).sqrt()).where(measured, 0).reshape(depth.shape)
