"""Splits, columns and contents of collections of shapes: what was found is said, and what is not certain is asked."""

import json
import os
import sys

import h5py
import numpy as np
import pytest
import torch
from mim_core.errors import BadSample, MimError
from mim_core.runs.inventory import digest_of
from mim_pointcloud.data import Clouds
from mim_pointcloud.files import read_cloud
from mim_pointcloud.layouts import find_shapes
from mim_pointcloud.looking import evenly, look
from mim_pointcloud.plugin import main

BOTH = ("xyz", "rgb")


@pytest.fixture
def put(tmp_path):
    """``put("a/b.npy")`` writes a cloud of 30 points below the test's folder; with ``table`` that table."""

    def make(name, table=None):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        table = np.random.default_rng(sum(name.encode())).normal(size=(30, 3)) if table is None else table
        if isinstance(table, bytes):
            path.write_bytes(table)
        elif path.suffix == ".npy":
            np.save(path, table)
        else:
            np.savetxt(path, table, fmt="%.5f")
        return path

    return make


def source(root, **options):
    width = 3 * len(options.get("channels", ("xyz",)))
    return Clouds(Clouds.Config(root=root, **options), {"points": (16, width)})


# ---- splits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("train", "held"), [("Train", "Test"), ("train", "valid"), ("TRAINING", "Validation"), ("train_set", "test2")]
)
@pytest.mark.parametrize("inner", [False, True])
def test_splits_in_any_case_and_place(put, tmp_path, train, held, inner):
    for name, count in ((train, 3), (held, 2)):
        for label in ("ball", "egg"):
            for number in range(count):
                put(f"{label}/{name}/{number}.npy" if inner else f"{name}/{label}/{number}.npy")
    clouds = source(tmp_path)
    assert clouds.collection.train.classes == clouds.collection.test.classes == ("ball", "egg")
    assert (len(clouds), len(clouds.collection.test)) == (6, 4)
    assert not {clouds.name_of(i) for i in range(6)} & set(clouds.collection.test.files)
    assert clouds.labelled("test").labels.tolist() == [0, 0, 1, 1]
    said = clouds.contents()
    assert said["splits"] == f"{train}/ for training (6); {held}/ held out (4)"
    assert said["classes"] == "2: ball, egg"


def test_a_fifth_is_held_out_of_train_alone_and_clouds_without_labels_are_for_training(put, tmp_path):
    for label in ("ball", "egg"):
        for number in range(5):
            put(f"train/{label}/{number}.npy")
    put("unlabelled/x.npy")
    found = find_shapes(tmp_path)
    assert [len(store) for store in (found.pretrain, found.train, found.test)] == [9, 8, 2]
    assert not set(found.pretrain.files) & set(found.test.files)
    assert "unlabelled/x.npy" in found.pretrain.files
    assert "a fifth is held out" not in source(tmp_path).contents()["splits"]
    put("train/ball/test.npy")
    assert find_shapes(tmp_path).train.classes == ("ball", "egg")


# ---- values that are rarely meant ------------------------------------------------------------------------------------


def test_clouds_that_are_read_as_they_are_and_were_hardly_meant(put, tmp_path):
    """A point far out, points that fill up, and too few: told before the run, as the reading does not refuse them."""
    draw = np.random.default_rng(0)
    for number in range(3):
        put(f"{number}.npy", draw.normal(size=(40, 3)))
    assert source(tmp_path).advice() == []
    table = draw.normal(size=(40, 3))
    table[:2] = -9999
    put("far.txt", table)
    table = draw.normal(size=(40, 3))
    table[:20] = 0
    put("padded.npy", table)
    put("few.npy", draw.normal(size=(9, 3)))
    far, padded, few = source(tmp_path).advice()
    assert far.startswith(
        "1 of 6 clouds looked at have points more than 100 times as far out as most (such as far.txt)"
    )
    assert padded.startswith("1 of 6 clouds looked at have many points that lie where others do (padded.npy: 48%)")
    assert few.startswith("1 of 6 clouds looked at have fewer than the 16 points that are asked for, 9 at least")


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
@pytest.mark.parametrize("name", ["a.npy", "a.txt"])
def test_values_that_the_run_refuses_are_refused_by_the_look(put, tmp_path, value, name):
    table = np.random.default_rng(0).normal(size=(40, 3))
    table[3, 1] = value
    put(name, table)
    said = source(tmp_path).contents()["files hold"]
    why = "coordinates go up to 1e+30" if np.isfinite(value) else "1 of 40 points are NaN or infinite"
    assert f"1 file cannot be read ({name}: " in said
    assert why in said
    assert "nan" not in said
    with pytest.raises(BadSample, match=why.replace("+", r"\+")):
        source(tmp_path).read(0, 0)


