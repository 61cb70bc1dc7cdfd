"""Experiment trackers, served through the observer hooks like anybody's: TensorBoard, Weights & Biases, MLflow and
trackio, named by ``--train.track``. Each is an extra, imported when a run starts and not before.

They ask for no account unless their own environment variables say so. A resumed run goes on in the same tracker run:
``RUN/trackers.json`` remembers which. See docs/tracking.md.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import re
import time
import tomllib
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from mim_core.errors import MimError, unknown
from mim_core.host.hookspecs import hookimpl

PROJECT = "mim-core"
"""Project or experiment that the runs are put under where the tracker's environment names none."""


MEMORY = "trackers.json"


class Tracker(Protocol):
    """Made with a run and its settings, as tables of plain values; then told numbers by name, and the end."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None: ...  # noqa: D102

    def close(self, complete: bool) -> None: ...  # noqa: D102


def check(names: Iterable[str]) -> None:
    """Refuses trackers that do not exist or are not installed; imports none of them.

    Raises:
        MimError: Says what exists, or what to install.
    """
    for name in names:
        if name not in TRACKERS:
            raise unknown("tracker", name, TRACKERS)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:  # a folder of that name, as wandb leaves it, is no library
            raise _missing(name, "it is not installed")


def _missing(name: str, reason: str) -> MimError:
    return MimError(f'--train.track {name}: {reason}. Run: pip install "mim-core[{name}]"')


def _library(name: str, module: str = "") -> Any:
    """A tracker's library; not an import statement, because core does not depend on it."""
    try:
        return importlib.import_module(module or name)
    except ImportError as error:
        raise _missing(name, f"it cannot be imported: {error}") from error


def _remembered(folder: Path, key: str, make: Callable[[], str]) -> tuple[str, bool]:
    """What the folder's ``trackers.json`` holds under the key, or ``make`` returns; and whether it was there."""
    path = folder / MEMORY
    memory = json.loads(path.read_text()) if path.exists() else {}
    known = key in memory
    if not known:
        memory[key] = make()
        path.with_suffix(".part").write_text(json.dumps(memory, indent=2) + "\n")
        os.replace(path.with_suffix(".part"), path)
    return memory[key], known


def _identity(folder: Path) -> str:
    """The folder's name and something random: a new run in a folder of the same name is another one."""
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", folder.name)[:48]
    return _remembered(folder, "id", lambda: f"{name}-{uuid.uuid4().hex[:8]}")[0]


class _TensorBoard:
    """Event files in ``RUN/tensorboard``. What a killed run wrote after its checkpoint is not shown."""

    def __init__(self, run: Any, settings: Mapping[str, Any]) -> None:
        _library("tensorboard")
        writer = _library("tensorboard", "torch.utils.tensorboard")
        purge = run.step + 1 if run.step else 0
        self.writer = writer.SummaryWriter(str(run.folder / "tensorboard"), purge_step=purge, flush_secs=10)
        lines = [f"    {name} = {value}\n" for name, value in _flat(settings).items()]  # indented: Markdown's verbatim
        self.writer.add_text("settings", "".join(lines), run.step)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self, complete: bool) -> None:
        self.writer.close()


class _WandB:
    """Weights & Biases, in ``RUN/wandb``: offline unless WANDB_MODE says otherwise, so nobody is asked to log in."""

    def __init__(self, run: Any, settings: Mapping[str, Any]) -> None:
        wandb = _library("wandb")
        mode: Any = os.environ.get("WANDB_MODE") or "offline"
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            dir=str(run.folder.resolve()),
            mode=mode,
            id=_identity(run.folder),
            name=run.folder.name,
            resume="allow",
            reinit="create_new",  # the program around may have a run of its own
            config=dict(settings),
            allow_val_change=True,
            settings=wandb.Settings(console="off", silent=mode == "offline"),  # it would fight with the progress bar
        )

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step)

    def close(self, complete: bool) -> None:
        self.run.finish(exit_code=0 if complete else 1)


