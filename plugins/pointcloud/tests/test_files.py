"""Reading shapes: every format as other programs write it, sampling uniform by area, and files that are broken."""

import json
import math
import os
import struct
import time

import numpy as np
import plyfile
import pytest
import torch
import trimesh
from mim_core.errors import BadSample, MimError
from mim_core.testing.checks import unchecked
from mim_pointcloud.files import EXTENSIONS, is_list, read_cloud
from mim_pointcloud.files_shape import triangulate
from scipy.stats import chisquare

VERTICES = np.array([[x, y, z] for x in (0, 1) for y in (0, 2) for z in (0, 3)], float)
"""Corners of a box of 1 by 2 by 3."""
QUADS = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
TRIANGLES = [(a, b, c) for quad in QUADS for a, b, c in ((quad[0], *quad[1:3]), (quad[0], *quad[2:]))]


KNOWN = [[1.0, 0.4262, 1.4553], [0.1605, 0.0, 0.2689]]
"""Two points of the box under key 7."""


def lines(rows):
    return "".join(" ".join(map(str, row)) + "\n" for row in rows)


def obj(faces=QUADS):
    return lines(("v", *row) for row in VERTICES) + lines(("f", *(c + 1 for c in face)) for face in faces)


def off(keyword="OFF\n"):
    return f"{keyword}8 6 0\n" + lines(VERTICES) + lines((4, *quad) for quad in QUADS)


def vrml(quads=QUADS):
    points = ", ".join(" ".join(map(str, row)) for row in VERTICES)
    index = ",".join(",".join(map(str, quad)) + ",-1" for quad in quads)
    return (
        "#VRML V2.0 utf8\n# a box {\nShape { appearance Appearance { material DEF M Material { } }\n"
        f"geometry IndexedFaceSet {{ creaseAngle 0.5 coordIndex [{index}]\n"
        f"coord Coordinate {{ point [{points}] }} }} }}\n"
    )


def write(path, content):
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def reason(path, **options):
    with pytest.raises(BadSample) as caught:
        read_cloud(path, 100, 0, **options)
    assert caught.value.path == str(path)
    assert 0 < len(caught.value.reason) <= 160
    return caught.value.reason


def box_mesh(tmp_path, kind):
    mesh = trimesh.Trimesh(VERTICES, TRIANGLES, process=False)
    path = tmp_path / f"box{kind}"
    if kind == ".obj":
        return write(path, "mtllib missing.mtl\nusemtl wood\n" + obj())
    if kind == ".wrl":
        return write(path, vrml())
    if kind == ".off":
        return write(path, off())
    mesh.export(path)
    return path


def on_box(points):
    """Whether points [P, 3] lie on the surface of the box."""
    high = np.array([1, 2, 3])
    near = np.minimum(np.abs(points), np.abs(points - high)).min(1)
    return (near < 1e-5) & (points > -1e-5).all(1) & (points < high + 1e-5).all(1)


@pytest.mark.parametrize("kind", [".obj", ".off", ".stl", ".ply", ".glb", ".gltf", ".wrl"])
def test_a_box_in_every_mesh_format(tmp_path, kind):
    found = read_cloud(box_mesh(tmp_path, kind), 6000, 3, ("xyz", "normals")).numpy()
    assert found.shape == (6000, 6)
    assert found.dtype == np.float32
    assert on_box(found[:, :3]).all()
    points, normals = found[:, :3], found[:, 3:]
    axis = np.abs(normals).argmax(1)
    outward = np.where(points[np.arange(6000), axis] > 0.01, 1.0, -1.0)
    assert np.allclose(normals[np.arange(6000), axis], outward, atol=1e-5)  # every face wound outwards
    sides = np.bincount(axis * 2 + (outward > 0), minlength=6)
    assert chisquare(sides, np.array([6, 6, 3, 3, 2, 2]) * 6000 / 22).pvalue > 1e-4


