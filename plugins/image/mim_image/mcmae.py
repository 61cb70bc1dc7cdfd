"""MCMAE's encoder (ConvMAE): two stages of masked convolutions on all of the image, then a transformer on what is
visible."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from jaxtyping import Float
from mim_core import (
    Encoded,
    Encoder,
    Layout,
    Mask,
    MimError,
    PositionKind,
    check_sizes,
    init_transformer,
    make_position,
    take,
)
from timm.layers import DropPath
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

EPS = 1e-5
"""Of the normalisation layers in patch embeddings and convolution blocks; those of the transformer have 1e-6."""


class PatchEmbedding(nn.Module):
    """A convolution without overlap, a layer norm over the channels, GELU: maps [R, C, H, W] to smaller ones."""

    def __init__(self, channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, stride=patch)
        self.norm = nn.LayerNorm(width, eps=EPS)

    def forward(self, x: Float[Tensor, "R C H W"]) -> Float[Tensor, "R D h w"]:
        """The smaller map."""
        x = self.norm(self.proj(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return F.gelu(x)


class ConvolutionMlp(nn.Module):
    """Two 1 x 1 convolutions with GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(width, hidden, 1), nn.Conv2d(hidden, width, 1)

    def forward(self, x: Float[Tensor, "R C H W"]) -> Float[Tensor, "R C H W"]:
        """A map of the same shape."""
        return self.fc2(F.gelu(self.fc1(x)))


class ConvolutionBlock(nn.Module):
    """A block of the first two stages: norm, 1 x 1, depth-wise 5 x 5, 1 x 1 on the residual; norm and MLP on another.

    What is hidden is set to zero in front of the depth-wise convolution, so nothing of it reaches a visible place
    (MCMAE, arXiv 2205.03892, section 3.2 "masked convolution").
    """

    def __init__(self, width: int, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=EPS), nn.LayerNorm(width, eps=EPS)
        self.conv1, self.conv2 = nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 1)
        self.attn = nn.Conv2d(width, width, 5, padding=2, groups=width)
        self.mlp = ConvolutionMlp(width, int(width * mlp_ratio))
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Float[Tensor, "R C H W"], visible: Float[Tensor, "R 1 H W"]) -> Float[Tensor, "R C H W"]:
        """A map of the same shape; ``visible`` is 1 or 0."""
        inner = self.conv1(self._normed(self.norm1, x)) * visible
        x = x + self.drop_path(self.conv2(self.attn(inner)))
        out: Tensor = x + self.drop_path(self.mlp(self._normed(self.norm2, x)))
        return out

    @staticmethod
    def _normed(norm: nn.Module, x: Tensor) -> Tensor:
        out: Tensor = norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return out


