"""Masked blocks: a layer for networks of others that predicts every place of its input from the corners around it.

A masked convolution hides a cross around each place and sees only the corners behind it; what it predicts is weighted
channel by channel, takes the place of the input, and is held against the input by a loss of the block's own. What the
block has learned of normal data it predicts well, and an anomaly badly. `mim_core.with_block` puts one behind a named
module of any network.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from mim_core.errors import MimError

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"mse": F.mse_loss, "huber": F.huber_loss}
"""By name; Huber's with delta 1."""

SPACES = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
"""Convolutions by the number of axes."""


class MaskedConvolution(nn.Module):
    """A convolution whose kernel is masked but for its corners, of side ``kernel`` each, which lie ``dilation`` + 1
    places and more away on every axis (SSPCAB, arXiv 2111.09099, section 3).

    Args:
        channels: Of input and output.
        axes: 1, 2 or 3, such as rows and columns, or frames before them.
        kernel: Side of a corner, in places.
        dilation: Places between a corner and the middle on each axis.

    Raises:
        ValueError: A size below 1, or another number of axes.
    """

    def __init__(self, channels: int, axes: int = 2, kernel: int = 1, dilation: int = 1) -> None:
        super().__init__()
        for name, value, least in (("channels", channels, 1), ("kernel", kernel, 1), ("dilation", dilation, 0)):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        if axes not in SPACES:
            raise ValueError(f"a masked convolution has 1, 2 or 3 axes, not {axes}")
        self.axes, self.border, self.pad = axes, kernel + 2 * dilation + 1, kernel + dilation
        self.sides = tuple(itertools.product((-1, 1), repeat=axes))
        """Where each corner lies, axis by axis: -1 before the middle, 1 behind it."""
        self.corners = nn.ModuleList(SPACES[axes](channels, channels, kernel) for _ in self.sides)

    def forward(self, x: Float[Tensor, "B C *size"]) -> Float[Tensor, "B C *size"]:
        """The sum over the corners; zeros beyond the edges."""
        padded = F.pad(x, (self.pad, self.pad) * self.axes)
        total = torch.zeros_like(x)
        for side, corner in zip(self.sides, self.corners, strict=True):
            part = padded
            for axis, place in enumerate(side, start=2):
                start = 0 if place < 0 else self.border
                part = part.narrow(axis, start, padded.shape[axis] - self.border)
            total = total + corner(part)
        return total


class SqueezeExcitation(nn.Module):
    """A weight in (0, 1) for each channel from the means of all (Hu et al., arXiv 1709.01507, section 3).

    Args:
        channels: How many.
        reduction: The layer between is so many times narrower, and at least one wide.

    Raises:
        ValueError: ``reduction`` is below 1.
    """

    def __init__(self, channels: int, reduction: int = 8) -> None:
        super().__init__()
        if reduction < 1:
            raise ValueError(f"reduction must be at least 1, got {reduction}")
        narrow = max(1, channels // reduction)
        self.layers = nn.Sequential(nn.Linear(channels, narrow), nn.ReLU(), nn.Linear(narrow, channels), nn.Sigmoid())

    def forward(self, means: Float[Tensor, "B C"]) -> Float[Tensor, "B C"]:
        """The weights."""
        weights: Tensor = self.layers(means)
        return weights


class ChannelTransformer(nn.Module):
    """A weight in (0, 1) for each channel by self-attention between channels: the mean of each is a token (SSMCTB,
    arXiv 2209.12148, section 3). One layer of attention without norm, feed-forward part or residual, as the published
    PyTorch code has it.

    Args:
        channels: How many; each has a learned position.
        width: Of a token.
        heads: Of the attention.
        head_width: Of one head.

    Raises:
        ValueError: A width or the number of heads is below 1.
    """

    def __init__(self, channels: int, width: int = 64, heads: int = 5, head_width: int = 64) -> None:
        super().__init__()
        if min(width, heads, head_width) < 1:
            raise ValueError(f"width, heads and head_width must be at least 1, got {width}, {heads}, {head_width}")
        self.heads, self.head_width = heads, head_width
        self.project = nn.Linear(1, width)
        self.position = nn.Parameter(torch.randn(1, channels, width))
        self.qkv = nn.Linear(width, 3 * heads * head_width, bias=False)
        self.out = nn.Linear(heads * head_width, width)

    def forward(self, means: Float[Tensor, "B C"]) -> Float[Tensor, "B C"]:
        """The weights."""
        tokens = self.project(means[..., None]) + self.position
        qkv = self.qkv(tokens).unflatten(-1, (3, self.heads, self.head_width)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2]).transpose(1, 2).flatten(2)
        weights: Tensor = self.out(mixed).mean(dim=-1).sigmoid()
        return weights


