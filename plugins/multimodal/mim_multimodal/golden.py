"""Golden cases of this plugin that are no whole method."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from mim_core.testing.golden_entries import Comparison, GoldenCase
from mim_core.testing.golden_trials import compare_all
from torch import Tensor

from mim_multimodal.dense_scores import ClassCounts, berhu, depth_scores


def try_dense_metrics(case: GoldenCase) -> list[Comparison]:
    """Intersection over union and its like, depth errors, and the losses of depth."""
    given, config = case.inputs, case.config

    def counted(label: Tensor) -> Mapping[str, Tensor]:
        counts = ClassCounts(config["num_classes"], config["ignore_index"])
        counts.add(given["prediction"], label)
        return counts.scores()

    label, ignored = given["label"], config["ignore_index"]
    zero = counted(torch.where((label == 0) | (label >= config["void"]), ignored, label - 1))  # not the predictions
    depth = depth_scores(given["depth_prediction"], given["depth"], given["valid"])
    error = (given["depth_prediction_normalised"] - given["depth_normalised"])[given["valid"]].float()
    entries = {
        **counted(given["label"]),
        "reduce_zero_label_iou": zero["iou"],
        "reduce_zero_label_mean_iou": zero["mean_iou"],
        **{f"depth_{name}": value for name, value in depth.items()},
        "depth_rmse_log_called_log10": depth["rmse_log"],
        "log10_true": depth["log10"],
        "loss_berhu": berhu(given["depth_prediction_normalised"], given["depth_normalised"], given["valid"]),
        "loss_l1": error.abs().mean(),
        "loss_mse": error.square().mean(),
    }
    return compare_all(case, entries, {})


TRIALS = {"dense-metrics": try_dense_metrics}
