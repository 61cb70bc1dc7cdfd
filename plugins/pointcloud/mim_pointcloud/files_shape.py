"""What a file of any format is read into, and points of it by key."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import torch
from mim_core import randomness

from mim_pointcloud.polygons import Floats, Ints, cross, dot, triangulate

AT_ONCE = 1 << 18
"""Faces whose areas are computed at once, which takes many times the memory of a face."""


class Shape(NamedTuple):
    """A mesh, or a cloud where there are no faces.

    Attributes:
        vertices: [V, 3], in the file's units.
        faces: [F, 3], rows of `vertices`; counter-clockwise seen from outside.
        normals: [V, 3] of a cloud, as the file has them.
        rgb: [V, 3] from 0 to 1.
        unclear: Channel -> why it was not taken, where it may lie in several places of the file.
        unread: What the file says of its points beside these, such as "intensity".
    """

    vertices: Floats
    faces: Ints
    normals: Floats | None = None
    rgb: Floats | None = None
    unclear: Mapping[str, str] = MappingProxyType({})
    unread: tuple[str, ...] = ()


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


def on_surface(shape: Shape, count: int, key: int) -> Shape:
    """``count`` points of a mesh, uniform by area, with their faces' normals (and colours between the corners').

    A point is (1 - r) A + r (1 - v) B + r v C with r the root of a uniform draw (Osada et al., "Shape
    distributions", ACM TOG 2002, section 4.2). Faces without area are never drawn.

    Raises:
        ValueError: The whole surface has no area.
    """
    size = np.ptp(shape.vertices, axis=0).max() or 1.0
    some = range(0, len(shape.faces), AT_ONCE)
    doubled = np.concatenate([_doubled(_spans(shape, shape.faces[at : at + AT_ONCE], size)) for at in some])
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
    return cloud(points, _spans(shape, shape.faces[chosen], size) / doubled[chosen, None], rgb)


def _spans(shape: Shape, faces: Ints, size: float) -> Floats:
    """Of each face, the cross product of two sides, in units of a size."""
    a, b, c = (shape.vertices[corner] for corner in faces.T)
    return cross((b - a) / size, (c - a) / size)


def _doubled(spans: Floats) -> Floats:
    """Twice the areas of faces."""
    doubled: Floats = np.sqrt(dot(spans, spans))
    return doubled


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
