"""A description of clouds by hand: histograms, as a floor that learned features should beat."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from mim_pointcloud.augmentation import Axis

BINS = 14
"""Of each of the three histograms; with the box, 45 features."""
OFFSETS = (1, 7, 61, 211)
"""Pairs of points: each with those so many places further on. Points come in random order."""


def describe(points: Float[Tensor, "B P C"], up: Axis = "y") -> Float[Tensor, "B 45"]:
    """The bounding box's sides, and histograms of distances from the centre, distances within pairs, and heights.

    Clouds are centred and scaled to the unit sphere first, so their place and size do not count; histograms hold
    shares of points, and the order of points counts only through the choice of pairs.
    """
    places = points[..., :3].float()
    places = places - places.mean(1, keepdim=True)
    places = places / places.norm(dim=2).amax(1)[:, None, None].clamp_min(1e-12)
    pairs = torch.cat([(places - places.roll(offset, dims=1)).norm(dim=2) for offset in OFFSETS], dim=1)
    heights = places[..., "xyz".index(up)]
    box = places.amax(1) - places.amin(1)
    shares = [_histogram(places.norm(dim=2), 0, 1), _histogram(pairs, 0, 2), _histogram(heights, -1, 1)]
    return torch.cat([box, *shares], dim=1)


def _histogram(values: Tensor, low: float, high: float) -> Tensor:
    """Shares of the values of each row in equal bins, [B, BINS]; the ends hold what lies beyond."""
    place = ((values - low) / (high - low) * BINS).long().clamp(0, BINS - 1)
    counts = torch.zeros(len(values), BINS, device=values.device)
    return counts.scatter_add(1, place, torch.ones_like(values)) / values.shape[1]
