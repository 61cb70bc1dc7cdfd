"""What may go wrong in a run, and what is kept of it: bad files, and a loss that is not finite."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mim_core.data.loading import LOOKED_AT, Batch, KeyedBatches, KeyedDataset, collate, replacements
from mim_core.disk import write_whole
from mim_core.errors import MimError, warn
from mim_core.tensor_files import write_tensors

if TYPE_CHECKING:
    from mim_core.runs.run import Run


LOOK = 60.0
"""Seconds that a look at whether anything can be read may take before it is given up."""


def check_readable(run: Run) -> None:
    """Before a plan is shown: reads items in the order in which a run would, until one can be used. Writes nothing.

    Raises:
        MimError: None can, of all, or of the first `LOOKED_AT` where that many bad ones would stop a run.
    """
    source, until = run.source, time.monotonic() + LOOK
    if not len(source):
        return
    [request] = next(iter(KeyedBatches(len(source), 1, run.train.seed, 0, 1)))
    dataset, bad, tried = KeyedDataset(source), dict[str, str](), 0
    limit = float(getattr(source.config, "max_bad", 1.0))
    for tried, index in enumerate(replacements(request, len(source)), 1):
        if not dataset.is_bad(index):
            return
        path, reason = dataset.bad[index]
        bad[path] = reason
        if tried >= LOOKED_AT and limit < 0.95:
            break
        if time.monotonic() > until and tried < len(source):
            return
    some = "\n  ".join(f"{path}: {reason}" for path, reason in list(bad.items())[:5])
    what = f"{tried} of {len(source)} files" if tried == len(source) else f"All {tried} files tried of {len(source):,}"
    error = MimError(f"{what} cannot be used, so there is nothing to train on:\n  {some}")
    error.everywhere = True
    raise error


class BadFiles:
    """Notes files that cannot be used, each once, and stops a run that has too many.

    Args:
        run: The run; ``run.skipped`` has those of all ranks.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.fresh: dict[str, str] = {}

    def recheck(self) -> None:
        """Before a run begins or goes on: where the bad files that are known are too many, looks at them again. Those
        that can be read now, or are no longer among the data, are forgotten. All ranks must call it.

        Raises:
            MimError: They are still too many; a run cannot pass the limit by being started again.
        """
        run, world = self.run, self.run.world
        if len(run.skipped) <= self._most():
            return
        still: dict[str, str] = world.on_first(self._still_bad)
        run.skipped = still
        if len(still) > self._most():
            raise self._error(self._too_many(), alone=False)

    def _still_bad(self) -> dict[str, str]:
        run = self.run
        warn(f"{len(run.skipped):,} files could not be used before; looking at them again")
        dataset, still = KeyedDataset(run.source), dict[str, str]()
        for index in run.source.items_named(run.skipped.keys()).values():
            if dataset.is_bad(index):
                path, reason = dataset.bad[index]
                still[path] = reason
            if len(still) > self._most():
                break
        return still

    def _most(self) -> float:
        """How many bad files a run may have."""
        return float(getattr(self.run.source.config, "max_bad", 1.0)) * len(self.run.source)

    def _too_many(self) -> str:
        limit = getattr(self.run.source.config, "max_bad", 1.0)
        return f"more than the share of {limit:g} that --data.max-bad allows"

    def note(self, batch: Batch) -> None:
        """Takes up the bad files of a micro-batch of this rank.

        Raises:
            MimError: A sample could not be replaced; there is nothing to train on.
        """
        self.fresh.update({path: reason for path, reason in batch.skipped if path not in self.run.skipped})
        if self.fresh and self.run.world.size == 1:
            self.share()
        if batch.sample is None:
            if self.run.world.first:
                self._write(self.fresh)
            self.run.skipped.update(self.fresh)
            raise self._error("and no replacement could be read")

    def share(self) -> None:
        """Tells the other ranks; rank 0 writes. All ranks must call it.

        Raises:
            MimError: More than ``--data.max-bad`` of the files are bad.
        """
        run = self.run
        reasons: dict[str, str] = {}
        for fresh in run.world.gather(self.fresh):
            reasons.update({path: reason for path, reason in fresh.items() if path not in run.skipped})
        self.fresh = {}
        if not reasons:
            return
        log = run.folder / "skipped.jsonl"
        if run.world.first:
            self._write(reasons)
            if not run.skipped:
                path, reason = next(iter(reasons.items()))
                warn(f"{path} cannot be used ({reason}) and is replaced; all such files are listed in {log}")
        run.skipped.update(reasons)
        if len(run.skipped) > self._most():
            raise self._error(self._too_many(), alone=False)

    def _write(self, reasons: dict[str, str]) -> None:
        with open(self.run.folder / "skipped.jsonl", "a") as log:
            log.writelines(json.dumps({"file": path, "reason": reason}) + "\n" for path, reason in reasons.items())

    def _error(self, why: str, alone: bool = True) -> MimError:
        run = self.run
        some = "\n  ".join(f"{path}: {reason}" for path, reason in list(run.skipped.items())[:5])
        text = (
            f"{len(run.skipped)} of {len(run.source)} files cannot be used, {why}:\n  {some}\n"
            f"All are listed in {run.folder / 'skipped.jsonl'}."
        )
        error = MimError(text)
        error.everywhere = not alone
        return error


def not_finite(run: Run, step: int) -> MimError:
    """Writes the batch of a step, all ranks' samples, rebuilt from its keys; returns the error to raise.

    ``not_finite.json`` has the samples' indices, keys and names, ``not_finite.safetensors`` the batch as the method got
    it. Weights and moments are from before: the update of such a step is skipped on the device.
    """
    size = run.train.batch_size
    requests = next(iter(KeyedBatches(len(run.source), size, run.train.seed, step * size, (step + 1) * size)))
    dataset = KeyedDataset(run.source)
    sample = collate([dataset[request] for request in requests]).sample
    assert sample is not None
    sample = run.source.finish(sample)
    indices, keys = sample["index"].tolist(), sample["key"].tolist()
    names = [run.source.name_of(index) for index in indices]
    bad = _bad_rows(sample)
    path = run.folder / "not_finite.json"
    about: dict[str, Any] = {
        "step": step,
        "indices": indices,
        "keys": keys,
        "names": names,
        "not_finite": [names[i] for i in bad],
    }
    write_whole(path, json.dumps(about))
    write_tensors(path.with_suffix(".safetensors"), {name: value.contiguous() for name, value in sample.items()})
    shown = ", ".join((about["not_finite"] or names)[:8])
    what = "Samples that are themselves not finite" if bad else "All samples are finite; the first"
    return MimError(
        f"The loss of step {step}, or its gradient, is not finite. The update was skipped. Its batch is in "
        f"{path.with_suffix('.safetensors')}, its samples are named in {path}. {what}: {shown}. The last checkpoint is "
        "from before. A lower --train.base-lr, --train.clip-grad 1, or --train.precision fp32 may help."
    )


def _bad_rows(sample: dict[str, Tensor]) -> list[int]:
    """Rows of a batch with a value that is not finite."""
    rows: set[int] = set()
    for value in sample.values():
        if value.is_floating_point():
            rows.update((~torch.isfinite(value)).flatten(1).any(dim=1).nonzero().flatten().tolist())
    return sorted(rows)
