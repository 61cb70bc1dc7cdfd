"""A target for views of one sample that should be sorted alike: DINO's self-distillation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from mim_core.data.source import Sample
from mim_core.data.views import View
from mim_core.parts.layout import Patches
from mim_core.parts.mask import Mask
from mim_core.parts.schedule import Schedule
from mim_core.parts.target import Target
from mim_core.parts.teacher import Lesson, Teacher
from mim_core.parts.tokenizer import Tokenizer
from mim_core.ranks.tensors import batch_mean


class SelfDistillationTarget(Target):
    """Cross-entropy between how a teacher sorts one view of an item and how the student sorts another (DINO, arXiv
    2104.14294, equation 1), the teacher's scores centred and sharpened (equation 4).

    An item gives two samples, one after the other. A head that asks the masked view is held against the teacher's
    answer for the item's other sample; one that asks local views against both, averaged.
    """

    needs_teacher = True
    couples_samples = True
    needs_views = (View("pair"),)
    center: Tensor

    @dataclass(frozen=True)
    class Config:
        """Options of the self-distillation target."""

        head: str = "views"
        """The head whose copy the teacher has."""
        size: int = 65536
        """Prototypes."""
        temperature: float = 0.1
        """The student's scores are divided by it."""
        teacher_start: float = 0.04
        """The same of the teacher's, at the start of the run."""
        teacher_end: float = 0.04
        """The teacher's temperature after the epochs below (DINO's longer runs: 0.07)."""
        teacher_epochs: float = 30.0
        """Epochs over which it changes along a straight line."""
        center_momentum: float = 0.9
        """Share of the old centre that stays after a step."""
        against: Literal["other", "both"] = "other"
        """Which of the item's two samples the teacher's answer is of; for local views, both."""

    def __init__(self, config: Config, tokenizer: Tokenizer) -> None:
        super().__init__()
        temperatures = (config.temperature, config.teacher_start, config.teacher_end)
        if min(temperatures) <= 0 or config.size < 1:
            raise ValueError(f"temperatures must be positive and size 1 or more, got {temperatures} and {config.size}")
        if not 0 <= config.center_momentum <= 1 or config.teacher_epochs < 0:
            raise ValueError("center_momentum must lie in [0, 1], and teacher_epochs must not be negative")
        self.config, self.size = config, config.size
        self.sharpness = Schedule(config.teacher_start, config.teacher_end, "linear", config.teacher_epochs)
        self.register_buffer("center", torch.zeros(config.size))
        self._batch: Tensor | None = None

    def bind(self, teacher: Teacher) -> None:
        """The teacher must follow the head."""
        teacher.check_follows(self.config.head)

    def make(
        self, sample: Sample, patches: Patches, mask: Mask, lesson: Lesson | None = None
    ) -> Float[Tensor, "R size"]:
        """How the teacher sorts what each row is held against: probabilities. The centre is that of earlier steps.

        Raises:
            ValueError: The samples are no pairs, their number being odd.
        """
        assert lesson is not None, "self-distillation needs a teacher"
        scores = lesson.answers[self.config.head][:, 0].float()
        if self.training:
            self._batch = batch_mean(scores.mean(dim=0))
        probs = ((scores - self.center) / self.sharpness.at(lesson.progress)).softmax(dim=-1)
        if len(probs) % 2:
            raise ValueError(f"{len(probs)} samples are no pairs: an item must give two samples, one after the other")
        pairs = probs.unflatten(0, (-1, 2))
        pairs = pairs.flip(1) if self.config.against == "other" else pairs.mean(dim=1, keepdim=True).expand(-1, 2, -1)
        return pairs.flatten(0, 1).repeat_interleave(len(mask.hidden) // len(probs), dim=0)

    def loss(self, prediction: Float[Tensor, "R 1 size"], values: Float[Tensor, "R size"]) -> Float[Tensor, "R 1"]:
        """One for each row."""
        ours = F.log_softmax(prediction[:, 0].float() / self.config.temperature, dim=-1)
        return -(values * ours).sum(dim=-1, keepdim=True)

    @torch.no_grad()
    def after_step(self) -> None:
        """The centre takes the last batch in: the mean of the teacher's scores over all ranks (equation 4)."""
        if self._batch is not None:
            self.center.lerp_(self._batch, 1 - self.config.center_momentum)
            self._batch = None
