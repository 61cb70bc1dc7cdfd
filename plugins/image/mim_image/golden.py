"""Golden cases of this plugin that are no whole method."""

from __future__ import annotations

from mim_core.testing.golden_entries import Comparison, GoldenCase
from mim_core.testing.golden_trials import compare_numbers

from mim_image.detection_scores import box_scores


def try_coco(case: GoldenCase) -> list[Comparison]:
    """COCO's twelve numbers, AP of each category, and two curves."""
    config = case.config
    scores = box_scores(config["gt"], config["dt"])
    stats, own = scores.stats(), scores.by_category()
    lines = [compare_numbers(f"stats/{name}", wanted, stats[name]) for name, wanted in config["stats"].items()]
    lines += [
        compare_numbers(f"ap_by_category/{id_}", wanted, own[int(id_)])
        for id_, wanted in config["ap_by_category"].items()
    ]
    lines.append(
        compare_numbers(
            "precision_iou50_first_category",
            config["precision_iou50_first_category"],
            scores.precision[0, :, 0, 0, 2].tolist(),
        )
    )
    return [*lines, compare_numbers("recall", config["recall"], scores.recall[:, :, 0, 2].T.tolist())]


TRIALS = {"coco-ap": try_coco}
