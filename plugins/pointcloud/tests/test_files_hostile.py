"""Files that are damaged or made to harm: read or refused by name, at once, in little memory, whatever they say."""

import contextlib
import io
import json
import os
import random
import signal
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch
import trimesh
from mim_core.errors import BadSample
from mim_pointcloud import files_shape, limits, polygons
from mim_pointcloud.files import is_list, read_cloud
from mim_pointcloud.polygons import Work, triangulate

HALF = 1 << 19
SQUARE = b"v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\nf 1 2 3 4\n"
POINTS = np.random.default_rng(0).normal(size=(40, 3)).astype("<f4")
PCD = b"FIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nCOUNT 1 1 1\nWIDTH 40\nHEIGHT 1\nPOINTS 40\nDATA "
PLY = b"ply\nformat binary_little_endian 1.0\nelement vertex 40\nproperty float x\nproperty float y\nproperty float z\n"


@pytest.fixture(autouse=True)
def soon():
    """No file takes 20 seconds of a processor, nor makes a reader wait for two minutes."""

    def late(*_):
        raise SystemError("too slow")

    before = [(number, signal.signal(number, late)) for number in (signal.SIGALRM, signal.SIGPROF)]
    signal.alarm(120)
    signal.setitimer(signal.ITIMER_PROF, 20)
    yield
    signal.alarm(0)
    signal.setitimer(signal.ITIMER_PROF, 0)
    for number, handler in before:
        signal.signal(number, handler)


def reason(path, data, **options):
    path.write_bytes(data)
    with pytest.raises(BadSample) as caught:
        read_cloud(path, 50, 0, **options)
    assert caught.value.path == str(path)
    return caught.value.reason


def header(shape, kind="<f4"):
    made = io.BytesIO()
    np.lib.format.write_array_header_1_0(made, {"descr": kind, "fortran_order": False, "shape": shape})
    return made.getvalue()


