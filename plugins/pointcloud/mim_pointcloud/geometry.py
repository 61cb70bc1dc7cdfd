"""Sampling, neighbours and distances of point clouds: batched, on any device, by plain torch or a named library.

Distances are sums of squared differences, computed in float32 (float64 for float64 input) whatever the input's type:
the expansion a^2 + b^2 - 2ab is faster but cancels, and so cannot tell near points apart. Coordinates are finite.
Among equal distances the lowest index is chosen; pytorch3d alone does not promise that.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator
from typing import Any, Literal, SupportsIndex

import torch
from jaxtyping import Float, Int, Int64, Shaped
from mim_core import MimError, unknown
from torch import Tensor

from mim_pointcloud.geometry_given import check_clouds, first_of, scaled, widened

OPS = ("auto", "torch", "triton", "pytorch3d", "fpsample", "scipy")
"""Libraries by name. ``auto`` is triton for the farthest points of CUDA tensors, where triton is installed, scipy's
search trees for neighbours in clouds of `TREE_PAIRS` on a CPU, and plain torch for all else."""

BRINGS = {
    "triton": {"farthest_points"},
    "pytorch3d": {"farthest_points", "nearest", "within", "chamfer"},
    "fpsample": {"farthest_points"},
    "scipy": {"nearest", "chamfer"},
}
"""What each library does; with it, everything else is plain torch."""

INSTALL = {
    "triton": "pip install triton (for Linux; torch's builds for CUDA bring it)",
    "pytorch3d": "build pytorch3d from its source against the torch that is installed here; its INSTALL.md says how",
    "fpsample": 'pip install "mim-pointcloud[fpsample]"',
    "scipy": "pip install scipy",
}
"""What to do where a library is missing."""

CPU_PAIRS = 2**18
"""Pairs of a query and a point whose distances are held at a time on a CPU: they stay in its caches (about 4 MB)."""

GPU_PAIRS = 2**25
"""The same on other devices: about 0.6 GB and what topk itself takes. One query a cloud is the least at a time."""

TREE_PAIRS = 2**20
"""Pairs of a query and a point of one cloud from which on a search tree is faster than all distances."""

TREE_POINTS, TREE_AXES = 256, 4
"""Points of a cloud from which on, and coordinates of a point up to which, it is."""

BLOCK = 32
"""Points among which the farthest is searched at a time, on a CPU."""


def chosen(ops: str, operation: str, device: torch.device, pairs: int = 0) -> str:
    """The library that ``operation`` runs on.

    Args:
        ops: One of `OPS`.
        operation: Name of a function of this module.
        device: Where the points are. On "meta", where a plan is made without values, it is plain torch.
        pairs: Of a query and a point in each cloud, where a tree could find them.

    Raises:
        MimError: No such name, or the library does not load; says what to install.
    """
    if ops not in OPS:
        raise unknown("library of point operations", ops, OPS)
    if ops == "auto":
        triton = operation == "farthest_points" and device.type == "cuda" and importlib.util.find_spec("triton")
        tree = operation in BRINGS["scipy"] and device.type == "cpu" and pairs >= TREE_PAIRS
        return "triton" if triton else "scipy" if tree else "torch"
    if ops == "torch":
        return ops
    try:
        importlib.import_module(ops)
    except (ImportError, OSError) as error:
        raise MimError(
            f"{ops} does not load: {error}\nTo have it: {INSTALL[ops]}. Or choose torch, or auto."
        ) from error
    return ops if operation in BRINGS[ops] and device.type != "meta" else "torch"


def farthest_points(
    points: Float[Tensor, "B P 3"], count: int, start: SupportsIndex | Int[Tensor, " B"] = 0, ops: str = "auto"
) -> Int64[Tensor, "B count"]:
    """Indices of ``count`` points, each the farthest from all before it (PointNet++, arXiv 1706.02413, section 3.2).

    Points that coincide with a chosen one are taken last; once no other is left, the lowest index repeats. Coordinates
    too large or too small to be squared (beyond 2^40 or its inverse) are scaled first, which changes no choice.

    Args:
        points: Coordinates in any unit.
        count: Points to choose, from 1 to P.
        start: Index of the first, for all clouds or for each; whole numbers of any type.
        ops: Library, one of `OPS`.

    Raises:
        ValueError: Shapes or numbers that do not fit; coordinates that are not finite, on a CPU. On a GPU those are not
            looked for, since that would wait for an answer; the choice then means nothing.
        MimError: See :func:`chosen`; or fpsample with points that are not on the CPU, triton with points that are.
    """
    if points.ndim != 3 or points.shape[-1] != 3:
        raise ValueError(f"farthest_points takes [B, P, 3]; these points are {tuple(points.shape)}")
    if not 1 <= count <= points.shape[1]:
        raise ValueError(f"farthest_points cannot choose {count} of {points.shape[1]} points")
    library = chosen(ops, "farthest_points", points.device)
    with torch.no_grad():
        first = first_of(points, start)
        (points,) = widened(points)
        points = points if points.device.type == "meta" else scaled(points)
        if library == "torch":
            return _farthest(points, count, first)
        return _adapter(library).farthest_points(points, count, first)


def nearest(
    queries: Float[Tensor, "B Q d"], points: Float[Tensor, "B P d"], k: int, ops: str = "auto"
) -> tuple[Float[Tensor, "B Q k"], Int64[Tensor, "B Q k"]]:
    """The ``k`` points nearest to each query.

    Args:
        queries: Coordinates in any unit.
        points: Coordinates in the same unit.
        k: Neighbours, from 1 to P.
        ops: Library, one of `OPS`.

    Returns:
        Squared distances, ascending, float32 (float64 for float64 input), through which gradients flow to both
        inputs; and the indices of the points.

    Raises:
        ValueError: Shapes or numbers that do not fit.
        MimError: See :func:`chosen`.
    """
    check_clouds(queries, points)
    if not 1 <= k <= points.shape[1]:
        raise ValueError(f"nearest cannot find {k} neighbours among {points.shape[1]} points")
    library = chosen(ops, "nearest", points.device, _tree_pairs(queries, points))
    queries, points = widened(queries, points)
    if library != "torch":
        return _adapter(library).nearest(queries, points, k)
    with torch.no_grad():
        ids = torch.empty((*queries.shape[:2], k), dtype=torch.int64, device=points.device)
        for rows in _slices(queries.shape[1], points.shape[0] * points.shape[1], points.device):
            ids[:, rows] = _lowest(_distances(queries[:, rows], points), k)
    return squared(queries, points, ids), ids


def within(
    queries: Float[Tensor, "B Q d"], points: Float[Tensor, "B P d"], radius: float, k: int, ops: str = "auto"
) -> Int64[Tensor, "B Q k"]:
    """Ball query: the first ``k`` points, by index, nearer to each query than ``radius`` (PointNet++, section 3.2).

    Fewer are padded with the first found; where there is none, all are the nearest point.

    Args:
        queries: Coordinates in any unit.
        points: Coordinates in the same unit.
        radius: In the same unit; a point at this very distance is outside.
        k: Indices to give, from 1; may exceed P.
        ops: Library, one of `OPS`.

    Raises:
        ValueError: Shapes or numbers that do not fit.
        MimError: See :func:`chosen`.
    """
    check_clouds(queries, points)
    if not points.shape[1]:
        raise ValueError(f"within finds nothing in clouds without points, {tuple(points.shape)}")
    if k < 1 or not radius > 0:
        raise ValueError(f"within needs k of at least 1 and a radius above 0, not k {k} and radius {radius}")
    library = chosen(ops, "within", points.device)
    with torch.no_grad():
        queries, points = widened(queries, points)
        if library != "torch":
            return _adapter(library).within(queries, points, radius, k)
        ids = torch.empty((*queries.shape[:2], k), dtype=torch.int64, device=points.device)
        for rows in _slices(queries.shape[1], points.shape[0] * points.shape[1], points.device):
            ids[:, rows] = _first_inside(_distances(queries[:, rows], points), radius, k)
    return ids


def gather(values: Shaped[Tensor, "B P ..."], ids: Int64[Tensor, "B ..."]) -> Shaped[Tensor, "B ..."]:
    """What each cloud has at its own indices; gradients flow to ``values``, in a fixed order of summation.

    Args:
        values: A row for each point.
        ids: Indices of rows, in any arrangement.

    Raises:
        ValueError: Not the same number of clouds.
    """
    if values.ndim < 2 or ids.ndim < 1 or values.shape[0] != ids.shape[0]:
        raise ValueError(f"gather takes [B, P, ...] and [B, ...], not {tuple(values.shape)} and {tuple(ids.shape)}")
    clouds = torch.arange(ids.shape[0], device=ids.device).reshape(-1, *[1] * (ids.ndim - 1))
    return values[clouds, ids]


def chamfer(
    a: Float[Tensor, "B n d"], b: Float[Tensor, "B m d"], norm: Literal["l2", "l1"] = "l2", ops: str = "auto"
) -> Float[Tensor, " B"]:
    """Chamfer distance: how far each point's nearest in the other cloud is, on average (Fan et al., arXiv 1612.00603).

    Args:
        a: Coordinates in any unit.
        b: Coordinates in the same unit.
        norm: ``l2``: squared distances, the mean over ``a`` plus that over ``b``. ``l1``: distances, half of that sum,
            with gradient 0 where points coincide.
        ops: Library, one of `OPS`.

    Returns:
        float32 (float64 for float64 input), differentiable in both clouds.

    Raises:
        ValueError: Shapes that do not fit, an empty cloud, or no such norm.
        MimError: See :func:`chosen`.
    """
    check_clouds(a, b)
    if not (a.shape[1] and b.shape[1]):
        raise ValueError(f"chamfer needs points on both sides, not {a.shape[1]} and {b.shape[1]}")
    if norm not in ("l2", "l1"):
        raise ValueError(f"chamfer knows the norms l2 and l1, not {norm!r}")
    library = chosen(ops, "chamfer", a.device, _tree_pairs(a, b))
    a, b = widened(a, b)
    if library != "torch":
        return _adapter(library).chamfer(a, b, norm)
    to_b, to_a = _closest(a, b)
    return combined(squared(a, b, to_b), squared(b, a, to_a), norm)


def combined(forward: Float[Tensor, "B n 1"], back: Float[Tensor, "B m 1"], norm: str) -> Float[Tensor, " B"]:
    """The Chamfer distance from the squared distances of both directions."""
    if norm == "l2":
        return forward.mean((1, 2)) + back.mean((1, 2))
    return (_root(forward).mean((1, 2)) + _root(back).mean((1, 2))) / 2


def squared(
    queries: Float[Tensor, "B Q d"], points: Float[Tensor, "B P d"], ids: Int64[Tensor, "B Q k"]
) -> Float[Tensor, "B Q k"]:
    """Squared distances of the pairs in ``ids``, to the last bit those that `nearest` compares, differentiable."""
    first, *others = (queries[:, :, None] - gather(points, ids)).unbind(-1)
    total = first * first
    for difference in others:
        total = total + difference * difference
    return total


# ---- plain torch -----------------------------------------------------------------------------------------------------


def _farthest(points: Tensor, count: int, first: Tensor) -> Tensor:
    """Farthest points of float [B, P, 3], the first [B, 1] given.

    On a CPU the farthest point is sought in the block that holds it: a maximum is found some ten times faster than its
    place. torch.compile was no faster, and takes seconds or more in every process.
    """
    clouds, number, _ = points.shape
    blocks_pay = points.device.type == "cpu" and not _traced() and clouds * number >= 2**14
    block = BLOCK if blocks_pay else number
    width = -(-number // block) * block
    coordinates = points.new_zeros((3, clouds, width))
    coordinates[:, :, :number] = points.permute(2, 0, 1)
    least = points.new_full((clouds, width), torch.inf)
    least[:, number:] = -1  # what fills up the last block is never the farthest
    blocks = least.view(clouds, width // block, block)
    difference, distance = torch.empty_like(coordinates), torch.empty_like(least)
    ids = torch.empty((clouds, count), dtype=torch.int64, device=points.device)
    last = first
    for step in range(count):
        ids[:, step : step + 1] = last
        torch.sub(coordinates, coordinates.gather(2, last.expand(3, clouds, 1)), out=difference)
        difference.mul_(difference)
        torch.add(difference[0], difference[1], out=distance).add_(difference[2])
        torch.minimum(least, distance, out=least)
        if block == number:
            last = least.argmax(1, keepdim=True)
        else:
            where = blocks.amax(2).argmax(1, keepdim=True)
            inside = blocks.gather(1, where[:, :, None].expand(clouds, 1, block))
            last = where * block + inside.argmax(2)
    return ids


def _lowest(distances: Tensor, k: int) -> Tensor:
    """Places of the ``k`` least of each row, the lowest place first among equals, which topk does not promise.

    The bits of a float32 that is not negative sort as the number does; with the place below them no two are equal.
    """
    if k == 1:
        return distances.min(-1, keepdim=True).indices
    if distances.dtype != torch.float32 or _traced():  # ONNX has no views of bits
        return distances.sort(dim=-1, stable=True).indices[..., :k]
    keys = distances.view(torch.int32).long().bitwise_left_shift_(32)
    keys.bitwise_or_(torch.arange(distances.shape[-1], device=distances.device))
    return keys.topk(k, dim=-1, largest=False).values.bitwise_and_(2**32 - 1)


def _first_inside(distances: Tensor, radius: float, k: int) -> Tensor:
    """The first ``k`` places of each row of squared distances below the radius, filled up as `within` says."""
    number = distances.shape[-1]
    places = torch.arange(number, dtype=torch.int32, device=distances.device)
    inside = torch.where(distances < radius * radius, places, number).topk(min(k, number), largest=False).values.long()
    inside = torch.nn.functional.pad(inside, (0, k - inside.shape[-1]), value=number)
    first = torch.where(inside[..., :1] < number, inside[..., :1], distances.min(-1, keepdim=True).indices)
    return torch.where(inside < number, inside, first)


@torch.no_grad()
def _closest(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Each point's nearest in the other cloud, [B, n, 1] and [B, m, 1]."""
    clouds, pairs = a.shape[0], a.shape[1] * b.shape[1]
    to_b = torch.empty((clouds, a.shape[1], 1), dtype=torch.int64, device=a.device)
    to_a = torch.empty((clouds, b.shape[1], 1), dtype=torch.int64, device=a.device)
    if pairs > _pairs(a.device):
        for ids, one, other in ((to_b, a, b), (to_a, b, a)):
            for rows in _slices(one.shape[1], clouds * other.shape[1], a.device):
                ids[:, rows] = _lowest(_distances(one[:, rows], other), 1)
        return to_b, to_a
    for part in _slices(clouds, pairs, a.device):
        distances = _distances(a[part], b[part])
        to_b[part] = distances.min(2).indices[..., None]
        to_a[part] = distances.min(1).indices[..., None]
    return to_b, to_a


