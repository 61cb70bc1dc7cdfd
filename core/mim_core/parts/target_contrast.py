"""A target that tells samples from one another: the teacher's view of the same sample among those of all others."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
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
        among: bool [R, M], which of them each row is told apart from, its own among them; None: all.
        told: bool [R, 1], rows that have a counterpart at all; others do not count. None: all.
    """

    keys: Float[Tensor, "M size"]
    own: Int[Tensor, " R"]
    among: Bool[Tensor, "R M"] | None = None
    told: Bool[Tensor, "R 1"] | None = None


class ContrastTarget(Target):
    """InfoNCE (arXiv 1807.03748, equation 4) of a sample head's answer against what the teacher's copy of the head says
    of all samples of the batch, on all ranks (MoCo v3, arXiv 2104.02057; CMAE, arXiv 2207.13532, section 3.3)."""

    needs_teacher = True
    couples_samples = True
    past: Tensor
    seen: Tensor

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
        queue: int = 0
        """Answers of past batches that are kept, of all ranks, and told apart from too (MoCo, arXiv 1911.05722)."""

    def __init__(self, config: Config, tokenizer: Tokenizer) -> None:
        super().__init__()
        if config.temperature <= 0 or config.size < 1:
            raise ValueError(f"temperature must be positive and size 1 or more, got {config.temperature} {config.size}")
        if config.queue < 0:
            raise ValueError(f"queue must not be negative, got {config.queue}")
        self.config, self.size = config, config.size
        if config.queue:
            self.register_buffer("past", torch.zeros(config.queue, config.size))
            self.register_buffer("seen", torch.tensor(0))
        self._batch: Tensor | None = None

    def bind(self, teacher: Teacher) -> None:
        """The teacher must follow the head."""
        teacher.check_follows(self.config.head)

    def make(self, sample: Sample, patches: Patches, mask: Mask, lesson: Lesson | None = None) -> Keys:
        """The teacher's answers for all samples. In training mode those of all ranks are gathered."""
        assert lesson is not None, "a contrast target needs a teacher"
        mine = F.normalize(lesson.answers[self.config.head][:, 0].float(), dim=-1)
        keys, start = gather(mine) if self.training else (mine, 0)
        own = torch.arange(len(mask.hidden), device=keys.device) // (len(mask.hidden) // len(mine)) + start
        return self.with_past(Keys(keys, own), keys)

    def with_past(self, keys: Keys, batch: Float[Tensor, "M size"]) -> Keys:
        """The keys, and those of past batches; ``batch`` is kept after the step."""
        if not self.config.queue:
            return keys
        if self.training:
            self._batch = batch
        among = keys.among
        if among is None:
            among = torch.ones(len(keys.own), len(keys.keys), dtype=torch.bool, device=batch.device)
        filled = torch.arange(self.config.queue, device=batch.device) < self.seen
        among = torch.cat([among, filled.expand(len(among), -1)], dim=1)
        return Keys(torch.cat([keys.keys, self.past]), keys.own, among, keys.told)

    def told(self, values: Keys) -> Bool[Tensor, "R 1"] | None:
        """Rows that have a counterpart."""
        return values.told

    @torch.no_grad()
    def after_step(self) -> None:
        """The batch takes the place of the oldest that are kept."""
        if self._batch is None:
            return
        batch = self._batch[-self.config.queue :]
        where = (self.seen + torch.arange(len(batch), device=batch.device)) % self.config.queue
        self.past[where] = batch
        self.seen += len(batch)
        self._batch = None

    def loss(self, prediction: Float[Tensor, "R 1 size"], values: Keys) -> Float[Tensor, "R 1"]:
        """One for each row."""
        ours = F.normalize(prediction[:, 0].float(), dim=-1)
        scores = ours @ values.keys.T / self.config.temperature
        if values.among is not None:
            scores = scores.masked_fill(~values.among, -torch.inf)
        each = F.cross_entropy(scores, values.own, reduction="none")[:, None]
        return each * (2 * self.config.temperature if self.config.doubled else 1.0)