# ---- what the files hold ---------------------------------------------------------------------------------------------


def test_contents(put, tmp_path):
    for number in range(3):
        put(f"a/{number}.npy", np.ones((40, 3)) * np.arange(40)[:, None])
    put("b/mesh.obj", b"v 0 0 0\nv 2 0 0\nv 0 -5 0\nf 1 2 3\n")
    put("b/bad.off", b"OFF\n9 9 0\n")
    for name in ("b/a.las", "b/b.las", "b/mesh.mtl", "b/wood.png", "License.txt", "b/sweep.bin"):
        put(name, b"MIT License\n")
    clouds = source(tmp_path, whole=True)
    said = clouds.contents()
    assert "5 of 5 looked at: 3 x .npy" in said["files hold"]
    assert "1 mesh of 1 triangles; 3 clouds of 40 points" in said["files hold"]
    assert "xyz, normals in 1" in said["files hold"]
    assert "coordinates from -5 to 39" in said["files hold"]
    assert "1 file cannot be read (b/bad.off: it is cut off" in said["files hold"]
    assert said["left out"].startswith("6 files with endings that are not read: 2 x .las")
    (told,) = clouds.advice()
    assert "2 x .las" in told
    assert "1 x .bin" in told
    assert ".png" not in told
    assert "x .txt" not in told
    assert "none; of each class a fifth is held out" in said["splits"]


def test_contents_of_many_clouds_in_one_file(tmp_path):
    (tmp_path / "main_split").mkdir()
    for split in ("training", "test"):
        with h5py.File(tmp_path / f"main_split/{split}_objectdataset.h5", "w") as file:
            file["data"], file["label"] = np.random.default_rng(0).normal(size=(3, 32, 3)), np.arange(3)
    said = source(tmp_path).contents()
    assert said["files hold"].endswith("3 clouds of 32 points, float64")
    assert "as scanobjectnn has them: 3 for training, 3 held out" in said["splits"]
    path = tmp_path / "main_split/test_objectdataset.h5"
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(MimError, match="1 byte more than its header says"):
        source(tmp_path)


def test_what_is_looked_at_is_spread_evenly(put):
    assert evenly(5, 32) == [0, 1, 2, 3, 4]
    assert evenly(1000, 3) == [0, 500, 999]
    assert evenly(1, 32) == [0]
    assert evenly(0, 32) == []
    found = look(put("a.npy", np.arange(30_000.0).reshape(-1, 3)))
    assert (found.points, found.faces, found.low, found.high) == (10_000, 0, 0, 29_999)


def test_collections_that_cannot_be_read_yet_are_told_how_to_go_on(put, tmp_path):
    put("mine.h5", b"x")
    with pytest.raises(MimError, match=r"found 1 x \.h5.*Of others store each cloud as \.npy.*train/CLASS"):
        source(tmp_path)
    put("a.las", b"x")
    with pytest.raises(MimError, match="Laser scans are not read: write them as"):
        source(tmp_path)


# ---- columns ---------------------------------------------------------------------------------------------------------

SCAN = np.hstack(
    [np.random.default_rng(1).uniform(-1, 1, (60, 3)), np.arange(60.0)[:, None], np.full((60, 3), (250, 20, 60))]
)
"""x y z intensity r g b."""


