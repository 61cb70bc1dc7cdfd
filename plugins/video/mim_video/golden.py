"""Golden cases of this plugin that are no whole method."""

from __future__ import annotations

import torch
from mim_core import shares_of, top_share
from mim_core.testing.golden_entries import Comparison, GoldenCase
from mim_core.testing.golden_trials import compare_all

from mim_video import crops, sampling


def try_views(case: GoldenCase) -> list[Comparison]:
    """VideoMAE's test: scores of videos from those of their views, and where the views lie."""
    config, logits, label = case.config, case.inputs["logits"], case.inputs["label"]
    scores = shares_of(logits).flatten(1, 2).mean(dim=1)
    side, frames = config["short_side_size"], config["clip_len"]
    rows = []
    for count, height, width in config["buffers"]:
        for segment in range(config["segments"]):
            for crop in range(config["crops"]):
                first = int(sampling.by_buffer(count, frames, 1, segment, config["segments"])[0])
                box = crops.placed_evenly((height, width), (side, side), 1.0, crop, config["crops"])
                tall = height >= width
                rows.append([count, height, width, segment, crop, first, box.top if tall else box.left, int(tall)])
    entries = {
        "scores": scores,
        "pred": scores.argmax(dim=1),
        "top1": torch.tensor(100 * top_share(scores, label, 1)),
        "top5": torch.tensor(100 * top_share(scores, label, 5)),
        "windows": torch.tensor(rows),
    }
    return compare_all(case, entries, {})


TRIALS = {"videomae-views": try_views}
