"""Classes of hidden units (MultiMAE, arXiv 2204.01678, section 3.3)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from jaxtyping import Float, Int
from mim_core import DataSource, Lesson, Mask, Patches, Sample, Target, Tokenizer
from torch import Tensor
from torch.nn import functional as F


class ClassMapTarget(Target):
    """The class of every position of a unit, by cross-entropy in float32, averaged over the unit's positions that have
    a class.

    An answer holds the scores of all classes at all positions, ordered (class, row, column), as MultiMAE's code writes
    them.
    """

    @dataclass(frozen=True)
    class Config:
        """Options of the class-map target."""

        label_smoothing: float = 0.0
        """Share of the truth that is spread over all classes."""

    def __init__(self, config: Config, tokenizer: Tokenizer) -> None:
        super().__init__()
        if not 0 <= config.label_smoothing <= 1:
            raise ValueError(f"label_smoothing must lie in [0, 1], got {config.label_smoothing:g}")
        self.config = config
        classes = getattr(tokenizer.config, "classes", None)
        if not isinstance(classes, int) or tokenizer.unit_shape[-1:] != (1,):
            raise ValueError("this target is for a tokenizer of class ids, which says how many classes there are")
        self.classes, self.unit_shape = classes, tokenizer.unit_shape
        self.size = self.classes * math.prod(self.unit_shape)

    def check(self, source: DataSource) -> None:
        """Refuses data of another number of classes, where the source knows it.

        Raises:
            ValueError: The numbers differ; names the option of the tokenizer.
        """
        count = getattr(source, "class_count", None)
        if count is not None and count != self.classes:
            tokenizer = self.role.removesuffix("target") + "tokenizer"
            raise ValueError(
                f"the data has {count} classes, and the tokenizer {self.classes}: --{tokenizer}.classes {count}"
            )

    def make(
        self, sample: Sample, patches: Patches, mask: Mask, lesson: Lesson | None = None
    ) -> Int[Tensor, "R Q positions"]:
        """The queried units' class ids; -1 where there is none."""
        assert isinstance(patches.values, Tensor)
        ids = mask.take(patches.values, mask.query_ids).flatten(2)
        return ids.where((ids >= 0) & (ids < self.classes), -1)

    def loss(self, prediction: Float[Tensor, "R Q size"], values: Int[Tensor, "R Q positions"]) -> Float[Tensor, "R Q"]:
        """Mean over the positions of a unit that have a class; zero where none has."""
        scores = self._scores(prediction).movedim(2, 1).flatten(2)
        each = F.cross_entropy(
            scores,
            values.flatten(1),
            ignore_index=-1,
            reduction="none",
            label_smoothing=self.config.label_smoothing,
        ).reshape(values.shape)
        return each.sum(dim=2) / (values >= 0).sum(dim=2).clamp(min=1)

    def _scores(self, prediction: Tensor) -> Float[Tensor, "R Q classes positions"]:
        return prediction.float().unflatten(2, (self.classes, -1))

    def to_input_space(self, prediction: Float[Tensor, "R Q size"], patches: Patches, mask: Mask) -> Tensor:
        """The likeliest class of every position, int64 [R, Q, *patch, 1]."""
        return self._scores(prediction).argmax(dim=2).unflatten(2, self.unit_shape)