@pytest.mark.parametrize("name", ["a.txt", "a.xyz", "a.pts", "a.npy"])
def test_colours_that_may_lie_in_two_places_are_asked_for(put, tmp_path, name):
    path = put(name, SCAN)
    with pytest.raises(BadSample, match=r"columns 4 to 6 or 5 to 7 of 7.*--data\.columns x y z other r g b"):
        read_cloud(path, 20, 0, BOTH)
    assert read_cloud(path, 20, 0).shape == (20, 3)  # of no matter where nobody asks
    with pytest.raises(MimError, match=r"in .*a\.\w+, r g b may be columns 4 to 6 or 5 to 7"):
        source(tmp_path, channels=BOTH)
    assert "unclear: r g b may be" in source(tmp_path).contents()["files hold"]
    for columns, mean in (("x y z intensity r g b", (250, 20, 60)), ("x y z R G B label", (None, 250, 20))):
        got = read_cloud(path, 60, 0, BOTH, columns.split())[:, 3:].mean(0) * 255
        assert all(want is None or abs(float(value) - want) < 1e-3 for value, want in zip(got, mean, strict=True))
    clouds = source(tmp_path, channels=BOTH, columns=("x", "y", "z", "intensity", "r", "g", "b"))
    assert torch.allclose(clouds.read(0, 0)["points"][:, 3:] * 255, torch.tensor([250.0, 20, 60]))
    with pytest.raises(BadSample, match=r"it has 7 columns; --data\.columns names 6"):
        read_cloud(path, 9, 0, BOTH, ["x", "y", "z", "r", "g", "b"])


@pytest.mark.parametrize("mark", ["", "# ", "//"])
def test_names_in_the_file_say_what_columns_are(put, tmp_path, mark):
    rows = "".join(" ".join(f"{value:g}" for value in row) + "\n" for row in SCAN)
    path = put("a.txt", (mark + "X Y Z intensity R G B\n" + rows).encode())
    assert torch.allclose(read_cloud(path, 20, 0, BOTH)[:, 3:] * 255, torch.tensor([250.0, 20, 60]))
    put("a.txt", (mark + "x y z r g b\n" + rows).encode())
    with pytest.raises(BadSample, match="may be columns" if mark == "# " else "names 6 columns"):
        read_cloud(path, 20, 0, BOTH)
    named = np.zeros(60, [(name, "f4") for name in ("x", "y", "z", "i", "red", "green", "blue")])
    for at, name in enumerate(named.dtype.names):
        named[name] = SCAN[:, at]
    array = put("b.npy", named)
    assert torch.allclose(read_cloud(array, 20, 0, BOTH)[:, 3:] * 255, torch.tensor([250.0, 20, 60]))


def test_values_decide_where_they_are_certain(put):
    for column, rgb in ((3, (250, 20, 60)), (6, None)):
        table = SCAN if column == 3 else SCAN[:, [0, 1, 2, 4, 5, 6, 3]]
        for value in (-5, 700):
            scan = table.copy()
            scan[0, column] = value
            got = read_cloud(put("a.txt", scan), 60, 0, BOTH)[:, 3:] * 255
            assert torch.allclose(got, torch.tensor([250.0, 20, 60])), (column, rgb)
    normals = np.tile((0.6, 0.8, 0.0), (60, 1))
    table = np.hstack([SCAN[:, :3], normals, SCAN[:, 3:4]])
    assert read_cloud(put("a.txt", table), 9, 0, ("xyz", "normals")).shape == (9, 6)
    with pytest.raises(BadSample, match="no rgb; it has xyz, normals"):
        read_cloud(put("a.txt", table), 9, 0, BOTH)


@pytest.mark.parametrize(
    ("columns", "said"),
    [("x y", "x, y and z"), ("x y z r g", "r g b go together"), ("x y z r g b red", "red stands there twice")],
)
def test_columns_that_make_no_sense(put, tmp_path, columns, said):
    put("a.txt", SCAN)
    with pytest.raises(ValueError, match=said):
        source(tmp_path, columns=tuple(columns.split()))


