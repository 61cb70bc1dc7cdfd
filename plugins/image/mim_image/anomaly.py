"""Anomaly detection on images, judged."""

from __future__ import annotations

from mim_core import Score, Study, judge_anomalies


def anomaly(study: Study) -> list[Score]:
    """AUROC and average precision of images and of pixels, and the overlap of regions (PRO) up to 30 % of false
    positives; see `mim_core.judge_anomalies`."""
    return judge_anomalies(study, "image", "pixel")
