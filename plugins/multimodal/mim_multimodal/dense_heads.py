"""Heads that answer at every pixel from an encoder's tokens: MultiMAE's for classes and for depth, a linear one, and
UPerNet's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from mim_core import FcnHead, FourLevels, UperNet, resized
from torch import Tensor, nn
from torch.nn import functional as F

HeadKind = Literal["linear", "convnext", "dpt", "upernet"]


class DenseHead(nn.Module):
    """Base of heads on maps of tokens.

    Attributes:
        levels: How many maps it takes: outputs of blocks, the last one last.
        size: Of the answers, in pixels.
    """

    levels: int = 1
    size: tuple[int, int]

    def forward(self, maps: Sequence[Float[Tensor, "B D h w"]]) -> Float[Tensor, "B K H W"]:
        """The answer at every pixel."""
        raise NotImplementedError


class LinearHead(DenseHead):
    """Normalised features, and one answer for each unit, which is interpolated."""

    def __init__(self, width: int, outputs: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.last = nn.Linear(width, outputs)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """The answer at every pixel."""
        each: Tensor = self.last(self.norm(maps[-1].movedim(1, -1))).movedim(-1, 1)
        return resized(each, self.size)


class ConvNextBlock(nn.Module):
    """ConvNeXt's block (arXiv 2201.03545, section 2): a wide depthwise convolution and an MLP at every place, added to
    the input; no layer scale."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.pwconv1, self.pwconv2 = nn.Linear(channels, 4 * channels), nn.Linear(4 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """A map of the same size, [B, C, H, W]."""
        inner = self.norm(self.dwconv(x).movedim(1, -1))
        return x + self.pwconv2(F.gelu(self.pwconv1(inner))).movedim(-1, 1)


class ConvNextHead(DenseHead):
    """MultiMAE's head for classes (arXiv 2204.01678, section 4 and its code): each token becomes a square of places,
    then blocks of ConvNeXt, a class for each place, and interpolation.

    Args:
        width: Channels of the map.
        outputs: Of each pixel.
        size: Of the answers, in pixels.
        inner: Width of a token in here; it is split over its places.
        places: Of a token; a square number.
        depth: Blocks.

    Raises:
        ValueError: The places are no square, or do not divide the width.
    """

    def __init__(
        self, width: int, outputs: int, size: tuple[int, int], inner: int = 6144, places: int = 16, depth: int = 4
    ) -> None:
        super().__init__()
        self.side, self.size = math.isqrt(places), size
        if self.side**2 != places or inner % places:
            raise ValueError(f"places {places} must be a square number that divides the inner width {inner}")
        channels = inner // places
        self.proj_dec = nn.Linear(width, inner)
        self.blocks = nn.Sequential(*(ConvNextBlock(channels) for _ in range(depth)))
        self.final_layer = nn.Conv2d(channels, outputs, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """The answer at every pixel."""
        x = self.proj_dec(maps[-1].movedim(1, -1))
        rows, height, width, _ = x.shape
        x = x.reshape(rows, height, width, self.side, self.side, -1).permute(0, 5, 1, 3, 2, 4)
        x = x.reshape(rows, -1, height * self.side, width * self.side)
        return resized(self.final_layer(self.blocks(x)), self.size)


class ResidualUnit(nn.Module):
    """ReLU and a convolution, twice, added to the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """A map of the same size, [B, C, H, W]."""
        return x + self.conv2(F.relu(self.conv1(F.relu(x))))


class Fusion(nn.Module):
    """Adds a finer level to a coarser one, at twice the resolution."""

    def __init__(self, channels: int, first: bool) -> None:
        super().__init__()
        self.resConfUnit1 = None if first else ResidualUnit(channels)
        self.resConfUnit2 = ResidualUnit(channels)
        self.out_conv = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, level: Tensor | None = None) -> Tensor:
        """The map, twice as large."""
        if level is not None and self.resConfUnit1 is not None:
            x = x + self.resConfUnit1(level)
        return self.out_conv(_doubled(self.resConfUnit2(x)))


