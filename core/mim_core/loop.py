"""The training loop. One for every method: it knows samples, a method's two halves, an optimizer, and where things go
on disk.

RUN/
    recipe.toml        the resolved recipe; `mim-core pretrain RUN/recipe.toml` repeats the run
    metrics.jsonl      one line per reading of the metrics
    skipped.jsonl      one line per bad file, once each
    checkpoints/       see checkpoint.py
"""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from mim_core import checkpoint, folders, randomness
from mim_core.build import build_method
from mim_core.data import Batch, DataSource, KeyedBatches, KeyedDataset, collate, loader
from mim_core.errors import MimError
from mim_core.method import Method
from mim_core.optimizer import learning_rate, make_optimizer, set_rate
from mim_core.plugins import warn
from mim_core.progress import Reporter, duration
from mim_core.recipe import ResolvedRun, TrainConfig, to_toml
from mim_core.registry import Registry


@dataclass
class Run:
    """A run under way; observers get this.

    Attributes:
        config: The resolved recipe.
        folder: Where its files go.
        method: What is trained.
        source: Its data.
        registry: Where its parts were found.
        device: Where it trains.
        step: Optimizer steps done.
        steps: Optimizer steps in all.
    """

    config: ResolvedRun
    folder: Path
    method: Method
    source: DataSource
    registry: Registry
    device: torch.device
    step: int = 0
    steps: int = 0
    skipped: dict[str, str] = field(default_factory=dict)

    @property
    def train(self) -> TrainConfig:
        """The training options."""
        return self.config.train

    @property
    def steps_per_epoch(self) -> float:
        """Steps in which as many samples are seen as there are."""
        return len(self.source) / self.train.batch_size


def make_source(config: ResolvedRun, method: Method) -> DataSource:
    """The data source of a run, told by the tokenizer what shapes it must give."""
    part = config.parts.get("data")
    if part is None:
        raise MimError("This run has no data. Name a source: --use data=NAME. See: mim-core list data")
    try:
        source: DataSource = part.cls(part.options, method.tokenizer.shapes)  # type: ignore[union-attr]
    except ValueError as error:
        raise MimError(f"data ({part.name}): {error}.") from error
    return source


def choose_device(train: TrainConfig) -> torch.device:
    """The device that was asked for, or the GPU if there is one."""
    if train.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(train.device)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise MimError(f"--train.device {train.device} cannot be used: {str(error).splitlines()[0]}") from error
    return device


def start(config: ResolvedRun, folder: Path, registry: Registry) -> Run:
    """Builds all that a run needs; writes nothing."""
    if config.train.schedule == "steps" and not config.train.milestones:
        raise MimError("--train.schedule steps needs --train.milestones, in epochs.")
    device = choose_device(config.train)
    method = build_method(config, registry).to(device)
    micro = config.train.micro_batch or config.train.batch_size
    if method.couples_batch and micro != config.train.batch_size:
        raise MimError(
            "This method compares the samples of a batch, so the batch cannot be accumulated; leave "
            "--train.micro-batch out."
        )
    source = make_source(config, method)
    steps = max(1, round(config.train.epochs * len(source) / config.train.batch_size))
    if 0 < config.train.epochs <= config.train.warmup_epochs:
        warn(
            f"the warm-up of {config.train.warmup_epochs:g} epochs is as long as the run of {config.train.epochs:g}: "
            f"the learning rate "
            f"never reaches its peak. Shorten it: --train.warmup-epochs {config.train.epochs / 20:g}"
        )
    if config.train.batch_size > len(source):
        warn(
            f"one step takes {config.train.batch_size} samples and there are {len(source)}: an epoch is less than a "
            f"step. "
            "For a small collection try --train.batch-size 64."
        )
    return Run(config, folder, method, source, registry, device, steps=steps)


def train(run: Run, quiet: bool = False) -> bool:
    """Trains to the last step, or until told to stop. An output folder that holds a checkpoint resumes.

    Returns:
        Whether the run is complete; False when it was stopped and can go on.

    Raises:
        MimError: The folder cannot be used, too many files are bad, the loss is not finite, the disk is full.
    """
    optimizer = make_optimizer(run.method, run.train, run.device)
    recipe = to_toml(run.config, run.registry)
    run.skipped.update(folders.open_folder(run.folder, recipe))
    latest = checkpoint.newest(run.folder, warn)
    if latest is not None:
        _go_on(run, checkpoint.restore(latest, run.method, optimizer))
    folders.forget_after(run.folder / "metrics.jsonl", run.step)
    reporter = Reporter(run.config.recipe or run.folder.name, run.step, run.steps, quiet=quiet)
    if run.step >= run.steps:
        reporter.say(
            f"{run.folder} is complete: {run.step} steps. To go on with its weights in a new run: --init {run.folder} "
            f"--out ANOTHER"
        )
        return True
    if latest is not None:
        reporter.say(f"Resuming {run.folder} at step {run.step} of {run.steps}.")
    run.registry.hooks.mim_run_started(run=run)
    try:
        return _train(run, optimizer, reporter, recipe)
    except OSError as error:
        before = checkpoint.newest(run.folder)
        kept = f"The last whole checkpoint is {before}" if before else "There is no checkpoint yet"
        raise MimError(
            f"{run.folder} cannot be written: {error}. {kept}; once the disk can be written again, the same command "
            "goes on from there."
        ) from error


