"""The points of hidden groups, compared as sets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from mim_core import Lesson, Mask, Patches, Sample, Target, Tokenizer
from torch import Tensor

from mim_pointcloud import geometry


class ChamferTarget(Target):
    """A group's points relative to its centre, under the Chamfer distance (Point-MAE, arXiv 2203.06604, equation 5).

    "l2" is the paper's: the mean over the predicted points of the squared distance to the nearest true one, plus the
    same the other way round; no root, not halved. "l1" takes roots, and half of the sum. Coordinates alone are
    predicted; further channels (normals, colour) are input only.
    """

    @dataclass(frozen=True)
    class Config:
        """Options of the Chamfer target."""

        norm: Literal["l2", "l1"] = "l2"
        """Squared distances, summed both ways; or distances, averaged both ways."""

    def __init__(self, config: Config, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.config = config
        if len(tokenizer.unit_shape) != 2 or tokenizer.unit_shape[1] < 3:
            raise ValueError(
                f"a unit must be a group of points [size, 3 or more]; the tokenizer's are {tokenizer.unit_shape}"
            )
        if tokenizer.layout.grid is not None:
            raise ValueError(f"a unit must be a group of points; these lie on a grid, {tokenizer.layout.grid}")
        self.points, self.channels = tokenizer.unit_shape
        self.size = 3 * self.points

    def make(
        self, sample: Sample, patches: Patches, mask: Mask, lesson: Lesson | None = None
    ) -> Float[Tensor, "R Q S 3"]:
        """The queried groups' coordinates, float32."""
        assert isinstance(patches.values, Tensor)
        return mask.take(patches.values[..., :3], mask.query_ids).float()

    def loss(self, prediction: Float[Tensor, "R Q size"], values: Float[Tensor, "R Q S 3"]) -> Float[Tensor, "R Q"]:
        """The Chamfer distance of each group."""
        rows, asked = values.shape[:2]
        points = prediction.float().reshape(rows * asked, self.points, 3)
        return geometry.chamfer(points, values.flatten(0, 1), self.config.norm).unflatten(0, (rows, asked))

    def to_input_space(self, prediction: Float[Tensor, "R Q size"], patches: Patches, mask: Mask) -> Tensor:
        """The predicted points as units [R, Q, S, C]; channels that are not predicted are zero."""
        points = prediction.float().unflatten(2, (self.points, 3))
        return torch.nn.functional.pad(points, (0, self.channels - 3))
