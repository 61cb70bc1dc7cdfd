"""What a hidden tubelet's answer should be: its pixels, normalised as VideoMAE and MAE-ST do."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from mim_core import DataSource, Layout, Lesson, Mask, Patches, Sample, Target, Tokenizer, ValueTarget, usual_statistics
from torch import Tensor

EPS = 1e-6


class CubeTarget(Target):
    """A tubelet's pixels in [0, 1], standardised channel by channel (VideoMAE, arXiv 2203.12602, section 4 and its
    code).

    (x - mean) / (std + 1e-6) over the positions of the tubelet, for each channel alone; the deviation is unbiased and
    the small number stands outside the root. Values are in position-major, channel-last order, as the tokenizer has
    them. The data's own mean and std are undone first, which matters only to the small number, and to raw pixels.
    """

    mean: Tensor
    std: Tensor

    @dataclass(frozen=True)
    class Config:
        """Options of the cube target."""

        normalize: bool = True
        """Standardise each channel of each tubelet; otherwise the pixels in [0, 1] are predicted."""
        mean: tuple[float, ...] | None = None
        """The mean that the data subtracts, per channel or one for all; the same as --data.mean, or the run does not
        start. None is the data's default: ImageNet's for three channels, 0.5 otherwise."""
        std: tuple[float, ...] | None = None
        """The deviation that the data divides by; the same as --data.std. None: ImageNet's, or 0.5."""

    def __init__(self, config: Config, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.config = config
        self.unit_shape = tokenizer.unit_shape
        if len(self.unit_shape) < 2:
            raise ValueError(f"units must have positions and channels, these are {self.unit_shape or 'without values'}")
        if tokenizer.ids:
            raise ValueError(f"the units of {', '.join(tokenizer.ids)} are names of classes or words, no pixels")
        *positions, channels = self.unit_shape
        self.positions = int(torch.Size(positions).numel())
        self.size = self.positions * channels
        self.needs_truth = config.normalize
        if config.normalize and self.positions < 2:
            raise ValueError("a tubelet of a single position cannot be normalised; set normalize to false")
        mean, std = usual_statistics(config.mean, config.std, channels)
        for name, values in (("mean", mean), ("std", std)):
            if len(values) not in (1, channels):
                raise ValueError(f"{name} has {len(values)} values for {channels} channels; give one, or one for each")
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32), persistent=False)
        if min(std) <= 0:
            raise ValueError(f"std must be positive, got {std}")

    def check(self, source: DataSource) -> None:
        """Refuses data that subtract another mean, or divide by another deviation, than this target undoes. Data
        without ``mean`` and ``std`` (tensors of one value per channel) are not looked at.

        Raises:
            ValueError: The means or the deviations differ; names the option.
        """
        for name in ("mean", "std"):
            theirs, own = getattr(source, name, None), getattr(self, name).flatten().tolist()
            if not isinstance(theirs, Tensor):
                continue
            asked = theirs.flatten().tolist()
            if asked != (own if len(own) > 1 else own * len(asked)):
                values = [" ".join(f"{value:.6g}" for value in each) for each in (own, asked)]
                raise ValueError(
                    f"the {name} of the target is {values[0]}, that of the data {values[1]}; they must be the same: "
                    f"--target.{name} {values[1]}"
                )

    def _pixels(self, patches: Patches, mask: Mask) -> Float[Tensor, "R Q P C"]:
        """The queried tubelets in [0, 1], float32."""
        assert isinstance(patches.values, Tensor)
        values = mask.take(patches.values, mask.query_ids).float()
        return values.flatten(2, -2) * self.std + self.mean

    def make(
        self, sample: Sample, patches: Patches, mask: Mask, lesson: Lesson | None = None
    ) -> Float[Tensor, "R Q size"]:
        """The queried tubelets' pixels, float32."""
        pixels = self._pixels(patches, mask)
        if self.config.normalize:
            mean, scale = _statistics(pixels)
            pixels = (pixels - mean) / scale
        return pixels.flatten(2)

    def loss(self, prediction: Float[Tensor, "R Q size"], values: Float[Tensor, "R Q size"]) -> Float[Tensor, "R Q"]:
        """Squared error, mean over the values of a tubelet."""
        return (prediction.float() - values).square().mean(dim=-1)

    def to_input_space(self, prediction: Float[Tensor, "R Q size"], patches: Patches, mask: Mask) -> Tensor:
        """Undoes the standardisation with the true tubelet's statistics, and gives back the data's mean and std."""
        pixels = prediction.float().unflatten(2, (self.positions, -1))
        if self.config.normalize:
            mean, scale = _statistics(self._pixels(patches, mask))
            pixels = pixels * scale + mean
        return ((pixels - self.mean) / self.std).reshape(*prediction.shape[:2], *self.unit_shape)


