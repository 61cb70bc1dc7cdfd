"""Feature pyramids out of an encoder of one resolution: ViTDet's and BEiT's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from mim_core.parts.norm import BatchNorm


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation over the channels of each place of a map [B, C, H, W]."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """The map, each place with mean 0 and deviation 1, scaled and shifted."""
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class NormedConv(nn.Conv2d):
    """A convolution without bias, and layer normalisation over its channels; no activation."""

    def __init__(self, given: int, channels: int, side: int) -> None:
        super().__init__(given, channels, side, padding=side // 2, bias=False)
        self.norm = ChannelNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """The normalised map."""
        return self.norm(super().forward(x))


class SimplePyramid(nn.Module):
    """ViTDet's simple feature pyramid (arXiv 2203.16527, section 3): maps of 4, 2, 1 and 1/2 times the resolution, all
    from the last one, and every second pixel of the smallest.

    Args:
        width: Channels of the encoder.
        channels: Of every level.
        finest: Number of the finest level: 2, or 3 for heads that have no use for "p2".
    """

    def __init__(self, width: int, channels: int = 256, finest: Literal[2, 3] = 2) -> None:
        super().__init__()

        def ends(given: int) -> list[nn.Module]:
            return [NormedConv(given, channels, 1), NormedConv(channels, channels, 3)]

        half, quarter = width // 2, width // 4
        self.finest = finest
        if finest == 2:
            up = nn.ConvTranspose2d(width, half, 2, stride=2)
            more = nn.ConvTranspose2d(half, quarter, 2, stride=2)
            self.simfp_2 = nn.Sequential(up, ChannelNorm(half), nn.GELU(), more, *ends(quarter))
        self.simfp_3 = nn.Sequential(nn.ConvTranspose2d(width, half, 2, stride=2), *ends(half))
        self.simfp_4 = nn.Sequential(*ends(width))
        self.simfp_5 = nn.Sequential(nn.MaxPool2d(2, 2), *ends(width))

    def forward(self, x: Float[Tensor, "B D h w"]) -> dict[str, Tensor]:
        """Levels "p2" to "p6", the finest first."""
        levels = {f"p{number}": getattr(self, f"simfp_{number}")(x) for number in range(self.finest, 6)}
        return {**levels, "p6": F.max_pool2d(levels["p5"], kernel_size=1, stride=2)}


class FourLevels(nn.Module):
    """BEiT's neck for segmentation (arXiv 2106.08254, code): outputs of four blocks, brought to a quarter, an eighth, a
    sixteenth and a thirty-second of the picture's resolution, at full width.

    Args:
        width: Channels of the encoder.
        patch: Pixels along a patch: 16 or 8.

    Raises:
        ValueError: Another size of patches.
    """

    def __init__(self, width: int, patch: int = 16) -> None:
        super().__init__()
        if patch not in (8, 16):
            raise ValueError(f"the neck is for patches of 16 or 8 pixels, not {patch}")

        def up() -> nn.Module:
            return nn.ConvTranspose2d(width, width, 2, stride=2)

        if patch == 16:
            self.fpn1 = nn.Sequential(up(), BatchNorm(width), nn.GELU(), up())
            self.fpn2 = nn.Sequential(up())
            self.fpn3: nn.Module = nn.Identity()
            self.fpn4 = nn.MaxPool2d(2, 2)
        else:
            self.fpn1, self.fpn2 = nn.Sequential(up()), nn.Sequential(nn.Identity())
            self.fpn3, self.fpn4 = nn.MaxPool2d(2, 2), nn.MaxPool2d(4, 4)

    def forward(self, maps: Sequence[Float[Tensor, "B D h w"]]) -> list[Tensor]:
        """The four levels, the finest first."""
        first, second, third, fourth = maps
        return [self.fpn1(first), self.fpn2(second), self.fpn3(third), self.fpn4(fourth)]
