"""A teacher without a network: it names units by a random projection of their values."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mim_core.data.source import Sample
from mim_core.parts.layout import Patches
from mim_core.parts.mask import Mask
from mim_core.parts.teacher import Lesson, Student, Teacher


class RandomCodesTeacher(Teacher):
    """Names each unit by the nearest of many random directions, after a random projection of its values (BEST-RQ, arXiv
    2202.01855, section 3.1). Both are drawn once, with the run's seed, and never trained.

    Values are standardised within the unit first, which keeps the names from saying no more than how bright it is.
    """

    @dataclass(frozen=True)
    class Config:
        """Options of the teacher of random codes."""

        codes: int = 8192
        """Names."""
        size: int = 16
        """Width of the projection."""
        normalize: bool = True
        """Standardise the values of each unit first."""

    def __init__(self, config: Config, student: Student) -> None:
        nn.Module.__init__(self)
        shape = student.own.unit_shape
        if not shape or student.own.ids:
            raise ValueError("units of one modality with measured values are named; these have none, or several")
        self.segment = student.segment
        if config.codes < 2 or config.size < 1:
            raise ValueError(f"codes must be 2 or more and size 1 or more, got {config.codes} and {config.size}")
        self.config, self.codes, self.decoders = config, config.codes, nn.ModuleDict()
        projection = torch.empty(math.prod(shape), config.size)
        nn.init.xavier_uniform_(projection)
        self.register_buffer("projection", projection)
        self.register_buffer("book", F.normalize(torch.randn(config.codes, config.size), dim=-1))

    projection: Tensor
    book: Tensor

    @property
    def width(self) -> int:
        """Of the projection."""
        return int(self.config.size)

    def give(self, levels: int = 0, attention: bool = False) -> None:
        """Refused: there are no blocks.

        Raises:
            ValueError: Levels or attention are asked for.
        """
        if levels or attention:
            raise ValueError("a teacher of random codes has no blocks, so no levels and no attention")

    @torch.no_grad()
    def forward(self, patches: Patches, sample: Sample | None = None, mask: Mask | None = None) -> Lesson:
        """The projection of every unit, and its name."""
        assert isinstance(patches.values, Tensor)
        values = patches.values.flatten(2).float()
        if self.config.normalize:
            values = F.layer_norm(values, values.shape[-1:])
        projected = values @ self.projection
        ids = (F.normalize(projected, dim=-1) @ self.book.T).argmax(dim=-1)
        return Lesson(projected, projected.new_zeros(len(projected), 0, self.config.size), ids=ids)
