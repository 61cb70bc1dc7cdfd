"""Farthest point sampling in one Triton kernel: a program for each cloud, all steps without leaving the GPU."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int64
from mim_core import MimError
from torch import Tensor

RESIDENT = 4096
"""Clouds of up to this many points stay in registers; larger ones are read tile by tile in every step."""


def _kernel(function: Callable[..., Any]) -> Any:
    """`triton.jit` of the function itself: what checks types at run time wraps it, and triton would look for the
    kernel's names in the module of the wrapper."""
    return triton.jit(inspect.unwrap(function))


@_kernel
def farthest_kernel(points, first, least, ids, number, count, WIDTH: tl.constexpr, WHOLE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Indices of the farthest points of one cloud.

    Args:
        points: [B, 3, P], coordinate by coordinate.
        first: int64 [B], the points to start from.
        least: [B, P], room for distances to the nearest chosen point, infinite at first; not used if ``WHOLE``.
        ids: int64 [B, count], the result.
        number: P.
        count: Points to choose.
        WIDTH: Points taken at once, a power of 2.
        WHOLE: All points are taken at once.
    """
    cloud = tl.program_id(0).to(tl.int64)
    points += cloud * 3 * number
    least += cloud * number
    ids += cloud * count
    lanes = tl.arange(0, WIDTH)
    last = tl.load(first + cloud)
    if WHOLE:
        here = lanes < number
        x = tl.load(points + lanes, here, 0.0)
        y = tl.load(points + number + lanes, here, 0.0)
        z = tl.load(points + 2 * number + lanes, here, 0.0)
        near = tl.where(here, float("inf"), -1.0).to(x.dtype)  # lanes beyond the cloud are never the farthest
    for step in range(count):
        tl.store(ids + step, last)
        at_x = tl.load(points + last)
        at_y = tl.load(points + number + last)
        at_z = tl.load(points + 2 * number + last)
        if WHOLE:
            near = tl.minimum(near, (x - at_x) * (x - at_x) + (y - at_y) * (y - at_y) + (z - at_z) * (z - at_z))
            last = tl.argmax(near, 0, tie_break_left=True).to(tl.int64)
        else:
            farthest = tl.full((WIDTH,), -1.0, at_x.dtype)
            places = lanes
            for begin in range(0, number, WIDTH):
                place = begin + lanes
                here = place < number
                dx = tl.load(points + place, here, 0.0) - at_x
                dy = tl.load(points + number + place, here, 0.0) - at_y
                dz = tl.load(points + 2 * number + place, here, 0.0) - at_z
                near_tile = tl.minimum(tl.load(least + place, here, -1.0), dx * dx + dy * dy + dz * dz)
                tl.store(least + place, near_tile, here)
                better = here & (near_tile > farthest)  # strictly: the earlier tile wins a tie
                farthest = tl.where(better, near_tile, farthest)
                places = tl.where(better, place, places)
            tl.debug_barrier()  # the next step may read what another thread has written
            ties = tl.where(farthest == tl.max(farthest, 0), places, 2147483647)
            last = tl.min(ties, 0).to(tl.int64)


def farthest_points(
    points: Float[Tensor, "B P 3"], count: int, first: Int64[Tensor, "B 1"]
) -> Int64[Tensor, "B count"]:
    """See :func:`mim_pointcloud.geometry.farthest_points`, which checks what is given.

    Raises:
        MimError: The points are not on a GPU (and TRITON_INTERPRET is not 1).
    """
    if points.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        raise MimError("triton works on CUDA tensors; these points are on the CPU. Choose auto, torch or fpsample.")
    clouds, number, _ = points.shape
    ids = torch.empty((clouds, count), dtype=torch.int64, device=points.device)
    if not clouds:
        return ids
    whole = number <= RESIDENT
    width = max(32, triton.next_power_of_2(number)) if whole else RESIDENT
    least = points.new_empty(0) if whole else points.new_full((clouds, number), torch.inf)
    with torch.cuda.device_of(points):
        farthest_kernel[(clouds,)](
            points.transpose(1, 2).contiguous(),
            first[:, 0].contiguous(),
            least,
            ids,
            number,
            count,
            WIDTH=width,
            WHOLE=whole,
            num_warps=min(16, max(1, width // 128)),
            enable_fp_fusion=False,  # a product rounded before it is added, as torch does
        )
    return ids