@pytest.mark.parametrize(
    "kind", [kind for kind in EXTENSIONS if kind in (".npy", ".npz", ".xyz", ".txt", ".pts", ".pcd")]
)
def test_a_cloud_in_every_format(tmp_path, kind):
    points = np.random.default_rng(0).normal(size=(300, 3)).round(4)
    path = tmp_path / f"a{kind}"
    if kind == ".npy":
        np.save(path, points)
    elif kind == ".npz":
        np.savez(path, points=points, labels=np.zeros(300))
    elif kind == ".pcd":
        header = "# .PCD v0.7\nVERSION 0.7\nFIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nCOUNT 1 1 1\nWIDTH 300\nHEIGHT 1\n"
        write(path, header + "VIEWPOINT 0 0 0 1 0 0 0\nPOINTS 300\nDATA ascii\n" + lines(points))
    else:
        write(path, ("300\n" if kind == ".pts" else "") + lines(points))
    whole = read_cloud(path, 300, 5).numpy()
    assert np.array_equal(np.sort(whole, 0), np.sort(points.astype(np.float32), 0))
    some = read_cloud(path, 100, 5).numpy()
    assert len(np.unique(some, axis=0)) == 100
    more = read_cloud(path, 1000, 5).numpy()
    assert len(np.unique(more[:300], axis=0)) == 300  # all of them before any repeat
    assert set(map(tuple, more[300:])) <= set(map(tuple, whole))
    assert len(np.unique(more[300:], axis=0)) > 200


def test_keys(tmp_path):
    mesh, points = box_mesh(tmp_path, ".obj"), write(tmp_path / "a.xyz", lines(VERTICES))
    for path in (mesh, points):
        assert torch.equal(read_cloud(path, 50, 7), read_cloud(path, 50, 7))
        assert not torch.equal(read_cloud(path, 50, 7), read_cloud(path, 50, 8))
    assert torch.equal(read_cloud(mesh, 5, 2**64 - 1), read_cloud(mesh, 5, -1))
    assert torch.allclose(read_cloud(mesh, 2, 7), torch.tensor(KNOWN), atol=1e-4), (
        "other points than those of earlier versions for the same key"
    )


def test_samples_are_uniform_by_area(tmp_path):
    """Triangles of very unequal size, some without area: shares and places within one are as area says."""
    rows, faces, areas = [], [], []
    for at, side in enumerate((0.01, 0.1, 1.0, 0.0, 3.0, 0.03)):
        rows += [(10 * at, 0, 0), (10 * at + side, 0, 0), (10 * at, side, 0)]
        faces.append((3, 3 * at, 3 * at + 1, 3 * at + 2))
        areas.append(side**2)
    path = write(tmp_path / "a.off", f"OFF\n{len(rows)} {len(faces)} 0\n" + lines(rows) + lines(faces))
    count = 200_000
    points = read_cloud(path, count, 11, ("xyz",)).numpy()
    shares = np.bincount((points[:, 0] / 10 + 0.5).astype(int), minlength=6)
    areas = np.array(areas) / sum(areas)
    assert shares[3] == 0
    big = [1, 2, 4]
    assert chisquare(shares[big], areas[big] / areas[big].sum() * shares[big].sum()).pvalue > 1e-4
    inside = (points[(points[:, 0] > 39) & (points[:, 0] < 49)] - (40, 0, 0)) / 3
    assert (inside[:, :2].sum(1) <= 1 + 1e-5).all()
    cells = (inside[:, :2] * 4).astype(int)
    whole = [(i, j) for i in range(4) for j in range(4) if i + j < 3]  # cells that lie within the triangle
    counts = np.array([((cells == cell).all(1)).sum() for cell in whole])
    assert chisquare(counts).pvalue > 1e-4