def _go_on(run: Run, loaded: checkpoint.Loaded) -> None:
    """Takes the step of a checkpoint, and refuses data of another size: samples would come in another order."""
    before = loaded.state.get("items", len(run.source))
    if before != len(run.source):
        raise MimError(
            f"The data has {len(run.source)} items, and had {before} when the run in {run.folder} began; the order of "
            f"samples "
            "would not go on. Use the same data, or start a new run from these weights: --init and another --out."
        )
    run.step = loaded.step


def _train(run: Run, optimizer: torch.optim.Optimizer, reporter: Reporter, recipe: str) -> bool:
    """The steps of a run, its checkpoints, and the reasons to stop."""
    began, saved = time.monotonic(), run.step
    with reporter, _stop_signals() as stop, _Trainer(run, optimizer, reporter) as trainer:
        for _ in trainer:
            reporter.advance(run.step)
            hours = (time.monotonic() - began) / 3600
            if run.train.max_hours is not None and hours >= run.train.max_hours:
                stop.append(f"the time limit of {run.train.max_hours} h")
            if run.step % run.train.checkpoint_every == 0 or run.step == run.steps or stop:
                trainer.read_metrics()
                saved = _save(run, optimizer, recipe)
            if stop:
                break
    done = run.step >= run.steps
    if done:
        reporter.say(f"Done: {run.steps} steps in {duration(time.monotonic() - began)}; {run.folder}")
        run.registry.hooks.mim_run_finished(run=run)
    else:
        reporter.say(f"Stopped by {stop[0]} at step {saved} of {run.steps}. The same command goes on from there.")
    return done


class _Trainer:
    """Steps through the run. Metrics stay on the device and are read every ``log_every`` steps."""

    def __init__(self, run: Run, optimizer: torch.optim.Optimizer, reporter: Reporter) -> None:
        self.run, self.optimizer, self.reporter = run, optimizer, reporter
        self.micro = run.train.micro_batch or run.train.batch_size
        self.pending: list[dict[str, Tensor]] = []
        self.indices: list[Tensor] = []
        self.waited, self.since = 0.0, time.perf_counter()
        self.bf16 = run.train.precision == "bf16" or (run.train.precision == "auto" and run.device.type == "cuda")

    def __enter__(self) -> _Trainer:
        self.log = open(self.run.folder / "metrics.jsonl", "a", buffering=1)
        return self

    def __exit__(self, *error: object) -> None:
        self.log.close()

    def __iter__(self) -> Iterator[None]:
        run = self.run
        run.method.train()
        sampler = KeyedBatches(
            len(run.source),
            self.micro,
            run.train.seed,
            run.step * run.train.batch_size,
            run.steps * run.train.batch_size,
        )
        batches = iter(
            loader(KeyedDataset(run.source), sampler, run.train.workers, collate, pin=run.device.type == "cuda")
        )
        while run.step < run.steps:
            self._step(batches)
            run.step += 1
            if run.step % run.train.log_every == 0 or run.step == run.steps:
                self.read_metrics()
            yield

    def _step(self, batches: Iterator[Batch]) -> None:
        """One optimizer step over as many micro-batches as the batch holds."""
        run, count = self.run, self.run.train.batch_size // self.micro
        rate = learning_rate(run.step, run.steps_per_epoch, run.train)
        set_rate(self.optimizer, rate)
        progress = run.step / run.steps
        sums: dict[str, Tensor] = {}
        for part in range(count):
            sample = self._fetch(batches)
            torch.manual_seed(randomness.torch_seed(run.train.seed, f"step {run.step} {part}"))  # dropout and drop path
            prepared = run.method.prepare(sample, step=run.step, progress=progress)
            with torch.autocast(run.device.type, torch.bfloat16, enabled=self.bf16):
                outcome = run.method(prepared)
            (outcome.loss / count).backward()
            parts = outcome.parts if len(outcome.parts) > 1 else {}
            for name, value in {"loss": outcome.loss, **parts}.items():
                share = value.detach() / count
                sums[name] = sums[name] + share if name in sums else share
        limit = run.train.clip_grad
        sums["grad_norm"] = torch.nn.utils.clip_grad_norm_(
            run.method.parameters(), math.inf if limit is None else limit
        )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        run.method.after_step((run.step + 1) / run.steps)
        self.pending.append(sums)

    def _fetch(self, batches: Iterator[Batch]) -> dict[str, Tensor]:
        """The next micro-batch, on the device; bad files are noted."""
        start = time.perf_counter()
        batch = next(batches)
        self.waited += time.perf_counter() - start
        _note_skipped(self.run, batch)
        assert batch.sample is not None
        self.indices.append(batch.sample["index"])
        sample = {name: value.to(self.run.device, non_blocking=True) for name, value in batch.sample.items()}
        return self.run.source.finish(sample)

    def read_metrics(self) -> None:
        """Moves the metrics of the steps since the last reading to the host, checks and writes them.

        Raises:
            MimError: The loss was not finite. The last checkpoint is from before.
        """
        if not self.pending:
            return
        run, names = self.run, list(self.pending[0])
        table = torch.stack([torch.stack([sums[name].float() for name in names]) for sums in self.pending]).cpu()
        seconds = time.perf_counter() - self.since
        samples = len(self.pending) * run.train.batch_size
        means = {name: float(value) for name, value in zip(names, table.mean(dim=0), strict=True)}
        finite = torch.isfinite(table).all(dim=1)  # a gradient too: it would spoil the weights that are saved next
        if not bool(finite.all()):
            self._not_finite(finite)
        line = {
            "step": run.step,
            "epoch": round(run.step / run.steps_per_epoch, 4),
            **means,
            "lr": learning_rate(run.step - 1, run.steps_per_epoch, run.train),
            "samples_per_second": samples / seconds,
            "data_wait": self.waited / seconds,
        }
        self.log.write(json.dumps(line) + "\n")
        self.reporter.metrics(run.step, run.step / run.steps_per_epoch, means["loss"], samples / seconds)
        self.pending, self.indices, self.waited, self.since = [], [], 0.0, time.perf_counter()

    def _not_finite(self, finite: Tensor) -> None:
        first = int((~finite).nonzero()[0])
        micros = self.run.train.batch_size // self.micro
        bad = torch.cat(self.indices[first * micros : (first + 1) * micros]).tolist()
        step = self.run.step - len(finite) + first
        names = ", ".join(self.run.source.name_of(index) for index in bad[:8])
        path = self.run.folder / "not_finite.json"
        path.write_text(json.dumps({"step": step, "indices": bad, "names": [self.run.source.name_of(i) for i in bad]}))
        raise MimError(
            f"The loss of step {step}, or its gradient, is not finite. Its samples are listed in {path}; the first "
            f"are: {names}. The "
            f"last checkpoint is from before. "
            "A lower --train.base-lr, --train.clip-grad 1, or --train.precision fp32 may help."
        )


