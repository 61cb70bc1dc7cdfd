"""Targets: what a hidden unit's answer should be, the loss against it, and the way back to pictures.

``make`` has no gradient; ``loss`` is unreduced, in float32. The method weighs and averages.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from mim_core.data.source import DataSource, Sample
from mim_core.data.views import View
from mim_core.parts.layout import Patches, tensor_tree
from mim_core.parts.mask import Mask
from mim_core.parts.teacher import Lesson, Teacher
from mim_core.parts.tokenizer import Tokenizer


@tensor_tree
@dataclass(frozen=True)
class Losses:
    """What another head loses, as a target with ``of_head`` is held against it.

    Attributes:
        each: float32 [R, Q], one per query, without gradient.
        weight: float32 [R, Q], 0 where a query does not count in that head's loss.
    """

    each: Float[Tensor, "R Q"]
    weight: Float[Tensor, "R Q"]


class Target(nn.Module):
    """Base class. Built from its options and the tokenizer.

    Attributes:
        size: What the decoder must output per unit.
        role: Of the run, such as ``depth.target``; what options are called in messages follows from it.
        needs_truth: `to_input_space` uses the sample's own statistics, so pictures show more than the model knew.
        needs_teacher: It reads what a teacher says, so a method without one is refused.
        couples_samples: The loss of a sample depends on the others of the batch, so a batch cannot be accumulated.
        needs_views: Other views of every sample that it reads.
        of_head: Another head, whose `Losses` it is held against in place of values from `make`, which is not called
            (HPM). Both must ask the same units. Empty: none.
    """

    Config: ClassVar[type[Any]]
    size: int
    role: str = "target"
    needs_truth: bool = False
    needs_teacher: bool = False
    couples_samples: bool = False
    needs_views: tuple[View, ...] = ()
    of_head: str = ""

    def bind(self, teacher: Teacher) -> None:
        """Called when the method is built, before its decoder is, with the teacher that it will read, where
        ``needs_teacher``: asks it for what it needs, and learns how wide its answers are.

        Raises:
            ValueError: The teacher does not give that.
        """
        return

    def check(self, source: DataSource) -> None:
        """Called with a run's data before it starts, for targets that must know what the data did to their values.

        Raises:
            ValueError: The two do not fit; says which options should agree.
        """
        return

    def make(self, sample: Sample, patches: Patches, mask: Mask, lesson: Lesson | None = None) -> Any:
        """The values that the decoder should give at ``mask.query_ids``; ``lesson`` is what the teacher says, where
        ``needs_teacher``."""
        raise NotImplementedError

    def after_step(self) -> None:
        """Called after each optimizer step: takes the last batch into what it keeps of past ones, such as a centre.
        `make` itself changes nothing that a later `make` reads."""
        return

    def told(self, values: Any) -> Bool[Tensor, "R Q"] | None:
        """At which queries there is a value at all; others do not count in the loss. None: at all."""
        return None

    def loss(self, prediction: Float[Tensor, "R Q size"], values: Any) -> Float[Tensor, "R Q"]:
        """The loss of every answer, unreduced."""
        raise NotImplementedError

    def to_input_space(self, prediction: Float[Tensor, "R Q size"], patches: Patches, mask: Mask) -> Tensor | None:
        """Predictions as unit values [R, Q, ...], for pictures; None where that has no meaning."""
        return None


class ValueTarget(Target):
    """The unit's own input values: pixels for images (MAE, SimMIM), raw or normalised per unit.

    Normalised (MAE, arXiv 2111.06377, section 4 "reconstruction target"): (x - mean) / sqrt(var + 1e-6), over all
    values of the unit together, the variance unbiased, the small number inside the root.
    """

    @dataclass(frozen=True)
    class Config:
        """Options of the value target."""

        normalize: bool = True
        """Standardise each unit by its own mean and variance."""
        loss: Literal["l1", "l2", "smooth_l1"] = "l2"
        """L2 is the squared error; smooth L1 is Huber's loss divided by beta."""
        beta: float = 1.0
        """Where smooth L1 turns from squared to absolute."""
        channels_first: bool = False
        """Order the values of a unit (C, row, column), as a pixel shuffle writes them (SimMIM), in place of (row,
        column, C)."""

    def __init__(self, config: Config, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.config = config
        self.unit_shape = tokenizer.unit_shape
        self.size = math.prod(self.unit_shape)
        self.needs_truth = config.normalize
        if not self.unit_shape:
            raise ValueError("this tokenizer's units have no values of their own; name a segment for the head")
        if tokenizer.ids:
            raise ValueError(
                f"the units of {', '.join(tokenizer.ids)} are names of classes or words, no measured values"
            )
        if config.normalize and self.size < 2:
            raise ValueError("a unit of a single value cannot be normalised; set normalize to false")
        if config.loss == "smooth_l1" and config.beta <= 0:
            raise ValueError(f"beta must be positive, got {config.beta}")

    def _order(self, values: Tensor) -> Float[Tensor, "R Q size"]:
        """Unit values [R, Q, ...] as float32 rows in the order of the prediction."""
        if self.config.channels_first:
            values = values.movedim(-1, 2)
        return values.reshape(*values.shape[:2], -1).float()

    def _statistics(self, values: Tensor) -> tuple[Tensor, Tensor]:
        var, mean = torch.var_mean(values, dim=-1, keepdim=True, correction=1)
        return mean, (var + 1e-6).sqrt()

    def make(
        self, sample: Sample, patches: Patches, mask: Mask, lesson: Lesson | None = None
    ) -> Float[Tensor, "R Q size"]:
        """The queried units' values, float32."""
        assert isinstance(patches.values, Tensor)
        values = self._order(mask.take(patches.values, mask.query_ids))
        if self.config.normalize:
            mean, scale = self._statistics(values)
            values = (values - mean) / scale
        return values

    def loss(self, prediction: Float[Tensor, "R Q size"], values: Float[Tensor, "R Q size"]) -> Float[Tensor, "R Q"]:
        """Mean over the values of a unit."""
        prediction = prediction.float()
        if self.config.loss == "l1":
            each = F.l1_loss(prediction, values, reduction="none")
        elif self.config.loss == "l2":
            each = F.mse_loss(prediction, values, reduction="none")
        else:
            each = F.smooth_l1_loss(prediction, values, reduction="none", beta=self.config.beta)
        return each.mean(dim=-1)

    def to_input_space(self, prediction: Float[Tensor, "R Q size"], patches: Patches, mask: Mask) -> Tensor:
        """Undoes the normalisation with the true unit's mean and scale, and the order of the values."""
        assert isinstance(patches.values, Tensor)
        prediction = prediction.float()
        if self.config.normalize:
            mean, scale = self._statistics(self._order(mask.take(patches.values, mask.query_ids)))
            prediction = prediction * scale + mean
        if not self.config.channels_first:
            return prediction.reshape(*prediction.shape[:2], *self.unit_shape)
        shape = (self.unit_shape[-1], *self.unit_shape[:-1])
        return prediction.reshape(*prediction.shape[:2], *shape).movedim(2, -1)
