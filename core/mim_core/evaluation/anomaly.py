"""Anomaly detection judged: which samples are abnormal, and where. Beside a run's scores stand chance, the distance to
the nearest normal sample in raw input, and the same method untrained."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from mim_core.data.loading import Readable, loader
from mim_core.data.source import DataSource, Labelled, Sample
from mim_core.errors import MimError
from mim_core.evaluation.anomaly_maps import score_maps
from mim_core.evaluation.anomaly_metrics import aupro, place_errors
from mim_core.evaluation.study import Study
from mim_core.methods.build import working
from mim_core.methods.method import Method
from mim_core.parts.samples import known_entries
from mim_core.ranking_scores import auroc, average_precision
from mim_core.scores import RAW, Score
from mim_core.standard_errors import GROUPS, jackknife_error
from mim_core.text import counted

CHANCE = "chance"
LIMIT = 0.3
"""Largest share of false positives in PRO."""

VALUES = 2**26
"""Values of normal samples that are held to find the nearest one."""


@dataclass(frozen=True)
class Judged:
    """What is known of the samples of a test split that could be read.

    Attributes:
        maps: Scores, float32 [n, ...].
        abnormal: bool [n].
        truth: int8 like the maps: 1 where something is abnormal, 0 where not, -1 where nobody knows. None where the
            data do not say.
        lost: How many could not be read.
    """

    maps: Tensor
    abnormal: Tensor
    truth: Tensor | None
    lost: int

    def placed(self) -> tuple[Tensor, Tensor] | None:
        """Maps, and where they are abnormal, bool, of the samples of which all places are known; None where these do
        not show both kinds."""
        if self.truth is None:
            return None
        known = (self.truth >= 0).flatten(1).all(dim=1)
        truth = self.truth[known] > 0
        return (self.maps[known], truth) if bool(truth.any()) and not bool(truth.all()) else None


def judge_anomalies(study: Study, whole: str = "sample", place: str = "place") -> list[Score]:
    """Scores of a run on its data's test split, whose class 0 is normal.

    Args:
        study: The run's.
        whole: What a sample is called in the table.
        place: What a place of it is called.

    Raises:
        MimError: The data tell nothing of anomalies, or have none, or nothing else, in the test split.
    """
    source = study.source
    if source is None or not source.judges_anomalies:
        name = type(source).__name__ if source is not None else "This study"
        raise MimError(
            f"{name} does not say what is abnormal. Name data with anomalies when the run starts: "
            "--use data=PLUGIN:anomalies"
        )
    split = source.labelled("test")
    kinds = split.labels.bool().sum().item()
    if not 0 < kinds < len(split.labels):
        which = "normal" if kinds == 0 else "abnormal"
        raise MimError(
            f"All {len(split.labels):,} test samples are {which}: there is nothing to tell apart. AUROC needs both "
            "normal and abnormal ones."
        )
    makers: dict[str, Callable[[], Callable[[Sample], Tensor]]] = {
        RAW: lambda: nearest_normal(study, source, split),
        **{name: partial(scorer_of, make, study, source) for name, make in study.methods.items()},
    }
    scores: list[Score] = []
    for name, make_score in makers.items():
        judged = collect(source, split, make_score(), study)
        if not scores:
            scores += _chance(judged, whole, place)
            study.notes += _notes(judged, study, whole)
        scores += _scores(name, judged, whole, place)
    return scores


def scorer_of(make: Callable[[], Method], study: Study, source: DataSource) -> Callable[[Sample], Tensor]:
    """Scores a batch by a method, see `mim_core.evaluation.anomaly_maps.score_maps`."""
    method = make()
    method.eval().to(study.device)

    def score(sample: Sample) -> Tensor:
        with working(method):
            return score_maps(method, known_entries(sample, source.shapes), study.config.covers)

    return score


@torch.no_grad()
def collect(
    source: DataSource,
    split: Labelled,
    score: Callable[[Sample], Tensor],
    study: Study,
    chosen: list[int] | None = None,
) -> Judged:
    """Scores and truth of a test split, or of some of its samples.

    Args:
        source: The data.
        split: Its test split.
        score: A finished batch -> maps.
        study: Batch size and device.
        chosen: Numbers of samples; all by default.

    Raises:
        MimError: None of the samples can be read.
    """
    wanted = list(range(len(split.labels))) if chosen is None else chosen
    maps, truths, items = list[Tensor](), list[Tensor](), list[Tensor]()
    for ready, index in finished(source, split.items, wanted, study):
        maps.append(score(ready).float().cpu())
        items.append(index)
        if "truth" in ready:
            truths.append(signs(ready["truth"]).cpu())
    if not maps:
        raise MimError(f"None of the {len(wanted):,} test samples can be read.")
    kept, scores = torch.cat(items), torch.cat(maps)
    truth = torch.cat(truths) if truths and scores.ndim > 1 else None  # some methods score whole samples alone
    return Judged(
        scores.reshape(len(kept), -1) if scores.ndim == 1 else scores,
        split.labels[kept] != 0,
        truth,
        len(wanted) - len(kept),
    )


def signs(truth: Tensor) -> Tensor:
    """Truth as int8: 1 for what is above 0, -1 for what is below."""
    return (truth > 0).to(torch.int8) - (truth < 0).to(torch.int8)


def finished(
    source: DataSource, items: Dataset[Any], wanted: list[int], study: Study
) -> Iterator[tuple[Sample, Tensor]]:
    """Batches of items that can be read, finished on the device, with their numbers int64 [n]."""
    size = study.config.batch_size
    sampler = [wanted[start : start + size] for start in range(0, len(wanted), size)]
    for batch in loader(Readable(items, source.item_seconds), sampler, 0, Readable.collate):
        if batch:
            index = batch.pop("index")
            yield source.finish({name: value.to(study.device) for name, value in batch.items()}), index


def nearest_normal(study: Study, source: DataSource, test: Labelled) -> Callable[[Sample], Tensor]:
    """Scores a sample by its squared difference from the nearest normal training sample, place by place; no network."""
    split = source.labelled("train")
    name, shape = next(iter(source.shapes.items()))
    most = max(1, VALUES // torch.Size(shape).numel())
    count = len(split.labels)
    wanted = torch.linspace(0, count - 1, min(count, most)).long().unique().tolist()
    if len(wanted) < count:
        study.notes.append(f"{RAW}: the nearest of {len(wanted):,} of the {count:,} normal training samples.")
    bank = torch.cat([ready[name].float() for ready, _ in finished(source, split.items, wanted, study)])

    def score(sample: Sample) -> Tensor:
        values = sample[name].float()
        nearest = torch.cdist(values.flatten(1), bank.flatten(1)).argmin(dim=1)
        return (values - bank[nearest]).square().mean(dim=1)

    return score


def _scores(row: str, judged: Judged, whole: str, place: str) -> list[Score]:
    """Each with its standard error, by the jackknife over samples."""
    flat, abnormal = judged.maps.flatten(1), judged.abnormal
    entries = []
    for how, score in (("highest", flat.amax(dim=1)), ("mean", flat.mean(dim=1))):  # alike where there is one score
        for kind, measure in (("AUROC", auroc), ("AP", average_precision)):
            error = jackknife_error(lambda kept: measure(score[kept], abnormal[kept]), len(abnormal))  # noqa: B023
            entries.append(Score(row, f"{whole} {kind}, {how}", measure(score, abnormal), error=error))
    if (placed := judged.placed()) is not None:
        scores, truth = placed[0].flatten(), placed[1].flatten()
        values = auroc(scores, truth), average_precision(scores, truth), aupro(*placed, LIMIT)
        names = f"{place} AUROC", f"{place} AP", f"PRO, {LIMIT:.0%}"
        errors = place_errors(*placed, LIMIT, GROUPS)
        each = zip(names, values, errors, strict=True)
        entries += [Score(row, name, value, error=error) for name, value, error in each]
    return entries


def _chance(judged: Judged, whole: str, place: str) -> list[Score]:
    """What scores without any sense have, in the same columns."""
    share = float(judged.abnormal.float().mean())
    entries = [
        Score(CHANCE, f"{whole} {kind}, {how}", value)
        for how in ("highest", "mean")
        for kind, value in (("AUROC", 0.5), ("AP", share))
    ]
    if (placed := judged.placed()) is not None:
        entries.append(Score(CHANCE, f"{place} AUROC", 0.5))
        entries.append(Score(CHANCE, f"{place} AP", float(placed[1].float().mean())))
        entries.append(Score(CHANCE, f"PRO, {LIMIT:.0%}", LIMIT / 2))
    return entries


def _notes(judged: Judged, study: Study, whole: str) -> list[str]:
    abnormal = int(judged.abnormal.sum())
    notes = [
        f"{counted(len(judged.maps) - abnormal, f'normal {whole}')} and {counted(abnormal, 'abnormal one')} judged, by "
        f"the highest and by the mean score of their places. {RAW}: the distance to the nearest normal one.",
        f"In brackets: standard errors over the samples, by the jackknife with {GROUPS} groups.",
    ]
    placed = judged.placed()
    if placed is None:
        notes.append("Places are not judged: the data do not say where something is abnormal.")
    elif len(placed[0]) < len(judged.maps):
        rest = len(judged.maps) - len(placed[0])
        notes.append(
            f"Places are judged in the {len(placed[0]):,} samples of which they are known; of {rest:,} they are not."
        )
    if judged.lost:
        notes.append(
            f"{counted(judged.lost, 'file')} cannot be used and {'is' if judged.lost == 1 else 'are'} left out."
        )
    return notes
