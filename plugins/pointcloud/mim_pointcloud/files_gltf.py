"""glTF 2.0 and GLB: trimesh reads them, once what it would read wrongly, in part or without end is refused."""

from __future__ import annotations

import base64
import io
import json
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
from mim_core import BadSample

from mim_pointcloud.columns import shades
from mim_pointcloud.files_shape import Floats, Shape, cloud, joined, moved
from mim_pointcloud.limits import NUMBERS, WHOLE_LIMIT, check_end, check_file

PACKED = ("KHR_draco_mesh_compression", "EXT_meshopt_compression", "KHR_mesh_quantization")
"""Required extensions that change what buffers hold."""
SIZES = {5120: 1, 5121: 1, 5122: 2, 5123: 2, 5125: 4, 5126: 4}
"""componentType -> bytes."""
WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT2": 4, "MAT3": 9, "MAT4": 16}
MOST_NODES = 100_000
MOST_VALUES = 1_000_000
"""Values, tables and lists of the JSON, each of which takes many times the memory of its text."""
DEEPEST = 256
"""Levels of nodes within nodes."""


def buffers_beside(path: Path) -> tuple[str, ...]:
    """Buffers that lie beside a .gltf: that of its own name, or the only one of its folder. The file is not opened."""
    own = path.with_suffix(".bin")
    buffers = [own] if own.is_file() else list(islice(path.parent.glob("*.bin"), 2))
    return tuple(map(str, buffers)) if len(buffers) == 1 else ()


def read_gltf(path: Path) -> Shape:
    """All meshes of the scene where their nodes put them, and clouds where there is no mesh. Lines are not looked at.

    Buffers in files of their own are read from beside the file; materials and textures are not.

    Raises:
        ValueError: The scene holds no mesh and no points, or a face names a vertex that there is not.
    """
    import trimesh  # heavy, and of use for these files only

    data = path.read_bytes()
    binary = path.suffix.lower() == ".glb"
    tree, chunk = _tree(data, binary)
    files = _check(tree, path.parent, chunk)
    kind = "glb" if binary else "gltf"
    scene = trimesh.load_scene(
        io.BytesIO(data),
        file_type=kind,
        resolver=files,
        process=False,
        skip_materials=True,
    )
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
    for mesh in meshes:
        if len(mesh.faces) and not 0 <= mesh.faces.min() <= mesh.faces.max() < len(mesh.vertices):
            raise ValueError(f"a face names vertex {mesh.faces.max()} (from 0) of {len(mesh.vertices)}")
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


def _tree(data: bytes, binary: bool) -> tuple[dict[str, Any], int | None]:
    """The JSON, and the bytes of a GLB's own buffer."""
    chunk = None
    if binary:
        if data[:4] != b"glTF":
            raise ValueError("it is no GLB: it does not begin with glTF")
        total, length = int.from_bytes(data[8:12], "little"), int.from_bytes(data[12:16], "little")
        if total > len(data):
            raise ValueError(f"it is cut off: it says {total} bytes, it has {len(data)}")
        check_end(len(data), total)
        chunk = max(0, total - 28 - length) if total >= 28 + length else None
        data = data[20 : 20 + length]
    if sum(data.count(mark) for mark in b",{[") > MOST_VALUES:
        raise ValueError(f"its JSON has over {MOST_VALUES:,} values: it is damaged, or no glTF")
    tree = json.loads(data.decode("utf-8-sig"))
    if not isinstance(tree, dict) or not isinstance(tree.get("asset"), dict):
        raise ValueError("it is no glTF: it has no asset")
    return tree, chunk


