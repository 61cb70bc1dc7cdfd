"""Random numbers in place of data: to measure speed, and to try a recipe before its data is there."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mim_core import randomness
from mim_core.data.source import DataSource, Labelled, Picture
from mim_core.errors import MimError
from mim_core.text import counted


class Noise(DataSource):
    """Normal draws with mean 0 and deviation 1, in the shapes that the tokenizer wants. An item is new each time it is
    read: there is nothing to learn but the mean."""

    @dataclass(frozen=True)
    class Config:
        """Options of the noise."""

        items: int = 100_000
        """Items in an epoch."""

    shows_whole = True

    def __init__(self, config: Config, shapes: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__(config, shapes)
        if config.items < 1:
            raise ValueError(f"items must be at least 1, got {config.items}")

    def __len__(self) -> int:
        return int(self.config.items)

    def read(self, index: int, key: int) -> dict[str, Tensor]:
        """Draws from the sample's key and its number: normal, float32, or ids, int64."""
        generator = torch.Generator().manual_seed(randomness.torch_seed(key, f"noise {index}"))
        return {
            name: torch.randint(self.ids[name], shape, generator=generator)
            if name in self.ids
            else torch.randn(shape, generator=generator)
            for name, shape in self.shapes.items()
        }

    def labelled(self, split: str) -> Labelled:
        """Refused.

        Raises:
            MimError: Always: noise has no labels.
        """
        raise MimError("Noise has no labels, so features cannot be judged with --use data=core:noise.")

    def picture(self, modality: str, values: Tensor) -> Picture:
        """The mean over all axes but the last two, in grey, as PNG."""
        from matplotlib.image import imsave

        plane = values.float().cpu()
        plane = plane.reshape(-1, *plane.shape[-2:]).mean(dim=0) if plane.ndim > 1 else plane[None]
        content = io.BytesIO()
        imsave(content, plane.numpy(), cmap="gray", format="png")
        return Picture("image/png", content.getvalue())

    def plan(self) -> dict[str, str]:
        """That nothing will be learned."""
        return {"data": f"noise, {counted(len(self), 'item')}: for measuring speed and trying things out"}
