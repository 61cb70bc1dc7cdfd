"""Meshes: Wavefront OBJ, OFF, STL and glTF. OBJ, OFF and STL are read here, because what matters is to lose no face and
to merge no vertex, and to be fast; trimesh reads glTF."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from mim_pointcloud.files_cloud import shades
from mim_pointcloud.files_shape import Floats, Ints, Shape, cloud, joined, mesh, moved

PACKED = ("KHR_draco_mesh_compression", "EXT_meshopt_compression", "KHR_mesh_quantization")
"""Required extensions of glTF that change what buffers hold."""


def _text(path: Path) -> str:
    """A whole file as text. Latin-1 reads any byte; names in other encodings are not looked at."""
    data = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data.decode("utf-16")
    if b"\0" in data[:4096]:
        raise ValueError("it is no text")
    return data.decode("latin-1").replace("\r\n", "\n").replace("\r", "\n")


def _rows(lines: list[list[str]], columns: int) -> Floats:
    """The first columns of lines of numbers."""
    short = next((line for line in lines if len(line) < columns), None)
    if short is not None:
        raise ValueError(f"a vertex has {len(short)} numbers instead of {columns}: {' '.join(short)[:40]!r}")
    return np.array([float(word) for line in lines for word in line[:columns]]).reshape(-1, columns)


def read_obj(path: Path) -> Shape:
    """Vertices (with colours behind x y z, if all have them) and faces of all objects and groups.

    Lines, points, curves, texture coordinates, normals and materials are not looked at.
    """
    vertices: list[list[str]] = []
    faces: list[list[str]] = []
    before: list[int] = []  # how many vertices stood before a face: what its negative numbers count from
    for line in _text(path).replace("\\\n", " ").split("\n"):
        words = line.split("#", 1)[0].split() if "#" in line else line.split()
        if not words:
            continue
        if words[0] == "v":
            vertices.append(words[1:])
        elif words[0] in ("f", "fo"):
            faces.append(words[1:])
            before.append(len(vertices))
    if not vertices:
        raise ValueError("it has no vertices")
    coloured = min(map(len, vertices)) >= 6
    counts = np.array([len(face) for face in faces], np.int64)
    try:
        table = _rows(vertices, 6 if coloured else 3)
        numbers = [int(corner.split("/", 1)[0]) for face in faces for corner in face]
        corners = np.array(numbers, np.int64)
    except (ValueError, OverflowError) as error:
        raise ValueError(_wrong_line(path) or str(error)) from error
    if (corners == 0).any():
        raise ValueError("a face names vertex 0; OBJ counts from 1")
    corners = np.where(corners < 0, np.repeat(np.array(before, np.int64), counts) + corners, corners - 1)
    rgb = shades(table[:, 3:]) if coloured else None
    return mesh(table[:, :3], corners, counts, rgb)


def _wrong_line(path: Path) -> str | None:
    """What is wrong with the first line of an OBJ whose vertex or face cannot be read."""
    lines = _text(path).split("\n")
    for number, line in enumerate(lines, 1):
        kind, *words = line.split("#", 1)[0].replace("\\", " ").split() or [""]
        last = ", the last one: it is cut off" if number == len(lines) else ""
        if kind == "v" and (len(words) < 3 or not all(map(_is_float, words[:6]))):
            return f"line {number}{last}: a vertex needs three numbers, not {' '.join(words)[:40]!r}"
        if kind in ("f", "fo"):
            strange = next((word for word in words if not _is_index(word.split("/", 1)[0])), None)
            if strange is not None:
                return f"line {number}{last}: a face cannot name vertex {strange[:40]!r}"
    return None


def _is_float(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _is_index(word: str) -> bool:
    return word.lstrip("+-").isdecimal() and abs(int(word)) < 2**63


def read_off(path: Path) -> Shape:
    """OFF with or without its keyword, COFF and NOFF, and ModelNet's, where the counts follow the keyword at once."""
    text = re.sub(r"#[^\n]*", "", _text(path))
    lines = [words for line in text.split("\n") if (words := line.split())]
    if not lines:
        raise ValueError("it has no counts of vertices and faces")
    keyword = re.match(r"(?:ST)?(C?)(N?)(4?)(n?)(?:OFF|off)", lines[0][0])
    if keyword:
        if keyword[3] or keyword[4] or "BINARY" in lines[0]:
            raise ValueError(f"{' '.join(lines[0])} is not read: only three dimensions, as text")
        rest = lines[0][0][keyword.end() :]
        lines[0] = ([rest] if rest else []) + lines[0][1:]
        lines = lines if lines[0] else lines[1:]
    if not lines or len(lines[0]) < 2 or not all(word.isdigit() for word in lines[0][:2]):
        raise ValueError(f"no counts of vertices and faces, but {' '.join(lines[0])[:40]!r}" if lines else "no counts")
    points, polygons = int(lines[0][0]), int(lines[0][1])
    if len(lines) - 1 < points + polygons:
        said = f"it says {points} vertices and {polygons} faces"
        raise ValueError(f"it is cut off: {said}, {len(lines) - 1} lines follow")
    vertices = lines[1 : 1 + points]
    start = 6 if keyword and keyword[2] else 3
    wide = min(map(len, vertices), default=0) >= start + 3
    table = _rows(vertices, start + 3 if wide else 3)
    corners, counts = _polygons(lines[1 + points : 1 + points + polygons])
    rgb = shades(table[:, start:]) if wide else None
    return mesh(table[:, :3], corners, counts, rgb)


