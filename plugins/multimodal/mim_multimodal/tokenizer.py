"""Maps of class ids as units (MultiMAE, arXiv 2204.01678, section 3.1 and its code)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from mim_core import Layout, MimError, Patches, PatchTokenizer, PlainUnits, Sample, Tokenizer
from timm.layers import trunc_normal_
from torch import Tensor, nn

CLASS_MAP = """\
class ClassMap(nn.Module):
    \"\"\"Patches of a map of class ids, int64 [B, h, w], as tokens.\"\"\"

    def __init__(self, classes, unknown, vector, width, patch):
        super().__init__()
        self.classes, self.unknown = classes, unknown
        self.vectors, self.patches = nn.Embedding(classes + unknown, vector), nn.Conv2d(vector, width, patch, patch)

    def forward(self, ids):
        if self.unknown:
            ids = ids.where((ids >= 0) & (ids < self.classes), self.classes)
        return self.patches(self.vectors(ids).permute(0, 3, 1, 2))
"""


class ClassMapTokenizer(Tokenizer):
    """Patches of a map of class ids; each id becomes a learned vector, and a patch of vectors a token.

    Takes ``sample[modality]`` int64 [B, h, w]; a unit's values are [*patch, 1]. Ids that are no class, 255 above all,
    are taken for one more class, "unknown", as input; targets leave them out.
    """

    @dataclass(frozen=True)
    class Config:
        """Options of the class-map tokenizer."""

        modality: str = "semseg"
        """The sample's entry that is split."""
        size: tuple[int, ...] = (56, 56)
        """Height and width of the map, one number for a square; MultiMAE has one id for 4 x 4 pixels."""
        patch: tuple[int, int] = (4, 4)
        """Height and width of a patch of the map; it must divide the size."""
        classes: int = 133
        """Number of classes; ids are 0 to classes - 1. COCO's by default."""
        embed_width: int = 64
        """Width of a class's vector."""
        unknown: bool = True
        """A vector for ids that are no class; without it such an id in the data is an error (the official weights
        have none)."""

        def __post_init__(self) -> None:
            whole = PatchTokenizer.Config(size=self.size, patch=self.patch).size  # one number is a square there too
            object.__setattr__(self, "size", whole)

    def __init__(self, config: Config, width: int) -> None:
        super().__init__()
        if config.classes < 2 or config.embed_width < 1:
            raise ValueError(f"classes {config.classes} must be at least 2, and embed_width positive")
        self.config = config
        self.patches = PatchTokenizer(
            PatchTokenizer.Config(
                modality="vectors", size=config.size, patch=config.patch, channels=config.embed_width
            ),
            width,
        )
        self.layout = self.patches.layout
        self.shapes = {config.modality: config.size}
        self.unit_shape = (*config.patch, 1)
        self.ids = {config.modality: config.classes}
        self.class_embed = nn.Embedding(config.classes + int(config.unknown), config.embed_width)
        trunc_normal_(self.class_embed.weight, std=0.02)

    def split(self, sample: Sample) -> Patches:
        """[B, h, w] to values int64 [B, N, *patch, 1].

        Raises:
            ValueError: Not a map of whole numbers, or a size that the patch does not divide.
            MimError: An id that has no vector; on a GPU the device refuses it, so that nothing waits.
        """
        config = self.config
        if config.modality not in sample:
            raise KeyError(f"the sample has no {config.modality!r}; it has {', '.join(sample)}")
        ids = sample[config.modality]
        if ids.ndim != 3 or ids.is_floating_point():
            raise ValueError(
                f"{config.modality} must be class ids, int64 [B, h, w], got {ids.dtype} {tuple(ids.shape)}"
            )
        if not config.unknown:
            self._refuse(ids)
        grid, patch = self.patches.grid_of((ids.shape[1], ids.shape[2])), config.patch
        cut = ids.reshape(ids.shape[0], grid[0], patch[0], grid[1], patch[1]).transpose(2, 3)
        return Patches(cut.reshape(ids.shape[0], grid[0] * grid[1], *patch, 1), Layout.on_grid(*grid))

    def _refuse(self, ids: Tensor) -> None:
        """Raises MimError for ids without a vector."""
        if ids.is_meta:
            return
        known = (ids >= 0) & (ids < self.config.classes)
        if ids.is_cuda:
            torch._assert_async(known.all(), "a class id has no vector, and the tokenizer's option unknown is off")
        elif not bool(known.all()):
            wrong, modality = int(ids[~known][0]), self.config.modality
            meaning = ", which means no class" if wrong == 255 else ""
            raise MimError(
                f"{modality} has the id {wrong}{meaning}; this tokenizer has vectors of the ids 0 to "
                f"{self.config.classes - 1} only, because its option unknown is off, as for the official MultiMAE "
                f"weights. Give it one more vector with --{modality}.tokenizer.unknown (--init then takes the others "
                "from weights that lack it), or write another id into the maps."
            )

    def embed(self, values: Int[Tensor, "B K *patch_1"]) -> Tensor:
        """Ids [B, K, *patch, 1] to tokens [B, K, D]."""
        ids = values[..., 0]
        if self.config.unknown:
            ids = ids.where((ids >= 0) & (ids < self.config.classes), self.config.classes)
        return self.patches.embed(self.class_embed(ids))

    def plain(self) -> PlainUnits:
        """Vectors of ids, and a convolution."""
        config = self.config
        sizes = f"{config.classes}, {config.unknown}, {config.embed_width}, {self.patches.proj.out_channels}"
        weights = {f"patches.{name}": value for name, value in self.patches.proj.state_dict().items()}
        return PlainUnits(
            CLASS_MAP,
            f"ClassMap({sizes}, {tuple(config.patch)})",
            {"vectors.weight": self.class_embed.weight, **weights},
        )

    def join(self, values: Tensor, layout: Layout) -> Tensor:
        """Values [B, N, *patch, 1] back to [B, h, w]."""
        grid: Any = layout.grid
        patch = self.config.patch
        cut = values.reshape(len(values), *grid, *patch).transpose(2, 3)
        return cut.reshape(len(values), grid[0] * patch[0], grid[1] * patch[1])

    def blank(self, values: Tensor, hidden: Tensor) -> Tensor:
        """No class (255) in hidden units."""
        return values.masked_fill(hidden.reshape(*hidden.shape, *([1] * (values.ndim - 2))), 255)
