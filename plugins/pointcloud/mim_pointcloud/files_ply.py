"""PLY: meshes and clouds, as text or binary."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from plyfile import PlyData, PlyElementParseError, PlyListProperty

from mim_pointcloud.files_cloud import from_fields
from mim_pointcloud.files_shape import Ints, Shape, mesh

CORNERS = ("vertex_indices", "vertex_index")


def read_ply(path: Path) -> Shape:
    """Vertices with normals and colours if there are any, and faces. Other elements are not looked at."""
    file = _parsed(path)
    elements = {element.name: element for element in file.elements}
    if "vertex" not in elements:
        raise ValueError(f"it has no vertices; it has {', '.join(elements) or 'nothing'}")
    vertex = elements["vertex"]
    plain = [prop.name for prop in vertex.properties if not isinstance(prop, PlyListProperty)]
    shape = from_fields({name: np.asarray(vertex[name]) for name in plain})
    if "tristrips" in elements and "face" not in elements:
        raise ValueError("its faces are strips (tristrips), which are not read; write it with faces")
    if "face" not in elements or not elements["face"].count:
        return shape
    face = elements["face"]
    lists = [prop.name for prop in face.properties if prop.name in CORNERS]
    if not lists:
        raise ValueError("its faces have no vertex_indices")
    corners, counts = _corners(face[lists[0]])
    return mesh(shape.vertices, corners, counts, shape.rgb)


def _corners(lists: NDArray[Any]) -> tuple[Ints, Ints]:
    if lists.dtype.kind != "O":  # all of one length
        return lists.reshape(-1).astype(np.int64), np.full(len(lists), lists.shape[1], np.int64)
    counts = np.array([len(corners) for corners in lists], np.int64)
    return np.concatenate(list(lists)).astype(np.int64), counts


def _parsed(path: Path) -> PlyData:
    """plyfile's reading: faces of three corners at once where all are, else row by row."""
    data = path.read_bytes()
    start = data.removeprefix(b"\xef\xbb\xbf")
    end = re.search(rb"^end_header[ \t]*\r?\n", start[: 1 << 20], re.MULTILINE)
    if not start.startswith(b"ply") or end is None:
        raise ValueError("it has no PLY header")
    rows = sum(int(count) for count in re.findall(rb"^element[ \t]+\S+[ \t]+(\d+)", start[: end.start()], re.MULTILINE))
    if rows > len(start) - end.end():
        raise ValueError(f"it is cut off: its header says {rows} rows, {len(start) - end.end()} bytes follow")
    if b"format ascii" in start[: end.start()] or start is not data:
        return PlyData.read(io.BytesIO(start))
    triangles = {"face": dict.fromkeys(CORNERS, 3)}
    try:
        return PlyData.read(str(path), mmap="r", known_list_len=triangles)
    except (PlyElementParseError, ValueError):
        return PlyData.read(str(path), mmap="r")