def test_off_as_found(tmp_path):
    plain = read_cloud(write(tmp_path / "a.off", off()), 64, 1)
    coloured = "COFF\n8 6 0 # counts\n" + lines((*row, 255, 0, 51, 255) for row in VERTICES)
    coloured += lines((4, *quad, 0.5, 0.5, 0.5) for quad in QUADS)
    for text in (
        off("OFF"),
        off("off\n"),
        off(""),
        off("\ufeffOFF\n# made by hand\n\n"),
        off().replace("\n", "\r\n"),
        coloured,
    ):
        assert torch.equal(read_cloud(write(tmp_path / "b.off", text), 64, 1), plain)
    colours = read_cloud(write(tmp_path / "b.off", coloured), 64, 1, ("rgb",))
    assert torch.allclose(colours, torch.tensor([1, 0, 0.2]))
    assert "cut off: it says 8 vertices and 6 faces, 13 lines follow" in reason(
        write(tmp_path / "b.off", off()[:-10].rstrip())
    )
    assert "vertex 8 (from 0) of 8" in reason(write(tmp_path / "b.off", off().replace("4 0 1 3 2", "4 0 1 3 8")))
    assert "three dimensions, as text" in reason(write(tmp_path / "b.off", "OFF BINARY\n" + off("")))


def test_obj_as_found(tmp_path):
    plain = read_cloud(write(tmp_path / "a.obj", obj()), 64, 1)
    slashes = lines(("v", *row) for row in VERTICES) + lines(
        ("f", *(f"{c + 1}/{c + 1}/1" for c in quad)) for quad in QUADS
    )
    negative = lines(("v", *row) for row in VERTICES) + lines(("f", *(c - 8 for c in quad)) for quad in QUADS)
    for text in (
        "\ufeff# é\r\n" + obj().replace("\n", "\r\n"),
        slashes,
        negative + "v 9 9 9\n",
        obj().replace(" ", "\t"),
    ):
        assert torch.equal(read_cloud(write(tmp_path / "b.obj", text), 64, 1), plain)
    text = lines(("v", *row, *(row / 3)) for row in VERTICES)
    assert read_cloud(write(tmp_path / "b.obj", text), 8, 1).shape == (8, 3)  # no faces: a cloud
    found = read_cloud(write(tmp_path / "b.obj", text + obj().split("3.0\n")[-1]), 99, 1, ("rgb", "xyz"))
    assert torch.allclose(found[:, :3], found[:, 3:] / 3, atol=1e-6)  # colours between corners, as places
    assert "no rgb; it has xyz, normals" in reason(write(tmp_path / "b.obj", obj()), channels=("rgb",))
    edges = obj() + "f 1 2\nf 3\n"  # as exporters leave behind: no area, so never drawn
    assert torch.equal(read_cloud(write(tmp_path / "b.obj", edges), 64, 1), plain)
    assert "zero area" in reason(write(tmp_path / "b.obj", "v 0 0 0\nv 1 0 0\nf 1 2\n"))
    assert "vertex 0" in reason(write(tmp_path / "b.obj", obj() + "f 0 1 2\n"))
    assert "a vertex needs three numbers, not 'zero" in reason(
        write(tmp_path / "b.obj", obj().replace("v 0.0", "v zero"))
    )
    cut = reason(write(tmp_path / "b.obj", "v 0 1 2\nv 0 1 0\nv 0 1"))
    assert cut == "line 3, the last one: it is cut off: a vertex needs three numbers, not '0 1'"
    huge = reason(write(tmp_path / "b.obj", obj() + f"f 1 2 {10**30}\n"))
    assert huge.endswith("a face cannot name vertex '1000000000000000000000000000000'")
    assert "cannot name vertex" in reason(write(tmp_path / "b.obj", obj() + "f 1 2 x\n"))
    assert "cannot name vertex 99999999999999999999" in reason(
        write(tmp_path / "b.off", off().replace("4 0 1 3 2", "4 0 1 3 99999999999999999999"))
    )


