"""Neighbours in large clouds on a CPU, by scipy's search trees: equal to plain torch to the index."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int64
from mim_core import MimError
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from torch import Tensor

from mim_pointcloud import geometry

ROUNDS = 3
"""Searches, each for four times as many neighbours: those beyond the wanted ones show where equals end. All distances
are computed for the queries that have more equals still."""
PROBES = 64
"""Queries that are searched first: where none of them sees the end of equals, the others are not asked."""


def nearest(
    queries: Float[Tensor, "B Q d"], points: Float[Tensor, "B P d"], k: int
) -> tuple[Float[Tensor, "B Q k"], Int64[Tensor, "B Q k"]]:
    """See :func:`mim_pointcloud.geometry.nearest`.

    Raises:
        MimError: The points are not on the CPU.
    """
    ids = _ids(queries, points, k)
    return geometry.squared(queries, points, ids), ids


def chamfer(a: Float[Tensor, "B n d"], b: Float[Tensor, "B m d"], norm: str) -> Float[Tensor, " B"]:
    """See :func:`mim_pointcloud.geometry.chamfer`."""
    return geometry.combined(nearest(a, b, 1)[0], nearest(b, a, 1)[0], norm)


@torch.no_grad()
def _ids(queries: Tensor, points: Tensor, k: int) -> Tensor:
    if points.device.type != "cpu":
        raise MimError(f"scipy works on the CPU; these points are on {points.device}. Choose auto, or torch.")
    queries, points = queries.detach(), points.detach()
    ids = torch.empty((*queries.shape[:2], k), dtype=torch.int64)
    for row, wanted, cloud in zip(ids, queries, points, strict=True):
        done = torch.zeros(len(wanted), dtype=torch.bool)
        if wanted.isfinite().all() and cloud.isfinite().all():  # a tree takes no others
            _search(row, done, wanted, cloud)
        left = ~done
        if left.any():
            row[left] = geometry.nearest(wanted[left][None], cloud[None], k, ops="torch")[1][0]
    return ids


def _search(row: Tensor, done: Tensor, queries: Tensor, cloud: Tensor) -> None:
    """Fill in the ``row`` [Q, k] where the tree gives all that could be among the nearest, and mark those `done`."""
    k = row.shape[1]
    # medians, which balance a tree, take long to find where many points coincide
    tree = cKDTree(cloud.double().numpy(), balanced_tree=False, compact_nodes=False)
    wide = k + 1 + k // 4
    for _ in range(ROUNDS):
        left = (~done).nonzero().flatten()
        if not len(left) or wide > len(cloud):
            return
        if len(_seen(tree, queries, left[:: len(left) // PROBES + 1], k, wide)[0]):
            near, candidates = _seen(tree, queries, left, k, wide)
            squares = geometry.squared(queries[None, near], cloud[None], candidates[None])[0]
            order = squares.sort(dim=1, stable=True).indices[:, :k]  # candidates ascend: the lowest index wins a tie
            row[near] = candidates.gather(1, order)
            done[near] = True
        wide *= 4


def _seen(tree: cKDTree, queries: Tensor, asked: Tensor, k: int, wide: int) -> tuple[Tensor, Tensor]:
    """Those of the queries ``asked`` for which ``wide`` neighbours hold all that could be among the ``k`` nearest, and
    the indices of these neighbours, ascending."""
    away, ids = tree.query(queries[asked].double().numpy(), wide, workers=torch.get_num_threads())
    whole = torch.from_numpy(_whole(away, k, queries))
    return asked[whole], torch.from_numpy(np.asarray(ids, np.int64))[whole].sort(dim=1).values


def _whole(away: NDArray[np.float64], k: int, like: Tensor) -> NDArray[np.bool_]:
    """Whether all points that could be among the ``k`` nearest are among those found, whose distances these are.

    The tree's distances are float64 and the squares that count are of the type of ``like``: each is rounded once for
    the difference, once for its square and once in every sum. The last one found must be farther than the k-th by more
    than that, and squares must be numbers that this type holds in full.
    """
    kind = torch.finfo(like.dtype)
    share = (like.shape[1] + 4) * 4 * kind.eps + 2.0**-44  # what float64's rounding along a tree's depth comes to
    near, far = np.square(away[:, k - 1]), np.square(away[:, -1])
    least = kind.tiny * 2.0**20
    return np.asarray((near * (1 + share) + least < far * (1 - share)) & (far < kind.max / 16))
