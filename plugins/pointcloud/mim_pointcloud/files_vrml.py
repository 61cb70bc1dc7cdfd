"""VRML 2.0 (ISO/IEC 14772-1), as KiCad, FreeCAD and others write parts: face sets under transforms."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mim_pointcloud.files_shape import Floats, Shape, cloud, joined, moved
from mim_pointcloud.polygons import Work, triangulate

GROUPS = ("Group", "Transform", "Anchor", "Billboard", "Collision")
SOLIDS = ("Box", "Sphere", "Cone", "Cylinder", "Extrusion", "ElevationGrid")
LARGEST_SCENE = 20_000_000
"""Corners of all faces, each counted when it is read and when it is put in its place; a small file that uses a part of
a part of a part many times may go over."""
LARGEST_TREE = 1_000_000
"""Nodes that are visited."""
_ASIDE = re.compile(r'"(?:[^"\\]|\\.?)*+("?)|#[^\n]*', re.DOTALL)
"""Strings and comments. A string that has begun is never tried again, so that many of them take no longer than one."""


@dataclass(eq=False)
class Node:
    """A node: its type, and its fields as lists of words or of nodes."""

    kind: str
    fields: dict[str, list[Any]] = field(default_factory=dict)

    def numbers(self, name: str, default: tuple[float, ...]) -> list[float]:
        """A field of so many numbers.

        Raises:
            ValueError: There are more of them, or fewer.
        """
        words = self.fields.get(name, default)
        if len(words) != len(default):
            raise ValueError(f"{self.kind}'s {name} has {len(words)} numbers instead of {len(default)}")
        return [float(word) for word in words]

    def nodes(self, *names: str) -> list[Node]:
        """The nodes in these fields."""
        return [node for name in names for node in self.fields.get(name, ()) if isinstance(node, Node)]


def read_wrl(path: Path) -> Shape:
    """All face sets where the transforms put them, and point sets where there are no faces. Lines, text, materials
    and colours are not looked at; a Switch shows the choice it makes, a LOD its first level.

    Raises:
        ValueError: VRML 1.0, or a node that would be left out: a solid such as Box, another file, or a PROTO.
    """
    data = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    if data[:2] == b"\x1f\x8b":
        raise ValueError("it is packed by gzip; unpack it first")
    if not data.startswith(b"#VRML V2.0"):
        first = data[:16].decode("latin-1").splitlines()[:1]
        raise ValueError(f"it does not begin with #VRML V2.0, but {first[0] if first else ''!r}")
    roots = _Parser(data.decode("latin-1")).statements()
    scene = _Scene()
    scene.walk(roots, np.eye(4))
    if not scene.meshes and not scene.points:
        raise ValueError("it has no points and no faces")
    return joined(scene.meshes or scene.points)


def _plain(match: re.Match[str]) -> str:
    if match[0][0] == "#":
        return " "
    if not match[1]:
        raise ValueError("it is cut off, or damaged: a string is not closed")
    return ' "" '


class _Parser:
    """Words into nodes. Fields are told from values by how they begin: the grammar needs no list of node types."""

    def __init__(self, text: str) -> None:
        plain = _ASIDE.sub(_plain, text)
        for mark, apart in ((",", " "), *((bracket, f" {bracket} ") for bracket in "[]{}")):
            plain = plain.replace(mark, apart)
        self.words = plain.split()
        self.at = 0
        self.named: dict[str, Node] = {}

    def _next(self) -> str:
        if self.at >= len(self.words):
            raise ValueError("it is cut off: a bracket is not closed")
        self.at += 1
        return self.words[self.at - 1]

    def statements(self) -> list[Node]:
        nodes = []
        while self.at < len(self.words):
            word = self._next()
            if word == "ROUTE":  # ROUTE a.b TO c.d: nothing moves here
                self.at += 3
            else:
                nodes.append(self._node(word))
        return nodes

    def _node(self, word: str) -> Node:
        if word == "USE":
            name = self._next()
            if name not in self.named:
                raise ValueError(f"USE {name[:40]}, which is not defined before")
            return self.named[name]
        label = self._next() if word == "DEF" else None
        kind = self._next() if word == "DEF" else word
        if kind in ("PROTO", "EXTERNPROTO"):
            raise ValueError(f"{kind} is not read")
        if not re.fullmatch(r"[A-Za-z_][\w.-]*", kind) or self._next() != "{":
            raise ValueError(f"word {self.at} is {kind[:40]!r} where a node should begin")
        node = Node(kind)
        while (word := self._next()) != "}":
            if word == "ROUTE":
                self.at += 3
            elif word in ("eventIn", "eventOut", "field", "exposedField"):
                raise ValueError(f"{kind} with {word} is not read")
            else:
                node.fields[word] = self._value()
        if label is not None:
            self.named[label] = node
        return node

    def _value(self) -> list[Any]:
        word = self._next()
        if word == "[":
            return self._list()
        if word in ("DEF", "USE") or (self.at < len(self.words) and self.words[self.at] == "{"):
            return [self._node(word)]
        values = [word]
        while self.at < len(self.words) and re.match(r'[-+.\d"]', self.words[self.at]):
            values.append(self._next())
        return values

    def _list(self) -> list[Any]:
        first = self.words[self.at : self.at + 4]
        first = first[: first.index("]")] if "]" in first else first
        if not any(word in ("{", "DEF", "USE") for word in first):
            try:
                end = self.words.index("]", self.at)
            except ValueError:
                raise ValueError("it is cut off: a bracket is not closed") from None
            values: list[Any] = self.words[self.at : end]
            self.at = end + 1
            return values
        nodes = []
        while (word := self._next()) != "]":
            nodes.append(self._node(word))
        return nodes


@dataclass(eq=False)
class _Scene:
    """Shapes where the transforms put them; nodes and corners are counted, so that shared parts cannot multiply
    without end."""

    meshes: list[Shape] = field(default_factory=list)
    points: list[Shape] = field(default_factory=list)
    visited: int = 0
    corners: int = 0
    work: Work = field(default_factory=Work)
    known: dict[int, tuple[Shape, int] | None] = field(default_factory=dict)

    def walk(self, nodes: list[Node], matrix: Floats) -> None:
        for node in nodes:
            self._count(1, 0)
            if node.kind == "Inline":
                raise ValueError("it includes another file (Inline), which is not read")
            if node.kind == "Shape":
                for geometry in node.nodes("geometry"):
                    self._collect(geometry, matrix)
            elif node.kind in GROUPS:
                here = matrix @ _transform(node) if node.kind == "Transform" else matrix
                self.walk(node.nodes("children"), here)
            elif node.kind == "Switch":
                which = int(node.numbers("whichChoice", (-1,))[0])
                choices = node.nodes("choice", "children")
                self.walk(choices[which : which + 1] if which >= 0 else [], matrix)
            elif node.kind == "LOD":
                self.walk(node.nodes("level", "children")[:1], matrix)

    def _count(self, nodes: int, corners: int) -> None:
        self.visited, self.corners = self.visited + nodes, self.corners + corners
        if self.visited > LARGEST_TREE or self.corners > LARGEST_SCENE:
            most = f"over {LARGEST_SCENE:,} corners or {LARGEST_TREE:,} nodes"
            raise ValueError(f"it is too large, or its parts are used too often: {most}")

    def _collect(self, node: Node, matrix: Floats) -> None:
        if node.kind in SOLIDS:
            raise ValueError(f"it has a {node.kind}; of surfaces only IndexedFaceSet is read")
        if node.kind not in ("IndexedFaceSet", "PointSet"):
            return
        if id(node) not in self.known:
            self.known[id(node)] = self._geometry(node)
        geometry = self.known[id(node)]
        if geometry is not None and len(geometry[0].vertices):
            shape, corners = geometry
            self._count(0, corners)
            (self.meshes if len(shape.faces) else self.points).append(moved(shape, matrix))

    def _geometry(self, node: Node) -> tuple[Shape, int] | None:
        """A node's shape in its own axes, and its vertices and corners; None for edges only, which have no area."""
        words = [word for coord in node.nodes("coord") for word in coord.fields.get("point", ())]
        if len(words) % 3:
            raise ValueError(f"its {len(words)} coordinates are no points of three")
        total = len(words) // 3 + len(node.fields.get("coordIndex", ()))
        self._count(0, total)
        vertices = np.array([float(word) for word in words]).reshape(-1, 3)
        if node.kind == "PointSet":
            return cloud(vertices), total
        listed = np.array([int(word) for word in node.fields.get("coordIndex", ())], np.int64)
        if len(listed) and listed[-1] >= 0:
            listed = np.append(listed, -1)
        corners, ends = listed[listed != -1], np.concatenate([[-1], np.flatnonzero(listed == -1)])
        faces = triangulate(vertices, corners, ends[1:] - ends[:-1] - 1, self.work)
        if len(listed) and not len(faces):
            return None
        turned = node.fields.get("ccw", ["TRUE"]) == ["FALSE"]
        return Shape(vertices, faces[:, ::-1] if turned else faces), total


def _transform(node: Node) -> Floats:
    """T C R SR S -SR -C, as the standard's section 6.52 has it."""
    centre = _shift(node.numbers("center", (0, 0, 0)))
    spin = _rotation(node.numbers("rotation", (0, 0, 1, 0)))
    along = _rotation(node.numbers("scaleOrientation", (0, 0, 1, 0)))
    scale = np.diag([*node.numbers("scale", (1, 1, 1)), 1.0])
    shift = _shift(node.numbers("translation", (0, 0, 0)))
    return shift @ centre @ spin @ along @ scale @ along.T @ _shift([-value for value in centre[:3, 3]])


def _shift(by: list[float]) -> Floats:
    matrix = np.eye(4)
    matrix[:3, 3] = by
    return matrix


def _rotation(axis_angle: list[float]) -> Floats:
    """About an axis (x, y, z) by an angle in radians: Rodrigues' formula, [4, 4]."""
    x, y, z, angle = axis_angle
    length = math.hypot(x, y, z)
    matrix = np.eye(4)
    if length == 0:
        return matrix
    skew = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]]) / length
    matrix[:3, :3] += math.sin(angle) * skew + (1 - math.cos(angle)) * skew @ skew
    return matrix
