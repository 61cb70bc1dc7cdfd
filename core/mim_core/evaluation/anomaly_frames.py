"""Anomaly detection in sequences, judged frame by frame: which frames are abnormal."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from mim_core.data.source import DataSource, Labelled, Sample
from mim_core.errors import MimError
from mim_core.evaluation.anomaly import CHANCE, finished, nearest_normal, scorer_of, signs
from mim_core.evaluation.anomaly_metrics import ScoreCounts, frame_auroc
from mim_core.evaluation.study import Study
from mim_core.scores import RAW, Score
from mim_core.standard_errors import GROUPS, grouped_error
from mim_core.text import counted

AREA, PRECISION = "pixel AUROC", "pixel AP"


def judge_frames(study: Study) -> list[Score]:
    """AUROC of the frames of a run's test split: of all together (micro), and the mean over the sequences that hold
    both kinds (macro), by the highest and by the mean score of a frame's places. A frame that several clips show has
    the mean of its scores. Beside the run: chance, the nearest normal clip in raw input, and the same method untrained.

    Args:
        study: The run's. Test items hold ``footage`` int64 (which sequence), ``frames`` int64 [T] (their numbers in it)
            and ``abnormal`` uint8 [T]; the first axis of a score map is T. Where they hold ``truth`` too, int8 like the
            score maps (1 abnormal, 0 normal, -1 not known), places are judged as well: AUROC and average precision over
            all places of all frames, each frame once.

    Raises:
        MimError: The data tell nothing of frames, or all of them are of one kind.
    """
    source = study.source
    if source is None or not source.judges_anomalies:
        name = type(source).__name__ if source is not None else "This study"
        raise MimError(
            f"{name} does not say which frames are abnormal. Name data with anomalies when the run starts: "
            "--use data=PLUGIN:anomalies"
        )
    split = source.labelled("test")
    makers: dict[str, Callable[[], Callable[[Sample], Tensor]]] = {
        RAW: lambda: nearest_normal(study, source, split),
        **{name: partial(scorer_of, make, study, source) for name, make in study.methods.items()},
    }
    scores: list[Score] = []
    for row, make_score in makers.items():
        frame_scores, flags, places = _frames(source, split, make_score(), study)
        columns: dict[str, tuple[float, float | None]] = {}
        for number, how in enumerate(("highest", "mean")):
            both = _both([each[:, number] for each in frame_scores], flags)
            columns |= {f"{name}, {how}": value for name, value in both.items()}
        if places.both:
            columns |= {AREA: (places.auroc(), None), PRECISION: (places.average_precision(), None)}
        if not scores:
            scores += [Score(CHANCE, name, places.share if name == PRECISION else 0.5) for name in columns]
            frames, abnormal = sum(map(len, flags)), sum(int(each.sum()) for each in flags)
            study.notes.append(
                f"{frames:,} frames of {counted(len(flags), 'video')} judged, {abnormal:,} of them abnormal; by video: "
                "the mean over those with both kinds. Scores are not rescaled within a video. In brackets: standard "
                f"errors over the videos, by the jackknife with {GROUPS} groups at most."
            )
            if places.both:
                judged = int(places.counts.sum())
                study.notes.append(f"{judged:,} pixels judged, those of frames with a mask, at the size of the input.")
        scores += [Score(row, column, value, error=error) for column, (value, error) in columns.items()]
    return scores


def _both(scores: list[Tensor], flags: list[Tensor]) -> dict[str, tuple[float, float | None]]:
    """AUROC of all frames and the mean over the videos, each with its standard error, by the jackknife over videos."""
    names = ("frame AUROC", "frame AUROC by video")
    part = [number % min(GROUPS, len(flags)) for number in range(len(flags))]
    parts = []
    for one in sorted(set(part)):
        kept = [number for number, own in enumerate(part) if own != one]
        every = torch.cat([flags[number] for number in kept]).bool() if kept else torch.zeros(0, dtype=torch.bool)
        usable = bool(every.any()) and not bool(every.all())
        parts.append(frame_auroc([scores[n] for n in kept], [flags[n] for n in kept]) if usable else (None, None))
    metrics = {}
    for place, (name, value) in enumerate(zip(names, frame_auroc(scores, flags), strict=True)):
        if value is not None:
            without = [math.nan if each[place] is None else float(each[place] or 0.0) for each in parts]
            metrics[name] = (value, grouped_error(without))
    return metrics


@torch.no_grad()
def _frames(
    source: DataSource, split: Labelled, score: Callable[[Sample], Tensor], study: Study
) -> tuple[list[Tensor], list[Tensor], ScoreCounts]:
    """Of each sequence the highest and the mean score of its frames, [t, 2], and which are abnormal, bool [t]; and the
    scores of all places that are known. Frames that could not be read are left out."""
    places = ScoreCounts()
    by_video: dict[int, dict[int, list[Tensor]]] = {}
    flags: dict[tuple[int, int], bool] = {}
    for ready, _ in finished(source, split.items, list(range(len(split.labels))), study):
        if not {"footage", "frames", "abnormal"} <= ready.keys():
            raise MimError("The test split does not say which frames its clips show, and which are abnormal.")
        whole = score(ready).float()
        truth = signs(ready["truth"]) if "truth" in ready and ready["truth"].shape == whole.shape else None
        maps = whole.flatten(2)
        both = torch.stack([maps.amax(dim=2), maps.mean(dim=2)], dim=-1).cpu()
        for row, number in enumerate(ready["footage"].tolist()):
            for place, frame in enumerate(ready["frames"][row].tolist()):
                first = (number, frame) not in flags
                if first and truth is not None and bool((truth[row, place] >= 0).all()):
                    places.add(whole[row, place], truth[row, place])
                by_video.setdefault(number, {}).setdefault(frame, []).append(both[row, place])
                flags[number, frame] = bool(ready["abnormal"][row, place])
    if not by_video:
        raise MimError("None of the test clips can be read.")
    scores = [torch.stack([torch.stack(each).mean(dim=0) for each in frames.values()]) for frames in by_video.values()]
    kinds = [torch.tensor([flags[number, frame] for frame in frames]) for number, frames in by_video.items()]
    return scores, kinds, places
