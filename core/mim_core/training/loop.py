"""The training loop. One for every method and every machine: it knows samples, a method's two halves, an optimizer,
the ranks that share the work, and where things go on disk.

RUN/
    recipe.toml        the resolved recipe; `mim-core pretrain RUN/recipe.toml` repeats the run
    metrics.jsonl      one line per reading of the metrics
    probes.jsonl       one line per judgement of the features during training
    skipped.jsonl      one line per bad file, once each
    files.jsonl.gz     the items that it began with, see inventory.py
    checkpoints/       see checkpoint.py
"""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mim_core import disk
from mim_core.data.loading import end_readers, readers_gone
from mim_core.errors import MimError, RankError, warn
from mim_core.evaluation.online import OnlineProbe
from mim_core.host.registry import Registry
from mim_core.methods.build import build_method, check_data, check_teachers, make_source, settled
from mim_core.ranks import world as ranks
from mim_core.ranks.world import World
from mim_core.recipes.config import ResolvedRun, TrainConfig
from mim_core.recipes.toml import completed, from_toml, to_toml
from mim_core.runs import checkpoint, inventory, observers, origins, trackers
from mim_core.runs import folder as run_folder
from mim_core.runs.average import WeightAverage
from mim_core.runs.run import Run
from mim_core.runs.state import MADE, ORIGINS
from mim_core.terminal import tell
from mim_core.text import counted, duration
from mim_core.training import collection_size, hours
from mim_core.training.advice import advise
from mim_core.training.cost import step_cost
from mim_core.training.engine import Engine, share
from mim_core.training.faults import check_readable
from mim_core.training.optimizer import check_steps, make_optimizer
from mim_core.training.progress import Reporter
from mim_core.training.signals import TIME_LIMIT, stop_signals
from mim_core.training.trainer import Trainer


def start(
    config: ResolvedRun,
    folder: Path,
    registry: Registry,
    world: World | None = None,
    trains: bool = False,
    plans: bool = False,
) -> Run:
    """Builds all that a run needs; writes nothing. What is wrong raises `MimError` before anything is warned of.

    Args:
        config: The run.
        folder: Its folder.
        registry: Where its parts were found.
        world: The ranks that share it; this process alone where none is given.
        trains: Whether it is to be trained to its end, and so must have a step.
        plans: Whether it is planned only, and so must be told now where no file of the data can be used.
    """
    train = config.train
    run_folder.check_name(folder)
    if train.schedule == "steps" and not train.milestones:
        raise MimError("--train.schedule steps needs --train.milestones, in epochs.")
    world = world or ranks.alone(ranks.choose_device(train.device))
    if train.deterministic:
        _same_bits()
    config = _as_begun(config, folder, registry, world)
    method = build_method(config, registry).to(world.device)
    source = make_source(config, method)
    config = settled(config, method, source)
    train, sizes = _fitted(config, folder, len(source), registry, world)
    config = replace(config, train=train)
    micro, accumulation = share(train, world.size)
    if method.couples_batch and accumulation > 1:
        raise MimError(
            "This method compares the samples of a batch, so the batch cannot be accumulated; leave "
            "--train.micro-batch out."
        )
    if train.hours is not None or train.steps is not None:
        train = _of_steps(config, folder, method, source, registry, world)
        config = replace(config, train=train)
    steps = max(1, round(train.epochs * len(source) / train.batch_size))
    trackers.check(train.track)
    if trains:
        check_steps(train, len(source))
    run = Run(config, folder, method, source, registry, world, micro, accumulation, steps=steps, sizes=sizes)
    check_data(config, method, source, partial(check_readable, run) if plans else lambda: None)
    if world.first:
        advise(train, len(source))
    return run


