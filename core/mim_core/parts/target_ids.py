"""Ids as targets: which of many names a teacher gives a unit, or the unit's own."""

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
    """Cross-entropy against the id that a teacher gives each unit (BEiT, arXiv 2106.08254, equation 2), or, where units
    are ids, against their own (4M, arXiv 2312.06647). Of a sequence the id behind the one that is told is asked."""

    @dataclass(frozen=True)
    class Config:
        """Options of the id target."""

        smoothing: float = 0.0
        """Share of the probability that goes to all ids alike."""

    def __init__(self, config: Config, tokenizer: Tokenizer) -> None:
        super().__init__()
        if not 0 <= config.smoothing < 1:
            raise ValueError(f"smoothing must lie in [0, 1), got {config.smoothing}")
        self.config, self.names = config, tokenizer.names
        self.sequence = tokenizer.layout.sequence
        self.needs_teacher = not tokenizer.names
        self.size = tokenizer.names

    def bind(self, teacher: Teacher) -> None:
        """One answer for each of the teacher's ids.

        Raises:
            ValueError: The teacher gives units no ids.
        """
        if teacher.codes < 2:
            raise ValueError(
                f"it reads ids, and a {type(teacher).__name__} gives units none; one that does: --use "
                "teacher=core:random-codes"
            )
        self.size = teacher.codes

    def make(self, sample: Sample, patches: Patches, mask: Mask, lesson: Lesson | None = None) -> Int[Tensor, "R Q"]:
        """The ids at the queries."""
        if self.names:
            assert isinstance(patches.values, Tensor)
            ids, wanted = patches.values, mask.query_ids
            wanted = (wanted + 1).clamp(max=ids.shape[1] - 1) if self.sequence else wanted
            own: Tensor = mask.take(ids, wanted)[:, :, 0]
            return own
        assert lesson is not None, "an id target needs a teacher"
        assert lesson.ids is not None, "the teacher gives ids"
        target_ids: Tensor = mask.take(lesson.ids[:, :, None], mask.query_ids)[:, :, 0]
        return target_ids

    def to_input_space(self, prediction: Float[Tensor, "R Q size"], patches: Patches, mask: Mask) -> Tensor | None:
        """The likeliest ids, int64 [R, Q, 1], where units are ids; None of a sequence, which is told one by one."""
        return prediction.argmax(dim=2)[:, :, None] if self.names and not self.sequence else None

    def loss(self, prediction: Float[Tensor, "R Q size"], values: Int[Tensor, "R Q"]) -> Float[Tensor, "R Q"]:
        """One for each query, in nats."""
        scores = prediction.float().transpose(1, 2)
        return F.cross_entropy(scores, values, reduction="none", label_smoothing=self.config.smoothing)