class _MLflow:
    """MLflow: files in ``RUN/mlflow``, or the store that MLFLOW_TRACKING_URI names."""

    def __init__(self, run: Any, settings: Mapping[str, Any]) -> None:
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if not uri:
            uri = (run.folder / "mlflow").resolve().as_uri()
            # MLflow refuses stores of files unless told; a database would need more than its small package
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # a local run needs no network
        self.entities = _library("mlflow", "mlflow.entities")
        self.client = _library("mlflow", "mlflow.tracking").MlflowClient(tracking_uri=uri)
        self.id, known = _remembered(run.folder, "mlflow", lambda: self._create(run.folder.name))
        if known:
            self.client.update_run(self.id, status="RUNNING")
        else:  # parameters are never changed, and a resumed run may have other workers
            params = [self.entities.Param(_plain(name), str(value)) for name, value in _flat(settings).items()]
            for start in range(0, len(params), 100):  # as many as a request may hold
                self.client.log_batch(self.id, params=params[start : start + 100])

    def _create(self, name: str) -> str:
        title = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self.client.get_experiment_by_name(title)
        number = experiment.experiment_id if experiment else self.client.create_experiment(title)
        return self.client.create_run(number, run_name=name).info.run_id

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        metric, now = self.entities.Metric, int(time.time() * 1000)
        self.client.log_batch(self.id, metrics=[metric(_plain(k), value, now, step) for k, value in values.items()])

    def close(self, complete: bool) -> None:
        self.client.set_terminated(self.id, "FINISHED" if complete else "KILLED")


class _Trackio:
    """trackio, in its own folder, or where TRACKIO_DIR, TRACKIO_SPACE_ID or TRACKIO_SERVER_URL say."""

    def __init__(self, run: Any, settings: Mapping[str, Any]) -> None:
        self.library = _library("trackio")
        name = _identity(run.folder)  # it resumes by name
        self.run = self.library.init(PROJECT, name=name, config=dict(settings), resume="allow", embed=False)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step)

    def close(self, complete: bool) -> None:
        self.library.finish()


TRACKERS: Mapping[str, Callable[[Any, Mapping[str, Any]], Tracker]]


TRACKERS = {"tensorboard": _TensorBoard, "wandb": _WandB, "mlflow": _MLflow, "trackio": _Trackio}
"""By name, which is that of the extra and of the library too."""


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as one, ``train.epochs``."""
    flat: dict[str, Any] = {}
    for name, value in table.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def _plain(name: str) -> str:
    """A name that MLflow takes: few signs, and no ``/``, or ``loss`` and ``loss/main`` were a file and a folder."""
    return re.sub(r"[^\w. -]", ".", name)


@hookimpl
def mim_run_started(run: Any) -> None:
    """Opens the trackers that the run names.

    Raises:
        MimError: One of them cannot be started.
    """
    from mim_core.recipes.toml import to_toml

    if not run.train.track:
        return
    if run.step == 0:  # it begins anew, whatever was tracked from this folder before
        (run.folder / MEMORY).unlink(missing_ok=True)
    settings = tomllib.loads(to_toml(run.config, run.registry))
    try:
        for name in dict.fromkeys(run.train.track):
            run.trackers[name] = TRACKERS[name](run, settings)
    except Exception as error:
        run.observe("mim_run_left")
        if isinstance(error, MimError):
            raise
        fault = f"--train.track {name}: it cannot be started: {type(error).__name__}: {error}"
        raise MimError(f"{fault}\nLeave it out, or remove {run.folder / MEMORY} to begin a new {name} run.") from error


@hookimpl
def mim_metrics_read(run: Any, metrics: Mapping[str, Any]) -> None:
    """Tells all of a line but its step."""
    values = {name: float(value) for name, value in metrics.items() if name != "step"}
    _tell(run, lambda tracker: tracker.metrics(metrics["step"], values))


@hookimpl
def mim_features_judged(run: Any, scores: Any) -> None:
    """Tells the scores as ``features/ROW/COLUMN``."""
    values = {f"features/{score.row}/{score.column}": float(score.value) for score in scores}
    _tell(run, lambda tracker: tracker.metrics(run.step, values))


@hookimpl
def mim_run_finished(run: Any) -> None:
    """Closes the trackers of a complete run."""
    _tell(run, lambda tracker: tracker.close(True), last=True)


@hookimpl
def mim_run_left(run: Any) -> None:
    """Closes those of a run that was stopped or failed; a complete one has none left."""
    _tell(run, lambda tracker: tracker.close(False), last=True)


def _tell(run: Any, what: Callable[[Tracker], None], last: bool = False) -> None:
    """Tells every tracker, whatever becomes of the others; raises at the end what went wrong."""
    faults = []
    for name, tracker in list(run.trackers.items()):
        try:
            what(tracker if not last else run.trackers.pop(name))
        except Exception as error:
            faults.append(f"{name}: {type(error).__name__}: {error}")
    if faults:
        raise RuntimeError("; ".join(faults))