def test_prepare_takes_columns_too(put, tmp_path, monkeypatch, capsys):
    put("in/a.txt", SCAN)
    columns = ("--columns", "x", "y", "z", "i", "r", "g", "b")
    for more, done in (((), 0), (columns, 1)):
        asked = ["prepare", tmp_path / "in", tmp_path / "out", "--points", 30, "--channels", "xyz", "rgb", *more]
        monkeypatch.setattr(sys, "argv", ["mim-pointcloud", *map(str, asked), "--workers", "1"])
        assert main() == 1 - done
        assert f"{done} done" in capsys.readouterr().out
    assert np.allclose(np.load(tmp_path / "out/a.npy")[:, 3:] * 255, (250, 20, 60))
    line = json.loads((tmp_path / "out/manifest.jsonl").read_text())
    assert line["options"]["columns"] == list(columns[1:])


# ---- what is not read ------------------------------------------------------------------------------------------------


def test_columns_that_are_not_read_are_said(put, tmp_path):
    rows = np.random.default_rng(0).normal(size=(30, 5))
    put("scan/a.txt", ("x y z intensity label\n" + "\n".join(" ".join(map(str, row)) for row in rows)).encode())
    said = source(tmp_path / "scan", whole=True).contents()["files hold"]
    assert "not read: intensity, label" in said
    assert "not asked for" not in said
    put("bare/a.npy", rows)
    assert "not read: 2 columns without names" in source(tmp_path / "bare", whole=True).contents()["files hold"]
    names = ["x", "y", "z", "nx", "ny", "nz", "red", "green", "blue", "time"]
    put("named/a.npy", np.zeros(9, [(name, "f4") for name in names]))
    for channels in (("xyz",), ("xyz", "rgb"), ("xyz", "normals", "rgb")):
        said = source(tmp_path / "named", whole=True, channels=channels).contents()["files hold"]
        left = ", ".join(name for name in ("normals", "rgb") if name not in channels)
        assert "not read: time" in said
        assert (f"not asked for: {left} (--data.channels)" in said) == bool(left), said


def test_columns_of_ply_pcd_and_npz_that_are_not_read_are_said(put, tmp_path):
    head = "ply\nformat ascii 1.0\nelement vertex 2\n" + "".join(f"property float {n}\n" for n in "xyzq")
    put("a.ply", f"{head}end_header\n0 0 0 1\n1 1 1 2\n".encode())
    head = "FIELDS x y z label\nSIZE 4 4 4 4\nTYPE F F F U\nCOUNT 1 1 1 1\nWIDTH 2\nHEIGHT 1\nPOINTS 2\nDATA ascii\n"
    put("b.pcd", f"{head}0 0 0 7\n1 1 1 8\n".encode())
    np.savez(tmp_path / "c.npz", points=np.eye(3), labels=np.arange(3))
    said = source(tmp_path, whole=True).contents()["files hold"]
    assert "not read: q in 1, label in 1, labels in 1" in said


def test_kept_features_know_the_files_that_they_were_made_of(put, tmp_path):
    for label in ("ball", "egg"):
        for number in range(5):
            put(f"train/{label}/{number}.npy")
            put(f"test/{label}/{number}.npy")
    put("train/egg/9.gltf", b"{}")
    buffer = put("train/egg/9.bin", b"0")

    def digest():
        clouds = source(tmp_path)
        return digest_of(clouds, [clouds.labelled("train"), clouds.labelled("test")])

    seen = [digest()]
    assert digest() == seen[0]
    for change in (
        lambda: os.utime(tmp_path / "train/egg/0.npy", (1, 1)),
        lambda: put("test/ball/3.npy", np.eye(3)),
        lambda: buffer.write_bytes(b"01"),
        lambda: [(tmp_path / f"{a}.npy").rename(tmp_path / f"{b}.npy") for a, b in
                 (("train/egg/1", "x"), ("train/ball/1", "train/egg/1"), ("x", "train/ball/1"))],
    ):  # fmt: skip
        change()
        seen.append(digest())
    assert len({*seen}) == len(seen)
