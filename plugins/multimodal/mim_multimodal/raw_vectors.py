"""Aligned items as vectors of their own values, for the row of the raw input."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

SIDE, CELLS = 32, 8
"""Pictures are pooled to at most this side, maps of class ids to this many cells a side."""
REACH = 3.0
"""Standardised depths from minus to plus this become 0 to 1, so that depth weighs as colour does."""
BINS = 1024
"""Counts of a caption's tokens; ids that are equal modulo this share one."""


def side_by_side(sample: Mapping[str, Tensor], classes: int) -> Float[Tensor, "B D"]:
    """What there is of rgb, depth, normal, semseg and caption, one after the other.

    Args:
        sample: rgb in [0, 1], depth standardised, normals -1 to 1, class ids and token ids.
        classes: How many there are.
    """
    each: dict[str, Callable[[Tensor], Tensor]] = {
        "rgb": _pooled,
        "depth": lambda depth: _pooled((depth / (2 * REACH) + 0.5).clamp(0, 1)),
        "normal": lambda normal: _pooled((normal + 1) / 2),
        "semseg": lambda ids: _shares(ids, classes),
        "caption": _counts,
    }
    return torch.cat([make(sample[name]).flatten(1) for name, make in each.items() if name in sample], dim=1)


def _pooled(picture: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C h w"]:
    return F.adaptive_avg_pool2d(picture, SIDE) if max(picture.shape[2:]) > SIDE else picture


def _shares(ids: Int[Tensor, "B h w"], classes: int) -> Float[Tensor, "B classes c c"]:
    """The share of every class in each cell."""
    known = ids.where((ids >= 0) & (ids < classes), classes)
    maps = F.one_hot(known, classes + 1)[..., :classes].permute(0, 3, 1, 2).float()
    return F.adaptive_avg_pool2d(maps, CELLS) if max(ids.shape[1:]) > CELLS else maps


def _counts(ids: Int[Tensor, "B L"]) -> Float[Tensor, "B bins"]:
    """How often each token occurs; 0 is padding."""
    present = (ids != 0).float()
    return torch.zeros(len(ids), BINS, device=ids.device).scatter_add(1, ids.remainder(BINS), present)
