"""The features judged while a run is under way, on a held-out part, beside what needs no training: the majority class,
the raw input and the encoder as it was at the start."""

from __future__ import annotations

import json
import math
from contextlib import nullcontext
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mim_core import randomness
from mim_core.data.source import Labelled
from mim_core.errors import MimError
from mim_core.evaluation.features import extract, one_label
from mim_core.evaluation.study import SplitFeatures, Study, run_study
from mim_core.runs import logs
from mim_core.runs.average import WeightAverage
from mim_core.scores import MAJORITY, RAW, Score

if TYPE_CHECKING:
    from mim_core.methods.method import Method
    from mim_core.runs.run import Run


NOW, START = "encoder now", "encoder at the start"


class OnlineProbe:
    """Judges a run's features every ``evaluate.every`` epochs and at both ends; writes ``probes.jsonl``.

    The ranks share the samples; rank 0 has the scores.

    Raises:
        MimError: The data has no labels.
    """

    def __init__(self, run: Run) -> None:
        self.run, self.every = run, run.config.evaluate.every or math.inf
        self.config = replace(run.config.evaluate, on=run.config.evaluate.online, few_labels=())
        self.splits = [run.source.labelled(split) for split in ("train", "test")]
        if min(len(split.labels) for split in self.splits) == 0:
            raise MimError("--evaluate.every: there are no labelled samples to train or to test the probes on.")
        one_label(self.splits[0])
        self.chosen = [self._some(split) for split in self.splits]
        self.raw: SplitFeatures | None = None
        self.path = run.folder / "probes.jsonl"

    def _some(self, split: Labelled) -> Tensor:
        """Indices of the samples that are used, drawn once and for all."""
        key = randomness.make_key(0, 0, torch.zeros(1, dtype=torch.int64))
        order = randomness.permutation(key, "online", len(split.labels))[0]
        return order[: self.config.online_samples].sort().values

    def due(self) -> bool:
        """Whether the step that was done last completes a stretch of epochs."""
        run = self.run
        if run.step in (0, run.steps):
            return True
        now, before = (step / run.steps_per_epoch / self.every for step in (run.step, run.step - 1))
        return math.floor(now + 1e-9) > math.floor(before + 1e-9)

    def judge(self, average: WeightAverage | None = None) -> list[Score]:
        """Scores of the features as they are now, with the averaged weights where an average is kept. All ranks must
        call it; the others than rank 0 get none."""
        run = self.run
        if self.raw is None:
            self.raw = self._both(None)
        # batches may differ in size here, and compiled blocks must not
        with torch.compiler.set_stance("force_eager"), nullcontext() if average is None else average.applied():
            now = self._both(run.method)
        run.method.train()
        if not run.world.first:
            return []
        labels = [split.labels[chosen] for split, chosen in zip(self.splits, self.chosen, strict=True)]
        kept = [~values.isnan().any(dim=1) for values in (now.train, now.test)]
        both = ((RAW, self.raw), (NOW, now))
        rows = {name: SplitFeatures(each.train[kept[0]], each.test[kept[1]]) for name, each in both}
        study = Study(self.config, (labels[0][kept[0]], labels[1][kept[1]]), self.splits[1].classes, rows)
        scores = [*run_study(study, run.registry)]
        scores += [replace(score, row=START) for score in self._at_start(scores) if score.row == NOW]
        epoch = round(run.step / run.steps_per_epoch, 4)
        judged = {"test": int(kept[1].sum())}
        line = {"step": run.step, "epoch": epoch, **judged, "scores": [asdict(score) for score in scores]}
        with open(self.path, "a") as log:
            log.write(json.dumps(line) + "\n")
        return scores

    def _at_start(self, scores: list[Score]) -> list[Score]:
        """The scores of the line of step 0: these, where it is being written."""
        if self.run.step == 0:
            return scores
        before = logs.read(self.path)
        return next(([Score(**s) for s in line["scores"]] for line in before if line["step"] == 0), [])

    def _both(self, method: Method | None) -> SplitFeatures:
        pairs = zip(self.splits, self.chosen, strict=True)
        return SplitFeatures(*(self._features(method, split, chosen) for split, chosen in pairs))

    def _features(self, method: Method | None, split: Labelled, chosen: Tensor) -> Tensor:
        """Features of the chosen samples [n, D], each rank's share put together."""
        world = self.run.world
        place = torch.arange(world.rank, len(chosen) + world.size, world.size)[: -(-len(chosen) // world.size)]
        place = place.clamp(max=len(chosen) - 1)  # as many for every rank: a sharded method needs all of them
        mine = extract(method, self.run.source, split, self.config, self.run.device, chosen[place])
        rows = torch.zeros(len(chosen), mine.shape[1])
        seen = torch.zeros(len(chosen))
        rows[place], seen[place] = mine, 1.0
        world.sum(rows, seen)
        return rows / seen[:, None]

    def line(self, scores: list[Score]) -> str:
        """The scores in one line."""
        value = {(score.row, score.column): score.value for score in scores}
        cells = []
        for column in dict.fromkeys(score.column for score in scores):
            beside = [f"{row} {value[row, column]:.3f}" for row in (MAJORITY, RAW, START) if (row, column) in value]
            cells.append(f"{column} {value[NOW, column]:.3f} ({', '.join(beside)})")
        return f"Features at epoch {self.run.step / self.run.steps_per_epoch:.4g}: {'; '.join(cells)}"
