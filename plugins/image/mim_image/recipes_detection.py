"""ViTDet's settings of training a detector (arXiv 2203.16527, appendix A.2, and its code)."""

from __future__ import annotations

from mim_core import Part, RunConfig, TrainConfig, Twins

TWINS = Twins(
    items=1_000,
    batch=8,
    changes={
        "data": {"root": "sample", "mean": (0.286,), "std": (0.353,), "scale": (0.8, 1.2)},
        "tokenizer": {"size": (64, 64), "patch": (8, 8), "channels": 1},
        "encoder": {"width": 32, "depth": 2, "heads": 2},
        "method": {
            "classes": 10,
            "channels": 16,
            "hidden": 32,
            "convolutions": 1,
            "regions": 32,
            "proposals": 50,
            "detections": 20,
        },
    },
)
CATEGORIES = 80
"""Of COCO; the data's take their place."""
STEPS, BATCH, PICTURES = 184_375, 64, 118_000
"""The code's, for 100 epochs."""


@TWINS()
def vitdet_vit_base() -> RunConfig:
    """Mask R-CNN on ViT-B/16: AdamW, rates that fall by 0.7 a block, large-scale jitter, 100 epochs with two drops by
    ten. Here attention is global in all blocks and positions are learned; ViTDet has windows and relative positions."""
    epochs = [100.0 * step / STEPS for step in (163_889, 177_546)]
    return RunConfig(
        parts={
            "data": Part.of("image:coco", scale=(0.1, 2.0)),
            "tokenizer": Part.of("image:patch", size=(1024, 1024), patch=(16, 16), channels=3),
            "encoder": Part.of("core:vit", width=768, depth=12, heads=12, position="learned", drop_path=0.1),
            "method": Part.of("image:detector", head="mask-rcnn", classes=CATEGORIES),
        },
        train=TrainConfig(
            epochs=100.0,
            batch_size=BATCH,
            micro_batch=1,
            base_lr=1e-4,
            lr_batch=BATCH,
            warmup_epochs=250 * BATCH / PICTURES,
            schedule="steps",
            milestones=(epochs[0], epochs[1]),
            layer_decay=0.7,
            weight_decay=0.1,
            decay_tokens=False,
            betas=(0.9, 0.999),
        ),
    )
