"""mim-pointcloud prepare, on small real files."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from mim_core.errors import MimError
from mim_pointcloud.files import read_cloud
from mim_pointcloud.plugin import main
from mim_pointcloud.prepare import Sampling, path_key, plan, prepare_collection
from mim_pointcloud.prepared import read_prepared

OFF = "OFF 4 4 0\n0 0 0\n{size} 0 0\n0 {size} 0\n0 0 {size}\n3 0 2 1\n3 0 1 3\n3 0 3 2\n3 1 2 3\n"
SHAPES = [f"some/class/{number}.off" for number in range(6)]


@pytest.fixture
def collection(tmp_path):
    """A folder of shapes, a cloud, lists, a texture, an empty file."""
    root = tmp_path / "in"
    (root / "some/class").mkdir(parents=True)
    for number, name in enumerate(SHAPES):
        (root / name).write_text(OFF.format(size=number + 1))
    np.savetxt(root / "cloud.txt", np.arange(30.0).reshape(10, 3), delimiter=",")
    (root / "train.txt").write_text("some/class/0\n")
    (root / "names.json").write_text("{}")
    (root / "some/wood.jpg").write_bytes(b"picture")
    (root / "empty.obj").touch()
    return root


def run(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["mim-pointcloud", *map(str, arguments)])
    code = main()
    return code, capsys.readouterr()


def manifest(out):
    return {line["file"]: line for line in map(json.loads, (out / "manifest.jsonl").read_text().splitlines())}


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_prepare(collection, tmp_path, monkeypatch, capsys):
    before, out = contents(collection), tmp_path / "out"
    asked = ("--points", 50, "--channels", "xyz", "normals", "--workers", 2)
    code, said = run(monkeypatch, capsys, "prepare", collection, out, *asked)
    assert code == 1
    assert "failed: empty.obj: the file is empty" in said.out
    assert "failed: cloud.txt: it has no normals; it has xyz" in said.out
    assert "6 done, 2 copied, 1 left out, 0 skipped, 2 failed" in said.out
    assert "same way before" not in said.out
    code, said = run(monkeypatch, capsys, "prepare", collection, out, *asked)
    assert code == 0  # nothing new
    assert "What failed (2) failed in the same way before: exit code 0." in said.out
    assert contents(collection) == before
    lists = {"train.txt", "names.json", "manifest.jsonl", "prepared.json"}
    written = {name.replace(".off", ".npy") for name in SHAPES} | lists
    assert set(contents(out)) == written
    for name in SHAPES:
        array = np.load(out / name.replace(".off", ".npy"))
        assert array.shape == (50, 6)
        assert array.dtype == np.float32
        expected = read_cloud(collection / name, 50, path_key(name), ("xyz", "normals")).numpy()
        assert np.array_equal(array, expected)
    lines = manifest(out)
    assert lines["empty.obj"] == {"file": "empty.obj", "status": "failed", "reason": "the file is empty"}
    assert lines["some/wood.jpg"]["status"] == "aside"
    assert list(lines) == [job.source for job in plan(collection, out)]


def test_points_follow_from_the_path_alone(collection, tmp_path):
    (collection / "other").mkdir()
    (collection / SHAPES[0]).rename(collection / "other/0.off")
    (collection / SHAPES[1]).write_text(OFF.format(size=1))
    for root, out in ((collection, tmp_path / "a"), (tmp_path / "elsewhere/in", tmp_path / "b")):
        if root != collection:
            root.parent.mkdir()
            collection.rename(root)
        list(prepare_collection(root, out, Sampling(20), 1))
    first, second = contents(tmp_path / "a"), contents(tmp_path / "b")
    assert first == second
    assert first["other/0.npy"] != first["some/class/1.npy"]  # one shape, two paths
    assert path_key("some/class/0.off") == -1498048581692355901  # never another: folders made earlier would differ


def test_only_what_changed_is_done_again(collection, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"

    def again(*more):
        code, said = run(monkeypatch, capsys, "prepare", collection, out, "--points", 20, "--workers", 1, *more)
        return code, said.out.strip().splitlines()[-1].split(";")[0]

    assert again() == (1, "7 done, 2 copied, 1 left out, 0 skipped, 1 failed")
    (collection / "empty.obj").unlink()
    complete = manifest(out)
    assert again() == (0, "0 done, 0 copied, 1 left out, 9 skipped, 0 failed")
    assert manifest(out) == {name: line for name, line in complete.items() if name != "empty.obj"}
    (collection / SHAPES[2]).write_text(OFF.format(size=9))
    os.utime(collection / "train.txt", (1, 1))
    (out / SHAPES[3].replace(".off", ".npy")).write_bytes(b"cut")
    (out / SHAPES[4].replace(".off", ".npy")).unlink()
    assert again() == (0, "3 done, 1 copied, 1 left out, 5 skipped, 0 failed")
    assert np.load(out / SHAPES[2].replace(".off", ".npy")).max() > 3
    assert again("--dtype", "float16") == (0, "7 done, 0 copied, 1 left out, 2 skipped, 0 failed")
    assert np.load(out / "cloud.npy").dtype == np.float16
    (collection / SHAPES[2]).write_text("OFF 1 1 0\n")
    assert again("--dtype", "float16")[0] == 1
    assert not (out / SHAPES[2].replace(".off", ".npy")).exists()  # an earlier shape's points would mislead


def test_a_killed_run_goes_on(collection, tmp_path):
    """Killed in the middle, with a line and a file cut off: the next run ends where an unbroken one does."""
    for number in range(300):
        (collection / f"some/{number}.off").write_text(OFF.format(size=number + 1))
    whole, out = tmp_path / "whole", tmp_path / "out"
    list(prepare_collection(collection, whole, Sampling(30), 1))
    command = [sys.executable, "-m", "mim_pointcloud", "prepare", str(collection), str(out), "--points", "30"]
    process = subprocess.Popen(
        [*command, "--workers", "1"], start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while len(list(out.rglob("*.npy"))) < 20 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = len(list(out.rglob("*.npy")))
    assert 20 <= done < 307
    with (out / "manifest.jsonl").open("a") as file:
        file.write('{"file": "some/299.off", "sta')
    (out / "some/299.npy.partial").write_bytes(b"half")
    statuses = [line["status"] for line in prepare_collection(collection, out, Sampling(30), 1)]
    assert statuses.count("skipped") >= done - 1
    assert contents(out) == contents(whole)


def test_numbers_too_large_for_float16(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.off").write_text(OFF.format(size=100_000))
    (line,) = prepare_collection(tmp_path / "in", tmp_path / "out", Sampling(200, dtype="float16"), 1)
    assert line["status"] == "failed"
    assert "does not fit float16 (65504 at most); take --dtype float32" in line["reason"]
    assert set(contents(tmp_path / "out")) == {"manifest.jsonl", "prepared.json"}


def test_prepare_refuses_what_would_go_wrong(collection, tmp_path, monkeypatch, capsys):
    for out in (collection, collection / "out", collection / "some/../../in/deep/out", tmp_path):
        code, said = run(monkeypatch, capsys, "prepare", collection, out)
        assert code == 2
        assert "IN is never written to" in said.err
    link = tmp_path / "link"
    link.symlink_to(collection)
    assert run(monkeypatch, capsys, "prepare", collection, link / "out")[0] == 2
    assert not (collection / "out").exists()
    out = tmp_path / "out"
    assert run(monkeypatch, capsys, "prepare", tmp_path / "nowhere", out)[0] == 2
    assert run(monkeypatch, capsys, "prepare", collection, out, "--points", "0")[0] == 2
    for channels in (("xyz", "xyz"), ("normals",), ("normals", "xyz")):
        code, said = run(monkeypatch, capsys, "prepare", collection, out, "--channels", *channels)
        assert code == 2
        assert "xyz comes first" in said.err
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/train.txt").write_text("a\nb\n")
    with pytest.raises(MimError, match="no shapes"):
        plan(tmp_path / "lists", out)
    assert not out.exists()


def test_what_left_in_is_removed_from_out(collection, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    run(monkeypatch, capsys, "prepare", collection, out, "--points", "20", "--workers", "1")
    (collection / SHAPES[1]).unlink()
    (collection / "train.txt").unlink()
    code, said = run(monkeypatch, capsys, "prepare", collection, out, "--points", "20", "--workers", "1")
    assert code == 0
    assert "removed: some/class/1.npy, because some/class/1.off is no longer in IN" in said.out
    assert "2 removed" in said.out
    assert not (out / "some/class/1.npy").exists()
    assert not (out / "train.txt").exists()
    assert (out / "some/class/2.npy").exists()
    assert SHAPES[1] not in manifest(out)


def test_files_of_one_stem_keep_their_endings(collection, tmp_path, monkeypatch, capsys):
    (collection / "some/class/0.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 7\nf 1 2 3\n")
    out = tmp_path / "out"
    _, said = run(monkeypatch, capsys, "prepare", collection, out, "--points", "20", "--workers", "1")
    told = "some/class/0.off becomes some/class/0.off.npy: some/class/0.npy is made of some/class/0.obj"
    assert told in said.out
    assert np.load(out / "some/class/0.npy").max() > 1
    assert np.load(out / "some/class/0.off.npy").max() <= 1


def test_names_that_are_not_utf_8(collection, tmp_path):
    (collection / "some" / os.fsdecode(b"x\xe9.off")).write_text(OFF.format(size=3))
    (collection / "some" / os.fsdecode(b"y\xe9.off")).write_text("")
    command = [sys.executable, "-m", "mim_pointcloud", "prepare", str(collection), str(tmp_path / "out")]
    done = subprocess.run([*command, "--points", "20", "--workers", "1"], capture_output=True, text=True, timeout=240)
    assert done.returncode == 1
    assert "failed: some/y\\udce9.off: the file is empty" in done.stdout
    assert (tmp_path / "out/some" / os.fsdecode(b"x\xe9.npy")).is_file()


def test_a_small_object_far_from_the_origin(tmp_path):
    """Coordinates on a map's grid: 0.2 m at 5,000 km, which float32 alone cannot hold."""
    (tmp_path / "in").mkdir()
    near = np.random.default_rng(0).uniform(0, 0.2, (300, 3))
    away = np.array([448_000.5, 5_411_000.25, 120.0])
    np.savetxt(tmp_path / "in/a.xyz", near + away, fmt="%.6f")
    for dtype, digits in (("float32", 1e-6), ("float16", 1e-4)):
        (line,) = prepare_collection(tmp_path / "in", tmp_path / dtype, Sampling(300, dtype=dtype), 1)
        assert line["centre"] == pytest.approx([448_000.6, 5_411_000.35, 120.1], abs=0.01)
        got = np.load(tmp_path / dtype / "a.npy").astype(np.float64) + line["centre"] - away
        assert np.abs(np.sort(got, 0) - np.sort(near, 0)).max() < digits
    points = read_cloud(tmp_path / "in/a.xyz", 300, 0)
    assert len(points.unique(dim=0)) == 300
    assert points.abs().max() < 0.2


