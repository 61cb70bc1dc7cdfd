"""A convolutional autoencoder with a masked block behind its encoder: trained on normal pictures alone, it rebuilds
abnormal ones badly. A host for SSPCAB and SSMCTB that needs no other project."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from mim_core import SSMCTB, SSPCAB, DataSource, Features, Mask, MaskedBlock, Method, Outcome, Parts, Sample, Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F

from mim_image.anomaly_data import refuse_unlabelled


class ConvolutionalAutoencoder(Method):
    """Halves the picture at every stage, lets a masked block predict the last map from the surroundings of each place,
    and rebuilds the picture. The loss is the squared error of the picture, and that of the block by its weight (SSPCAB,
    arXiv 2111.09099; SSMCTB, arXiv 2209.12148). Units are places of the last map.

    Args:
        tokenizer: Says the pictures' size; its patch is two to the power of the number of stages.
        widths: Channels of the stages.
        block: Behind the last one; None for a plain autoencoder.
        weight: Factor of the block's loss.

    Raises:
        ValueError: The patch does not fit the stages.
    """

    @dataclass(frozen=True)
    class Config:
        """Options of the autoencoder."""

        widths: tuple[int, ...] = (32, 64, 128)
        """Channels of the stages, each of which halves the picture; the last is what is kept of it."""
        block: Literal["ssmctb", "sspcab", "none"] = "ssmctb"
        """The masked block behind the encoder."""
        kernel: int = 1
        """Side of the corners that the block sees."""
        dilation: int = 1
        """Places between a corner and the middle."""
        loss: Literal["mse", "huber"] = "mse"
        """The block's: mse as in its published code, huber as in the paper of SSMCTB."""
        weight: float = 0.1
        """Factor of the block's loss."""

    @classmethod
    def build(cls, config: Any, parts: Parts) -> ConvolutionalAutoencoder:
        """From the run's tokenizer, whose embedding is left out.

        Raises:
            ValueError: There is no width, one is below 1, or the weight is negative or not finite.
        """
        tokenizer: Tokenizer = parts.make("tokenizer", 1)
        tokenizer.leave_values()
        if not config.widths or min(config.widths) < 1:
            raise ValueError(f"widths must be positive numbers, got {config.widths}")
        if not 0 <= config.weight < float("inf"):
            raise ValueError(f"weight must be finite and not negative, got {config.weight}")
        options = {"kernel": config.kernel, "dilation": config.dilation, "loss": config.loss}
        kinds: Mapping[str, type[Any]] = {"ssmctb": SSMCTB, "sspcab": SSPCAB}
        block = None if config.block == "none" else kinds[config.block](config.widths[-1], 2, **options)
        return cls(tokenizer, config.widths, block, config.weight)

    def __init__(
        self, tokenizer: Tokenizer, widths: Sequence[int], block: MaskedBlock | None = None, weight: float = 0.1
    ) -> None:
        super().__init__()
        if set(tokenizer.shapes) != {"image"}:
            raise ValueError(f"the autoencoder takes images; this run has {', '.join(tokenizer.shapes)}")
        channels, height, width = tokenizer.shapes["image"]
        patch = 2 ** len(widths)
        grid = tokenizer.layout.grid or ()
        if tuple(grid) != (height // patch, width // patch) or height % patch or width % patch:
            raise ValueError(
                f"{len(widths)} stages halve the picture to 1/{patch}: the tokenizer's patch must be {patch} {patch}, "
                f"its size multiples of {patch}; got a grid of {grid} for {height} x {width}"
            )
        self.tokenizer, self.block, self.weight = tokenizer, block, weight
        self.down = nn.Sequential(*(_stage(a, b, 2) for a, b in zip((channels, *widths), widths, strict=False)))
        back = [*reversed(widths[:-1]), widths[0]]
        self.up = nn.ModuleList(_stage(a, b, 1) for a, b in zip(reversed(widths), back, strict=True))
        self.last = nn.Conv2d(widths[0], channels, 3, padding=1)

    def prepare(
        self, sample: Sample, mask: Mask | Tensor | Mapping[str, Tensor] | None = None, *, step: int = 0,
        progress: float = 0.0,
    ) -> dict[str, Tensor]:  # fmt: skip
        """The pictures; nothing is drawn.

        Raises:
            ValueError: A mask is given, or pictures of another size.
        """
        if mask is not None:
            raise ValueError("the autoencoder hides nothing of the picture; leave the mask out")
        self.tokenizer.split(sample)  # refuses other sizes
        return {"image": sample["image"].detach()}

    def check(self, source: DataSource) -> None:
        """Whether all pictures are known to be normal."""
        refuse_unlabelled(source)

    def _rebuilt(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The picture again, [B, C, H, W]; the last map, and what the block makes of it."""
        code = self.down(image)
        seen = code if self.block is None else self.block.predicted(code)
        x = seen
        for stage in self.up:
            x = stage(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return self.last(x), code, seen

    def forward(self, prepared: dict[str, Tensor]) -> Outcome:
        """The loss; predictions are the patches of the picture, [B, N, values]."""
        image = prepared["image"]
        rebuilt, code, seen = self._rebuilt(image)
        parts = {"main": F.mse_loss(rebuilt.float(), image.float())}
        loss = parts["main"]
        if self.block is not None:
            parts["block"] = self.block.loss_of(seen, code)
            loss = loss + self.weight * parts["block"]
        rows, columns = seen.shape[2:]
        patches = rebuilt.unflatten(2, (rows, -1)).unflatten(4, (columns, -1)).permute(0, 2, 4, 3, 5, 1)
        return Outcome(loss, parts, {"main": patches.flatten(3).flatten(1, 2)}, seen.flatten(2).mT)

    def encode(self, sample: Sample) -> Features:
        """What the block makes of the last map: a token for each place."""
        image = self.prepare(sample)["image"]
        tokens = self._rebuilt(image)[2].flatten(2).mT
        return Features(tokens, tokens.mean(dim=1), tokens[:, :0])

    @torch.no_grad()
    def score_maps(self, sample: Sample, covers: int) -> Tensor:
        """The squared error of each pixel, a mean over channels, [B, H, W]."""
        image = self.prepare(sample)["image"]
        return (self._rebuilt(image)[0].float() - image.float()).square().mean(dim=1)


def _stage(channels: int, width: int, stride: int) -> nn.Sequential:
    """A convolution, a norm that does not couple samples, and a ReLU."""
    groups = next(count for count in (8, 4, 2, 1) if width % count == 0)
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, stride, padding=1, bias=False), nn.GroupNorm(groups, width), nn.ReLU()
    )
