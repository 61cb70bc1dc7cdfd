"""Triangles of polygons: fans of the convex ones, and ears of the others, with a limit on the work for one file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MOST_CORNERS = 2**24
"""Corners of all faces of one file, where some are no triangles; cutting them up takes many times their memory."""
AT_ONCE = 1 << 20
"""Corners of faces that are looked at at once."""
LARGEST_POLYGON = 2000
"""Corners of a face that is not convex; cutting one up takes time by the square of them."""
MOST_WORK = 200_000_000
"""Corners that are looked at, for all faces of one file that are not convex; some seconds."""
EACH = 1000
"""What one step costs besides its corners, in corners."""


@dataclass
class Work:
    """What is left of the work that one file may cost."""

    left: int = MOST_WORK

    def spend(self, corners: int) -> None:
        """Pay for one step.

        Raises:
            ValueError: Nothing is left.
        """
        self.left -= corners + EACH
        if self.left < 0:
            raise ValueError("its faces that are not convex are too many, or cross themselves; write it with triangles")


def cross(a: Floats, b: Floats) -> Floats:
    """Cross product of rows [..., 3], in an order of operations that is the same everywhere."""
    ax, ay, az = np.moveaxis(a, -1, 0)
    bx, by, bz = np.moveaxis(b, -1, 0)
    return np.stack([ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx], -1)


def dot(a: Floats, b: Floats) -> Floats:
    """Scalar product of rows [..., 3], as `cross`."""
    return a[..., 0] * b[..., 0] + a[..., 1] * b[..., 1] + a[..., 2] * b[..., 2]


def triangulate(vertices: Floats, corners: Ints, counts: Ints, work: Work | None = None) -> Ints:
    """Triangles [F, 3] of polygons: fans of the convex ones, ears of the others. Fewer than 3 corners have none.

    Args:
        vertices: [V, 3].
        corners: Rows of `vertices`, polygon after polygon.
        counts: Corners of each polygon.
        work: What is left for the file that they come from; None for a file of its own.

    Raises:
        ValueError: A corner that does not exist, a polygon that is not convex and too large to cut, or too many.
    """
    work = work or Work()
    if len(corners) and not 0 <= corners.min() <= corners.max() < len(vertices):
        wrong = corners[(corners < 0) | (corners >= len(vertices))][0]
        raise ValueError(f"a face names vertex {wrong} (from 0) of {len(vertices)}")
    if (counts == 3).all():
        return corners.reshape(-1, 3)
    if len(corners) > MOST_CORNERS:
        raise ValueError(
            f"its faces have {len(corners):,} corners; up to {MOST_CORNERS:,} are read, or triangles alone"
        )
    ends = np.cumsum(counts)
    triangles, order = [], []
    for count, which in _by_count(counts):
        polygons = corners[(ends[which] - count)[:, None] + np.arange(count)]
        if count == 3:
            triangles.append(polygons)
            order.append(which)
            continue
        convex, bent = _convex(vertices, polygons)
        if count == 4:  # a fan from the corner that bends inwards covers a quad
            starts = np.where(convex, 0, bent)
            polygons = np.take_along_axis(polygons, (starts[:, None] + np.arange(4)) % 4, axis=1)
            convex[:] = True
        first = np.repeat(polygons[convex, :1], count - 2, axis=1)
        fans = np.stack([first, polygons[convex, 1:-1], polygons[convex, 2:]], 2)
        triangles.append(fans.reshape(-1, 3))
        order.append(np.repeat(which[convex], count - 2))
        for row in np.flatnonzero(~convex):
            ears = _ears(vertices, polygons[row], work)
            triangles.append(ears)
            order.append(np.full(len(ears), which[row]))
    if not triangles:
        return np.zeros((0, 3), np.int64)
    return np.concatenate(triangles)[np.argsort(np.concatenate(order), kind="stable")]


def _by_count(counts: Ints) -> Iterator[tuple[int, Ints]]:
    """Numbers of corners from 3 on, rising, and which polygons have so many."""
    order = np.argsort(counts, kind="stable")
    kinds, starts = np.unique(counts[order], return_index=True)
    for kind, which in zip(kinds.tolist(), np.split(order, starts[1:]), strict=True):
        if kind >= 3:
            yield kind, which


def _turns(corners: Floats) -> tuple[Floats, Floats]:
    """Whether each corner [..., n, 3] turns with its polygon (positive), and the polygon's axis [..., 3]."""
    after = np.roll(corners, -1, -2)
    axis = cross(corners - corners[..., :1, :], after - corners[..., :1, :]).sum(-2)
    turn = cross(corners - np.roll(corners, 1, -2), after - corners)
    return dot(turn, axis[..., None, :]), axis