def test_links_in_circles_end(collection, tmp_path):
    (collection / "some/round").symlink_to(collection)
    (collection / "some/class/up").symlink_to(collection / "some")
    (collection / "gone.off").symlink_to(tmp_path / "nothing")
    assert sorted(job.source for job in plan(collection, tmp_path / "out") if job.kind == "convert") == sorted(
        [*SHAPES, "cloud.txt", "empty.obj", "gone.off"]
    )
    lines = {line["file"]: line for line in prepare_collection(collection, tmp_path / "out", Sampling(5), 1)}
    assert lines["gone.off"]["reason"] == "no such file"


def test_a_prepared_folder_may_be_prepared_again(collection, tmp_path):
    list(prepare_collection(collection, tmp_path / "a", Sampling(40), 1))
    lines = list(prepare_collection(tmp_path / "a", tmp_path / "b", Sampling(10), 1))
    assert {line["file"]: line["status"] for line in lines}["manifest.jsonl"] == "aside"
    assert np.load(tmp_path / "b" / Path(SHAPES[0]).with_suffix(".npy")).shape == (10, 3)


def test_voxels_beside_a_mesh_are_left_out(collection, tmp_path):
    """ShapeNetCore has two files of them for every model."""
    (collection / "some/0.solid.binvox").write_bytes(b"#binvox 1")
    kinds = {job.source: job.kind for job in plan(collection, tmp_path / "out")}
    assert kinds["some/0.solid.binvox"] == kinds["some/wood.jpg"] == "aside"