def test_scenes_are_flattened(tmp_path):
    mesh = trimesh.Trimesh(VERTICES, TRIANGLES, process=False)
    scene = trimesh.Scene()
    turn = trimesh.transformations.rotation_matrix(math.pi / 2, (0, 0, 1))
    mirror = np.diag([-1.0, 1, 1, 1])
    mirror[0, 3] = 50
    scene.add_geometry(mesh, "a", transform=turn)
    scene.add_geometry(mesh, "b", transform=mirror)
    for name in ("scene.glb", "scene.gltf"):
        files = scene.export(file_type=name.split(".")[1])
        for part, data in files.items() if isinstance(files, dict) else [(name, files)]:
            write(tmp_path / (name if part == "model.gltf" else part), data)
        found = read_cloud(tmp_path / name, 2000, 1, ("xyz", "normals")).numpy()
        far = found[:, 0] > 10
        assert 800 < far.sum() < 1200
        assert on_box((found[far, :3] - (50, 0, 0)) * (-1, 1, 1)).all()
        assert on_box(found[~far][:, [1, 0, 2]] * (1, -1, 1)).all()
        outward = ((found[far, :3] - (49.5, 1, 1.5)) * found[far, 3:]).sum(1)
        assert (outward > 0).all()  # mirrored, and still wound outwards
    for part in tmp_path.glob("*.bin"):
        part.unlink()
    assert reason(tmp_path / "scene.gltf")


def test_gltf_loads_no_textures_and_no_addresses(tmp_path):
    mesh = box_mesh(tmp_path, ".gltf")
    tree = json.loads(mesh.read_text())
    tree["images"] = [{"uri": "missing.png"}, {"uri": "http://127.0.0.1:9/a.png"}]
    tree["textures"] = [{"source": 0}]
    tree["materials"] = [{"pbrMetallicRoughness": {"baseColorTexture": {"index": 0}}}]
    tree["meshes"][0]["primitives"][0]["material"] = 0
    assert on_box(read_cloud(write(mesh, json.dumps(tree)), 50, 0).numpy()).all()
    tree["buffers"][0]["uri"] = "http://127.0.0.1:9/a.bin"
    assert reason(write(mesh, json.dumps(tree)))
    tree["extensionsRequired"] = ["KHR_draco_mesh_compression"]
    assert "draco" in reason(write(mesh, json.dumps(tree)))


@pytest.mark.parametrize("coding", ["ascii", "<", ">"])
def test_ply(tmp_path, coding):
    columns = [(name, "f4") for name in ("x", "y", "z", "nx", "ny", "nz")] + [
        (n, "u1") for n in ("red", "green", "blue")
    ]
    table = np.zeros(8, columns)
    for at, name in enumerate("xyz"):
        table[name], table["n" + name] = VERTICES[:, at], (0, 0, 1)[at]
    table["red"] = 51
    path = tmp_path / "a.ply"

    def save(*elements):
        how = {"text": True} if coding == "ascii" else {"byte_order": coding}
        plyfile.PlyData([plyfile.PlyElement.describe(*element) for element in elements], **how).write(path)

    save((table, "vertex"))
    found = read_cloud(path, 8, 0, ("xyz", "normals", "rgb")).numpy()
    assert np.array_equal(np.sort(found[:, :3], 0), np.sort(VERTICES.astype(np.float32), 0))
    assert np.allclose(found[:, 3:], (0, 0, 1, 0.2, 0, 0))
    for polygons in (TRIANGLES, QUADS, [*QUADS[:5], *TRIANGLES[10:]]):
        faces = np.empty(len(polygons), [("vertex_indices", "O")])
        faces["vertex_indices"] = [np.array(face, "i4") for face in polygons]
        save((table, "vertex"), (faces, "face"))
        found = read_cloud(path, 500, 0, ("xyz", "rgb")).numpy()
        assert on_box(found[:, :3]).all()
        assert np.allclose(found[:, 3:], (0.2, 0, 0))
    write(path, path.read_bytes()[:-20])
    assert reason(path)
    write(path, b"ply\nformat ascii 1.0\nelement vertex 999999999999\nproperty float x\nend_header\n1\n")
    assert "999999999999 rows" in reason(path)


def test_stl_as_text(tmp_path):
    mesh = trimesh.Trimesh(VERTICES, TRIANGLES, process=False)
    text = mesh.export(file_type="stl_ascii")
    binary = mesh.export(file_type="stl")
    expected = read_cloud(write(tmp_path / "a.stl", binary), 64, 1)
    assert torch.allclose(read_cloud(write(tmp_path / "b.stl", text), 64, 1), expected, atol=1e-5)
    pretends = b"solid " + binary[6:]  # some programs write this into binary files
    assert torch.equal(read_cloud(write(tmp_path / "b.stl", pretends), 64, 1), expected)
    assert "cut off" in reason(write(tmp_path / "b.stl", text[:300]))
    assert "12 faces, 11 follow" in reason(write(tmp_path / "b.stl", binary[:-5]))


