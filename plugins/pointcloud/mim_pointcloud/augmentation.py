"""What is done to a cloud after reading: choosing points, the unit sphere, and augmentation; all draws by key."""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float, Int
from mim_core import BadSample, randomness
from torch import Tensor

Axis = Literal["x", "y", "z"]


def choose_points(available: int, count: int, key: int) -> Int[Tensor, " count"]:
    """Which of the available points are taken: a random subset; where there are too few, all in a random order and
    then repeats drawn from them.

    Raises:
        BadSample: There are no points.
    """
    if not available:
        raise BadSample("", "it has no points")
    keys = torch.tensor([key])
    chosen = randomness.permutation(keys, "points", available)[0, :count]
    if available < count:
        draws = randomness.uniform(keys, "repeated points", count - available)[0]
        chosen = torch.cat([chosen, (draws * available).long()])
    return chosen


def to_unit_sphere(points: Float[Tensor, "P C"]) -> Float[Tensor, "P C"]:
    """The first three channels less their mean, divided by the largest distance from it (Point-MAE's code).

    Raises:
        BadSample: All points lie at one place, so there is no shape.
    """
    places = points[:, :3].double()
    spread = places.amax(0) - places.amin(0)
    if not (spread > 1e-7 * places.abs().max()).any():
        raise BadSample("", "all its points lie at one place")
    centred = places - places.mean(0)
    centred = centred / centred.norm(dim=1).max()
    return torch.cat([centred.to(points.dtype), points[:, 3:]], dim=1)


def scale_and_shift(
    points: Float[Tensor, "P C"], scale: tuple[float, float], shift: float, key: int, normals: int | None = None
) -> Float[Tensor, "P C"]:
    """Each axis times its own factor, uniform in ``scale``, plus its own shift, uniform in +-``shift`` (Point-MAE,
    section 4.1).

    Args:
        points: Coordinates and further channels.
        scale: Smallest and largest factor.
        shift: Largest shift.
        key: Of the draws.
        normals: The first of three channels with normals. They turn as the scaled surface does, and keep length 1.
    """
    draws = randomness.uniform(torch.tensor([key]), "scale and shift", 6)[0].to(points.dtype)
    factors = scale[0] + (scale[1] - scale[0]) * draws[:3]
    changed = points.clone()
    changed[:, :3] = points[:, :3] * factors + (2 * draws[3:] - 1) * shift
    if normals is not None:
        turned = points[:, normals : normals + 3] / factors
        changed[:, normals : normals + 3] = torch.nn.functional.normalize(turned, dim=1)
    return changed


def rotate(points: Float[Tensor, "P C"], up: Axis, key: int, normals: int | None = None) -> Float[Tensor, "P C"]:
    """Turned about the upright axis by an angle uniform in a full turn; normals turn too."""
    angle = 2 * math.pi * float(randomness.uniform(torch.tensor([key]), "rotation", 1))
    first, second = ((1, 2), (2, 0), (0, 1))["xyz".index(up)]
    turn = torch.eye(3, dtype=points.dtype)
    turn[first, first] = turn[second, second] = math.cos(angle)
    turn[first, second], turn[second, first] = -math.sin(angle), math.sin(angle)
    changed = points.clone()
    for start in (0, *(() if normals is None else (normals,))):
        changed[:, start : start + 3] = points[:, start : start + 3] @ turn.T
    return changed
