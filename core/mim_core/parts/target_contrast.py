"""A target that tells samples from one another: the teacher's view of the same sample among those of all others."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from mim_core.data.source import Sample
from mim_core.parts.layout import Patches, tensor_tree
from mim_core.parts.mask import Mask
from mim_core.parts.target import Target
from mim_core.parts.teacher import Lesson, Teacher
from mim_core.parts.tokenizer import Tokenizer
from mim_core.ranks.tensors import gather


@tensor_tree
@dataclass(frozen=True)
class Keys:
    """What a batch is told apart by.

    Attributes:
        keys: float32 [M, size], of length 1: the teacher's answers for the samples of all ranks.
        own: int64 [R], which of them is of each row's sample.
    """

    keys: Float[Tensor, "M size"]
    own: Int[Tensor, " R"]


class ContrastTarget(Target):
    """InfoNCE (arXiv 1807.03748, equation 4) of a sample head's answer against what the teacher's copy of the head says
    of all samples of the batch, on all ranks (MoCo v3, arXiv 2104.02057; CMAE, arXiv 2207.13532, section 3.3)."""

    needs_teacher = True
    couples_samples = True

    @dataclass(frozen=True)
    class Config:
        """Options of the contrast target."""

        head: str = "contrast"
        """The head whose copy the teacher has, this target's own."""
        size: int = 256
        """Width of the answers."""
        temperature: float = 0.07
        """Similarities are divided by it."""
        doubled: bool = True
        """Multiply the loss by twice the temperature (MoCo v3, CMAE)."""

    def __init__(self, config: Config, tokenizer: Tokenizer) -> None:
        super().__init__()
        if config.temperature <= 0 or config.size < 1:
            raise ValueError(f"temperature must be positive and size 1 or more, got {config.temperature} {config.size}")
        self.config, self.size = config, config.size

    def bind(self, teacher: Teacher) -> None:
        """The teacher must follow the head."""
        if self.config.head not in teacher.heads:
            raise ValueError(
                f"it is held against the teacher's copy of the head {self.config.head!r}, and the teacher follows "
                f"{', '.join(teacher.heads) or 'none'}: set --teacher.heads {self.config.head}"
            )

    def make(self, sample: Sample, patches: Patches, mask: Mask, lesson: Lesson | None = None) -> Keys:
        """The teacher's answers for all samples. In training mode those of all ranks are gathered."""
        assert lesson is not None, "a contrast target needs a teacher"
        mine = F.normalize(lesson.answers[self.config.head][:, 0].float(), dim=-1)
        keys, start = gather(mine) if self.training else (mine, 0)
        own = torch.arange(len(mask.hidden), device=keys.device) // (len(mask.hidden) // len(mine)) + start
        return Keys(keys, own)

    def loss(self, prediction: Float[Tensor, "R 1 size"], values: Keys) -> Float[Tensor, "R 1"]:
        """One for each row."""
        ours = F.normalize(prediction[:, 0].float(), dim=-1)
        scores = ours @ values.keys.T / self.config.temperature
        each = F.cross_entropy(scores, values.own, reduction="none")[:, None]
        return each * (2 * self.config.temperature if self.config.doubled else 1.0)
