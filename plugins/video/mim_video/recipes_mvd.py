"""MVD: predict the features of an image teacher and a video teacher at hidden tubelets.

Source: arXiv 2212.04500, sections 3 and 4, and the scripts of its official code.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import mim_core
from mim_core import Part, RunConfig

from mim_video.recipes import TWINS, videomae_vit_base, videomae_vit_tiny

TARGET: dict[str, Any] = {"final_norm": False, "norm": "none", "loss": "smooth_l1"}


def _image_twin() -> str:
    """A small image encoder for 32-pixel frames."""
    return mim_core.parts_text(
        tokenizer=Part.of("core:patch", modality="image", size=(32, 32), patch=(8, 8), channels=3),
        encoder=Part.of("core:vit", width=16, depth=1, heads=2),
    )


def _video_twin() -> str:
    """A small video encoder for 8 of them."""
    return mim_core.parts_text(
        tokenizer=Part.of("video:tubelet", size=(8, 32, 32), patch=(2, 8, 8)),
        encoder=Part.of("core:vit", width=16, depth=1, heads=2, class_token=False, position="flat"),
    )


def _mvd(config: RunConfig, width: int, depth: int, heads: int) -> RunConfig:
    """Two decoders and two teachers in the place of pixels."""
    decoder = Part.of("core:transformer", width=width, depth=depth, heads=heads, position="sincos-quarter")
    encoder = config.parts["encoder"]
    parts = {role: part for role, part in config.parts.items() if role not in ("decoder", "target")}
    parts["encoder"] = Part(encoder.name, {**encoder.options, "position": "sincos-quarter"})
    for head, teacher in (("img_feat", "video:frames"), ("vid_feat", "core:frozen")):
        parts |= {
            f"{head}.teacher": Part.of(teacher),
            f"{head}.target": Part.of("core:features", **TARGET),
            f"{head}.decoder": decoder,
        }
    return replace(config, parts=parts)


SMALL = {"width": 16, "depth": 1, "heads": 2}


def _small() -> dict[str, dict[str, object]]:
    return {
        "img_feat.decoder": {**SMALL},
        "vid_feat.decoder": {**SMALL},
        "img_feat.teacher": {"random": True, "parts": _image_twin()},
        "vid_feat.teacher": {"random": True, "parts": _video_twin()},
    }


@TWINS(_small)
def mvd_vit_base() -> RunConfig:
    """ViT-B/16 with teachers of ViT-B, 400 epochs. Give both: --img-feat.teacher.weights MAE.pth
    --img-feat.teacher.format mae, --vid-feat.teacher.weights VIDEOMAE.pth --vid-feat.teacher.format videomae."""
    config = _mvd(videomae_vit_base(), 768, 2, 12)
    train = replace(config.train, epochs=400, batch_size=1024, micro_batch=16, min_lr=1e-4, decay_tokens=True)
    encoder = config.parts["encoder"]
    dropped = Part(encoder.name, {**encoder.options, "drop_path": 0.1})
    return replace(config, parts={**config.parts, "encoder": dropped}, train=train)


@TWINS(_small)
def mvd_vit_tiny() -> RunConfig:
    """For the bundled clips, beside video:videomae-vit-tiny. Teachers are runs of 48-pixel images and clips in patches
    of 8, such as that recipe's own: --vid-feat.teacher.run RUN --img-feat.teacher.run RUN."""
    return _mvd(videomae_vit_tiny(), 64, 1, 4)
