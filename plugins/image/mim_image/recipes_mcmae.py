"""MCMAE (ConvMAE): MAE with an encoder of convolutions and attention.

Source: arXiv 2205.03892, sections 3 and 4, and the PRETRAIN.md of its official code.
"""

from __future__ import annotations

from dataclasses import replace

from mim_core import Part, RunConfig

from mim_image.recipes import DECODER, TWINS, mae_vit_base, mae_vit_tiny

SMALL: dict[str, dict[str, object]] = {
    "decoder": {**DECODER},
    "tokenizer": {"size": (32, 32), "patch": (8, 8), "channels": 1},
    "encoder": {"widths": (8, 16, 32), "depths": (1, 1, 2), "patches": (2, 2, 2), "heads": 2, "channels": 1},
}


@TWINS(SMALL)
def mcmae_base() -> RunConfig:
    """The paper's base size: 11 blocks of 768 behind two stages of convolutions, 1600 epochs."""
    mae = mae_vit_base()
    parts = {**mae.parts, "encoder": Part.of("image:mcmae")}
    return RunConfig(parts=parts, train=replace(mae.train, batch_size=3072, micro_batch=64))


@TWINS(SMALL)
def mcmae_tiny() -> RunConfig:
    """For the bundled grey sample, beside image:mae-vit-tiny: as wide, as many samples seen. The images are enlarged to
    32 pixels, which three stages divide."""
    mae = mae_vit_tiny()
    parts = {
        **mae.parts,
        "tokenizer": Part.of("image:patch", size=(32, 32), patch=(8, 8), channels=1),
        "encoder": Part.of(
            "image:mcmae", widths=(32, 64, 128), depths=(1, 1, 3), patches=(2, 2, 2), heads=4, channels=1
        ),
    }
    return RunConfig(parts=parts, train=mae.train)