class McmaeEncoder(Encoder):
    """MCMAE, first named ConvMAE (arXiv 2205.03892): stages at strides 4 and 8 see the whole map under masked
    convolutions, the third sees visible units of stride 16, and the first two are added to its output.

    Takes the values of all units, squares of (product of ``patches``) pixels, so hidden and visible units are known at
    every stride. No class token; sine-cosine positions at the third stage alone.
    """

    @dataclass(frozen=True)
    class Config:
        """Options of the MCMAE encoder."""

        widths: tuple[int, int, int] = (256, 384, 768)
        """Channels of the three stages; the last is the token width D."""
        depths: tuple[int, int, int] = (2, 2, 11)
        """Blocks of each stage."""
        patches: tuple[int, int, int] = (4, 2, 2)
        """By how much each stage is smaller than the one before it; a unit is their product, in pixels."""
        heads: int = 12
        """Attention heads of the third stage."""
        mlp_ratios: tuple[float, float, float] = (4.0, 4.0, 4.0)
        """Hidden width of the MLPs over the width, by stage."""
        channels: int = 3
        """Of the image."""
        drop_path: float = 0.0
        """Stochastic depth, rising linearly to this rate in the last block of all."""
        position: PositionKind = "sincos"
        """Positions of the third stage."""

    sees: Literal["visible", "all"] = "visible"
    takes: Literal["tokens", "values"] = "values"

    def __init__(self, config: Config, layout: Layout) -> None:
        super().__init__()
        check_sizes(config.widths[2], config.depths[2], config.heads)
        if min(config.widths) < 1 or min(config.depths) < 1 or min(config.patches) < 1 or config.channels < 1:
            raise ValueError("widths, depths, patches and channels must all be 1 or more")
        if layout.grid is None or len(layout.grid) != 2:
            raise ValueError(f"MCMAE needs patches of an image on a grid of two axes; this grid is {layout.grid}")
        self.config, self.width = config, config.widths[2]
        total = sum(config.depths)
        rates = [config.drop_path * i / max(1, total - 1) for i in range(total)]
        first, second, third = config.widths
        one, two, three = config.patches
        self.patch_embed1 = PatchEmbedding(config.channels, first, one)
        self.patch_embed2 = PatchEmbedding(first, second, two)
        self.patch_embed3 = PatchEmbedding(second, third, three)
        self.patch_embed4 = nn.Linear(third, third)
        ends = (config.depths[0], config.depths[0] + config.depths[1])
        self.stage1 = self._convolutions(0, rates[: ends[0]])
        self.stage2 = self._convolutions(1, rates[ends[0] : ends[1]])
        norm: Any = partial(nn.LayerNorm, eps=1e-6)
        ratio = config.mlp_ratios[2]
        self.blocks = nn.Sequential(
            *(Block(third, config.heads, ratio, qkv_bias=True, drop_path=rate, norm_layer=norm)
              for rate in rates[ends[1] :])
        )  # fmt: skip
        self.stage1_output_decode = nn.Conv2d(first, third, two * three, stride=two * three)
        self.stage2_output_decode = nn.Conv2d(second, third, three, stride=three)
        self.norm = norm(third)
        init_transformer(self)
        nn.init.xavier_uniform_(self.patch_embed3.proj.weight.view(third, -1))
        self.position = make_position(config.position, layout, third)

    def _convolutions(self, stage: int, rates: list[float]) -> nn.ModuleList:
        width, ratio = self.config.widths[stage], self.config.mlp_ratios[stage]
        return nn.ModuleList(ConvolutionBlock(width, ratio, rate) for rate in rates)

    @classmethod
    def width_for(cls, config: Any) -> int:
        """That of the last stage."""
        return int(config.widths[2])

    def forward(self, tokens: Float[Tensor, "B N p p C"], layout: Layout, mask: Mask) -> Encoded:
        """The visible units, from the values of all."""
        first, second, third = self.stages(tokens, layout, mask)
        x = self.patch_embed4(third.flatten(2).transpose(1, 2))
        if self.position is not None:
            x = x + self.position(layout)
        x = self.blocks(take(x, mask.kept_ids))
        for convolution, stage in ((self.stage1_output_decode, first), (self.stage2_output_decode, second)):
            x = x + take(convolution(stage).flatten(2).transpose(1, 2), mask.kept_ids)
        return Encoded(self.norm(x), x.new_zeros(len(x), 0, self.width))

    def stages(self, values: Tensor, layout: Layout, mask: Mask) -> tuple[Tensor, Tensor, Tensor]:
        """Maps of the first two stages after their last blocks, and the third's input, [R, C, h, w] each."""
        x = self._image(values, layout).repeat_interleave(len(mask.hidden) // len(values), dim=0)
        height, width = layout.grid or (0, 0)
        visible = (~mask.hidden).to(x.dtype).reshape(-1, 1, height, width)
        _, two, three = self.config.patches
        x = self.patch_embed1(x)
        for block in self.stage1:
            x = block(x, _grown(visible, two * three))
        first, x = x, self.patch_embed2(x)
        for block in self.stage2:
            x = block(x, _grown(visible, three))
        return first, x, self.patch_embed3(x)

    def _image(self, values: Tensor, layout: Layout) -> Tensor:
        """Unit values [B, N, p, p, C] as images [B, C, H, W]."""
        unit = math.prod(self.config.patches)
        if values.shape[2:] != (unit, unit, self.config.channels):
            raise ValueError(
                f"units are {tuple(values.shape[2:])}, and these stages need {unit} x {unit} pixels of "
                f"{self.config.channels} channels: --tokenizer.patch {unit} {unit}"
            )
        height, width = layout.grid or (0, 0)
        x = values.unflatten(1, (height, width)).permute(0, 5, 1, 3, 2, 4)
        return x.reshape(len(values), -1, height * unit, width * unit)

    def timm_model(self) -> tuple[str, dict[str, Any]]:
        """Refused.

        Raises:
            MimError: Always: timm has no such encoder.
        """
        raise MimError("timm has no such encoder; the run's weights are what there is.")

    def timm_weights(self) -> dict[str, Tensor]:
        """Refused.

        Raises:
            MimError: Always: timm has no such encoder.
        """
        raise MimError("timm has no such encoder; the run's weights are what there is.")


def _grown(x: Tensor, factor: int) -> Tensor:
    """Each place as a square of places."""
    return x.repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3)
