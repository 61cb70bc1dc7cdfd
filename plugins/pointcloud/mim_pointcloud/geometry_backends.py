"""pytorch3d and fpsample behind the signatures of :mod:`mim_pointcloud.geometry`, which checks what is given."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from mim_core import MimError
from torch import Tensor

from mim_pointcloud import geometry


class Pytorch3d:
    """pytorch3d's operations, as of version 0.7. They compute in float32 alone and promise nothing about ties."""

    @staticmethod
    def farthest_points(
        points: Float[Tensor, "B P 3"], count: int, first: Int64[Tensor, "B 1"]
    ) -> Int64[Tensor, "B count"]:
        """See :func:`mim_pointcloud.geometry.farthest_points`. pytorch3d starts at point 0 of each cloud: the wanted
        first point and that one change places before, and their indices after."""
        swapped = points.float().clone()
        clouds = torch.arange(points.shape[0], device=points.device)[:, None]
        swapped[clouds, first] = points[:, :1].float()
        swapped[:, :1] = points[clouds, first].float()
        _, ids = _module("pytorch3d.ops").sample_farthest_points(swapped, K=count, random_start_point=False)
        return torch.where(ids == 0, first, torch.where(ids == first, 0, ids))

    @staticmethod
    def nearest(
        queries: Float[Tensor, "B Q d"], points: Float[Tensor, "B P d"], k: int
    ) -> tuple[Float[Tensor, "B Q k"], Int64[Tensor, "B Q k"]]:
        """See :func:`mim_pointcloud.geometry.nearest`."""
        neighbours = _module("pytorch3d.ops").knn_points(queries.float(), points.float(), K=k, return_sorted=True)
        return neighbours.dists.to(points.dtype), neighbours.idx

    @staticmethod
    def within(
        queries: Float[Tensor, "B Q d"], points: Float[Tensor, "B P d"], radius: float, k: int
    ) -> Int64[Tensor, "B Q k"]:
        """See :func:`mim_pointcloud.geometry.within`. pytorch3d fills up with -1."""
        queries, points = queries.float(), points.float()
        ids = _module("pytorch3d.ops").ball_query(queries, points, K=k, radius=radius, return_nn=False).idx
        _, closest = Pytorch3d.nearest(queries, points, 1)
        first = torch.where(ids[..., :1] < 0, closest, ids[..., :1])
        return torch.where(ids < 0, first, ids)

    @staticmethod
    def chamfer(a: Float[Tensor, "B n d"], b: Float[Tensor, "B m d"], norm: str) -> Float[Tensor, " B"]:
        """See :func:`mim_pointcloud.geometry.chamfer`. pytorch3d's own norm 1 is the sum of absolute differences, not
        the distance; l1 is made of its nearest neighbours instead."""
        if norm == "l1":
            return geometry.combined(Pytorch3d.nearest(a, b, 1)[0], Pytorch3d.nearest(b, a, 1)[0], norm)
        chamfer_distance = _module("pytorch3d.loss").chamfer_distance
        distances, _ = chamfer_distance(a.float(), b.float(), batch_reduction=None, point_reduction="mean")
        return distances.to(a.dtype)


class Fpsample:
    """fpsample's plain farthest point sampling, a cloud at a time on the CPU, in float32.

    Among equal distances it takes the highest index: it is given each cloud back to front.
    """

    @staticmethod
    def farthest_points(
        points: Float[Tensor, "B P 3"], count: int, first: Int64[Tensor, "B 1"]
    ) -> Int64[Tensor, "B count"]:
        """See :func:`mim_pointcloud.geometry.farthest_points`.

        Raises:
            MimError: The points are not on the CPU.
        """
        if points.device.type != "cpu":
            raise MimError(f"fpsample works on the CPU; these points are on {points.device}. Choose auto, or torch.")
        sample, end = _module("fpsample").fps_sampling, points.shape[1] - 1
        ids = np.empty((points.shape[0], count), dtype=np.int64)
        for row, cloud, start in zip(ids, points.float().flip(1).numpy(), first[:, 0].tolist(), strict=True):
            row[:] = sample(cloud, count, start_idx=end - start)
        return torch.from_numpy(end - ids)


ADAPTERS = {"pytorch3d": Pytorch3d, "fpsample": Fpsample}
"""Adapters by the library's name."""


def _module(name: str) -> Any:
    return importlib.import_module(name)
