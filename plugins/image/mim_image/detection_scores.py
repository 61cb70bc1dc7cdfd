"""Average precision as COCO defines it (arXiv 1405.0312; cocodataset.org, detection evaluation): by pycocotools, which
judges runs; and of boxes by a computation of our own, which the tests hold beside it."""

from __future__ import annotations

import copy
import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float64
from mim_core import standard_errors

from mim_image.boxes import coco_masks

OVERLAPS = np.linspace(0.5, 0.95, 10)
"""Smallest intersection over union of a match."""
RECALLS = np.linspace(0.0, 1.0, 101)
"""Where precision is read."""
AREAS = {"all": (0, 1e10), "small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e10)}
"""Areas of objects, in pixels; both ends are within."""
MOST = (1, 10, 100)
"""Detections of an image and category that count."""
_OF_AREAS = ("small", "medium", "large")
STATS = (
    *("AP", "AP50", "AP75"),
    *(f"AP_{area}" for area in _OF_AREAS),
    *(f"AR_{most}" for most in MOST),
    *(f"AR_{area}" for area in _OF_AREAS),
)
"""COCO's twelve numbers in pycocotools' order."""


@dataclass(frozen=True)
class BoxScores:
    """What `box_scores` gives.

    Attributes:
        precision: [overlap, recall, category, area, most]; -1 where a category has no objects of that area.
        recall: [overlap, category, area, most].
        categories: Their ids, rising.
    """

    precision: Float64[np.ndarray, "T R K A M"]
    recall: Float64[np.ndarray, "T K A M"]
    categories: tuple[int, ...]

    def stats(self) -> dict[str, float]:
        """COCO's twelve numbers by name: AP, AP50, AP75, AP of small, medium and large objects, and AR."""
        scores = {
            "AP": self._mean(self.precision[:, :, :, 0, 2]),
            "AP50": self._mean(self.precision[0, :, :, 0, 2]),
            "AP75": self._mean(self.precision[5, :, :, 0, 2]),
        }
        for number, name in enumerate(AREAS):
            if name != "all":
                scores[f"AP_{name}"] = self._mean(self.precision[:, :, :, number, 2])
        scores |= {f"AR_{most}": self._mean(self.recall[:, :, 0, number]) for number, most in enumerate(MOST)}
        for number, name in enumerate(AREAS):
            if name != "all":
                scores[f"AR_{name}"] = self._mean(self.recall[:, :, number, 2])
        return scores

    def by_category(self) -> dict[int, float]:
        """AP of each category; -1 where it has no objects."""
        return {id_: self._mean(self.precision[:, :, k, 0, 2]) for k, id_ in enumerate(self.categories)}

    @staticmethod
    def _mean(values: np.ndarray) -> float:
        known = values[values > -1]
        return float(known.mean()) if known.size else -1.0


def box_scores(truth: Mapping[str, Any], detections: Sequence[Mapping[str, Any]]) -> BoxScores:
    """Average precision and recall of boxes.

    Args:
        truth: COCO's format: ``images``, ``annotations`` (``bbox`` [x, y, width, height], ``area``, ``iscrowd``) and
            ``categories``.
        detections: Results format: ``image_id``, ``category_id``, ``bbox`` and ``score``.
    """
    images = sorted({image["id"] for image in truth["images"]})
    categories = tuple(sorted({category["id"] for category in truth["categories"]}))
    objects: dict[tuple[int, int], list[Any]] = defaultdict(list)
    answers: dict[tuple[int, int], list[Any]] = defaultdict(list)
    for row in truth["annotations"]:
        objects[row["image_id"], row["category_id"]].append(row)
    for row in detections:
        answers[row["image_id"], row["category_id"]].append(row)
    shape = (len(OVERLAPS), len(categories), len(AREAS), len(MOST))
    recall = -np.ones(shape)
    precision = -np.ones((shape[0], len(RECALLS), *shape[1:]))
    for k, category in enumerate(categories):
        pairs = [_Image(objects[image, category], answers[image, category]) for image in images]
        for a, area in enumerate(AREAS.values()):
            matched = [image.match(area) for image in pairs]
            for m, most in enumerate(MOST):
                curves = _curves(matched, most)
                if curves is not None:
                    precision[:, :, k, a, m], recall[:, k, a, m] = curves
    return BoxScores(precision, recall, categories)


@dataclass(frozen=True)
class _Matched:
    """Detections of one image and category: scores, and for each overlap whether they match and whether they count;
    and how many objects count."""

    scores: np.ndarray
    hits: np.ndarray
    ignored: np.ndarray
    objects: int


class _Image:
    """Objects and detections of one image and category, and how far they overlap."""

    def __init__(self, objects: Sequence[Any], answers: Sequence[Any]) -> None:
        order = np.argsort(np.array([-row["score"] for row in answers]), kind="stable")[: MOST[-1]]
        self.objects, self.answers = list(objects), [answers[i] for i in order]
        self.crowd = np.array([bool(row.get("iscrowd", 0)) for row in objects], dtype=bool)
        self.overlap = _overlaps(
            np.array([row["bbox"] for row in self.answers], dtype=np.float64).reshape(-1, 4),
            np.array([row["bbox"] for row in objects], dtype=np.float64).reshape(-1, 4),
            self.crowd,
        )

    def match(self, area: tuple[float, float]) -> _Matched:
        """Each detection, the surest first, takes the object that it overlaps most and that none has taken; one that
        does not count only where there is no other."""
        low, high = area
        outside = np.array([not low <= row["area"] <= high for row in self.objects], dtype=bool)
        spare = self.crowd | outside
        order = np.argsort(spare, kind="stable")
        shape = (len(OVERLAPS), len(self.answers))
        hits, ignored = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
        sizes = np.array([row["bbox"][2] * row["bbox"][3] for row in self.answers])
        for t, least in enumerate(OVERLAPS):
            taken = np.zeros(len(self.objects), dtype=bool)
            for d in range(len(self.answers)):
                best = self._best(d, min(least, 1 - 1e-10), order, spare, taken)
                if best >= 0:
                    hits[t, d], ignored[t, d], taken[best] = True, spare[best], True
                else:
                    ignored[t, d] = not low <= sizes[d] <= high
        scores = np.array([row["score"] for row in self.answers], dtype=np.float64)
        return _Matched(scores, hits, ignored, int((~spare).sum()))

    def _best(self, d: int, least: float, order: np.ndarray, spare: np.ndarray, taken: np.ndarray) -> int:
        best = -1
        for g in order:
            if taken[g] and not self.crowd[g]:
                continue
            if best >= 0 and not spare[best] and spare[g]:
                break
            if self.overlap[d, g] >= least:
                best, least = int(g), self.overlap[d, g]
        return best


def _overlaps(
    detections: Float64[np.ndarray, "D 4"], objects: Float64[np.ndarray, "G 4"], crowd: np.ndarray
) -> Float64[np.ndarray, "D G"]:
    """Intersection over union; of crowds, over the detection's area."""
    start = np.maximum(detections[:, None, :2], objects[None, :, :2])
    end = np.minimum(detections[:, None, :2] + detections[:, None, 2:], objects[None, :, :2] + objects[None, :, 2:])
    shared = (end - start).clip(min=0).prod(axis=2)
    own, other = detections[:, 2:].prod(axis=1)[:, None], objects[:, 2:].prod(axis=1)[None]
    whole = np.where(crowd[None], own, own + other - shared)
    return np.divide(shared, whole, out=np.zeros_like(shared), where=whole > 0)


def _curves(matched: Sequence[_Matched], most: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Precision at `RECALLS` [T, R], and recall [T], over all images; None where no object counts."""
    count = sum(image.objects for image in matched)
    if count == 0:
        return None
    scores = np.concatenate([image.scores[:most] for image in matched])
    order = np.argsort(-scores, kind="stable")
    hits = np.concatenate([image.hits[:, :most] for image in matched], axis=1)[:, order]
    ignored = np.concatenate([image.ignored[:, :most] for image in matched], axis=1)[:, order]
    right, wrong = (hits & ~ignored).cumsum(axis=1), (~hits & ~ignored).cumsum(axis=1)
    precision, recall = np.zeros((len(OVERLAPS), len(RECALLS))), np.zeros(len(OVERLAPS))
    for t in range(len(OVERLAPS)):
        share = right[t] / count
        exact = right[t] / (right[t] + wrong[t] + np.spacing(1))
        falling = np.maximum.accumulate(exact[::-1])[::-1]
        places = np.searchsorted(share, RECALLS, side="left")
        reached = places < len(falling)
        precision[t, reached] = falling[places[reached]]
        recall[t] = share[-1] if len(share) else 0.0
    return precision, recall


# ---- pycocotools -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CocoScores:
    """What `coco_scores` gives.

    Attributes:
        stats: COCO's twelve numbers by name, as `BoxScores.stats` has them.
        errors: Standard errors of AP, AP50 and AP75 over the pictures, by a jackknife in 20 groups; None where a group
            cannot be left out.
        by_category: AP of each category by id; -1 where it has no objects.
    """

    stats: Mapping[str, float]
    errors: Mapping[str, float | None]
    by_category: Mapping[int, float]


def coco_scores(
    truth: Mapping[str, Any], detections: Sequence[Mapping[str, Any]], kind: Literal["bbox", "segm"] = "bbox"
) -> CocoScores:
    """Average precision by pycocotools.

    Args:
        truth: COCO's format.
        detections: Results format; of masks with ``segmentation``.
        kind: Boxes or masks.

    Raises:
        MimError: pycocotools is not installed.
    """
    coco_masks()
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    whole = COCO()
    with redirect_stdout(io.StringIO()):  # it prints tables
        whole.dataset = copy.deepcopy(dict(truth))  # it changes rows in place
        whole.createIndex()
        if not detections:  # which loadRes does not take
            return CocoScores(
                dict.fromkeys(STATS, 0.0), dict.fromkeys(STATS[:3]), dict.fromkeys(whole.getCatIds(), 0.0)
            )
        judge = COCOeval(whole, whole.loadRes(copy.deepcopy(list(detections))), kind)
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
        stats = dict(zip(STATS, map(float, judge.stats), strict=True))
        each = judge.eval["precision"][:, :, :, 0, -1]
        categories = {id_: _known_mean(each[:, :, k]) for k, id_ in enumerate(judge.params.catIds)}
        return CocoScores(stats, _errors(judge), categories)


def _known_mean(values: np.ndarray) -> float:
    known = values[values > -1]
    return float(known.mean()) if known.size else -1.0


def _errors(judge: Any) -> dict[str, float | None]:
    """Standard errors of the first three numbers: what was matched in each picture is gathered again without each
    twentieth of them in turn."""
    every, pictures = judge.evalImgs, len(judge.params.imgIds)
    some = copy.copy(judge.params)
    some.areaRng, some.maxDets = some.areaRng[:1], some.maxDets[-1:]
    groups = min(standard_errors.GROUPS, pictures)
    without = list[tuple[float, float, float]]()
    for group in range(groups):
        judge.evalImgs = [None if place % pictures % groups == group else one for place, one in enumerate(every)]
        judge.accumulate(some)
        precision = judge.eval["precision"][:, :, :, 0, 0]
        without.append((_known_mean(precision), _known_mean(precision[0]), _known_mean(precision[5])))
    columns = zip(STATS[:3], zip(*without, strict=True), strict=True)
    return {name: standard_errors.grouped_error(list(values)) for name, values in columns}