def _list(tree: dict[str, Any], name: str) -> list[dict[str, Any]]:
    entries = tree.get(name, [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"its {name} are damaged")
    return entries


def _whole(entry: dict[str, Any], name: str, default: int | None = None, below: int = 2**63) -> int:
    """A number of an entry, from 0 and below a limit."""
    number = entry.get(name, default)
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < below:
        raise ValueError(f"its {name} is {str(number)[:40]}: damaged, or out of range")
    return number


def _check(tree: dict[str, Any], folder: Path, chunk: int | None) -> dict[str, bytes]:
    """Refuse what trimesh would read wrongly or in part. Returns the files of buffers."""
    packed = [name for name in tree.get("extensionsRequired", []) if name in PACKED]
    if packed:
        raise ValueError(f"it is packed by {packed[0]}, which is not read; export it without")
    buffers, files = [], dict[str, bytes]()
    for entry in _list(tree, "buffers"):
        length, uri = _whole(entry, "byteLength"), entry.get("uri")
        buffers.append(length)
        if sum(buffers) > WHOLE_LIMIT:
            raise ValueError(f"its buffers hold over {WHOLE_LIMIT >> 20} MiB; thin it out, or cut it up")
        if uri is None and chunk is not None:
            has = chunk
        else:
            got = _buffer(uri, folder)
            if not str(uri).startswith("data:"):
                files[str(uri)] = got
            has = len(got)
            check_end(has, length, f"bytes in {str(uri)[:60]}")
        if has < length:
            raise ValueError(f"it is cut off: its buffer says {length} bytes and has {has}")
    views = _list(tree, "bufferViews")
    for view in views:
        end = _whole(view, "byteOffset", 0) + _whole(view, "byteLength")
        if end > buffers[_whole(view, "buffer", below=len(buffers))]:
            raise ValueError("a buffer view reaches over the end of its buffer")
    counts = [_accessor(entry, views) for entry in _list(tree, "accessors")]
    if sum(size for _, size in counts) > NUMBERS:
        raise ValueError(f"its accessors hold over {NUMBERS:,} numbers; thin it out, or cut it up")
    _check_scene(tree, [_corners(mesh, tree, [count for count, _ in counts]) for mesh in _list(tree, "meshes")])
    return files


def _buffer(uri: Any, folder: Path) -> bytes:
    if not isinstance(uri, str) or not uri:
        raise ValueError("one of its buffers has no uri")
    if uri.startswith("data:"):
        return base64.b64decode(uri[uri.find("base64,") + 7 :])
    if "://" in uri or uri.startswith(("/", "\\")):
        raise ValueError(f"its buffer lies at an address, which is not read: {uri[:60]}")
    path = folder / uri if (folder / uri).exists() else folder / unquote(uri)
    try:
        check_file(path, WHOLE_LIMIT)
    except BadSample as error:
        reason = "not found" if error.reason == "no such file" else error.reason
        raise ValueError(f"it needs {uri[:100]}, {reason}") from error
    return path.read_bytes()


def _accessor(entry: dict[str, Any], views: list[dict[str, Any]]) -> tuple[int, int]:
    """How many items an accessor has, and how many numbers; these lie within its view."""
    count = _whole(entry, "count")
    size, width = SIZES.get(entry.get("componentType", 0)), WIDTHS.get(entry.get("type", ""))
    if size is None or width is None:
        raise ValueError("an accessor has an unknown type")
    if "bufferView" in entry and count:
        view = views[_whole(entry, "bufferView", below=len(views))]
        stride = _whole(view, "byteStride", size * width) or size * width
        end = _whole(entry, "byteOffset", 0) + (count - 1) * stride + size * width
        if end > view["byteLength"]:
            raise ValueError(f"an accessor of {count} reaches over the end of its buffer view")
    return count, count * width


def _corners(mesh: dict[str, Any], tree: dict[str, Any], counts: list[int]) -> int:
    """Vertices and indices of a mesh, all of whose data are there."""
    total = 0
    for part in _list(mesh, "primitives"):
        mode, attributes = _whole(part, "mode", 4), part.get("attributes")
        if mode == 6:
            raise ValueError("its faces are fans (mode 6), which are not read; write it with triangles")
        if mode not in (0, 4, 5):
            continue
        if not isinstance(attributes, dict) or "POSITION" not in attributes:
            raise ValueError("one of its meshes has no POSITION")
        wanted = [(attributes, "POSITION")] + ([(part, "indices")] if "indices" in part else [])
        for owner, name in wanted:
            at = _whole(owner, name, below=len(counts))
            entry = tree["accessors"][at]
            if "sparse" in entry or "bufferView" not in entry:
                raise ValueError(f"{name} of a mesh is sparse or packed, which is not read; export it without")
            total += counts[at]
    return total


def _check_scene(tree: dict[str, Any], corners: list[int]) -> None:
    """Nodes form trees, as the standard says, so that none is reached twice."""
    nodes = _list(tree, "nodes")
    if len(nodes) > MOST_NODES:
        raise ValueError(f"it has {len(nodes)} nodes; at most {MOST_NODES} are read")
    total = sum(corners) + sum(corners[_whole(node, "mesh", below=len(corners))] for node in nodes if "mesh" in node)
    if total > NUMBERS // 3:
        raise ValueError(f"its nodes and meshes have {total:,} corners; at most {NUMBERS // 3:,} are read")
    children = [node.get("children", []) for node in nodes]
    flat = [child for row in children for child in row]
    if any(not isinstance(child, int) or not 0 <= child < len(nodes) for child in flat):
        raise ValueError("its nodes are damaged: one has a child that does not exist")
    inner = set(flat)
    if len(inner) != len(flat):
        raise ValueError("its nodes are damaged: one has two parents")
    level, depth, seen = [at for at in range(len(nodes)) if at not in inner], 0, 0
    while level and depth <= DEEPEST:
        seen, depth = seen + len(level), depth + 1
        level = [child for at in level for child in children[at]]
    if level:
        raise ValueError(f"its nodes are nested in over {DEEPEST} levels")
    if seen != len(nodes):
        raise ValueError("its nodes are damaged: one lies within itself")
