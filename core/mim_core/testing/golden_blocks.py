"""Golden cases of what is tried alone: blocks and metrics, by what they make of an input."""

from __future__ import annotations

from dataclasses import replace

import torch

from mim_core.evaluation.anomaly_metrics import area_up_to, aupro, pro_curve, region_weights
from mim_core.interop.ssmctb import official_names, ssmctb_from
from mim_core.parts.masked_block import SSMCTB
from mim_core.ranking_scores import auroc, average_precision
from mim_core.testing.golden_entries import LOSSES, Comparison, GoldenCase
from mim_core.testing.golden_trials import compare_all

OTHERS_OWN = {
    "anomalib_": "what anomalib gives, in float32 and of scores through a sigmoid",
    "mvtec_": "what MVTec's evaluation gives, on a grid of thresholds",
}
"""Outputs that are not compared, by the start of their name -> why."""


def _strictly(lines: list[Comparison]) -> list[Comparison]:
    """All entries are held to what losses are."""
    return [replace(line, allowed=LOSSES) for line in lines]


def try_ssmctb(case: GoldenCase) -> list[Comparison]:
    """Output, masked convolution, gate, both losses, and gradients of the first."""
    sizes = {"heads": case.config["heads"], "head_width": case.config["dim_head"]}
    block = ssmctb_from(case.weights.get("state", {}), dilation=case.config["dilation"], **sizes).train()
    x = case.inputs["x"].clone().requires_grad_(True)
    output, loss = block(x), block.take_loss()
    assert loss is not None
    loss.backward()
    seen = block.convolution(x).relu()
    tensors = {
        "loss": loss,
        "output": output,
        "masked": seen,
        "gate": block.gate(seen.flatten(2).mean(dim=2)),
        "grad_x": x.grad,
        "alt_huber": _with_huber(block).loss_of(output, x),
    }
    parameters = dict(block.named_parameters())
    gradients = {f"grad/{theirs}": parameters[ours].grad for ours, theirs in official_names(block).items()}
    values = {name: value.detach() for name, value in (tensors | gradients).items() if value is not None}
    return _strictly(compare_all(case, values, {}))


def _with_huber(block: SSMCTB) -> SSMCTB:
    """A block of the same sizes whose loss is the paper's."""
    return SSMCTB(block.channels, block.convolution.axes, loss="huber")


def try_anomaly_metrics(case: GoldenCase) -> list[Comparison]:
    """Scores of samples and of places, and the curve of regions."""
    score, mask, label = (case.inputs[name] for name in ("score", "mask", "label"))
    highest = score.flatten(1).amax(dim=1)
    false, overlap = pro_curve(score, mask)
    metrics = {
        "image_auroc": auroc(highest, label),
        "image_ap": average_precision(highest, label),
        "pixel_auroc": auroc(score.flatten(), mask.flatten()),
        "pixel_ap": average_precision(score.flatten(), mask.flatten()),
        "regions": region_weights(mask, 8)[1],
    }
    for name in case.outputs:
        kind, _, limit = name.removeprefix("alt_").removesuffix("_4connected").partition("_")
        if kind == "aupro" and name.startswith("alt_"):
            metrics[name] = aupro(score, mask, float(limit), connectivity=4)
        elif kind == "aupro":
            metrics[name] = area_up_to(false, overlap, float(limit))
    values = {name: torch.tensor(value, dtype=torch.float64) for name, value in metrics.items()}
    curve = {"image_score": highest, "pro_fpr": false, "pro_overlap": overlap}
    return _strictly(compare_all(case, {**values, **curve}, OTHERS_OWN))