class MaskedBlock(nn.Module):
    """A masked convolution through a ReLU, weighted channel by channel. Input and output are of one shape.

    In training mode with gradients each call keeps its loss, the distance of output and input; the gradient flows into
    both. `take_loss` hands them over.

    Args:
        gate: Gives channels [B, C] their weights.
        convolution: Sees the corners.
        loss: "mse", as the published code has it, or "huber", as the paper of SSMCTB says.

    Raises:
        ValueError: There is no such loss.
    """

    most = 64
    """Losses that may wait to be taken: more are a mistake."""

    def __init__(self, gate: nn.Module, convolution: MaskedConvolution, loss: str = "mse") -> None:
        super().__init__()
        if loss not in LOSSES:
            raise ValueError(f"loss must be one of {', '.join(LOSSES)}, got {loss!r}")
        self.gate, self.convolution, self.loss = gate, convolution, loss
        self.losses: list[Tensor] = []

    @property
    def channels(self) -> int:
        """Of input and output."""
        return int(self.convolution.corners[0].weight.shape[0])  # type: ignore[index]

    def predicted(self, x: Tensor) -> Tensor:
        """[B, C, ...] to the same shape; no loss is kept.

        Raises:
            ValueError: Another number of axes or channels.
        """
        axes = self.convolution.axes
        if x.ndim != axes + 2 or x.shape[1] != self.channels:
            raise ValueError(
                f"this masked block takes [B, {self.channels}, {axes} axes], got {list(x.shape)}; build it with "
                "channels and axes that fit"
            )
        seen = self.convolution(x).relu()
        weights = self.gate(seen.flatten(2).mean(dim=2))
        output: Tensor = seen * weights.reshape(*weights.shape, *[1] * axes)
        return output

    def forward(self, x: Tensor) -> Tensor:
        """The same, and in training mode the loss is kept."""
        output = self.predicted(x)
        if self.training and torch.is_grad_enabled():
            loss = self.loss_of(output, x)
            # a checkpointed part is computed again in the backward pass, the same way: no call of the network's
            if torch._C._current_graph_task_id() == -1:
                self._keep(loss)
        return output

    def loss_of(self, output: Tensor, x: Tensor) -> Tensor:
        """The distance of output and input, a mean over all values, in float32 at least."""
        kind = torch.promote_types(x.dtype, torch.float32)
        return LOSSES[self.loss](output.to(kind), x.to(kind))

    def _keep(self, loss: Tensor) -> None:
        if len(self.losses) >= self.most:
            raise MimError(
                f"{len(self.losses)} losses of a masked block were never taken, and each keeps a whole batch: add "
                "block_loss(model) to the loss after every forward pass, or call model.eval()."
            )
        self.losses.append(loss)

    def take_loss(self) -> Tensor | None:
        """The sum of the losses since it was last called; None where there are none."""
        losses, self.losses = self.losses, []
        return torch.stack(losses).sum() if losses else None

    def __getstate__(self) -> dict[str, object]:
        """Losses that wait are of no use to a copy."""
        return {**self.__dict__, "losses": []}


class SSPCAB(MaskedBlock):
    """The self-supervised predictive convolutional attentive block (arXiv 2111.09099): channels are weighted by squeeze
    and excitation. Of three axes it has eight corners.

    Args:
        channels: Of input and output.
        axes: 1, 2 or 3.
        kernel: Side of a corner.
        dilation: Places between a corner and the middle.
        loss: "mse" or "huber".
        reduction: Of the squeeze.
    """

    def __init__(
        self,
        channels: int,
        axes: int = 2,
        kernel: int = 1,
        dilation: int = 1,
        loss: str = "mse",
        reduction: int = 8,
    ) -> None:
        convolution = MaskedConvolution(channels, axes, kernel, dilation)
        super().__init__(SqueezeExcitation(channels, reduction), convolution, loss)


class SSMCTB(MaskedBlock):
    """The self-supervised masked convolutional transformer block (arXiv 2209.12148): channels are weighted by attention
    between them. Of three axes it has eight corners.

    Args:
        channels: Of input and output.
        axes: 1, 2 or 3.
        kernel: Side of a corner.
        dilation: Places between a corner and the middle.
        loss: "mse" or "huber".
        width: Of a channel's token.
        heads: Of the attention.
        head_width: Of one head.
    """

    def __init__(
        self,
        channels: int,
        axes: int = 2,
        kernel: int = 1,
        dilation: int = 1,
        loss: str = "mse",
        width: int = 64,
        heads: int = 5,
        head_width: int = 64,
    ) -> None:
        convolution = MaskedConvolution(channels, axes, kernel, dilation)
        super().__init__(ChannelTransformer(channels, width, heads, head_width), convolution, loss)
