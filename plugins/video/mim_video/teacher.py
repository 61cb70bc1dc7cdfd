"""An image encoder as the teacher of a video encoder."""

from __future__ import annotations

import torch
from jaxtyping import Float
from mim_core import FrozenTeacher, Layout, Lesson, Mask, Patches, Sample, Tokenizer
from torch import Tensor


class FramesTeacher(FrozenTeacher):
    """An image encoder that sees the first frame of each tubelet, one frame at a time (MVD, arXiv 2212.04500, section
    3.2, and its code). Its patches must be the tubelets' rows and columns, so that each has one answer."""

    def check(self, student: Tokenizer) -> None:
        """Whether its patches lie where the student's tubelets do.

        Raises:
            ValueError: They do not.
        """
        mine, theirs = self.tokenizer, student
        grid = theirs.layout.grid or ()
        if len(grid) != 3 or mine.layout.grid != grid[1:] or mine.unit_shape != theirs.unit_shape[1:]:
            raise ValueError(
                f"the image encoder has patches of {mine.unit_shape} on the grid {mine.layout.grid}; the clip's "
                f"tubelets are {theirs.unit_shape} on {theirs.layout.grid}: give it the clip's height, width and patch"
            )

    @torch.no_grad()
    def forward(self, patches: Patches, sample: Sample | None = None, mask: Mask | None = None) -> Lesson:
        """What it says of every tubelet."""
        values, grid = patches.values, patches.layout.grid
        assert isinstance(values, Tensor)
        assert grid is not None
        frames = values[:, :, 0].unflatten(1, (grid[0], -1)).flatten(0, 1)
        lesson = super().forward(Patches(frames, Layout.on_grid(*grid[1:])))

        def back(features: Float[Tensor, "F n D"]) -> Float[Tensor, "B N D"]:
            return features.unflatten(0, (len(values), grid[0])).flatten(1, 2)

        return Lesson(back(lesson.tokens), back(lesson.prefix), tuple(map(back, lesson.levels)))
