"""Codes as targets: which of many names a teacher gives a unit."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from mim_core.data.source import Sample
from mim_core.parts.layout import Patches
from mim_core.parts.mask import Mask
from mim_core.parts.target import Target
from mim_core.parts.teacher import Lesson, Teacher
from mim_core.parts.tokenizer import Tokenizer


class IdTarget(Target):
    """Cross-entropy against the id that a teacher gives each unit (BEiT, arXiv 2106.08254, equation 2)."""

    needs_teacher = True

    @dataclass(frozen=True)
    class Config:
        """Options of the id target."""

        smoothing: float = 0.0
        """Share of the probability that goes to all ids alike."""

    def __init__(self, config: Config, tokenizer: Tokenizer) -> None:
        super().__init__()
        if not 0 <= config.smoothing < 1:
            raise ValueError(f"smoothing must lie in [0, 1), got {config.smoothing}")
        self.config = config

    def bind(self, teacher: Teacher) -> None:
        """One answer for each of the teacher's ids."""
        if teacher.codes < 2:
            raise ValueError(
                f"it reads ids, and a {type(teacher).__name__} gives units none; one that does: --use "
                "teacher=core:random-codes"
            )
        self.size = teacher.codes

    def make(self, sample: Sample, patches: Patches, mask: Mask, lesson: Lesson | None = None) -> Int[Tensor, "R Q"]:
        """The ids at the queries."""
        assert lesson is not None, "an id target needs a teacher"
        assert lesson.ids is not None, "the teacher gives ids"
        found: Tensor = mask.take(lesson.ids[:, :, None], mask.query_ids)[:, :, 0]
        return found

    def loss(self, prediction: Float[Tensor, "R Q size"], values: Int[Tensor, "R Q"]) -> Float[Tensor, "R Q"]:
        """One for each query, in nats."""
        scores = prediction.float().transpose(1, 2)
        return F.cross_entropy(scores, values, reduction="none", label_smoothing=self.config.smoothing)