def _polygons(lines: list[list[str]]) -> tuple[Ints, Ints]:
    """Corners one after another, and how many each face has; colours behind them are not looked at."""
    counts = np.array([int(line[0]) for line in lines], np.int64)
    short = np.flatnonzero(counts > [len(line) - 1 for line in lines])
    if len(short) or (len(counts) and counts.min() < 0):
        at = int(short[0]) if len(short) else int(counts.argmin())
        raise ValueError(f"a face does not have the corners it says: {' '.join(lines[at])[:40]!r}")
    numbers = [int(word) for line, count in zip(lines, counts.tolist(), strict=True) for word in line[1 : 1 + count]]
    huge = next((number for number in numbers if abs(number) >= 2**63), None)
    if huge is not None:
        raise ValueError(f"a face cannot name vertex {huge}")
    return np.array(numbers, np.int64), counts


def read_stl(path: Path) -> Shape:
    """Binary or as text; corners stay as they are, three of their own for each face."""
    data = path.read_bytes()
    count = int.from_bytes(data[80:84], "little")
    record = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("more", "<u2")])
    words = data.removeprefix(b"\xef\xbb\xbf").lstrip()[:5].lower() == b"solid" and b"facet" in data[:4096].lower()
    if len(data) >= 84 and (len(data) == 84 + 50 * count or not words):
        if len(data) < 84 + 50 * count:
            raise ValueError(f"it is cut off, or no STL: it says {count} faces, {(len(data) - 84) // 50} follow")
        vertices = np.frombuffer(data, record, count, 84)["corners"].reshape(-1, 3).astype(np.float64)
    else:
        text = _text(path)
        lines = re.findall(r"^\s*vertex\s+(.*)$", text, re.MULTILINE | re.IGNORECASE)
        if not re.search(r"^\s*endsolid", text, re.MULTILINE | re.IGNORECASE) or len(lines) % 3:
            raise ValueError("it is cut off, or no STL: it does not end in endsolid")
        vertices = _rows([line.split() for line in lines], 3)
    return Shape(vertices, np.arange(len(vertices)).reshape(-1, 3))


def read_gltf(path: Path) -> Shape:
    """All meshes of the scene where their nodes put them, and clouds where there is no mesh. Lines are not looked at.

    Buffers in files of their own are read from beside the file; materials and textures are not.
    """
    import trimesh  # heavy, and of use for these files only

    _check_gltf(path)
    scene = trimesh.load(str(path), force="scene", process=False, skip_materials=True)
    meshes, clouds = [], []
    for node in scene.graph.nodes_geometry:
        matrix, name = scene.graph[node]
        part = scene.geometry[name]
        points = np.asarray(part.vertices, np.float64)
        rgb = _vertex_colours(part, len(points))
        if isinstance(part, trimesh.Trimesh):
            meshes.append(moved(Shape(points, np.asarray(part.faces, np.int64), rgb=rgb), matrix))
        elif isinstance(part, trimesh.PointCloud):
            clouds.append(moved(cloud(points, rgb=rgb), matrix))
    if not meshes and not clouds:
        raise ValueError("its scene holds no mesh and no points")
    return joined(meshes or clouds)


def _vertex_colours(part: Any, count: int) -> Floats | None:
    if not hasattr(part, "faces"):  # a cloud
        colours = getattr(part, "colors", None)
    elif getattr(part.visual, "kind", None) == "vertex":
        colours = part.visual.vertex_colors
    else:
        colours = part.vertex_attributes.get("color")
    if colours is None or np.shape(colours)[:1] != (count,):
        return None
    return shades(np.asarray(colours, np.float64)[:, :3], whole=np.asarray(colours).dtype.kind in "ui")


def _check_gltf(path: Path) -> None:
    """Refuse what trimesh would read wrongly or in part."""
    data = path.read_bytes()
    if path.suffix.lower() == ".glb":
        if data[:4] != b"glTF":
            raise ValueError("it is no GLB: it does not begin with glTF")
        said = int.from_bytes(data[8:12], "little")
        if said > len(data):
            raise ValueError(f"it is cut off: it says {said} bytes, it has {len(data)}")
        data = data[20 : 20 + int.from_bytes(data[12:16], "little")]
    tree = json.loads(data.decode("utf-8-sig"))
    if not isinstance(tree, dict) or "asset" not in tree:
        raise ValueError("it is no glTF: it has no asset")
    packed = [name for name in tree.get("extensionsRequired", []) if name in PACKED]
    if packed:
        raise ValueError(f"it is packed by {packed[0]}, which is not read; export it without")