def _note_skipped(run: Run, batch: Batch) -> None:
    """Writes each bad file once, and stops when there are too many."""
    new = {path: reason for path, reason in batch.skipped if path not in run.skipped}
    if new:
        first = not run.skipped
        run.skipped.update(new)
        with open(run.folder / "skipped.jsonl", "a") as log:
            for path, reason in new.items():
                log.write(json.dumps({"file": path, "reason": reason}) + "\n")
        if first:
            path, reason = next(iter(new.items()))
            warn(
                f"{path} cannot be used ({reason}) and is replaced; all such files are listed in "
                f"{run.folder / 'skipped.jsonl'}"
            )
    limit = getattr(run.source.config, "max_bad", 1.0)
    too_many = len(run.skipped) > limit * len(run.source)
    if batch.sample is None or too_many:
        some = "\n  ".join(f"{path}: {reason}" for path, reason in list(run.skipped.items())[:5])
        why = (
            f"more than the share of {limit:g} that --data.max-bad allows" if too_many else "and nothing replaces them"
        )
        raise MimError(
            f"{len(run.skipped)} of {len(run.source)} files cannot be used, {why}:\n  {some}\n"
            f"All are listed in {run.folder / 'skipped.jsonl'}."
        )


def _save(run: Run, optimizer: torch.optim.Optimizer, recipe: str) -> int:
    versions = {r.distribution: r.version for r in run.registry.plugins if not r.failure and not r.disabled}
    extra = {
        "items": len(run.source),
        "samples": run.step * run.train.batch_size,
        "plugins": versions,
        "torch": torch.__version__,
    }
    path = checkpoint.save(run.folder, run.method, optimizer, run.step, recipe, extra, run.train.keep_checkpoints)
    run.registry.hooks.mim_checkpoint_saved(run=run, path=path)
    return run.step


@contextmanager
def _stop_signals() -> Iterator[list[str]]:
    """A list that names the signal once Ctrl-C or SIGTERM came. A second Ctrl-C stops at once."""
    stop: list[str] = []
    before = {}

    def note(number: int, frame: object) -> None:
        if stop:
            raise KeyboardInterrupt
        stop.append(signal.Signals(number).name)

    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, note)
    except ValueError:  # not the main thread, as in some notebooks: signals stay as they were
        pass
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
