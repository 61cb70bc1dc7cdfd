"""Heads that give a class to every pixel from levels of a pyramid: UPerNet's, and the plain convolutional one beside it
(arXiv 1807.10221; FCN, arXiv 1411.4038; as mmsegmentation has both)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from mim_core.parts.norm import BatchNorm

POOLS = (1, 2, 3, 6)
"""Sides of the grids that the coarsest level is pooled to."""
IGNORED = 255
"""The id of a pixel that has no class."""


def resized(x: Tensor, size: Sequence[int]) -> Tensor:
    """A map [B, C, h, w] at another size: bilinear, pixels as areas."""
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


class ConvUnit(nn.Module):
    """A convolution without bias, batch normalisation and ReLU."""

    def __init__(self, given: int, channels: int, side: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(given, channels, side, padding=side // 2, bias=False)
        self.batch_norm = BatchNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """The map."""
        return F.relu(self.batch_norm(self.conv(x)))


class UperNet(nn.Module):
    """UPerNet's head: a pooled pyramid on the coarsest level, a feature pyramid down to the finest, and a class for
    each of its places.

    Args:
        widths: Channels of the levels, the finest first.
        classes: Of the answers.
        channels: Inside.
        pools: Sides of the pooled grids.
        dropout: Share of channels that training leaves out in front of the classes; mmsegmentation has 0.1.
    """

    def __init__(
        self,
        widths: Sequence[int],
        classes: int,
        channels: int = 512,
        pools: Sequence[int] = POOLS,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        *finer, last = widths
        self.psp_modules = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(side), ConvUnit(last, channels, 1)) for side in pools
        )
        self.bottleneck = ConvUnit(last + len(pools) * channels, channels, 3)
        self.lateral_convs = nn.ModuleList(ConvUnit(width, channels, 1) for width in finer)
        self.fpn_convs = nn.ModuleList(ConvUnit(channels, channels, 3) for _ in finer)
        self.fpn_bottleneck = ConvUnit(len(widths) * channels, channels, 3)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(channels, classes, 1)

    def forward(self, levels: Sequence[Tensor]) -> Float[Tensor, "B K h w"]:
        """Logits at the resolution of the finest level."""
        last = levels[-1]
        pooled = [resized(pool(last), last.shape[2:]) for pool in self.psp_modules]
        laterals = [lateral(level) for lateral, level in zip(self.lateral_convs, levels, strict=False)]
        laterals.append(self.bottleneck(torch.cat([last, *pooled], dim=1)))
        for number in range(len(laterals) - 1, 0, -1):
            laterals[number - 1] = laterals[number - 1] + resized(laterals[number], laterals[number - 1].shape[2:])
        outs = [conv(level) for conv, level in zip(self.fpn_convs, laterals, strict=False)] + [laterals[-1]]
        size = outs[0].shape[2:]
        whole = torch.cat([outs[0], *(resized(out, size) for out in outs[1:])], dim=1)
        logits: Tensor = self.classifier(self.dropout(self.fpn_bottleneck(whole)))
        return logits


class FcnHead(nn.Module):
    """Convolutions on one level, and a class for each place: what is trained beside UPerNet, with 0.4 of its loss.

    Args:
        width: Channels of the level.
        classes: Of the answers.
        channels: Inside.
        count: Convolutions.
        dropout: As `UperNet`'s.
    """

    def __init__(self, width: int, classes: int, channels: int = 256, count: int = 1, dropout: float = 0.1) -> None:
        super().__init__()
        self.convs = nn.Sequential(*(ConvUnit(width if i == 0 else channels, channels, 3) for i in range(count)))
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(channels if count else width, classes, 1)

    def forward(self, x: Float[Tensor, "B D h w"]) -> Float[Tensor, "B K h w"]:
        """Logits at the level's resolution."""
        logits: Tensor = self.classifier(self.dropout(self.convs(x)))
        return logits


def pixel_loss(
    logits: Float[Tensor, "B K h w"], labels: Int[Tensor, "B H W"], ignored: int = IGNORED
) -> Float[Tensor, ""]:
    """The mean cross-entropy over the pixels that have a class, with logits brought to their resolution; 0 where none
    has one."""
    if logits.shape[2:] != labels.shape[1:]:
        logits = resized(logits, labels.shape[1:])
    total = F.cross_entropy(logits.float(), labels, ignore_index=ignored, reduction="sum")
    return total / (labels != ignored).sum().clamp(min=1)
