"""Anomaly detection on footage, judged frame by frame."""

from __future__ import annotations

from mim_core import Score, Study, judge_frames


def anomaly(study: Study) -> list[Score]:
    """AUROC of frames: of all together (micro), and the mean over videos that hold both kinds (macro); see
    `mim_core.judge_frames`."""
    return judge_frames(study)
