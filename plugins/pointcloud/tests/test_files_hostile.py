"""Files that are damaged or made to harm: read or refused by name, at once, in little memory, whatever they say."""

import contextlib
import io
import json
import os
import random
import signal
import struct
import zipfile

import numpy as np
import pytest
import torch
import trimesh
from mim_core.errors import BadSample
from mim_pointcloud import polygons
from mim_pointcloud.files import is_list, read_cloud
from mim_pointcloud.polygons import Work, triangulate

HALF = 1 << 19
SQUARE = b"v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\nf 1 2 3 4\n"
POINTS = np.random.default_rng(0).normal(size=(40, 3)).astype("<f4")
PCD = b"FIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nCOUNT 1 1 1\nWIDTH 40\nHEIGHT 1\nPOINTS 40\nDATA "
PLY = b"ply\nformat binary_little_endian 1.0\nelement vertex 40\nproperty float x\nproperty float y\nproperty float z\n"


@pytest.fixture(autouse=True)
def soon():
    """No file keeps a reader for 20 seconds."""

    def late(*_):
        raise SystemError("too slow")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


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
    for count, rows, said in ((10**8, 1, "over the limit of 67,108,864 numbers"), (300, 200, "byte in points more")):
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