def _same_bits() -> None:
    """Only operations that give the same bits every time."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read by cuBLAS when its first handle is made
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def _fitted(
    config: ResolvedRun, folder: Path, items: int, registry: Registry, world: World
) -> tuple[TrainConfig, tuple[str, ...]]:
    """The training options with sizes that fit the data, where options may follow from these, and what was changed; of
    a run that goes on, those that it began with."""
    given = config.told
    if given is None:
        return config.train, ()
    latest = world.on_first(lambda: checkpoint.to_resume(folder))
    if latest is None:
        return collection_size.fitted(config.train, items, given, world.size, config.least)
    before = from_toml(world.on_first(lambda: run_folder.read_recipe(latest / "recipe.toml")), registry).train
    names = [name for name in collection_size.OPEN if f"train.{name}" not in given]
    if config.train.steps is not None or config.train.hours is not None:
        names.remove("epochs")
    names += ["micro_batch"] if "train.micro_batch" not in given else []
    return replace(config.train, **{name: getattr(before, name) for name in names}), ()


def _of_steps(
    config: ResolvedRun, folder: Path, method: Any, source: Any, registry: Registry, world: World
) -> TrainConfig:
    """The training options with the epochs that their hours or steps make."""
    train = config.train if config.train.hours is None else _in_hours(config, folder, method, source, registry, world)
    if train.steps is None:
        return train
    return replace(train, epochs=train.steps * train.batch_size / max(1, len(source)))


def _in_hours(
    config: ResolvedRun, folder: Path, method: Any, source: Any, registry: Registry, world: World
) -> TrainConfig:
    """The training options with the epochs that fit into ``train.hours``: those of the run that goes on, or measured
    now, and said."""
    latest = world.on_first(lambda: checkpoint.newest(folder))
    if latest is not None:
        before = from_toml(world.on_first(lambda: run_folder.read_recipe(latest / "recipe.toml")), registry).train
        if before.hours == config.train.hours:
            names = ("epochs", "steps", "warmup_epochs")
            return replace(config.train, **{name: getattr(before, name) for name in names})
    micro, accumulation = share(config.train, world.size)
    train, message = hours.fitted(Run(config, folder, method, source, registry, world, micro, accumulation, steps=1))
    if world.first:
        tell(message)
    return train


def _as_begun(config: ResolvedRun, folder: Path, registry: Registry, world: World) -> ResolvedRun:
    """The run with the parts of its frozen teachers, and what its data source learned, as its folder has them, where
    that holds a checkpoint: so the command that began it resumes it, though what a teacher was taken from is gone, or
    files came since."""
    open_parts = {role: part for role, part in config.parts.items() if _open(part.options)}
    latest = world.on_first(lambda: checkpoint.to_resume(folder)) if open_parts else None
    if latest is None:
        return config
    text = world.on_first(lambda: run_folder.read_recipe(latest / "recipe.toml"))
    before = from_toml(text, registry).parts
    known = {
        role: replace(part, options=before[role].options)
        for role, part in open_parts.items()
        if role in before and before[role].name == part.name
        if replace(before[role].options, **_open(part.options)) == part.options
    }
    return replace(config, parts={**config.parts, **known})


def _open(options: Any) -> dict[str, str]:
    """The options that a part fills in itself and that are still empty."""
    return {name: "" for name in ("parts", "learned") if getattr(options, name, None) == ""}


def _facts(run: Run) -> dict[str, str]:
    """What must be the same on all ranks: each trains on its share of one order of the same samples."""
    count = len(run.source)
    names = [Path(run.source.name_of(i * count // 64)).name for i in range(64)] if count else []
    parts = [(role, part.name) for role, part in run.config.parts.items()]
    texts = {"settings": repr((run.train, run.config.evaluate, parts)), "files": "\n".join(names)}
    return {
        "items": str(count),
        **{k: hashlib.sha256(v.encode(errors="surrogateescape")).hexdigest()[:12] for k, v in texts.items()},
    }


def train(run: Run, quiet: bool = False) -> bool:
    """Trains to the last step, or until told to stop. An output folder that holds a checkpoint resumes.

    Returns:
        Whether the run is complete; False when it was stopped and can go on.

    Raises:
        MimError: The folder cannot be used, too many files are bad, the loss is not finite, the disk is full.
    """
    return _Session(run, quiet).go()


class _Session:
    """One process's part of a run, from where it stands to where it ends."""

    def __init__(self, run: Run, quiet: bool) -> None:
        self.run, self.world, self.stack = run, run.world, ExitStack()
        self.world.compare(_facts(run))
        self.recipe = to_toml(run.config, run.registry)
        self.probe = OnlineProbe(run) if run.config.evaluate.every is not None else None
        self.quiet = quiet or not run.world.first
        self.engine = Engine(run.method, run.train, run.world)
        self.optimizer = make_optimizer(run.method, run.train, run.device)
        self.average = None if run.train.ema is None else WeightAverage(run.method, run.train.ema)

    def go(self) -> bool:
        """Resumes, trains, and says how it ended."""
        run = self.run
        with self.stack:
            resumed = self._resume()
            reporter = Reporter(run.config.recipe or run.folder.name, run.step, run.steps, quiet=self.quiet)
            if run.step >= run.steps:
                reporter.say(
                    f"{run.folder} is complete: {counted(run.step, 'step')}. To go on with its weights in a new run: "
                    f"--init {run.folder} --out ANOTHER"
                )
                return True
            if run.world.first:
                for label, text in run.source.contents().items():
                    reporter.say(f"{label}: {text}")
                for text in run.sizes:
                    reporter.say(f"sizes: {text}")
            if resumed:
                reporter.say(f"Resuming {run.folder} at step {run.step} of {run.steps}.")
            self._count_operations()
            try:
                self.world.on_first(lambda: observers.begin(run.registry, run))
                return self._train(reporter)
            except (MimError, RuntimeError, OSError) as error:
                if isinstance(error, MimError) and (error.everywhere or isinstance(error, RankError)):
                    raise
                explained = self._explain(error)
                if explained is None:
                    raise
                raise explained from error
            finally:
                run.observe("mim_run_left")
                observers.summarize(run.registry, run.failures)

    def _explain(self, error: Exception) -> MimError | None:
        """What this rank says of an error; None for one that is a bug, or a lost rank's."""
        run = self.run
        if isinstance(error, MimError):
            return self.world.error(str(error))
        if readers_gone(error):
            end_readers()
            return self.world.error(
                f"a process that reads data is gone, or gave nothing for {run.train.timeout:g} s (--train.timeout): "
                f"{str(error).splitlines()[0]} The last checkpoint stays. --train.workers 0 shows where it happens."
            )
        if not isinstance(error, OSError):
            return None
        before = checkpoint.newest(run.folder)
        kept = f"The last complete checkpoint is {before}" if before else "There is no checkpoint yet"
        full = disk.is_full(error) or str(run.folder) in str(error.filename)
        what = f"{run.folder} cannot be written" if full else "A file or the system failed"
        return self.world.error(f"{what}: {error}. {kept}; fix this, then rerun the command to resume from there.")

    def _resume(self) -> bool:
        """Opens the folder on rank 0, and puts back what its newest checkpoint holds."""
        run, loaded = self.run, None

        def look() -> tuple[dict[str, str], Path | None, dict[str, Any]]:
            nonlocal loaded
            self.stack.enter_context(run_folder.locked(run.folder))
            skipped = run_folder.open_folder(run.folder, self.recipe, partial(completed, registry=run.registry))
            self.recipe = (run.folder / "recipe.toml").read_text()  # with the versions that it was trained with before
            latest = checkpoint.to_resume(run.folder, warn)
            if latest is None:
                check_teachers(run.method)
                run_folder.forget_after(run.folder, 0)
                inventory.record(run.folder, run.source)
                return skipped, None, {}
            loaded = checkpoint.load(latest)
            run.origins = origins.kept_in(loaded.state)
            inventory.check_items(run.folder, loaded.state, run.source)
            checkpoint.check(loaded, run.method, self.optimizer, self.average)
            run_folder.forget_after(run.folder, loaded.step)
            inventory.record(run.folder, run.source)
            return skipped, latest, {"step": loaded.step}

        skipped, latest, state = self.world.on_first(look)
        run.skipped.update(skipped)
        if latest is None:
            return False
        checkpoint.restore(loaded, run.method, self.optimizer, self.average)
        run.step = state["step"]
        return True

    def _count_operations(self) -> None:
        """For the metrics; a method that the meta device cannot run goes without. What a part refuses here, it would
        refuse at the first batch."""
        if not self.world.first:
            return
        try:
            self.run.cost = step_cost(self.run)[0]
        except MimError:
            raise
        except Exception as error:
            warn(
                f"the operations of this method cannot be counted, so metrics leave them out: "
                f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            )

    def _train(self, reporter: Reporter) -> bool:
        """The steps of a run, its checkpoints, and the reasons to stop."""
        run, train, world = self.run, self.run.train, self.world
        began, saved, reason = time.monotonic(), run.step, 0
        with reporter, stop_signals() as stop:
            trainer = Trainer(run, self.engine, self.optimizer, self.average, reporter, stop)
            if run.step == 0:
                self._judge(trainer, reporter)
            for _ in self._until_stopped(trainer, stop):
                reporter.advance(run.step)
                if run.device.type == "cpu":  # a GPU works on while the host asks: its first metrics tell
                    reporter.estimate(run.step)
                if train.max_hours is not None and time.monotonic() - began >= train.max_hours * 3600:
                    stop.append(TIME_LIMIT)
                world.phase(run.step, "between steps")
                reason = world.poll(stop[0] if stop else signal.SIGTERM if world.abandoned else 0)
                self._judge(trainer, reporter)
                if run.step % train.checkpoint_every == 0 or run.step == run.steps or reason:
                    trainer.read_metrics()
                    with trainer.clock.paused():
                        saved = self._save()
                if reason:
                    break
        world.settle()
        done = run.step >= run.steps
        if done:
            reporter.say(f"Done: {counted(run.steps, 'step')} in {duration(time.monotonic() - began)}; {run.folder}")
            run.observe("mim_run_finished")
        else:
            why = f"the time limit of {train.max_hours} h" if reason == TIME_LIMIT else signal.Signals(reason).name
            reporter.say(f"Stopped by {why} at step {saved} of {run.steps}. The same command resumes from there.")
        return done

    def _until_stopped(self, trainer: Trainer, stop: list[int]) -> Iterator[None]:
        """The steps. A run of one process that was told to stop while no batch came ends with what it has."""
        try:
            yield from trainer
        except RuntimeError as error:
            if not readers_gone(error) or not stop or self.world.size > 1:
                raise
            yield

    def _judge(self, trainer: Trainer, reporter: Reporter) -> None:
        """Judges the features where it is time to."""
        if self.probe is None or not self.probe.due():
            return
        self.world.phase(self.run.step, "judging the features")
        with trainer.clock.paused():
            scores = self.probe.judge(self.average)
            if self.world.first:
                reporter.say(self.probe.line(scores))
                self.run.observe("mim_features_judged", scores=scores)

    def _save(self) -> int:
        """Writes a checkpoint; returns its step."""
        run = self.run
        self.world.phase(run.step, "writing a checkpoint")
        extra = {
            "items": len(run.source),
            "samples": run.step * run.train.batch_size,
            "ranks": self.world.size,
            "strategy": self.engine.strategy,
            "plugins": run.registry.versions(),
            "torch": torch.__version__,
            MADE: origins.made_now(run.command, ranks.device_name(run.device)),
            **({ORIGINS: run.origins} if run.origins else {}),
        }
        contents = checkpoint.gather(run.method, self.optimizer, self.average, self.world.first)
        keep = run.train.keep_checkpoints
        path = self.world.on_first(lambda: checkpoint.save(run.folder, contents, run.step, self.recipe, extra, keep))
        run.observe("mim_checkpoint_saved", path=path)
        return run.step