def test_a_file_that_takes_too_long_is_named(collection, tmp_path, monkeypatch):
    monkeypatch.setattr("mim_pointcloud.prepare.ITEM_SECONDS", 0.1)
    monkeypatch.setattr("mim_pointcloud.prepare.read_centred", lambda *given: time.sleep(30))
    lines = list(prepare_collection(collection, tmp_path / "out", Sampling(8), 1))
    failed = [line["reason"] for line in lines if line["status"] == "failed"]
    assert failed
    assert all("longer than 0.1 s" in reason for reason in failed)


@pytest.mark.parametrize(
    "line", [b"7\n", b"{}\n", b"\xff\xfe\n", b'{"file": ["a"], "status": "done"}\n', b"[" * 9000 + b"\n"]
)
def test_a_damaged_manifest_does_not_stop_it(collection, tmp_path, line):
    out = tmp_path / "out"
    first = [each["status"] for each in prepare_collection(collection, out, Sampling(8), 1)]
    with open(out / "manifest.jsonl", "ab") as file:
        file.write(line)
    again = [each["status"] for each in prepare_collection(collection, out, Sampling(8), 1)]
    assert again.count("skipped") == first.count("done") + first.count("copied")


@pytest.mark.parametrize(
    "text",
    ["[]", "7", '{"layout": [], "up": "y", "channels": null}', '{"layout": "folder", "up": 7, "channels": "abc"}'],
)
def test_a_damaged_record_of_a_prepared_folder_is_none(tmp_path, text):
    (tmp_path / "prepared.json").write_text(text)
    assert read_prepared(tmp_path) is None


