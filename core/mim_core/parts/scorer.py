"""Scorers: how much a guided masker should mind each unit. Any scorer goes with any masker that reads scores.

A scorer may be trained with the method, as predicted losses are (HPM, arXiv 2304.05919): what it reads then is a
teacher's copy of a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mim_core.data.source import Sample
from mim_core.data.views import View, carried
from mim_core.parts.layout import Patches
from mim_core.parts.teacher import Lesson, Student, Teacher


class Scorer(nn.Module):
    """Base class. Built from its options and a `Student`.

    Attributes:
        needs_teacher: It reads what a teacher says, so a method without one is refused.
        needs_views: Other views of every sample that it reads.
    """

    Config: ClassVar[type[Any]]
    needs_teacher: bool = False
    needs_views: tuple[View, ...] = ()

    def __init__(self, config: Any = None, student: Student | None = None) -> None:
        super().__init__()
        self.config = config

    def bind(self, teacher: Teacher) -> None:
        """Called when the method is built, with the teacher that it will read: asks it for what it needs.

        Raises:
            ValueError: The teacher does not give that.
        """
        return

    def forward(self, sample: Sample, patches: Patches, lesson: Lesson | None = None) -> Float[Tensor, "B N"]:
        """A score for every unit of every sample; the higher, the sooner a masker minds the unit.

        Args:
            sample: The batch.
            patches: Its units.
            lesson: What the teacher says, where ``needs_teacher``.
        """
        raise NotImplementedError


class AttentionScorer(Scorer):
    """How much the teacher's class token attends to each unit, the mean over the heads of its last block (AttMask,
    arXiv 2203.12719, section 3.2; MST, arXiv 2106.05656)."""

    needs_teacher = True

    @dataclass(frozen=True)
    class Config:
        """The attention scorer has no options."""

    def bind(self, teacher: Teacher) -> None:
        """Asks for the attention of the last block, whose first row is the class token's.

        Raises:
            ValueError: The teacher's encoder has no class token.
        """
        teacher.give(attention=True)
        if teacher.encoder.prefix == 0:
            raise ValueError("attention of the class token is asked for, and the teacher's encoder has none")

    def forward(self, sample: Sample, patches: Patches, lesson: Lesson | None = None) -> Float[Tensor, "B N"]:
        """float32 [B, N]; the sum over the units is below one, for the class token attends to itself too."""
        assert lesson is not None
        assert lesson.attention is not None
        front = lesson.prefix.shape[1]
        return lesson.attention[:, :, 0, front:].float().mean(dim=1)


class AnswerScorer(Scorer):
    """The mean of what the teacher's copy of a head answers at each unit: a predicted loss (HPM, arXiv 2304.05919,
    section 3.2)."""

    needs_teacher = True

    @dataclass(frozen=True)
    class Config:
        """Options of the answer scorer."""

        head: str = "losses"
        """Which head; the teacher must follow it (--teacher.heads)."""

    def bind(self, teacher: Teacher) -> None:
        """The teacher must follow the head."""
        teacher.check_follows(self.config.head)

    def forward(self, sample: Sample, patches: Patches, lesson: Lesson | None = None) -> Float[Tensor, "B N"]:
        """float32 [B, N]."""
        assert lesson is not None
        return lesson.answers[self.config.head].float().mean(dim=-1)


class OverlapScorer(Scorer):
    """1 for units that the target view of the sample shows as a whole too, 0 for others: a region that is hidden there
    has a counterpart (MaskCo, arXiv 2108.07954)."""

    needs_views = (View("target"), View("place"))

    @dataclass(frozen=True)
    class Config:
        """The overlap scorer has no options."""

    def __init__(self, config: Config, student: Student) -> None:
        super().__init__(config, student)
        self.modality = next(iter(student.tokenizer.shapes))

    def forward(self, sample: Sample, patches: Patches, lesson: Lesson | None = None) -> Float[Tensor, "B N"]:
        """float32 [B, N], from ``MODALITY.place`` and ``MODALITY_target.place``.

        Raises:
            ValueError: The units lie on no grid of as many axes as the place has.
        """
        grid = patches.layout.grid
        place, other = (sample[f"{self.modality}{view}.place"] for view in ("", "_target"))
        if grid is None or len(grid) != place.shape[-1]:
            raise ValueError(f"units of a view need a grid of as many axes as its place; this grid is {grid}")
        first = patches.layout.coordinates(place.device)
        boxes = torch.stack([first, first + 1], dim=1) / torch.tensor(grid, device=place.device)
        corners = carried(boxes.expand(len(place), -1, -1, -1), place, other)
        return ((corners > -1e-4) & (corners < 1 + 1e-4)).flatten(2).all(dim=2).float()