class DptHead(DenseHead):
    """DPT's head for one number at every pixel (arXiv 2103.13413, section 3), as MultiMAE has it: four levels at 4, 2,
    1 and 1/2 times the resolution, put together from the coarsest.

    Args:
        width: Channels of each map.
        outputs: Of each pixel.
        size: Of the answers, in pixels.
        widths: Of the four levels.
        channels: Of what they are put together to.
    """

    levels = 4

    def __init__(
        self,
        width: int,
        outputs: int,
        size: tuple[int, int],
        widths: Sequence[int] = (96, 192, 384, 768),
        channels: int = 256,
    ) -> None:
        super().__init__()
        self.size = size
        one, two, three, four = widths
        self.act_1_postprocess = nn.Sequential(nn.Conv2d(width, one, 1), nn.ConvTranspose2d(one, one, 4, stride=4))
        self.act_2_postprocess = nn.Sequential(nn.Conv2d(width, two, 1), nn.ConvTranspose2d(two, two, 2, stride=2))
        self.act_3_postprocess = nn.Sequential(nn.Conv2d(width, three, 1))
        self.act_4_postprocess = nn.Sequential(nn.Conv2d(width, four, 1), nn.Conv2d(four, four, 3, stride=2, padding=1))
        self.scratch = nn.ModuleDict()
        for number, given in enumerate(widths, start=1):
            self.scratch[f"layer{number}_rn"] = nn.Conv2d(given, channels, 3, padding=1, bias=False)
            self.scratch[f"refinenet{number}"] = Fusion(channels, first=number == 4)
        self.head = nn.Sequential(
            nn.Conv2d(channels, channels // 2, 3, padding=1),
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
            nn.Conv2d(channels // 2, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, outputs, 1),
        )

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """The answer at every pixel."""
        fused: Tensor | None = None
        for number in (4, 3, 2, 1):
            level = getattr(self, f"act_{number}_postprocess")(maps[number - 1])
            level = self.scratch[f"layer{number}_rn"](level)
            if fused is not None and fused.shape[2:] != level.shape[2:]:  # an odd grid was halved
                fused = resized(fused, level.shape[2:])
            fuse = self.scratch[f"refinenet{number}"]
            fused = fuse(level) if fused is None else fuse(fused, level)
        answer: Tensor = self.head(fused)
        return answer if answer.shape[2:] == self.size else resized(answer, self.size)


class UperHead(DenseHead):
    """UPerNet on BEiT's neck (arXiv 2106.08254, code): four blocks' outputs as four levels; in training mode a plain
    convolutional head beside it, whose answers are in ``beside``."""

    levels = 4
    beside: Tensor | None = None

    def __init__(
        self,
        width: int,
        outputs: int,
        size: tuple[int, int],
        patch: int = 16,
        channels: int = 512,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.size = size
        self.neck = FourLevels(width, patch)
        self.decode_head = UperNet([width] * 4, outputs, channels, dropout=dropout)
        self.auxiliary_head = FcnHead(width, outputs, max(1, channels // 2), dropout=dropout)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """The answer at every pixel."""
        levels = self.neck(maps)
        self.beside = resized(self.auxiliary_head(levels[2]), self.size) if self.training else None
        return resized(self.decode_head(levels), self.size)


def _doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)


def quarters(depth: int) -> tuple[int, ...]:
    """Numbers, from 1, of the blocks that end the quarters of an encoder: 3, 6, 9 and 12 of 12.

    Raises:
        ValueError: It has fewer than four blocks.
    """
    if depth < 4:
        raise ValueError(f"this head takes the outputs of four blocks, and the encoder has {depth}; choose another")
    return tuple(math.ceil(depth * quarter / 4) for quarter in (1, 2, 3, 4))


def as_maps(tokens: Float[Tensor, "B N D"], grids: Sequence[tuple[int, int]], used: Sequence[int]) -> Tensor:
    """The tokens of the inputs with these numbers, side by side in channels, on their grid: [B, len(used) D, h, w]."""
    parts = tokens.split([math.prod(grid) for grid in grids], dim=1)
    maps = [parts[number].transpose(1, 2).unflatten(2, grids[number]) for number in used]
    return torch.cat(maps, dim=1)