SLOW = {
    "lines.stl": (b"solid a\nfacet\n" + b"\n" * HALF + b"x", "does not end in endsolid"),
    "quotes.wrl": (b"#VRML V2.0 utf8\n" + b'\\"' * (HALF // 2), "string is not closed"),
    "slashes.wrl": (b'#VRML V2.0 utf8\n"' + b"\\" * HALF, "string is not closed"),
    "lists.wrl": (b"#VRML V2.0 utf8\n" + b"A { b [ " * (HALF // 8), "nested too deeply"),
    "inner.wrl": (b"#VRML V2.0 utf8\n" + b"Group { children [ " * 20 + b"Group {} " * 30_000, "cut off"),
    "counts.obj": (b"v 0 0 0\n" + b"".join(b"f " + b"1 " * k + b"\n" for k in range(3, 700)), "zero area"),
    "lines.off": (b"OFF\n" + b"\n" * HALF, "no counts"),
    "blanks.ply": (b"ply\nend_header" + b" " * HALF, "no PLY header"),
    "data.pcd": (b"DATA " * (HALF // 5), "no PCD header"),
    "lines.xyz": (b"\n" * HALF, "no points"),
    "wide.npz": (b"PK" * (HALF // 2), "no .npz"),
    "deep.gltf": (b'{"asset":' + b"[" * HALF, "nested too deeply"),
}


@pytest.mark.parametrize("name", SLOW)
def test_half_a_megabyte_of_nothing(tmp_path, name):
    data, said = SLOW[name]
    assert said in reason(tmp_path / name, data)


def test_faces_that_cross_themselves_cost_the_square_of_their_corners(monkeypatch):
    corners = np.random.default_rng(0).normal(size=(400, 3))
    spent = []
    for count in (100, 200, 400):
        work = Work()
        assert len(triangulate(corners, np.arange(count), np.array([count]), work)) == count - 2
        spent.append(polygons.MOST_WORK - work.left)
    assert spent[2] < 4.5 * spent[1] < 4.5**2 * spent[0]
    monkeypatch.setattr(polygons, "MOST_WORK", 3 * spent[2])
    with pytest.raises(ValueError, match="write it with triangles"):
        triangulate(corners, np.tile(np.arange(400), 4), np.full(4, 400), Work(polygons.MOST_WORK))


HUGE = {
    "a.npy": (header((10**12, 3)), "12,000,000,000,000 bytes less than its header says"),
    "b.npy": (header((10**15, 0)), r"[points, 3 or more]"),
    "c.npy": (header((10**12, 3), "<U0"), "header is damaged"),
    "d.npy": (header((-4, 3)), "header is damaged"),
    "a.off": (b"OFF 1000000000000 1000000000000 0\n0 0 0\n", "cut off"),
    "a.ply": (PLY.replace(b"40", b"1000000000000") + b"end_header\n1", "cut off"),
    "b.ply": (PLY + b"element face 9\nproperty list uint uint vertex_indices\nend_header\n" + b"\xff" * 900, "cut off"),
    "a.pcd": (PCD.replace(b"40", b"1000000000000") + b"ascii\n1 2 3\n", "cut off"),
    "b.pcd": (PCD.replace(b"1 1 1\n", b"1 1 1000000000\n") + b"ascii\n1 2 3\n", "COUNT"),
    "a.txt": (b"9" * 5000 + b"\n1 2 3\n", "line 2 has 3 numbers"),
}


@pytest.mark.parametrize("name", HUGE)
def test_counts_that_no_file_holds(tmp_path, name):
    data, said = HUGE[name]
    assert said in reason(tmp_path / name, data)


def test_packed_arrays_are_unpacked_up_to_a_limit(tmp_path):
    for count, rows, said in ((10**8, 1, "over the limit of 33,554,432 numbers"), (300, 200, "byte in points more")):
        with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as packed:
            packed.writestr("points.npy", header((count, 3)) + bytes(rows << 16))
        assert said in reason(tmp_path / "a.npz", (tmp_path / "a.npz").read_bytes())


def seeds():
    box = trimesh.creation.box()
    packed = io.BytesIO()
    np.savez(packed, points=POINTS)
    plain = io.BytesIO()
    np.save(plain, POINTS)
    text = "".join(f"{x} {y} {z}\n" for x, y, z in POINTS).encode()
    wrl = b"#VRML V2.0 utf8\nShape { geometry IndexedFaceSet { coordIndex [0 1 2 -1 0 2 3 -1]\n"
    wrl += b"coord Coordinate { point [0 0 0, 1 0 0, 1 1 0, 0 1 0] } } }\n"
    return {
        "a.stl": box.export(file_type="stl"),
        "b.stl": box.export(file_type="stl_ascii").encode(),
        "a.ply": box.export(file_type="ply"),
        "b.ply": box.export(file_type="ply", encoding="ascii"),
        "a.glb": box.export(file_type="glb"),
        "a.off": box.export(file_type="off").encode(),
        "a.obj": SQUARE,
        "a.wrl": wrl,
        "a.npy": plain.getvalue(),
        "a.npz": packed.getvalue(),
        "a.xyz": text,
        "a.pcd": PCD + b"binary\n" + POINTS.tobytes(),
        "b.pcd": PCD + b"ascii\n" + text,
    }


@pytest.mark.parametrize("name", ["a.stl", "a.ply", "a.npy", "a.pcd", "a.glb"])
def test_bytes_put_in_or_taken_out_are_named(tmp_path, name):
    whole, draw = seeds()[name], random.Random(name)
    body = max(84, 128, whole.find(b"end_header\n") + 11) if name != "a.glb" else len(whole) - 190
    for more in (1, 4, 10, 51, 137):
        at = draw.randrange(body + more, len(whole))
        said = reason(tmp_path / name, whole[:at] + bytes(more) + whole[at:])
        assert f"{more} byte" in said or name == "a.ply"  # its faces are lists, whose lengths are moved too
        assert reason(tmp_path / name, whole[: at - more] + whole[at:])
    assert f"it has {len(whole):,} " in reason(tmp_path / name, whole * 2)


@pytest.mark.parametrize("name", ["a.off", "b.ply", "b.pcd"])
def test_lines_put_in_are_named(tmp_path, name):
    data = seeds()[name].rstrip() + b"\n0 0 0\n"
    assert "1 line more" in (said := reason(tmp_path / name, data)) or "41 follow" in said


@pytest.mark.parametrize("name", seeds())
def test_damaged_files_are_bad_or_shapes(tmp_path, name):
    whole, draw = seeds()[name], random.Random(name)
    for _ in range(60):
        data = bytearray(whole)
        at = draw.randrange(len(data))
        kind = draw.randrange(4)
        if kind == 0:
            del data[at + 1 :]
        elif kind == 1:
            data[at] ^= 1 << draw.randrange(8)
        elif kind == 2:
            data[at:at] = draw.choice(
                (b"\0", b"-1 ", b"1e400 ", b"99999999999999999999 ", b"{", b'"', draw.randbytes(4))
            )
        else:
            data[at:at] = data[at : at + draw.randrange(40)]
        (tmp_path / name).write_bytes(data)
        with contextlib.suppress(BadSample):
            found = read_cloud(tmp_path / name, 20, 0)
            assert torch.isfinite(found).all()
            assert found.abs().max() <= 1e15


def test_coordinates_beyond_all_measure(tmp_path):
    for word in ("1e32", "-9.8e32"):
        assert "its coordinates go up to" in reason(tmp_path / "a.xyz", f"1 2 3\n4 5 {word}\n".encode())


# ---- glTF ------------------------------------------------------------------------------------------------------------


def tree(tmp_path):
    files = trimesh.Scene(trimesh.creation.box()).export(file_type="gltf")
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    return json.loads(files["model.gltf"])


def of(made):
    return json.dumps(made).encode()


def test_a_buffer_that_is_missing_or_no_file(tmp_path):
    made, path = tree(tmp_path), tmp_path / "model.gltf"
    buffer = tmp_path / made["buffers"][0]["uri"]
    whole = buffer.read_bytes()
    assert read_cloud(path, 20, 0).shape == (20, 3)
    buffer.unlink()
    assert reason(path, of(made)) == f"it needs {buffer.name}, not found"
    os.mkfifo(buffer)
    assert reason(path, of(made)) == f"it needs {buffer.name}, no regular file"
    buffer.unlink()
    buffer.write_bytes(whole[:30] + b"\1" + whole[30:])
    assert f"1 byte in {buffer.name} more" in reason(path, of(made))
    (tmp_path / "a b.bin").write_bytes(whole)
    made["buffers"][0]["uri"] = "a%20b.bin"
    path.write_bytes(of(made))
    assert read_cloud(path, 20, 0).shape == (20, 3)


def test_scenes_without_end(tmp_path):
    made, path = tree(tmp_path), tmp_path / "model.gltf"
    first = len(made["nodes"])
    cases = {
        "lies within itself": [{"children": [first]}],
        "has two parents": [{"children": [first + 1, first + 1]}, {}],
        "nested in over 256 levels": [*({"children": [first + at + 1]} for at in range(300)), {}],
        "a child that does not exist": [{"children": [9999]}],
        "nodes; at most": [{}] * 100_001,
    }
    for said, nodes in cases.items():
        assert said in reason(path, of({**made, "nodes": [*made["nodes"], *nodes]}))
    huge = {"count": 10**12, "componentType": 5126, "type": "VEC3"}
    assert "accessors hold over" in reason(path, of({**made, "accessors": [*made["accessors"], huge]}))
    made["accessors"][0]["count"] = 10**6
    assert "reaches over the end" in reason(path, of(made))


# ---- what is no cloud ------------------------------------------------------------------------------------------------


def test_notes_and_lists_of_numbers_are_no_clouds(tmp_path):
    for text in ("MIT License\n\nCopyright\n", "12\n3\n4\n", "²\n", "5\n", "1. Introduction\n", "# only\n# notes\n"):
        (tmp_path / "a.txt").write_text(text, encoding="latin-1")
        assert is_list(tmp_path / "a.txt"), text
    os.mkfifo(tmp_path / "pipe.txt")
    assert not is_list(tmp_path / "pipe.txt")


def test_packed_points_that_repeat_without_end(tmp_path):
    code = b"\0\0" + b"\xe0\xff\0" * 1000
    body = struct.pack("<II", len(code), 480) + code
    assert "packed data is broken" in reason(tmp_path / "a.pcd", PCD + b"binary_compressed\n" + body)


def sparse(path, head, more):
    """A file of zeros behind its head, which take no room on the disk."""
    path.write_bytes(head)
    os.truncate(path, len(head) + more)
    return path


MANY = 42_000_000
JUNK = PLY.replace(b"vertex 40", b"vertex 3") + b"element junk 1900000000\nproperty uchar q\nend_header\n"
SPARSE = {
    "faces.stl": (b"\0" * 80 + struct.pack("<I", MANY), 50 * MANY),
    "unread.ply": (JUNK, 36 + 1_900_000_000),
    "points.pcd": (PCD.replace(b"40", b"22000000") + b"binary\n", 12 * 22_000_000),
    "line.obj": (b"v 0 0 0\nf", 400 * 2**20),
    "line.off": (b"OFF\n", 400 * 2**20),
    "line.xyz": (b"1 2 3\n" * 12_000, 400 * 2**20),
    "words.wrl": (b"#VRML V2.0 utf8\n", 120 * 2**20),
    "chunk.glb": (b"glTF", 1_900_000_000),
}


@pytest.mark.parametrize("name", SPARSE)
def test_a_file_of_gigabytes_is_refused_in_little_memory(tmp_path, name):
    path = sparse(tmp_path / name, *SPARSE[name])
    tracemalloc.start()
    try:
        with pytest.raises(BadSample, match=r"limit|line of it"):
            read_cloud(path, 64, 1)
        assert tracemalloc.get_traced_memory()[1] < 2**30
    finally:
        tracemalloc.stop()


def test_numbers_are_counted_while_a_text_is_read(tmp_path, monkeypatch):
    for module in ("files_mesh", "files_ply"):
        monkeypatch.setattr(f"mim_pointcloud.{module}.check_numbers", few)
    head = "ply\nformat ascii 1.0\nelement vertex 3\nproperty float x\nproperty float y\nproperty float z\n"
    head += "element face 9\nproperty list uchar int vertex_indices\nend_header\n" + "0 0 1\n" * 3
    texts = {
        "a.obj": "v 0 0 1\n" * 99,
        "b.obj": "v 0 0 1\nv 1 0 0\nv 0 1 0\n" + "f 1 2 3\n" * 99,
        "c.off": "OFF\n99 0 0\n" + "0 0 1\n" * 99,
        "d.off": "OFF\n3 99 0\n" + "0 0 1\n" * 3 + "3 0 1 2\n" * 99,
        "e.stl": "solid\nfacet\n" + "vertex 0 0 1\n" * 99 + "endsolid\n",
        "f.ply": head + "3 0 1 2\n" * 9,
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(BadSample, match="over the limit"):
            read_cloud(tmp_path / name, 64, 1)


def few(rows, columns, what="points"):
    """`limits.check_numbers` with a limit of 20."""
    if rows * columns > 20:
        raise ValueError("over the limit")


def test_areas_and_corners_are_computed_in_parts(monkeypatch):
    draws = np.random.default_rng(0)
    vertices = draws.normal(size=(60, 3))
    corners, counts = draws.integers(0, 60, 400), np.array([4] * 50 + [5] * 40)
    whole = triangulate(vertices, corners, counts)
    points = files_shape.on_surface(files_shape.Shape(vertices, whole), 500, 7)
    monkeypatch.setattr(polygons, "AT_ONCE", 20)
    monkeypatch.setattr(files_shape, "AT_ONCE", 7)
    assert np.array_equal(triangulate(vertices, corners, counts), whole)
    again = files_shape.on_surface(files_shape.Shape(vertices, whole), 500, 7)
    assert np.array_equal(again.vertices, points.vertices)
    assert np.array_equal(again.normals, points.normals)


def test_a_gltf_of_many_values_and_buffers(tmp_path):
    (tmp_path / "values.gltf").write_text('{"asset": {"version": "2.0"}, "x": [' + "{}," * 1_000_000 + "0]}")
    sparse(tmp_path / "b.bin", b"", 200 * 2**20)
    named = [{"byteLength": 200 * 2**20, "uri": "./" * n + "b.bin"} for n in range(3)]
    (tmp_path / "buffers.gltf").write_text(json.dumps({"asset": {"version": "2.0"}, "buffers": named}))
    for name, said in (("values", "values"), ("buffers", "256 MiB")):
        with pytest.raises(BadSample, match=said):
            read_cloud(tmp_path / f"{name}.gltf", 64, 1)


def test_arrays_of_an_npz_are_counted_together(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as packed:
        for name in ("points", "normals", "rgb"):
            with packed.open(f"{name}.npy", "w") as raw:
                np.lib.format.write_array_header_1_0(
                    raw, {"descr": "<f8", "fortran_order": False, "shape": (8_000_000, 3)}
                )
                for _ in range(8):
                    raw.write(bytes(24_000_000))
    with pytest.raises(BadSample, match="together"):
        read_cloud(tmp_path / "a.npz", 64, 1)


def test_lines_up_to_the_limit_are_read(tmp_path):
    (tmp_path / "a.obj").write_text("v 0 0 0\nv 1 0 0\nv 1 1 0\nf 1 2 3\n#" + "x" * limits.LONGEST_LINE)
    assert read_cloud(tmp_path / "a.obj", 4, 1).shape == (4, 3)


def test_a_ply_that_lacks_a_point_is_no_other_cloud(tmp_path):
    """Without one, the points eat the start of the faces, and a face of no corners makes up for it."""
    points = np.random.default_rng(0).random((60, 3)).astype("<f4")
    faces = b"".join(b"\x03" + np.array([i, i + 1, i + 2], "<i4").tobytes() for i in range(57))
    head = (
        "ply\nformat binary_little_endian 1.0\nelement vertex {}\nproperty float x\nproperty float y\n"
        "property float z\nelement face 57\nproperty list uchar int vertex_indices\nend_header\n"
    )
    path = tmp_path / "a.ply"
    path.write_bytes(head.format(60).encode() + points.tobytes() + faces)
    assert read_cloud(path, 128, 0).shape == (128, 3)
    for said, body in ((60, points[1:].tobytes() + faces), (61, points.tobytes() + faces)):
        for more in (b"", bytes(12)):  # as much as is lacking, at the end
            path.write_bytes(head.format(said).encode() + body + more)
            with pytest.raises((BadSample, ValueError)):
                read_cloud(path, 128, 0)


def test_a_pcd_whose_header_contradicts_itself(tmp_path):
    lines = "\n".join(f"{i} {i * 2} {i * 3}" for i in range(12))
    head = "VERSION .7\nFIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nCOUNT 1 1 1\nWIDTH {}\nHEIGHT {}\nPOINTS 12\nDATA ascii\n"
    path = tmp_path / "a.pcd"
    path.write_text(head.format(4, 3) + lines)
    assert read_cloud(path, 12, 0).shape == (12, 3)
    path.write_text(head.format(4, 4) + lines)
    with pytest.raises((BadSample, ValueError), match="says 4 x 4 points, and then 12"):
        read_cloud(path, 12, 0)
