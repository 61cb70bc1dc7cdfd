"""The steps of a run. Nothing in a step waits for the device or calls a plugin's hook: metrics stay on the device and
are read every `TrainConfig.readings` steps."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mim_core import randomness
from mim_core.data.loading import Batch, KeyedBatches, KeyedDataset, collate, end_readers, loader, readers_gone
from mim_core.data.time_limits import Places, Watch, of_reading
from mim_core.errors import ReadersGone, one_line
from mim_core.methods.build import working
from mim_core.parts.schedule import Progress
from mim_core.ranks.tensors import batch_mean, gather, whole
from mim_core.runs.average import WeightAverage
from mim_core.training.cost import power
from mim_core.training.engine import Engine
from mim_core.training.faults import BadFiles, not_finite
from mim_core.training.learning_rate import learning_rate
from mim_core.training.optimizer import set_decay, set_rate, weight_decay
from mim_core.training.progress import Reporter
from mim_core.training.stopwatch import Stopwatch

if TYPE_CHECKING:
    from mim_core.runs.run import Run


class Trainer:
    """Steps through a run.

    Args:
        run: The run; ``run.step`` counts on.
        engine: Its method, spread over the devices.
        optimizer: Over the engine's parameters.
        average: The moving average of the weights, if one is kept.
        reporter: Told the metrics.
        stop: Holds the number of a signal once one came.
    """

    batches: Any = None
    """The micro-batches, while the run steps."""
    watch: Watch
    latent: Tensor | None = None
    """The encoder's output for the last micro-batch."""

    def __init__(
        self,
        run: Run,
        engine: Engine,
        optimizer: torch.optim.Optimizer,
        average: WeightAverage | None,
        reporter: Reporter,
        stop: Sequence[int] = (),
    ) -> None:
        self.stop = stop
        self.run, self.engine, self.optimizer, self.average, self.reporter = run, engine, optimizer, average, reporter
        self.pending: list[Tensor] = []
        self.names: tuple[str, ...] = ()
        self.bad = BadFiles(run)
        self.clock = Stopwatch(run.device)
        self.bf16 = run.train.precision == "bf16" or (run.train.precision == "auto" and run.device.type == "cuda")

    def __iter__(self) -> Iterator[None]:
        run, train = self.run, self.run.train
        self.bad.recheck()
        every = train.readings(run.steps)
        run.method.train()
        first, last = run.step * train.batch_size, run.steps * train.batch_size
        sampler = KeyedBatches(
            len(run.source), run.micro, train.seed, first, last, rank=run.world.rank, ranks=run.world.size
        )
        pin, places = run.device.type == "cuda", Places(train.workers)
        dataset = KeyedDataset(run.source, places)
        self.batches = iter(loader(dataset, sampler, train.workers, collate, pin=pin))  # the watch has the limit
        self.watch = Watch(places, train.timeout, lambda: end_readers(self.batches), lambda: bool(self.stop))
        if train.workers:
            self.watch.start()
        self.clock.read()
        try:
            while run.step < run.steps:
                self._step(self.batches)
                run.step += 1
                if run.step % every == 0 or run.step == run.steps:
                    self.read_metrics()
                yield
        finally:
            self.watch.stop()
            end_readers(self.batches)
            self.batches = None  # a process that is forked later would clear it away once more, and complain

    def _phase(self, name: str) -> None:
        self.clock.start(name)
        self.run.world.phase(self.run.step, name)

    def _step(self, batches: Iterator[Batch]) -> None:
        """One optimizer step over as many micro-batches as the batch holds."""
        run, count = self.run, self.run.accumulation
        set_rate(self.optimizer, learning_rate(run.step, run.steps_per_epoch, run.train))
        if run.train.weight_decay_end is not None:
            set_decay(self.optimizer, weight_decay(run.step / run.steps, run.train))
        sums: dict[str, Tensor] = {}
        for part in range(count):
            with self.engine.micro_batch(last=part == count - 1):
                for name, value in self._micro_batch(batches, part).items():
                    share = value.detach().float() / count
                    sums[name] = sums[name] + share if name in sums else share
        self._phase("optimizer")
        limit = math.inf if run.train.clip_grad is None else run.train.clip_grad
        norm = whole(torch.nn.utils.clip_grad_norm_(run.method.parameters(), limit))
        self.names = (*sums, "grad_norm")
        metrics = torch.cat([batch_mean(torch.stack(list(sums.values()))), norm.float().reshape(1)])
        # torch's fused optimizers leave the update out, on the device, where this is 1
        self.optimizer.found_inf = (~torch.isfinite(metrics).all()).float()  # type: ignore[attr-defined]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        run.method.after_step(Progress.at(run.step + 1, run.steps, run.steps_per_epoch))
        if self.average is not None:
            self.average.update(run.step)
        self.clock.start(None)
        self.pending.append(metrics)

    def _micro_batch(self, batches: Iterator[Batch], part: int) -> dict[str, Tensor]:
        """Forward and backward pass over one micro-batch; returns its losses."""
        run, number = self.run, part * self.run.world.size + self.run.world.rank
        self._phase("data")
        sample = self._fetch(batches)
        self._phase("prepare")
        sample = run.source.finish(sample)
        torch.manual_seed(randomness.torch_seed(run.train.seed, f"step {run.step} {number}"))  # dropout and drop path
        with working(run.method):
            now = Progress.at(run.step, run.steps, run.steps_per_epoch)
            prepared = run.method.prepare(sample, step=run.step, progress=now)
        self._phase("forward_backward")
        try:
            with working(run.method), torch.autocast(run.device.type, torch.bfloat16, enabled=self.bf16):
                outcome = self.engine.forward(prepared)
            (outcome.loss / run.accumulation).backward()
        except RuntimeError as error:
            raise self.engine.explain(error) from error
        self.latent = outcome.latent.detach()
        parts = {f"loss/{name}": value for name, value in outcome.parts.items()}
        return {"loss": outcome.loss, **(parts if len(parts) > 1 else {}), **outcome.measures}

    def _fetch(self, batches: Iterator[Batch]) -> dict[str, Tensor]:
        """The next micro-batch, on the device; bad files are noted."""
        try:
            with self.watch.over():
                batch = next(batches)
        except (OSError, EOFError, RuntimeError) as error:  # the watch ended it, or it died while it handed one over
            if isinstance(error, RuntimeError) and not readers_gone(error):
                raise
            reading = self.watch.stuck or self.watch.places.longest()
            why = "no batch came, so it was ended" if self.watch.tripped else one_line(error)
            raise ReadersGone(f"{why}.{of_reading(reading)}") from error
        self.bad.note(batch)
        assert batch.sample is not None
        return {name: value.to(self.run.device, non_blocking=True) for name, value in batch.sample.items()}

    def effective_rank(self) -> float:
        """Of the features of the last micro-batch of all ranks, one row per sample and mask: exp of the entropy of the
        singular values' shares (RankMe, arXiv 2210.02885, equation 1). Near 1, all samples have one direction: a
        collapse."""
        if self.latent is None:
            return math.nan
        rows, _ = gather(self.latent.float().mean(dim=1))
        values = torch.linalg.svdvals(rows - rows.mean(dim=0))
        shares = values / values.sum().clamp(min=1e-12)
        return round(float((-(shares * (shares + 1e-12).log()).sum()).exp()), 3)

    def read_metrics(self) -> None:
        """Moves the metrics of the steps since the last reading to the host, checks and writes them. All ranks call it
        at the same step.

        Raises:
            MimError: The loss was not finite. The last checkpoint is from before.
        """
        if not self.pending:
            return
        run, steps = self.run, len(self.pending)
        self.clock.start(None)
        run.world.phase(run.step, "reading the metrics")
        table = torch.stack(self.pending).cpu()
        seconds, phases = self.clock.read()
        self.bad.share()
        finite = torch.isfinite(table).all(dim=1)
        if not bool(finite.all()):
            step = run.step - steps + int((~finite).nonzero()[0])
            error = run.world.on_first(lambda: not_finite(run, step))
            error.everywhere = True
            raise error
        means = dict(zip(self.names, table.mean(dim=0).tolist(), strict=True))
        rate = steps * run.samples_per_step / seconds
        line: dict[str, Any] = {
            "step": run.step,
            "epoch": round(run.step / run.steps_per_epoch, 4),
            **means,
            "lr": learning_rate(run.step - 1, run.steps_per_epoch, run.train),
            "samples_per_second": rate,
            "seconds_per_step": seconds / steps,
            "effective_rank": self.effective_rank(),
            **{f"time/{name}": round(value / seconds, 4) for name, value in phases.items()},
            **power(run, rate),
        }
        self.pending = []
        if run.world.first:
            with open(run.folder / "metrics.jsonl", "a") as log:
                log.write(json.dumps(line) + "\n")
            self.reporter.metrics(run.step, run.step / run.steps_per_epoch, means["loss"], rate)
            run.observe("mim_metrics_read", metrics=line)
        self.clock.read()