def _convex(vertices: Floats, polygons: Ints) -> tuple[NDArray[np.bool_], Ints]:
    """Whether polygons [N, n] are convex, and their corner that turns outwards least."""
    convex, bent = np.ones(len(polygons), np.bool_), np.zeros(len(polygons), np.int64)
    step = max(1, AT_ONCE // max(1, polygons.shape[1]))
    for at in range(0, len(polygons), step):
        with np.errstate(all="ignore"):
            turn, _ = _turns(vertices[polygons[at : at + step]])
        convex[at : at + step] = ~(turn < -1e-9 * np.abs(turn).max(1, keepdims=True)).any(1)
        bent[at : at + step] = turn.argmin(1)
    return convex, bent


_NEW, _EAR = -2, -1


def _ears(vertices: Floats, polygon: Ints, work: Work) -> Ints:
    """Cut off corners that hold no other corner, one after another, in the plane that the polygon lies in most.

    A corner that holds another one is looked at again when that one is cut off, or when one beside it is.
    """
    if len(polygon) > LARGEST_POLYGON:
        raise ValueError(f"a face with {len(polygon)} corners is not convex (at most {LARGEST_POLYGON}); cut it up")
    _, axis = _turns(vertices[polygon])
    along = int(np.abs(axis).argmax())
    flat = vertices[polygon][:, [(along + 1) % 3, (along + 2) % 3]] * (1.0, np.sign(axis[along]))
    left, ears = np.arange(len(polygon)), []
    holds = np.full(len(polygon), _NEW)
    while len(left) > 3:
        at = _ear(flat, left, holds, work)
        before, gone, after = (int(left[(at + step) % len(left)]) for step in (-1, 0, 1))
        ears.append((before, gone, after))
        left = np.delete(left, at)
        holds[holds == gone] = _NEW
        holds[[before, after]] = _NEW
    return polygon[np.array([*ears, tuple(left.tolist())])]


def _ear(flat: Floats, left: Ints, holds: Ints, work: Work) -> int:
    """The corner to cut off what is left of a polygon; the first that turns most, where none is free (lines that
    cross). ``holds`` remembers a corner that each holds."""
    work.spend(len(left))
    here = flat[left]
    before, after = np.roll(here, 1, 0), np.roll(here, -1, 0)
    turns = _side(before, here, after)
    turning = np.flatnonzero(turns > 0)
    for at in turning[holds[left[turning]] < 0]:
        corner = left[at]
        if holds[corner] == _NEW:
            work.spend(len(left))
            a, b, c = before[at], here[at], after[at]
            inside = (_side(a, b, here) >= 0) & (_side(b, c, here) >= 0) & (_side(c, a, here) >= 0)
            for own in (a, b, c):
                inside &= (here != own).any(1)
            holds[corner] = left[inside.argmax()] if inside.any() else _EAR
        if holds[corner] == _EAR:
            return int(at)
    return int(turns.argmax())


def _side(a: Floats, b: Floats, c: Floats) -> Floats:
    """Twice the signed area of triangles with corners [..., 2]."""
    return (b[..., 0] - a[..., 0]) * (c[..., 1] - a[..., 1]) - (b[..., 1] - a[..., 1]) * (c[..., 0] - a[..., 0])
