"""Targets that a teacher makes: features of its last layers, or the losses of another head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from mim_core.data.source import Sample
from mim_core.parts.layout import Patches, take, tensor_tree
from mim_core.parts.mask import Mask
from mim_core.parts.target import Target
from mim_core.parts.teacher import Lesson, Teacher
from mim_core.parts.tokenizer import Tokenizer


@tensor_tree
@dataclass(frozen=True)
class Answers:
    """What a teacher says at the queries.

    Attributes:
        features: float32 [R, Q, D].
        order: int64 [R, F, n], which queries were seen together; None where all were.
        told: bool [R, Q], False where the teacher saw nothing; None where it saw all.
    """

    features: Float[Tensor, "R Q D"]
    order: Int[Tensor, "R F n"] | None = None
    told: Bool[Tensor, "R Q"] | None = None


class FeatureTarget(Target):
    """What the teacher's encoder makes of the hidden units.

    data2vec (arXiv 2202.03555, section 3.3) takes the mean of the top K layers, normalised; I-JEPA (arXiv 2301.08243)
    the last one under a layer norm without weights; MVD (arXiv 2212.04500) the last block as it is; SdAE (arXiv
    2208.00449) standardises and compares by the cosine.
    """

    needs_teacher = True

    @dataclass(frozen=True)
    class Config:
        """Options of the feature target."""

        layers: int = 1
        """The mean of so many last blocks."""
        final_norm: bool = True
        """The teacher's last layer with its encoder's final norm; blocks as they are otherwise."""
        norm: Literal["none", "layer", "standardize"] = "layer"
        """Of each unit, over its channels: a layer norm without weights, or (x - mean) / sqrt(variance + eps) with the
        unbiased variance."""
        norm_eps: float = 1e-5
        """The small number in it."""
        loss: Literal["l1", "l2", "smooth_l1", "cosine"] = "smooth_l1"
        """L2 is the squared error; cosine is 1 minus the similarity."""
        beta: float = 1.0
        """Where smooth L1 turns from squared to absolute."""
        along: Literal["channels", "units"] = "channels"
        """The cosine of a unit's channels, or of a channel's units, within what the teacher saw together (SdAE)."""
        over: Literal["mean", "sum", "root"] = "mean"
        """A unit's loss is the mean over its channels, their sum, or the sum divided by sqrt(D) (data2vec)."""

    def __init__(self, config: Config, tokenizer: Tokenizer) -> None:
        super().__init__()
        if config.layers < 1:
            raise ValueError(f"layers must be at least 1, got {config.layers}")
        if config.final_norm and config.layers > 1:
            raise ValueError("the final norm is of the last layer alone; for a mean of several set final_norm to false")
        if config.loss == "smooth_l1" and config.beta <= 0:
            raise ValueError(f"beta must be positive, got {config.beta}")
        if config.norm_eps < 0:
            raise ValueError(f"norm_eps must not be negative, got {config.norm_eps}")
        self.config = config

    def bind(self, teacher: Teacher) -> None:
        """Answers are as wide as the teacher."""
        self.size = teacher.width
        if not self.config.final_norm:
            teacher.give(levels=self.config.layers)

    def make(self, sample: Sample, patches: Patches, mask: Mask, lesson: Lesson | None = None) -> Answers:
        """The teacher's features at the queries, float32."""
        assert lesson is not None, "a feature target needs a teacher"
        levels = lesson.levels[len(lesson.levels) - self.config.layers :]
        tokens = lesson.tokens if self.config.final_norm else sum(level.float() for level in levels) / len(levels)
        assert isinstance(tokens, Tensor)
        features = self._normed(mask.take(tokens, mask.query_ids).float())
        if lesson.folds is None:
            return Answers(features)
        return Answers(features, *_places(lesson.folds, mask))

    def _normed(self, x: Tensor) -> Tensor:
        if self.config.norm == "layer":
            return F.layer_norm(x, x.shape[-1:], eps=self.config.norm_eps)
        if self.config.norm == "standardize":
            var, mean = torch.var_mean(x, dim=-1, keepdim=True, correction=1)
            return (x - mean) / (var + self.config.norm_eps).sqrt()
        return x

    def told(self, values: Answers) -> Tensor | None:
        """Where the teacher saw something."""
        return values.told

    def loss(self, prediction: Float[Tensor, "R Q size"], values: Answers) -> Float[Tensor, "R Q"]:
        """One per query."""
        prediction, features = prediction.float(), values.features
        if self.config.loss == "cosine":
            if self.config.along == "units":
                return self._cosine_of_units(prediction, values)
            return 1 - F.cosine_similarity(prediction, features, dim=-1)
        if self.config.loss == "l1":
            each = F.l1_loss(prediction, features, reduction="none")
        elif self.config.loss == "l2":
            each = F.mse_loss(prediction, features, reduction="none")
        else:
            each = F.smooth_l1_loss(prediction, features, reduction="none", beta=self.config.beta)
        if self.config.over == "mean":
            return each.mean(dim=-1)
        return each.sum(dim=-1) / (each.shape[-1] ** 0.5 if self.config.over == "root" else 1.0)

    def _cosine_of_units(self, prediction: Tensor, values: Answers) -> Tensor:
        """Of every channel along the units that were seen together; each of these units gets the mean."""
        rows, asked, _ = prediction.shape
        order = values.order
        if order is None:
            order = torch.arange(asked, device=prediction.device).expand(rows, 1, -1)
        ids = order.reshape(rows, -1)
        ours, theirs = (take(x, ids).unflatten(1, order.shape[1:]) for x in (prediction, values.features))
        each = 1 - F.cosine_similarity(theirs, ours, dim=2).mean(dim=-1, keepdim=True)  # [R, F, 1]
        spread = each.expand(-1, -1, order.shape[2]).reshape(rows, -1)
        return torch.zeros_like(prediction[:, :, 0]).scatter(1, ids, spread)


def _places(folds: Int[Tensor, "R F n"], mask: Mask) -> tuple[Tensor, Tensor]:
    """(order, told): where the units of the folds are among the queries, and which queries are among them."""
    rows, units = mask.hidden.shape
    asked = torch.arange(mask.query_ids.shape[1], device=folds.device).expand(rows, -1)
    place = torch.zeros(rows, units, dtype=torch.int64, device=folds.device).scatter(1, mask.query_ids, asked)
    order = place.gather(1, folds.reshape(rows, -1))
    in_folds = torch.zeros_like(mask.query_ids, dtype=torch.bool).scatter(1, order, True)
    return order.reshape(folds.shape), in_folds