def test_vrml_transforms_and_names(tmp_path):
    shape = vrml().split("{\n", 1)[1]
    scene = (
        "#VRML V2.0 utf8\nDEF TOP Transform { translation 10 0 0 rotation 0 0 1 1.5707963 scale 2 2 2 children [\n"
        f'WorldInfo {{ info [ "a }} string" ] }} DEF BOX Group {{ children [ {shape} ] }} ] }}\n'
        "Transform { center 1 0 0 rotation 0 0 1 3.14159265 translation 0 0 100 children USE BOX }\n"
        "Switch { whichChoice -1 choice [ USE BOX ] }\n"
        "ROUTE TOP.a TO TOP.b\n"
    )
    found = read_cloud(write(tmp_path / "a.wrl", scene), 3000, 1).numpy()
    high = found[:, 2] > 50
    assert 450 < high.sum() < 750  # a fifth of the area
    assert on_box((found[high] - (2, 0, 100)) * (-1, -1, 1)).all()
    assert on_box((((found[~high] - (10, 0, 0)) / 2)[:, [1, 0, 2]]) * (1, -1, 1)).all()
    assert "VRML V2.0" in reason(write(tmp_path / "a.wrl", "#VRML V1.0 ascii\nSeparator { }"))
    assert "Inline" in reason(write(tmp_path / "a.wrl", vrml() + 'Inline { url "b.wrl" }'))
    assert "Sphere" in reason(write(tmp_path / "a.wrl", "#VRML V2.0 utf8\nShape { geometry Sphere { radius 1 } }"))
    assert "cut off" in reason(write(tmp_path / "a.wrl", vrml()[:-9]))
    assert "not defined" in reason(write(tmp_path / "a.wrl", vrml() + "USE NOTHING"))
    many = "".join(f"DEF N{n + 1} Group {{ children [ USE N{n} USE N{n} ] }}\n" for n in range(60))
    bomb = "#VRML V2.0 utf8\nDEF N0 Group { }\n" + many
    with unchecked():  # a million nodes are walked, and each would be checked
        assert "used too often" in reason(write(tmp_path / "a.wrl", bomb))
    deep = "#VRML V2.0 utf8\n" + "Group { children " * 20_000
    assert "nested too deeply" in reason(write(tmp_path / "a.wrl", deep))


def test_polygons_that_are_not_convex(tmp_path):
    """An L of 12 squares' area 3, and a square: triangles cover them once and nothing else."""
    flat = [(0, 0), (2, 0), (2, 1), (1, 1), (1, 2), (0, 2)]
    for turned in (flat, flat[::-1], flat[3:] + flat[:3]):
        corners = np.array([(x, y, 0.5 * x) for x, y in turned], float)
        faces = triangulate(corners, np.arange(6), np.array([6]))
        assert len(faces) == 4
        a, b, c = (corners[faces[:, at], :2] for at in range(3))
        areas = ((b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0]) / 2
        assert np.isclose(np.abs(areas).sum(), 3)
        assert np.isclose(abs(areas.sum()), 3)
        middles = (a + b + c) / 3
        assert not ((middles > 1).all(1)).any()
    dart = np.array([(0, 0, 0), (4, 0, 0), (1, 1, 0), (0, 4, 0)], float)
    for at in range(4):
        faces = triangulate(np.roll(dart, at, 0), np.arange(4), np.array([4]))
        a, b, c = (np.roll(dart, at, 0)[faces[:, corner], :2] for corner in range(3))
        areas = ((b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0]) / 2
        assert np.allclose(areas, 2)
    star = np.array([(np.cos(t) * r, np.sin(t) * r, 0) for t, r in zip(np.arange(3000), (1, 2) * 1500, strict=True)])
    with pytest.raises(ValueError, match="3000 corners is not convex"):
        triangulate(star, np.arange(3000), np.array([3000]))


