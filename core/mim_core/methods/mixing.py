"""Mixing samples and their labels: mixup (arXiv 1710.09412) and CutMix (arXiv 1905.04899), in pairs with the batch in
reverse order, as timm pairs them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from mim_core import randomness


@dataclass(frozen=True)
class Mix:
    """How a batch is mixed.

    Attributes:
        share: What is left of a sample's own, before a box is cut at the border.
        box: (top, bottom, left, right) that is taken from the other sample; None: values are averaged.
    """

    share: float
    box: tuple[int, int, int, int] | None = None

    def left(self, size: tuple[int, ...]) -> float:
        """What is left of a sample's own: by area, where a box is taken."""
        if self.box is None:
            return self.share
        top, bottom, left, right = self.box
        return 1.0 - (bottom - top) * (right - left) / (size[-2] * size[-1])


def mixed(values: Float[Tensor, "B C *size"], mix: Mix) -> Tensor:
    """Each sample with its share of its partner, sample B - 1 - i for sample i. A box lies in the last two axes."""
    other = values.flip(0)
    if mix.box is None:
        return values * mix.share + other * (1.0 - mix.share)
    top, bottom, left, right = mix.box
    pasted = values.clone()
    pasted[..., top:bottom, left:right] = other[..., top:bottom, left:right]
    return pasted


def mixed_labels(labels: Int[Tensor, " B"], classes: int, left: float) -> Float[Tensor, "B classes"]:
    """The shares of the classes, without smoothing: ``left`` for a sample's own class, the rest for its partner's."""
    own = F.one_hot(labels, classes).float()
    return own * left + own.flip(0) * (1.0 - left)


def draw_mix(key: int, mixup: float, cutmix: float, chance: float, size: tuple[int, ...]) -> Mix | None:
    """How a batch is mixed; None where it is left as it is. Where both kinds are on, each is taken half of the time.

    Args:
        key: Drives the draws.
        mixup: Parameter of mixup's Beta distribution; 0 for none.
        cutmix: The same of CutMix.
        chance: Share of batches that are mixed.
        size: Of a sample, of which the last two axes are cut.
    """
    draws = np.random.default_rng(randomness.torch_seed(key, "mix"))
    mixes, cuts, *centre = draws.random(4).tolist()
    if mixes >= chance or not (mixup or cutmix):
        return None
    is_cut = cutmix > 0 and (mixup == 0 or cuts < 0.5)
    alpha = cutmix if is_cut else mixup
    share = float(draws.beta(alpha, alpha))
    if not is_cut:
        return Mix(share)
    edges = []
    for place, whole in zip(centre, size[-2:], strict=True):
        middle, half = int(place * whole), int(whole * math.sqrt(1.0 - share)) // 2
        edges += [max(middle - half, 0), min(middle + half, whole)]
    return Mix(share, (edges[0], edges[1], edges[2], edges[3]))