# ---- a full disk, and another conversion -----------------------------------------------------------------------------


def test_a_full_disk_ends_it_at_the_first_file(collection, tmp_path, monkeypatch, capsys):
    """It is no fault of the files: none of them counts as bad."""
    given = ["prepare", collection, tmp_path / "out", "--points", 3000, "--workers", 1]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        code, said = run(monkeypatch, capsys, *given)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert code == 2
    assert "a file may not be so large there (ulimit -f)" in said.err
    lines = manifest(tmp_path / "out").values() if (tmp_path / "out/manifest.jsonl").exists() else ()
    assert {line["file"] for line in lines if line["status"] == "failed"} <= {"empty.obj"}
    assert not [path for path in (tmp_path / "out").rglob("*") if path.name.endswith((".lock", ".partial", ".npy"))]


def test_two_at_once_into_one_folder_are_refused(collection, tmp_path, monkeypatch, capsys):
    lock = tmp_path / "out" / ".lock"
    lock.parent.mkdir()
    code = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print(1, flush=True); input()"
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    other.stdout.readline()
    code, said = run(monkeypatch, capsys, "prepare", collection, tmp_path / "out")
    other.communicate("")
    assert code == 2
    assert f"Another process writes into {tmp_path / 'out'} (" in " ".join(said.err.split())
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".lock"]