def test_columns_of_text(tmp_path):
    rng = np.random.default_rng(0)
    points = rng.uniform(-1, 1, (50, 3)).round(5)
    normals = rng.normal(size=(50, 3))
    normals = (normals / np.linalg.norm(normals, axis=1, keepdims=True)).round(6)
    colours = rng.integers(0, 256, (50, 3))

    def read(name, *columns, join=" ", first="", channels=("xyz", "normals")):
        rows = [join.join(map(str, row)) for row in zip(*(c for column in columns for c in column.T), strict=True)]
        return read_cloud(write(tmp_path / name, first + "\n".join(rows)), 50, 0, channels).numpy()

    order = read("a.txt", points, normals, join=",")  # modelnet40_normal_resampled
    assert np.allclose(np.linalg.norm(order[:, 3:], axis=1), 1, atol=1e-4)
    lookup = {tuple(p): n for p, n in zip(points.astype(np.float32), normals.astype(np.float32), strict=True)}
    assert all(np.array_equal(lookup[tuple(row[:3])], row[3:]) for row in order)
    labelled = np.concatenate([normals, np.full((50, 1), 3.0)], 1)
    assert np.array_equal(read("a.txt", points, labelled), order)  # ShapeNetPart
    assert np.array_equal(read("a.xyz", points, normals, join="; ", first="\ufeff# x y z\r\n"), order)
    assert np.array_equal(read("a.xyz", points, colours, normals, first="//X Y Z R G B Nx Ny Nz\n"), order)
    both = ("xyz", "normals", "rgb")
    expected = read("a.xyz", points, normals, colours, channels=both)
    assert np.array_equal(read("a.pts", points, colours, normals, first="50\n", channels=both), expected)
    intensity = np.concatenate([rng.integers(-2048, 2047, (50, 1)), colours], 1)
    assert np.array_equal(read("a.pts", points, intensity, channels=("xyz", "rgb")), expected[:, [0, 1, 2, 6, 7, 8]])
    assert "no normals; it has xyz, rgb" in reason(tmp_path / "a.pts", channels=("normals",))
    assert "says 51 points, 50 follow" in reason(write(tmp_path / "b.pts", "51\n" + lines(points)))
    assert "decimal commas" in reason(write(tmp_path / "b.xyz", "1,5 2,5 3,5\n"))
    assert reason(write(tmp_path / "b.xyz", "1 2 3\n# note\n4 5 6\n1 2")) == (
        "line 4 has 2 numbers; those before it have 3"
    )
    assert reason(write(tmp_path / "b.xyz", "1 2 3\n4 five 6\n")) == "line 2: 'five' is no number"
    assert reason(write(tmp_path / "b.xyz", "1 2\n3 4\n"))


def test_lists_are_no_clouds(tmp_path):
    for text, expected in (
        ("airplane_0001\nchair_0002\n", True),
        ("airplane_0001 1 2", True),
        ("1,2,3\n", False),
        ("5\n1 2 3\n", False),
        ("x y z\n1 2 3\n", False),
        ("", False),
    ):
        assert is_list(write(tmp_path / "a.txt", text)) is expected
    assert not is_list(write(tmp_path / "a.xyz", "word"))


