"""Checks of what :mod:`mim_pointcloud.geometry` is given, and the type and scale that it computes in."""

from __future__ import annotations

import operator
from typing import SupportsIndex

import torch
from torch import Tensor

SCALE = 40
"""Exponent of 2 from which on coordinates are scaled before farthest points are sought."""


def widened(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The same in float32, or in float64 where one of them is."""
    wide = torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32
    return tuple(tensor.to(wide) for tensor in tensors)


def scaled(points: Tensor) -> Tensor:
    """Clouds of common size as they are, others near 1: a power of 2 changes no comparison. Nothing waits for a GPU.

    Raises:
        ValueError: A cloud on the CPU has NaN or infinities, outside of compiled code.
    """
    largest = points.abs().amax((1, 2), keepdim=True)
    if points.device.type == "cpu" and not torch.compiler.is_compiling():
        wrong = (~largest.isfinite()).flatten().nonzero().flatten().tolist()
        if wrong:
            raise ValueError(f"farthest_points takes finite coordinates; cloud {wrong[0]} has NaN or infinities")
        if not ((largest > 2.0**SCALE) | (largest < 2.0**-SCALE)).any():
            return points
    exponent = largest.log2().floor() + 1  # frexp's, to one; ONNX lacks frexp
    exponent = exponent.where((exponent.abs() > SCALE) & (largest > 0), 0)
    half = (exponent / 2).floor()  # in two steps: one factor alone may be no normal number
    return points * torch.exp2(-half) * torch.exp2(half - exponent)


def first_of(points: Tensor, start: SupportsIndex | Tensor) -> Tensor:
    """The indices [B, 1] of the first points. On a GPU they are checked there, so that nothing waits.

    Raises:
        ValueError: ``start`` is no whole number for each cloud, or there is no such point.
    """
    clouds, number = points.shape[:2]
    if not isinstance(start, Tensor):
        start = operator.index(start)
        if not 0 <= start < number:
            raise ValueError(f"there is no point {start} to start from: the clouds have {number}")
        return torch.full((clouds, 1), start, dtype=torch.int64, device=points.device)
    if start.shape != (clouds,) or start.is_floating_point() or start.dtype == torch.bool:
        raise ValueError(f"start takes whole numbers [{clouds}], not {start.dtype} {tuple(start.shape)}")
    start = start.long()
    good = ((start >= 0) & (start < number)).all()
    if start.device.type == "cuda":
        torch._assert_async(good)
    elif start.device.type != "meta" and not good:
        raise ValueError(f"no point to start from: start is {start.tolist()}, the clouds have {number} points")
    return start.to(points.device)[:, None]


def check_clouds(a: Tensor, b: Tensor) -> None:
    """Two batches of clouds go together.

    Raises:
        ValueError: They do not.
    """
    if a.ndim != 3 or b.ndim != 3 or a.shape[0] != b.shape[0] or a.shape[2] != b.shape[2] or not a.shape[2]:
        raise ValueError(f"two batches [B, *, d] of clouds are needed, not {tuple(a.shape)} and {tuple(b.shape)}")
