"""What lies in a run's folder: copies, damage, hostile files, other files under the same names."""

import gzip
import json
import os
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from mim_core.cli import main
from mim_core.disk import replaced
from mim_core.errors import MimError
from mim_core.runs import checkpoint, inventory, logs
from mim_core.runs.state import DIGEST, digest_of
from mim_core.tensor_files import write_tensors
from PIL import Image
from safetensors.torch import load_file, save_file

OPTIONS = ["--twin", "--train.batch-size", "8", "--train.workers", "0", "--train.log-every", "1", "--quiet"]


def pictures(root, seed=0):
    draw = np.random.default_rng(seed)
    for label in ("cat", "dog"):
        (root / label).mkdir(parents=True, exist_ok=True)
        for i in range(10):
            pixels = draw.integers(0, 120, (28, 28)) + (100 if label == "dog" else 0)
            Image.fromarray(pixels.astype(np.uint8)).save(root / label / f"{i:02}.png")


def pretrain(root, run, *more, steps=4):
    epochs = steps * 8 / 20
    given = ["pretrain", "image:mae-vit-tiny", *OPTIONS, "--data.root", str(root), "--train.epochs", str(epochs)]
    return main([*given, "--train.checkpoint-every", "2", "--out", str(run), *more])


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A run that was stopped after step 1 of 4, and its pictures."""
    place = tmp_path_factory.mktemp("first")
    pictures(place / "pics")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert pretrain("pics", "run", "--train.max-hours", "0", "--train.ema", "0.9") == 3
    return place


@pytest.fixture
def place(first, tmp_path, monkeypatch):
    shutil.copytree(first, tmp_path, dirs_exist_ok=True)  # with the times of the files
    monkeypatch.chdir(tmp_path)
    return tmp_path


def resume(**more):
    return pretrain("pics", "run", "--train.ema", "0.9", **more)


def steps(run):
    return [path.name for path in checkpoint.steps_of(run)]


def change_state(path, **values):
    """As older versions left it: without the digest, so that values alone are judged."""
    state = {**json.loads((path / "state.json").read_text()), **values}
    state.pop(DIGEST, None)
    (path / "state.json").write_text(json.dumps(state))


# ---- names -----------------------------------------------------------------------------------------------------------


def test_copies_of_checkpoints_are_the_users(place, capfd):
    folder = place / "run/checkpoints"
    (own,) = checkpoint.steps_of(place / "run")
    mine = ["step-best", "step-00000001-best", "step-00000001.bak", "step-", "best"]
    for name in mine:
        shutil.copytree(own, folder / name)
    assert checkpoint.newest(place / "run") == own
    assert resume() == 0
    assert {*mine} <= {path.name for path in folder.iterdir()}
    assert steps(place / "run")[-1] == "step-00000004"
    assert main(["export", "run"]) == 0
    assert main(["export", "run/checkpoints/step-best", "--out", "other.safetensors"]) == 0


def test_steps_are_numbers(tmp_path):
    for name in ("step-99999999", "step-100000000", "step-00000007"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert steps(tmp_path) == ["step-00000007", "step-99999999", "step-100000000"]


# ---- states ----------------------------------------------------------------------------------------------------------

VALUES = [
    {"step": -5}, {"step": "abc"}, {"step": None}, {"step": 1.5}, {"step": True}, {"step": 10**30}, {"format": "x"},
    {"format": None}, {"format": "9"}, {"format": 0}, {"sha256": None}, {"sha256": [1]}, {"sha256": {"a": 1}},
    {"sizes": []}, {"sizes": ["x"]}, {"sizes": {}}, {"imported": [1]}, {"imported": {}}, {"untouched": 3},
    {"items": "x"}, {"step": 3},
]  # fmt: skip
COMMANDS = {
    "pretrain": lambda: resume(),
    "dry run": lambda: pretrain("pics", "run", "--train.ema", "0.9", "--dry-run"),
    "show": lambda: main(["show", "run"]),
    "evaluate": lambda: main(["evaluate", "run"]),
    "export": lambda: main(["export", "run"]),
    "finetune": lambda: main(["finetune", "run", "--out", "tuned"]),
    "init": lambda: pretrain("pics", "other", "--init", "run"),
}


def refused(capfd, command="export"):
    capfd.readouterr()
    assert COMMANDS[command]() == 2
    said = capfd.readouterr().err
    assert "Traceback" not in said
    return said


@pytest.mark.parametrize("values", VALUES, ids=json.dumps)
def test_values_that_cannot_be(place, capfd, values):
    (path,) = checkpoint.steps_of(place / "run")
    change_state(path, **values)
    for command in ("export", "pretrain"):
        assert "step-00000001" in refused(capfd, command)
    assert (path / "state.json").exists()


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    "content", [None, b"{", b"\xff\xfe", b"[" * 100_000, b"null", b"[1]"], ids=lambda c: str(c)[:9]
)
def test_no_state_is_said(place, capfd, content, command):
    (path,) = checkpoint.steps_of(place / "run")
    (path / "state.json").unlink()
    if content is not None:
        (path / "state.json").write_bytes(content)
    assert "state.json" in refused(capfd, command)
    assert (path / "weights.safetensors").exists()


@pytest.mark.parametrize("name", ["/dev/zero", "../../recipe.toml", "pipe", "outward", "", ".", "a" * 300, "x\0y"])
def test_names_are_of_files_in_the_folder(place, capfd, name):
    (path,) = checkpoint.steps_of(place / "run")
    os.mkfifo(path / "pipe")
    (path / "outward").symlink_to("/dev/zero")
    for key, value in (("sizes", 0), ("sha256", "0" * 64)):
        state = json.loads((path / "state.json").read_text())
        change_state(path, **{key: {**state[key], name: value}})
    assert "step-00000001" in refused(capfd)
    assert "step-00000001" in refused(capfd, "pretrain")


def test_state_has_a_digest_of_its_own(place, capfd):
    (path,) = checkpoint.steps_of(place / "run")
    state = json.loads((path / "state.json").read_text())
    assert state[DIGEST] == digest_of(state)
    (path / "state.json").write_text(json.dumps({**state, "samples": 1}))
    assert "state.json is not what was written" in refused(capfd)
    change_state(path, samples=1)  # as older versions have it
    assert main(["export", "run"]) == 0


def test_a_damaged_newest_is_moved_aside_not_deleted(place, capfd):
    assert resume() == 0
    newest = place / "run/checkpoints/step-00000004"
    (newest / "state.json").unlink()
    assert resume() == 0
    assert "step-00000004 is incomplete; skipping it" in capfd.readouterr().err
    assert (newest.with_name("step-00000004.damaged") / "weights.safetensors").exists()
    assert checkpoint.whole(newest)


# ---- moments and averages --------------------------------------------------------------------------------------------


def without(path, file, drop):
    """The checkpoint without some tensors of a file, and with the sizes and digests of what is left."""
    tensors = {name: value for name, value in load_file(path / file).items() if not drop(name)}
    save_file(tensors, path / file)
    state = json.loads((path / "state.json").read_text())
    state["sizes"][file] = (path / file).stat().st_size
    state["sha256"].pop(file)
    (path / "state.json").write_text(json.dumps({**state, DIGEST: digest_of(state)}))


@pytest.mark.parametrize(
    ("file", "drop", "lacks"),
    [
        ("optimizer.safetensors", lambda name: name.endswith("exp_avg_sq"), "exp_avg_sq"),
        ("optimizer.safetensors", lambda name: name.endswith("/step"), "/step"),
        ("optimizer.safetensors", lambda name: name.startswith("encoder."), "lacks encoder."),
        ("average.safetensors", lambda name: name.startswith("encoder."), "lacks encoder."),
    ],
)
def test_half_of_the_tensors_is_refused_by_name(place, capfd, file, drop, lacks):
    (path,) = checkpoint.steps_of(place / "run")
    without(path, file, drop)
    said = refused(capfd, "pretrain")
    assert lacks in said
    assert file in said


def test_older_states_need_not_say_what_no_step_touched(place):
    (path,) = checkpoint.steps_of(place / "run")
    state = json.loads((path / "state.json").read_text())
    state.pop(DIGEST), state.pop("untouched")
    (path / "state.json").write_text(json.dumps(state))
    (place / "run" / inventory.NAME).unlink()
    assert resume() == 0


# ---- logs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "damage", [b"\xff\xfe", b"7\n", b'{"x":1}\n', b"null\n", b"[1]\n", b'{"step": 1, "ep', b"[" * 99_999]
)
def test_damaged_logs_stop_nothing(place, capfd, damage):
    run = place / "run"
    (run / "skipped.jsonl").write_text('{"file": "a.png", "reason": "cut"}\n')
    before = (run / "metrics.jsonl").read_text()
    for name in (logs.METRICS, logs.PROBES, logs.SKIPPED):
        with open(run / name, "ab") as log:
            log.write(damage)
    (run / "scores.json").write_bytes(damage)
    assert main(["show", "run"]) == 0
    said = capfd.readouterr().err
    for name in (logs.METRICS, logs.PROBES, logs.SKIPPED):
        assert f"{name}: 1 of" in said
    assert "scores.json is damaged" in said
    assert resume() == 0
    assert "metrics.jsonl: 1 of" in capfd.readouterr().err
    lines = (run / "metrics.jsonl").read_text()
    assert lines.startswith(before)
    assert [json.loads(line)["step"] for line in lines.splitlines()] == [1, 2, 3, 4]
    assert logs.read(run / logs.SKIPPED) == [{"file": "a.png", "reason": "cut"}]
    assert main(["show", "run"]) == 0
    assert "left out" not in capfd.readouterr().err.replace("scores.json is damaged and left out", "")


def test_a_log_without_its_last_line_end(tmp_path):
    (tmp_path / logs.SKIPPED).write_text('{"file": "a", "reason": "b"}')
    logs.mend(tmp_path / logs.SKIPPED)
    assert (tmp_path / logs.SKIPPED).read_text() == '{"file": "a", "reason": "b"}\n'


def test_a_log_that_is_a_pipe(tmp_path):
    os.mkfifo(tmp_path / logs.METRICS)
    with pytest.raises(MimError, match="no regular file"):
        logs.read(tmp_path / logs.METRICS)


def most_memory(work):
    """(result, most bytes that Python held meanwhile)."""
    tracemalloc.start()
    try:
        return work(), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", [logs.METRICS, logs.PROBES, logs.SKIPPED])
def test_a_log_of_gigabytes_is_read_in_parts(tmp_path, capfd, monkeypatch, name):
    """A damaged file system leaves zeros as long as it likes; the memory that reading takes is that of a line."""
    monkeypatch.setattr(logs, "MOST", 2**26)
    (tmp_path / name).write_text("")
    os.truncate(tmp_path / name, 5 * 2**30)
    kept, most = most_memory(lambda: logs.mend(tmp_path / name))
    assert kept == []
    assert most < 2**24
    assert "are damaged" in capfd.readouterr().err
    assert not (tmp_path / name).read_bytes()


def test_zeros_behind_a_log_stop_nothing(place, capfd, monkeypatch):
    monkeypatch.setattr(logs, "MOST", 2**22)
    metrics = place / "run" / logs.METRICS
    before = metrics.read_text()
    os.truncate(metrics, 2**23)
    assert resume() == 0
    assert "are damaged" in capfd.readouterr().err
    assert metrics.read_text().startswith(before)
    assert [json.loads(line)["step"] for line in metrics.read_text().splitlines()] == [1, 2, 3, 4]


def test_a_line_that_is_too_long_hides_no_other(tmp_path):
    path = tmp_path / logs.SKIPPED
    good = '{"file": "a", "reason": "b"}\n'
    for length in (logs.LONGEST - 1, logs.LONGEST, logs.LONGEST + 1, 3 * logs.LONGEST):
        path.write_text(good + "x" * (length - 1) + "\n" + good)
        assert len(logs.read(path)) == 2


@pytest.mark.parametrize("unpacked", [b"\0" * 2**26, b'["a", 1, 2]\n' * 2**17], ids=["line", "lines"])
def test_a_list_of_items_that_unpacks_without_end(tmp_path, capfd, monkeypatch, unpacked):
    monkeypatch.setattr(inventory, "LARGEST", 2**20)
    with gzip.open(tmp_path / inventory.NAME, "wb", 1) as file:
        file.write(b'{"root": "x", "items": 6, "names": "y"}\n' + unpacked)
    found, most = most_memory(lambda: inventory.recorded(tmp_path))
    assert found is None
    assert most < 2**22
    assert "is damaged" in capfd.readouterr().err


@pytest.mark.parametrize(
    "damage",
    [
        *(b"\xff\xfe", b"= 1", b"a = " + b"[" * 100_000, b"plugins = 7\n", b"a = " + b"1" * 5000),
        b".".join([b"a"] * 40_000) + b" = 1",
    ],
    ids=["no text", "no name", "deep", "no table", "digits", "parts"],
)
def test_a_damaged_recipe_has_a_remedy(place, capfd, damage):
    (place / "run/recipe.toml").write_bytes(damage)
    assert "cp run/checkpoints/step-00000001/recipe.toml run/recipe.toml" in refused(capfd, "pretrain")
    shutil.copy("run/checkpoints/step-00000001/recipe.toml", "run/recipe.toml")
    assert resume() == 0


# ---- other files -----------------------------------------------------------------------------------------------------


def test_the_same_files_say_nothing(place, capfd):
    assert resume() == 0
    assert "warning" not in capfd.readouterr().err


def test_replaced_files_are_named(place, capfd):
    (place / "pics/cat/05.png").unlink()
    shutil.copy(place / "pics/cat/07.png", place / "pics/cat/zz.png")
    assert resume() == 0
    said = capfd.readouterr().err
    assert "1 gone: cat/05.png; 1 new: cat/zz.png" in said


def test_changed_files_are_named(place, capfd):
    Image.new("L", (28, 28)).save(place / "pics/cat/03.png")
    assert resume() == 0
    assert "1 item of 20 changed" in (said := capfd.readouterr().err)
    assert "cat/03.png" in said


def test_a_file_more_is_refused_by_name(place, capfd):
    shutil.copy(place / "pics/cat/07.png", place / "pics/cat/zz.png")
    assert "1 new: cat/zz.png" in refused(capfd, "pretrain")


def test_beyond_the_list_a_digest_is_kept(place, capfd, monkeypatch):
    monkeypatch.setattr(inventory, "MOST", 5)
    shutil.rmtree(place / "run")
    assert pretrain("pics", "run", "--train.max-hours", "0", "--train.ema", "0.9") == 3
    assert resume() == 0
    assert "warning" not in capfd.readouterr().err
    os.rename(place / "pics/dog/01.png", place / "pics/dog/zz.png")
    assert resume() == 0
    assert "their names differ" in capfd.readouterr().err


# ---- features --------------------------------------------------------------------------------------------------------


def kept(run):
    return {path.name for path in (run / "features").iterdir()}


def test_features_know_their_files(place):
    run = place / "run"
    assert main(["evaluate", "run"]) == 0
    before = kept(run)
    assert len(before) == 3
    assert main(["evaluate", "run"]) == 0
    assert kept(run) == before
    for i in range(10):  # mended labels: as many files as before
        os.rename(place / f"pics/cat/{i:02}.png", place / "held.png")
        os.rename(place / f"pics/dog/{i:02}.png", place / f"pics/cat/{i:02}.png")
        os.rename(place / "held.png", place / f"pics/dog/{i:02}.png")
    assert main(["evaluate", "run"]) == 0
    assert len(kept(run)) == 3
    assert not kept(run) & before


def test_features_know_their_weights(place):
    run = place / "run"
    assert main(["evaluate", "run"]) == 0
    before = kept(run)
    (path,) = checkpoint.steps_of(run)
    shutil.rmtree(run / "checkpoints")
    assert pretrain("pics", "run", "--train.max-hours", "0", "--train.ema", "0.9", "--train.base-lr", "2e-3") == 3
    assert main(["evaluate", "run"]) == 0
    assert path.name.startswith("step-")
    after = kept(run)
    assert len(after) == 3
    assert before & after == {name for name in before if not name.startswith("step-")}


def test_damaged_features_are_made_anew(place):
    assert main(["evaluate", "run"]) == 0
    for path in (place / "run/features").iterdir():
        path.write_bytes(path.read_bytes()[:-4])
    assert main(["evaluate", "run"]) == 0


# ---- links of another's ----------------------------------------------------------------------------------------------


WRITTEN = [".metrics.jsonl", ".files.jsonl.gz", ".report.html", "report.html", "report-main.html"]


def test_what_links_lead_to_is_not_written(place):
    (place / "mine").write_text("mine")
    for name in WRITTEN:
        (place / "run" / name).unlink(missing_ok=True)
        (place / "run" / name).symlink_to("../mine")
    (place / "run/.skipped.jsonl").unlink(missing_ok=True)
    os.mkfifo(place / "run/.skipped.jsonl")
    (place / "run/skipped.jsonl").write_text("")
    assert resume() == 0
    assert (place / "mine").read_text() == "mine"
    assert not (place / "run/report.html").is_symlink()


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_a_lock_that_is_no_file_is_refused(place, capfd, kind):
    lock = place / "run/.lock"
    lock.unlink()
    (place / "mine").write_text("mine")
    lock.symlink_to("../mine") if kind == "link" else os.mkfifo(lock)
    assert resume() == 2
    assert ".lock" in capfd.readouterr().err
    assert (place / "mine").read_text() == "mine"


@pytest.mark.parametrize("name", ["scores.json", "features", "report.html", "encoder-timm.safetensors"])
def test_what_is_in_the_way_is_said(place, capfd, name):
    (place / "run" / name).unlink(missing_ok=True)
    shutil.rmtree(place / "run" / name, ignore_errors=True)
    if name == "features":
        (place / "run" / name).write_text("")
    else:
        (place / "run" / name).mkdir()
    command = {"report.html": "show", "encoder-timm.safetensors": "export"}.get(name, "evaluate")
    assert main([command, "run"]) == 2
    said = capfd.readouterr().err
    assert f"run/{name}" in said
    assert "lies" in said


def test_a_file_is_whole_or_as_it_was(tmp_path):
    path = tmp_path / "a"
    path.write_text("before")

    def write(file):
        file.write(b"half")
        raise SystemExit(3)

    with pytest.raises(SystemExit), replaced(path) as file:
        write(file)
    assert [each.name for each in tmp_path.iterdir()] == ["a"]
    assert path.read_text() == "before"


# ---- modes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o007, 0o660)])
def test_files_follow_the_umask(place, umask, mode):
    shutil.rmtree(place / "run/features", ignore_errors=True)
    before = os.umask(umask)
    try:
        assert resume() == 0
        assert main(["evaluate", "run"]) == 0
        assert main(["export", "run"]) == 0
    finally:
        os.umask(before)
    new = place / "run/checkpoints/step-00000004"
    made = [*new.iterdir(), *(place / "run/features").iterdir(), place / "run/encoder-timm.safetensors"]
    assert {oct(path.stat().st_mode & 0o777) for path in made} == {oct(mode)}
    assert torch.isfinite(next(iter(load_file(new / "weights.safetensors").values()))).all()


def test_no_file_takes_the_place_of_a_device(tmp_path, monkeypatch):
    """For root it could, and the machine would have no /dev/full any more."""
    monkeypatch.setattr(Path, "is_char_device", lambda path: path.name == "full")
    for path in (tmp_path / "full", tmp_path / "other"):
        path.write_bytes(b"before")
    with pytest.raises(FileExistsError, match="device"), replaced(tmp_path / "full") as file:
        file.write(b"after")
    with pytest.raises(FileExistsError, match="device"):
        write_tensors(tmp_path / "full", {"x": torch.zeros(1)})
    assert (tmp_path / "full").read_bytes() == b"before"
    with replaced(tmp_path / "other") as file:
        file.write(b"after")
    assert (tmp_path / "other").read_bytes() == b"after"