def test_pcd_binary_and_compressed(tmp_path):
    points = np.random.default_rng(0).normal(size=(200, 3)).astype("<f4")
    packed = np.full(200, 0x00FF8000, "<u4").view("<f4")
    header = "VERSION .7\nFIELDS x y z rgb _\nSIZE 4 4 4 4 1\nTYPE F F F F U\nCOUNT 1 1 1 1 4\nWIDTH 20\nHEIGHT 10\n"
    rows = np.zeros(200, [("p", "<f4", 3), ("rgb", "<f4"), ("_", "u1", 4)])
    rows["p"], rows["rgb"] = points, packed
    path = write(tmp_path / "a.pcd", (header + "POINTS 200\nDATA binary\n").encode() + rows.tobytes())
    found = read_cloud(path, 200, 0, ("xyz", "rgb"))
    assert np.array_equal(np.sort(found[:, :3].numpy(), 0), np.sort(points, 0))
    assert torch.allclose(found[:, 3:], torch.tensor([1, 128 / 255, 0]))
    plain = points.T.tobytes() + packed.tobytes() + bytes(800)
    code = b"".join(bytes([len(p) - 1]) + p for at in range(0, 2404, 32) if (p := plain[:2404][at : at + 32]))
    sizes = {4: (264, 264, 264, 4), 1: (264, 264, 264, 7)}  # copies that overlap what they write
    for back, first in ((4, b""), (1, bytes(2))):
        code += first + b"".join(
            bytes([7 << 5, size - 9, back - 1] if size > 8 else [(size - 2) << 5, back - 1]) for size in sizes[back]
        )
    body = struct.pack("<II", len(code), len(plain)) + code
    path = write(tmp_path / "b.pcd", (header + "DATA binary_compressed\n").encode() + body)
    assert torch.equal(read_cloud(path, 200, 0, ("xyz", "rgb")), found)
    assert "cut off" in reason(write(path, path.read_bytes()[:-9]))
    assert "cut off" in reason(write(path, (tmp_path / "a.pcd").read_bytes()[:-9]))
    assert "header" in reason(write(path, "FIELDS x y z\n"))