def _statistics(pixels: Float[Tensor, "R Q P C"]) -> tuple[Tensor, Tensor]:
    """Mean and scale of each channel of each tubelet."""
    var, mean = torch.var_mean(pixels, dim=2, keepdim=True, correction=1)
    return mean, var.sqrt() + EPS


class FrameTarget(ValueTarget):
    """Some frames of each tubelet (MAE-ST, arXiv 2205.09113, section 3 and its code), normalised as in MAE: all values
    together, the small number inside the root.

    The frames are those nearest below evenly spaced places from the clip's first frame to its last: with 16 frames in
    tubelets of two, frames 0, 2, ... 12 and 15.
    """

    @dataclass(frozen=True)
    class Config(ValueTarget.Config):
        """Options of the frame target."""

        frames: int = 1
        """Frames of each tubelet that are predicted."""

    config: Config

    def __init__(self, config: Config, tokenizer: Tokenizer) -> None:
        super().__init__(config, tokenizer)
        if len(self.unit_shape) != 4:
            raise ValueError(f"units must be tubelets [frames, height, width, channels], these are {self.unit_shape}")
        self.tubelet, self.whole = self.unit_shape[0], self.unit_shape
        if not 1 <= config.frames <= self.tubelet:
            raise ValueError(f"frames must be 1 to the tubelet's {self.tubelet}, got {config.frames}")
        self.size = self.size // self.tubelet * config.frames
        self.unit_shape = (config.frames, *self.unit_shape[1:])

    def _chosen(self, layout: Layout, device: torch.device) -> Int[Tensor, "T F"]:
        """Which frames of the tubelets at each time are predicted, counted from the tubelet's first."""
        if layout.grid is None:
            raise ValueError("frames of tubelets need units on a grid with time first")
        times, frames = layout.grid[0], self.config.frames
        asked = torch.arange(times * frames, device=device)
        chosen = asked * (times * self.tubelet - 1) // max(1, times * frames - 1)
        return chosen.reshape(times, frames) - self.tubelet * torch.arange(times, device=device)[:, None]

    def _frames(self, patches: Patches, mask: Mask) -> Patches:
        """The patches with the predicted frames alone."""
        assert isinstance(patches.values, Tensor)
        assert patches.layout.grid is not None
        values = patches.values
        chosen = self._chosen(patches.layout, values.device).repeat_interleave(
            patches.layout.count // patches.layout.grid[0], dim=0
        )
        index = chosen.reshape(1, *chosen.shape, *(1 for _ in self.unit_shape[1:]))
        index = index.expand(values.shape[0], -1, -1, *values.shape[3:])
        return Patches(values.gather(2, index), patches.layout, patches.aux)

    def make(
        self, sample: Sample, patches: Patches, mask: Mask, lesson: Lesson | None = None
    ) -> Float[Tensor, "R Q size"]:
        """The queried tubelets' frames, float32."""
        return super().make(sample, self._frames(patches, mask), mask, lesson)

    def to_input_space(self, prediction: Float[Tensor, "R Q size"], patches: Patches, mask: Mask) -> Tensor:
        """Whole tubelets, each frame shown as the predicted one before it."""
        frames = super().to_input_space(prediction, self._frames(patches, mask), mask)
        shown = torch.arange(self.tubelet, device=frames.device) * self.config.frames // self.tubelet
        return frames.index_select(2, shown)
