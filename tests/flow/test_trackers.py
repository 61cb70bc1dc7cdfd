"""What a run tells its trackers, read back by each tracker's own reader. No network, nothing outside the folder."""

import json
import os
import shutil
import struct
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from mim_core.errors import MimError
from mim_core.host.loading import installed
from mim_core.recipes.resolve import load_recipe
from mim_core.runs.trackers import check
from mim_core.training.loop import start, train

STEPS = 4
NOW = "features/encoder now/k-NN"
PER_ITEM = 16 / 10_000
"""Epochs in a step: the bundled images in batches of 16."""


@pytest.fixture(autouse=True)
def no_service_is_left():
    """wandb keeps a process for the next run until its own process ends; `runs.trackers` sets what mlflow reads."""
    before = dict(os.environ)
    yield
    for name in [name for name in os.environ if name.startswith("MLFLOW_") and name not in before]:
        del os.environ[name]
    wandb = sys.modules.get("wandb")
    if hasattr(wandb, "teardown"):
        wandb.teardown()


@pytest.fixture(autouse=True)
def _from_nothing(tmp_path, monkeypatch):
    """No variable of the one who runs the tests, and no way out of the folder or onto the network."""
    for name in ("WANDB_MODE", "WANDB_PROJECT", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "TRACKIO_SPACE_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("TRACKIO_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR", "HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.chdir(tmp_path)


def make_run(folder, *track, judge=False, **changes):
    """Four steps; ``max_hours=0.0`` stops it after the first."""
    config = load_recipe("image:mae-vit-tiny", installed(), twin=True)
    options = replace(config.train, epochs=STEPS * PER_ITEM, log_every=1, workers=0, track=track, **changes)
    evaluate = replace(config.evaluate, every=2 * PER_ITEM if judge else None, online=("knn",), online_samples=40)
    return start(replace(config, train=options, evaluate=evaluate), folder, installed())


def twice(folder, track):
    """A run that is stopped, then goes on; the second with other workers' settings."""
    assert not train(make_run(folder, track, max_hours=0.0), quiet=True)
    before = json.loads((folder / "trackers.json").read_text())
    assert train(make_run(folder, track, keep_checkpoints=1), quiet=True)
    assert json.loads((folder / "trackers.json").read_text()) == before
    assert [step for step, _ in logged(folder)] == [1, 2, 3, 4]


def logged(folder, column="loss"):
    """What the run's own file says, which nothing here writes but the loop."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], pytest.approx(line[column], rel=1e-6)) for line in lines]


def columns(folder):
    return {*json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])} - {"step"}


def judged(folder):
    lines = [json.loads(line) for line in (folder / "probes.jsonl").read_text().splitlines()]
    value = {(line["step"], s["row"]): s["value"] for line in lines for s in line["scores"]}
    return [(step, pytest.approx(value[step, "encoder now"])) for step in (0, 2, 4)]


# ---- TensorBoard -----------------------------------------------------------------------------------------------------


def events(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder / "tensorboard")).Reload()


def scalars(found, name):
    return [(event.step, event.value) for event in found.Scalars(name)]


def test_tensorboard(tmp_path):
    assert train(make_run(tmp_path / "run", "tensorboard", judge=True), quiet=True)
    found = events(tmp_path / "run")
    assert {*found.Tags()["scalars"]} >= columns(tmp_path / "run")
    assert "step" not in found.Tags()["scalars"]
    for name in ("loss", "lr", "grad_norm"):
        assert scalars(found, name) == logged(tmp_path / "run", name)
    assert scalars(found, NOW) == judged(tmp_path / "run")
    text = found.Tensors("settings/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "    train.batch_size = 16" in text


def test_tensorboard_forgets_what_is_done_again(tmp_path):
    """A run that was killed after its checkpoint: the events of later steps are not shown twice."""
    run = make_run(tmp_path / "run", "tensorboard", max_hours=0.0)
    assert not train(run, quiet=True)
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path / "run/tensorboard")) as killed:
        for step in (2, 3):
            killed.add_scalar("loss", 99.0, step)
    time.sleep(1.1)  # the files are read in the order of the second they were begun
    assert train(make_run(tmp_path / "run", "tensorboard"), quiet=True)
    assert scalars(events(tmp_path / "run"), "loss") == logged(tmp_path / "run")


# ---- Weights & Biases ------------------------------------------------------------------------------------------------


def wandb_records(path):
    """Records of an offline run's file, what ``wandb sync`` would send: LevelDB's log format after 7 bytes, pieces of
    a record with a header of checksum, length and kind, blocks of 32 KiB."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, record = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        if at + 7 + length > len(data):  # being written
            return
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield Record.FromString(record)
            record = b""


def wandb_files(folder, count):
    """Its process may write on for a moment after a run is finished; the last record says that it ended."""
    until = time.monotonic() + 20
    while time.monotonic() < until:
        files = sorted((folder / "wandb").glob("offline-run-*/*.wandb"))
        ended = [any(record.HasField("exit") for record in wandb_records(path)) for path in files]
        if sum(ended) == count:
            break
        time.sleep(0.05)
    assert ended == [True] * count
    return files


def wandb_rows(path):
    rows = []
    for record in wandb_records(path):
        if record.HasField("history"):
            row = {(item.key or item.nested_key[0]): json.loads(item.value_json) for item in record.history.item}
            rows.append({**row, "_step": record.history.step.num})
    return rows


def test_wandb_offline_by_default_and_resumed(tmp_path):
    folder = tmp_path / "run"
    twice(folder, "wandb")
    files = wandb_files(folder, 2)
    name = json.loads((folder / "trackers.json").read_text())["id"]
    assert [path.stem for path in files] == [f"run-{name}"] * 2
    rows = [row for path in files for row in wandb_rows(path)]
    assert [(row["_step"], row["loss"]) for row in rows] == logged(folder)
    assert columns(folder) <= {*rows[0]}
    ends = [r.exit.exit_code for path in files for r in wandb_records(path) if r.HasField("exit")]
    assert ends == [1, 0]
    runs = [record.run for path in files for record in wandb_records(path) if record.HasField("run")]
    assert {run.run_id for run in runs} == {name}
    settings = {item.key: json.loads(item.value_json) for item in runs[0].config.update}
    assert settings["train"]["batch_size"] == 16


def test_wandb_scores(tmp_path):
    assert train(make_run(tmp_path / "run", "wandb", judge=True), quiet=True)
    (path,) = wandb_files(tmp_path / "run", 1)
    rows = wandb_rows(path)
    assert [(row["_step"], row[NOW]) for row in rows if NOW in row] == judged(tmp_path / "run")
    assert [(row["_step"], row["loss"]) for row in rows if "loss" in row] == logged(tmp_path / "run")


def test_wandb_mode_is_honoured(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert train(make_run(tmp_path / "run", "wandb"), quiet=True)
    assert not [*tmp_path.glob("run/wandb/*run-*")]


# ---- MLflow ----------------------------------------------------------------------------------------------------------


def mlflow_run(uri):
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    (run,) = client.search_runs([client.get_experiment_by_name("mim-core").experiment_id])
    return client, run


def history(client, run, name):
    return [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, name)]


def test_mlflow_resumed(tmp_path):
    folder = tmp_path / "a run"
    assert not train(make_run(folder, "mlflow", max_hours=0.0, judge=True), quiet=True)
    assert mlflow_run((folder / "mlflow").as_uri())[1].info.status == "KILLED"
    assert train(make_run(folder, "mlflow", judge=True, keep_checkpoints=1), quiet=True)
    client, run = mlflow_run((folder / "mlflow").as_uri())  # one run alone
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "a run"
    assert history(client, run, "loss") == logged(folder)
    assert history(client, run, NOW.replace("/", ".")) == judged(folder)
    assert {*run.data.metrics} >= {name.replace("/", ".") for name in columns(folder)}
    assert run.data.params["train.batch_size"] == "16"


def test_mlflow_uri_is_honoured(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "elsewhere").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    assert train(make_run(tmp_path / "run", "mlflow"), quiet=True)
    client, run = mlflow_run((tmp_path / "elsewhere").as_uri())
    assert history(client, run, "loss") == logged(tmp_path / "run")
    assert not (tmp_path / "run/mlflow").exists()


# ---- trackio ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def trackio(monkeypatch):
    """It reads TRACKIO_DIR when it is imported."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "trackio"]:
        monkeypatch.delitem(sys.modules, name)
    import trackio

    yield trackio
    for name in [name for name in sys.modules if name.partition(".")[0] == "trackio"]:
        del sys.modules[name]


def test_trackio_resumed(tmp_path, trackio):
    folder = tmp_path / "run"
    assert not train(make_run(folder, "trackio", max_hours=0.0, judge=True), quiet=True)
    assert train(make_run(folder, "trackio", judge=True), quiet=True)
    (run,) = trackio.Api().runs("mim-core")
    assert run.name == json.loads((folder / "trackers.json").read_text())["id"]
    from trackio.sqlite_storage import SQLiteStorage

    rows = SQLiteStorage.get_logs("mim-core", run.name)
    assert [(row["step"], row["loss"]) for row in rows if "loss" in row] == logged(folder)
    assert [(row["step"], row[NOW]) for row in rows if NOW in row] == judged(folder)
    assert columns(folder) <= {*rows[1]}
    assert run.config["train"]["batch_size"] == 16
    assert (tmp_path / "TRACKIO_DIR/mim-core.db").exists()


# ---- all of them -----------------------------------------------------------------------------------------------------


def test_a_new_run_in_an_old_folder_is_another(tmp_path):
    assert train(make_run(tmp_path / "run", "mlflow"), quiet=True)
    first = (tmp_path / "run/trackers.json").read_text()
    shutil.rmtree(tmp_path / "run/checkpoints")
    assert train(make_run(tmp_path / "run", "mlflow"), quiet=True)
    assert (tmp_path / "run/trackers.json").read_text() != first


def test_one_that_fails_is_a_warning_and_the_others_go_on(tmp_path, capsys):
    run = make_run(tmp_path / "run", "tensorboard", "mlflow")
    observe = run.observe

    def break_one(hook, **facts):
        if run.step == 2:
            run.trackers["tensorboard"].writer = None
        observe(hook, **facts)

    run.observe = break_one
    assert train(run, quiet=True)
    said = capsys.readouterr().err
    who = "one of mim-core's trackers (--train.track)"
    assert f"warning: {who} failed in mim_metrics_read: RuntimeError: tensorboard: AttributeError" in said
    client, found = mlflow_run((tmp_path / "run/mlflow").as_uri())
    assert history(client, found, "loss") == logged(tmp_path / "run")
    assert found.info.status == "FINISHED"


def test_one_that_cannot_start_ends_the_run(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "gopher://nowhere")
    run = make_run(tmp_path / "run", "tensorboard", "mlflow")
    with pytest.raises(MimError, match=r"--train\.track mlflow: it cannot be started"):
        train(run, quiet=True)
    assert not run.trackers
    assert not (tmp_path / "run/metrics.jsonl").exists()


def test_an_unknown_one_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(MimError, match=r"(?s)Unknown tracker 'tensorbord'.*'tensorboard'\?.*mlflow, tensorboard, tr"):
        make_run(tmp_path / "run", "tensorbord")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow", "trackio"])
def test_a_missing_library_is_refused_before_anything_is_written(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MimError, match=rf'pip install "mim-core\[{name}\]"'):
        make_run(tmp_path / "run", name)
    assert not (tmp_path / "run").exists()


def test_a_folder_named_like_a_library_is_none(tmp_path, monkeypatch):
    (tmp_path / "wandb").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    for name in [name for name in sys.modules if name.partition(".")[0] == "wandb"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(MimError, match="it is not installed"):
        check(["wandb"])


def test_nothing_is_imported_before_a_run_names_it():
    script = "import sys, mim_core.host.loading as p; p.installed(); print([n for n in NAMES if n in sys.modules])"
    names = ("torch", "tensorboard", "wandb", "mlflow", "trackio")
    said = subprocess.run([sys.executable, "-c", script.replace("NAMES", str(names))], capture_output=True, text=True)
    assert said.stdout == "[]\n", said


def test_a_run_without_trackers_writes_nothing_of_them(tmp_path):
    assert train(make_run(tmp_path / "run"), quiet=True)
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert left == {"recipe.toml", "metrics.jsonl", "files.jsonl.gz", "checkpoints", ".lock"}