def test_arrays(tmp_path):
    path = tmp_path / "a.npy"
    for wrong in (
        np.zeros((3,)),
        np.zeros((9, 2)),
        np.zeros((4, 4), complex),
        np.array([{}, 1], object),
        np.zeros((0, 3)),
    ):
        np.save(path, wrong, allow_pickle=True)
        assert reason(path)
    np.save(path, np.arange(12, dtype=np.int16).reshape(4, 3))
    assert read_cloud(path, 4, 0).sum() == 66
    whole = path.read_bytes()
    assert reason(write(path, whole[:-4]))
    np.savez(tmp_path / "a.npz", a=np.zeros((2, 3)), b=np.zeros((2, 3)))
    assert "name one array points, xyz or pc" in reason(tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz", np.ones((2, 3)))
    assert read_cloud(tmp_path / "a.npz", 2, 0).sum() == 6
    np.savez(tmp_path / "a.npz", xyz=np.ones((2, 3)), normals=np.eye(3)[:2], colors=np.full((2, 4), 255, np.uint8))
    assert read_cloud(tmp_path / "a.npz", 2, 0, ("rgb", "normals")).sum() == 8


@pytest.mark.parametrize("kind", EXTENSIONS)
def test_what_is_no_shape(tmp_path, kind):
    """Empty, noise, a lone word, nothing, a folder, a pipe: a short reason, and at once."""
    noise = np.random.default_rng(0).bytes(20_000)
    started = time.monotonic()
    for content in (
        b"",
        noise,
        b"\0" * 999,
        b"hello\n",
        b"\n\n",
        b"\xef\xbb\xbf",
        b"{" * 5000,
        b"[" * 5000,
        b"glTF" + noise,
    ):
        reason(write(tmp_path / f"a{kind}", content))
    assert reason(tmp_path / f"none{kind}") == "no such file"
    (tmp_path / f"folder{kind}").mkdir()
    assert reason(tmp_path / f"folder{kind}") == "it is a folder"
    os.mkfifo(tmp_path / f"pipe{kind}")
    assert reason(tmp_path / f"pipe{kind}") == "no regular file"
    assert time.monotonic() - started < 20


@pytest.mark.parametrize("kind", [".obj", ".off", ".stl", ".ply", ".glb", ".gltf", ".wrl"])
def test_files_cut_off_anywhere(tmp_path, kind):
    """Points on the box, or a reason; whatever byte is the last."""
    whole = box_mesh(tmp_path, kind).read_bytes()
    for end in range(1, len(whole), max(1, len(whole) // 60)):
        try:
            found = read_cloud(write(tmp_path / f"cut{kind}", whole[:end]), 20, 0)
        except BadSample:
            continue
        assert torch.isfinite(found).all()
        # an OBJ does not say how long it is, and a last line may lack its end
        assert kind == ".obj" or end >= len(whole.rstrip())


def test_surfaces_without_area(tmp_path):
    flat = "v 0 0 0\nv 1 0 0\nv 2 0 0\nf 1 2 3\n"
    assert "zero area" in reason(write(tmp_path / "a.obj", flat))
    point = "v 5 5 5\nv 5 5 5\nv 5 5 5\nf 1 2 3\n"
    assert "zero area" in reason(write(tmp_path / "a.obj", point))
    small = lines(("v", *(row * 1e-160)) for row in VERTICES) + obj().split("3.0\n")[-1]
    assert read_cloud(write(tmp_path / "a.obj", small), 5, 0, ("normals",)).abs().sum() == 5
    large = lines(("v", *(row * 1e200)) for row in VERTICES) + obj().split("3.0\n")[-1]
    assert "too large for float32" in reason(write(tmp_path / "a.obj", large))
    for word in ("nan", "inf", "-inf"):
        assert "NaN or infinite" in reason(write(tmp_path / "a.obj", obj().replace("v 1.0", f"v {word}", 1)))
        assert "1 of 2 points" in reason(write(tmp_path / "a.xyz", f"1 2 3\n1 2 {word}\n"))


@pytest.mark.parametrize("coding", ["ascii", "binary"])
def test_places_where_a_depth_camera_saw_nothing_are_no_points(tmp_path, coding):
    header = "FIELDS x y z i\nSIZE 4 4 4 4\nTYPE F F F F\nCOUNT 1 1 1 1\nWIDTH 3\nHEIGHT 2\nPOINTS 6\nDATA "

    def picture(rows):
        body = lines(rows).encode() if coding == "ascii" else np.array(rows, "<f4").tobytes()
        return write(tmp_path / "a.pcd", f"{header}{coding}\n".encode() + body)

    seen = [(1, 2, 3, 0), (4, 5, 6, 0), (7, 8, 9, 0)]
    nothing = [(np.nan, np.nan, np.nan, 0)] * 3
    found = read_cloud(picture([*nothing, *seen]), 3, 0).numpy()
    assert np.array_equal(np.sort(found, 0), np.array(seen)[:, :3])
    assert "NaN or infinite" in reason(picture([(1, np.nan, 3, 0), *nothing[:2], *seen]))
    assert "no points" in reason(picture(nothing * 2))


def test_wrong_questions(tmp_path):
    path = box_mesh(tmp_path, ".obj")
    with pytest.raises(MimError, match="Did you mean 'normals'"):
        read_cloud(path, 5, 0, ("xyz", "normal"))
    with pytest.raises(MimError, match=r"\.fbx"):
        read_cloud(tmp_path / "a.fbx", 5, 0)
    with pytest.raises(MimError, match="0 points"):
        read_cloud(path, 0, 0)
    assert read_cloud(path.rename(tmp_path / "BOX.OBJ"), 5, 0).shape == (5, 3)


def test_a_million_points(tmp_path):
    points = np.random.default_rng(0).normal(size=(1_000_000, 3)).astype(np.float32)
    np.save(tmp_path / "a.npy", points)
    started = time.process_time()
    assert read_cloud(tmp_path / "a.npy", 8192, 0).shape == (8192, 3)
    assert time.process_time() - started < 5
    write(tmp_path / "a.xyz", "0.25 1.5 -3\n" * 1_000_000)
    started = time.process_time()
    assert read_cloud(tmp_path / "a.xyz", 8192, 0).shape == (8192, 3)
    assert time.process_time() - started < 20


def test_arrays_that_are_damaged_or_lie_on_their_side(tmp_path):
    assert "it is no .npy" in reason(write(tmp_path / "a.npy", "garbage, and more of it"))
    np.save(tmp_path / "b.npy", np.array([{}]), allow_pickle=True)
    assert "Python objects" in reason(tmp_path / "b.npy")
    np.save(tmp_path / "c.npy", np.zeros((3, 2048)))
    assert "transposed?" in reason(tmp_path / "c.npy")
    np.save(tmp_path / "d.npy", np.zeros((30, 3)))
    assert "cut off" in reason(write(tmp_path / "d.npy", (tmp_path / "d.npy").read_bytes()[:70]))
