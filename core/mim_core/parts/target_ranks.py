"""A target of predicted losses: which hidden units another head finds hard."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mim_core.data.source import Sample
from mim_core.parts.layout import Patches
from mim_core.parts.mask import Mask
from mim_core.parts.target import Losses, Target
from mim_core.parts.teacher import Lesson
from mim_core.parts.tokenizer import Tokenizer
from mim_core.ranks.tensors import batch_mean

_SMALL = 1e-6


class RankTarget(Target):
    """What another head loses at each hidden unit, predicted as an order of the units or as numbers (HPM, arXiv
    2304.05919, section 3.2).

    A unit's score is the mean of all numbers that the decoder answers for it. With "pairs", for every ordered pair of
    a sample's units whose losses differ, the difference of the scores is the logit of which is harder; the loss is
    the mean binary cross-entropy over all such pairs of the batch. As in HPM's code, 1e-6 stands inside the logarithm.
    With "absolute", scores are held against the losses, standardised per sample, by the squared error.
    """

    @dataclass(frozen=True)
    class Config:
        """Options of the target of predicted losses."""

        head: str = "main"
        """Whose losses."""
        loss: Literal["pairs", "absolute"] = "pairs"
        """Which of two units is harder, or how hard each is."""
        size: int | None = None
        """Numbers that the decoder answers for a unit; none: as many as the unit has values (HPM)."""

    def __init__(self, config: Config, tokenizer: Tokenizer) -> None:
        super().__init__()
        if config.size is not None and config.size < 1:
            raise ValueError(f"size must be at least 1, got {config.size}")
        if not config.head:
            raise ValueError("head must name the head whose losses are predicted")
        self.config, self.of_head = config, config.head
        self.size = math.prod(tokenizer.unit_shape) if config.size is None else config.size

    def make(self, sample: Sample, patches: Patches, mask: Mask, lesson: Lesson | None = None) -> None:
        """Not called: there are no values but another head's losses.

        Raises:
            ValueError: Always.
        """
        raise ValueError(f"this target has no values of its own, only what the head {self.of_head!r} loses")

    def loss(self, prediction: Float[Tensor, "R Q size"], values: Losses) -> Float[Tensor, "R Q"]:
        """One per unit: that of its pairs, or its own."""
        scores, counts = prediction.float().mean(dim=-1), values.weight > 0
        if self.config.loss == "absolute":
            return (scores - _standardised(values.each, counts)).square()
        losses, pairs = _of_pairs(scores, values.each, counts)
        number, units = pairs.sum().float(), counts.sum().float()
        if self.training:  # ranks share the batch
            number, units = batch_mean(number), batch_mean(units)
        return losses.sum(dim=2) * (units / number.clamp(min=1e-12))


def _of_pairs(
    scores: Float[Tensor, "R Q"], losses: Float[Tensor, "R Q"], counts: Bool[Tensor, "R Q"]
) -> tuple[Float[Tensor, "R Q Q"], Bool[Tensor, "R Q Q"]]:
    """(loss, which pairs count) of every unit with every other one of its sample."""
    apart = (scores[:, :, None] - scores[:, None, :]).sigmoid()  # how surely the first is harder
    harder, easier = losses[:, :, None] > losses[:, None, :], losses[:, :, None] < losses[:, None, :]
    pairs = (harder | easier) & counts[:, :, None] & counts[:, None, :]
    right = torch.where(harder, apart, 1 - apart)
    return -(right + _SMALL).log() * pairs, pairs


def _standardised(losses: Float[Tensor, "R Q"], counts: Bool[Tensor, "R Q"]) -> Float[Tensor, "R Q"]:
    """Less their mean, over their deviation, per sample; the variance is unbiased."""
    number = counts.sum(dim=1, keepdim=True)
    centred = losses - (losses * counts).sum(dim=1, keepdim=True) / number.clamp(min=1)
    variance = (centred.square() * counts).sum(dim=1, keepdim=True) / (number - 1).clamp(min=1)
    return centred / (variance + _SMALL).sqrt()
