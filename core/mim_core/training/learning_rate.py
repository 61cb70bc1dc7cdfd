"""The learning rate per step."""

from __future__ import annotations

import math

from mim_core.recipes.config import TrainConfig


def learning_rate(step: int, steps_per_epoch: float, train: TrainConfig) -> float:
    """The rate of an update, counted from 0.

    Linear warm-up from ``warmup_lr``, then half a cosine to ``min_lr``, or a factor of 0.1 at each milestone, or
    constant. All rates are scaled by batch_size / lr_batch. As in MAE's code, the first update's rate is the warm-up's
    start. The schedule "table" is VideoMAE's: the warm-up's last step has the peak and the cosine begins with it once
    more.
    """
    scale = train.batch_size / train.lr_batch
    peak, low, start = train.base_lr * scale, train.min_lr * scale, train.warmup_lr * scale
    epoch = step / steps_per_epoch
    if train.schedule == "table":
        warm, last = round(train.warmup_epochs * steps_per_epoch), round(train.epochs * steps_per_epoch)
        if step < warm:
            return start + (peak - start) * step / max(1, warm - 1)
        return low + (peak - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm) / max(1, last - warm))))
    if epoch < train.warmup_epochs:
        return start + (peak - start) * epoch / train.warmup_epochs
    if train.schedule == "constant":
        return peak
    if train.schedule == "steps":
        return peak * 0.1 ** sum(epoch >= milestone for milestone in train.milestones)
    done = (epoch - train.warmup_epochs) / max(1e-12, train.epochs - train.warmup_epochs)
    return low + (peak - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