def _distances(queries: Tensor, points: Tensor) -> Tensor:
    """Squared distances [B, Q, P] of all pairs, added up coordinate by coordinate."""
    total = None
    for one, other in zip(queries.unbind(-1), points.unbind(-1), strict=True):
        square = one[:, :, None] - other[:, None, :]
        square.mul_(square)
        total = square if total is None else total.add_(square)
    assert total is not None
    return total


def _root(squares: Tensor) -> Tensor:
    """Square roots with gradient 0 at 0, where the true one is without bound."""
    above = squares > 0
    return torch.where(above, torch.where(above, squares, 1).sqrt(), 0)


def _pairs(device: torch.device) -> int:
    return CPU_PAIRS if device.type == "cpu" else GPU_PAIRS


def _slices(total: int, each: int, device: torch.device) -> Iterator[slice]:
    """Slices of ``total`` rows of ``each`` pairs that the budget holds; of one row at least."""
    step = total if _traced() else max(1, _pairs(device) // max(1, each))
    return (slice(begin, min(begin + step, total)) for begin in range(0, total, step))


def _traced() -> bool:
    """Whether a program is being made of this code, whose steps must not depend on how many clouds there are."""
    return torch.compiler.is_exporting()


# ---- other libraries -------------------------------------------------------------------------------------------------


def _tree_pairs(queries: Tensor, points: Tensor) -> int:
    """Pairs in each cloud; 0 where no tree is to be asked: few points, many axes, or code that is being compiled."""
    fit = points.shape[1] >= TREE_POINTS and queries.shape[2] <= TREE_AXES and not torch.compiler.is_compiling()
    return queries.shape[1] * points.shape[1] if fit else 0


def _adapter(library: str) -> Any:
    """The library's operations: an object with functions named as here."""
    if library in ("triton", "scipy"):
        return importlib.import_module(f"mim_pointcloud.geometry_{library}")
    return importlib.import_module("mim_pointcloud.geometry_backends").ADAPTERS[library]
