"""What a file of any format is read into, triangles of polygons, and points of it by key."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from mim_core import randomness
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

LARGEST_POLYGON = 2000
"""Corners of a face that is not convex; cutting one up takes time by the square of them."""


class Shape(NamedTuple):
    """A mesh, or a cloud where there are no faces.

    Attributes:
        vertices: [V, 3], in the file's units.
        faces: [F, 3], rows of `vertices`; counter-clockwise seen from outside.
        normals: [V, 3] of a cloud, as the file has them.
        rgb: [V, 3] from 0 to 1.
    """

    vertices: Floats
    faces: Ints
    normals: Floats | None = None
    rgb: Floats | None = None


def cloud(vertices: Floats, normals: Floats | None = None, rgb: Floats | None = None) -> Shape:
    """A shape without faces."""
    return Shape(vertices, np.zeros((0, 3), np.int64), normals, rgb)


def mesh(vertices: Floats, corners: Ints, counts: Ints, rgb: Floats | None) -> Shape:
    """A shape of polygons (`triangulate`); a cloud where none are listed.

    Raises:
        ValueError: As `triangulate`, or none of the polygons has three corners.
    """
    faces = triangulate(vertices, corners, counts)
    if len(counts) and not len(faces):
        raise ValueError(f"the surface has zero area ({len(counts)} faces, none with three corners)")
    return Shape(vertices, faces, rgb=rgb)


def joined(shapes: list[Shape]) -> Shape:
    """Several shapes as one. Colours stay when all have them."""
    starts = np.cumsum([0, *(len(shape.vertices) for shape in shapes)])
    faces = [shape.faces + start for shape, start in zip(shapes, starts, strict=False)]
    rgb = [shape.rgb for shape in shapes if shape.rgb is not None]
    return Shape(
        np.concatenate([shape.vertices for shape in shapes]),
        np.concatenate(faces),
        rgb=np.concatenate(rgb) if len(rgb) == len(shapes) else None,
    )


def moved(shape: Shape, matrix: Floats) -> Shape:
    """A shape under an affine map [4, 4]. Where it mirrors, faces turn, so that their outside stays outside."""
    if np.array_equal(matrix, np.eye(4)):
        return shape
    a, b = matrix[:3, :3], matrix[:3, 3]
    x, y, z = shape.vertices.T
    with np.errstate(all="ignore"):  # what overflows is found when points are drawn
        vertices = np.stack([row[0] * x + row[1] * y + row[2] * z + shift for row, shift in zip(a, b, strict=True)], 1)
        mirrors = float(np.linalg.det(a)) < 0
    return shape._replace(vertices=vertices, faces=shape.faces[:, ::-1] if mirrors else shape.faces)


def triangulate(vertices: Floats, corners: Ints, counts: Ints) -> Ints:
    """Triangles [F, 3] of polygons: fans of the convex ones, ears of the others. Fewer than 3 corners have none.

    Args:
        vertices: [V, 3].
        corners: Rows of `vertices`, polygon after polygon.
        counts: Corners of each polygon.

    Raises:
        ValueError: A corner that does not exist, or a polygon that is not convex and too large to cut.
    """
    if len(corners) and not 0 <= corners.min() <= corners.max() < len(vertices):
        wrong = corners[(corners < 0) | (corners >= len(vertices))][0]
        raise ValueError(f"a face names vertex {wrong} (from 0) of {len(vertices)}")
    if (counts == 3).all():
        return corners.reshape(-1, 3)
    ends = np.cumsum(counts)
    found, order = [], []
    for count in np.unique(counts[counts >= 3]):
        which = np.flatnonzero(counts == count)
        polygons = corners[(ends[which] - count)[:, None] + np.arange(count)]
        if count == 3:
            found.append(polygons)
            order.append(which)
            continue
        convex, bent = _convex(vertices, polygons)
        if count == 4:  # a fan from the corner that bends inwards covers a quad
            starts = np.where(convex, 0, bent)
            polygons = np.take_along_axis(polygons, (starts[:, None] + np.arange(4)) % 4, axis=1)
            convex[:] = True
        first = np.repeat(polygons[convex, :1], count - 2, axis=1)
        fans = np.stack([first, polygons[convex, 1:-1], polygons[convex, 2:]], 2)
        found.append(fans.reshape(-1, 3))
        order.append(np.repeat(which[convex], count - 2))
        for row in np.flatnonzero(~convex):
            ears = _ears(vertices, polygons[row])
            found.append(ears)
            order.append(np.full(len(ears), which[row]))
    if not found:
        return np.zeros((0, 3), np.int64)
    return np.concatenate(found)[np.argsort(np.concatenate(order), kind="stable")]


def cross(a: Floats, b: Floats) -> Floats:
    """Cross product of rows [..., 3], in an order of operations that is the same everywhere."""
    ax, ay, az = np.moveaxis(a, -1, 0)
    bx, by, bz = np.moveaxis(b, -1, 0)
    return np.stack([ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx], -1)


def _dot(a: Floats, b: Floats) -> Floats:
    return a[..., 0] * b[..., 0] + a[..., 1] * b[..., 1] + a[..., 2] * b[..., 2]


def _turns(corners: Floats) -> tuple[Floats, Floats]:
    """Whether each corner [..., n, 3] turns with its polygon (positive), and the polygon's axis [..., 3]."""
    after = np.roll(corners, -1, -2)
    axis = cross(corners - corners[..., :1, :], after - corners[..., :1, :]).sum(-2)
    turn = cross(corners - np.roll(corners, 1, -2), after - corners)
    return _dot(turn, axis[..., None, :]), axis


