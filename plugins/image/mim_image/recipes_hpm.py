"""Recipes of HPM (arXiv 2304.05919): MAE's, with a second decoder that predicts which patches are hard, and a teacher
whose predictions say which are hidden.

Source: the paper's section 4 and appendix, and its official code. Differs from the code: the momentum rises from step
to step, where the code's rises from epoch to epoch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mim_core import Part, RunConfig

from mim_image.recipes import DECODER, TWINS, mae_vit_base, mae_vit_tiny

TWIN: Mapping[str, Mapping[str, object]] = {
    "decoder": DECODER,
    "losses.decoder": DECODER,
    "masker": {"every": "step"},  # a twin ends within its first epoch
    "teacher": {"start": 0.9, "end": 0.99, "epochs": None},
}


def _hpm(run: RunConfig, momentum: tuple[float, float], rises: float, **train: Any) -> RunConfig:
    """MAE's recipe with the parts that HPM adds; its momentum rises for so many epochs."""
    decoder = run.parts["decoder"]
    parts = {
        **run.parts,
        "masker": Part.of("core:guided", ratio=0.75, share_from=0.0, share_to=0.5),
        "teacher": Part.of(
            "core:ema", start=momentum[0], end=momentum[1], schedule="linear", epochs=rises, heads=("losses",)
        ),
        "scorer": Part.of("core:answers", head="losses"),
        "losses.target": Part.of("core:ranks", head="main", loss="pairs"),
        "losses.decoder": Part(decoder.name, {**decoder.options, "input_of": "main"}),
    }
    return replace(run, parts=parts, train=replace(run.train, **train))


@TWINS({**TWIN, "encoder": {"width": 48, "depth": 2, "heads": 3}})
def hpm_vit_base() -> RunConfig:
    """ViT-B/16, 800 epochs. Each step costs more than MAE's: the teacher sees every patch. The micro-batch fits a GPU
    of 16 GB."""
    return _hpm(mae_vit_base(), (0.999, 0.9999), 100, epochs=800, micro_batch=64)


@TWINS(TWIN)
def hpm_vit_tiny() -> RunConfig:
    """For the bundled 28-pixel grey sample: minutes on a CPU, with the encoder of mae-vit-tiny and as many samples.

    The momentum is that of the paper for a run of 3,125 steps in place of 250,000: 1 - m is 80 times as large, and the
    rise takes an eighth of the run.
    """
    return _hpm(mae_vit_tiny(), (0.92, 0.992), 2.5)