def _convex(vertices: Floats, polygons: Ints) -> tuple[NDArray[np.bool_], Ints]:
    """Whether polygons [N, n] are convex, and their corner that turns outwards least."""
    with np.errstate(all="ignore"):
        turn, _ = _turns(vertices[polygons])
    return ~(turn < -1e-9 * np.abs(turn).max(1, keepdims=True)).any(1), turn.argmin(1)


def _ears(vertices: Floats, polygon: Ints) -> Ints:
    """Cut off corners that hold no other corner, one after another, in the plane that the polygon lies in most."""
    if len(polygon) > LARGEST_POLYGON:
        raise ValueError(f"a face with {len(polygon)} corners is not convex (at most {LARGEST_POLYGON}); cut it up")
    _, axis = _turns(vertices[polygon])
    along = int(np.abs(axis).argmax())
    flat = vertices[polygon][:, [(along + 1) % 3, (along + 2) % 3]] * (1.0, np.sign(axis[along]))
    left, ears = list(range(len(polygon))), []
    while len(left) > 3:
        at = _ear(flat[left])
        ears.append((left[at - 1], left[at], left[(at + 1) % len(left)]))
        del left[at]
    return polygon[np.array([*ears, tuple(left)])]


def _ear(flat: Floats) -> int:
    """The corner to cut off a polygon [n, 2]; the first that turns, where none is free (lines that cross)."""
    before, after = np.roll(flat, 1, 0), np.roll(flat, -1, 0)
    turns = _side(before, flat, after)
    for at in np.flatnonzero(turns > 0):
        a, b, c = before[at], flat[at], after[at]
        inside = (_side(a, b, flat) >= 0) & (_side(b, c, flat) >= 0) & (_side(c, a, flat) >= 0)
        for own in (a, b, c):
            inside &= (flat != own).any(1)
        if not inside.any():
            return int(at)
    return int(turns.argmax())


def _side(a: Floats, b: Floats, c: Floats) -> Floats:
    """Twice the signed area of triangles with corners [..., 2]."""
    return (b[..., 0] - a[..., 0]) * (c[..., 1] - a[..., 1]) - (b[..., 1] - a[..., 1]) * (c[..., 0] - a[..., 0])


def on_surface(shape: Shape, count: int, key: int) -> Shape:
    """``count`` points of a mesh, uniform by area, with their faces' normals (and colours between the corners').

    A point is (1 - r) A + r (1 - v) B + r v C with r the root of a uniform draw (Osada et al., "Shape
    distributions", ACM TOG 2002, section 4.2). Faces without area are never drawn.

    Raises:
        ValueError: The whole surface has no area.
    """
    a, b, c = (shape.vertices[corner] for corner in shape.faces.T)
    size = np.ptp(shape.vertices, axis=0).max() or 1.0
    spans = cross((b - a) / size, (c - a) / size)
    doubled = np.sqrt(_dot(spans, spans))
    sums = np.cumsum(doubled)
    if not sums[-1] > 0:
        raise ValueError(f"the surface has zero area ({len(shape.faces)} faces)")
    draws = randomness.uniform(torch.tensor([key]), "surface", 3 * count)[0].numpy().reshape(3, count)
    chosen = np.searchsorted(sums, draws[0] * sums[-1], side="right")
    chosen = np.minimum(chosen, np.flatnonzero(doubled)[-1])
    root = np.sqrt(draws[1])
    weights = np.stack([1 - root, root * (1 - draws[2]), root * draws[2]])[:, :, None]
    rgb = None if shape.rgb is None else _blend(weights, shape.rgb[shape.faces[chosen]])
    points = _blend(weights, shape.vertices[shape.faces[chosen]])
    return cloud(points, spans[chosen] / doubled[chosen, None], rgb)


def _blend(weights: Floats, corners: Floats) -> Floats:
    return weights[0] * corners[:, 0] + weights[1] * corners[:, 1] + weights[2] * corners[:, 2]


def of_cloud(shape: Shape, count: int, key: int) -> Shape:
    """``count`` points of a cloud in random order, without replacement; when there are fewer, all and then repeats."""
    keys, total = torch.tensor([key]), len(shape.vertices)
    codes = randomness.bits(keys, "subset", total)[0]
    rows = codes.topk(min(count, total), largest=False, sorted=True).indices
    if count > total:
        repeats = (randomness.uniform(keys, "repeats", count - total)[0] * total).long().clamp(max=total - 1)
        rows = torch.cat([rows, repeats])
    taken = rows.numpy()
    normals, rgb = (None if values is None else values[taken] for values in (shape.normals, shape.rgb))
    return cloud(shape.vertices[taken], normals, rgb)
