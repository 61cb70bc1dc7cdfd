"""Normalisation by means and standard deviations that users state for their data."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mim_core.errors import MimError
from mim_core.text import counted

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's training images by colour, of values in [0, 1]."""


def usual_statistics(
    mean: Sequence[float] | None, std: Sequence[float] | None, channels: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation as they were stated. What was not is ImageNet's of as many channels, else 0.5."""
    colour = channels == len(IMAGENET_MEAN)
    half = (0.5,) * channels
    return tuple(mean or (IMAGENET_MEAN if colour else half)), tuple(std or (IMAGENET_STD if colour else half))


class Normalisation:
    """Brings the values of each channel to mean 0 and deviation 1 over the data, on the device where a batch is.

    Attributes:
        mean: float32 [C, 1, ...], of values in [0, 1], with a 1 for each axis behind the channels.
        std: The same, of the standard deviation.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], channels: int, axes: int) -> None:
        """Checks the numbers, see `check_statistics`.

        Args:
            mean: One number for each channel.
            std: The same.
            channels: How many there are.
            axes: How many axes follow that of the channels.
        """
        check_statistics(mean, std, channels)
        self.mean, self.std = (torch.tensor(values).reshape(-1, *[1] * axes) for values in (mean, std))
        self._copies: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Mean and deviation on a device; copied there once, because a copy waits for the device."""
        if device not in self._copies:
            self._copies[device] = (self.mean.to(device), self.std.to(device))
        return self._copies[device]

    def of_bytes(self, values: Tensor) -> Tensor:
        """Values from 0 to 255 [..., C, ...], normalised; float32."""
        mean, std = self.on(values.device)
        return (values.float() / 255 - mean) / std

    def undone(self, values: Tensor) -> Tensor:
        """Normalised values as they were in [0, 1]."""
        mean, std = self.on(values.device)
        return values * std + mean

    def to_bytes(self, values: Tensor) -> Tensor:
        """Normalised values as uint8 on the CPU, to be shown; those outside [0, 255] at its ends."""
        pixels = (values.float().cpu() * self.std + self.mean) * 255
        return pixels.round().clamp(0, 255).to(torch.uint8)


def check_statistics(mean: Sequence[float], std: Sequence[float], channels: int) -> None:
    """Refuses a mean and a standard deviation that do not fit values in [0, 1].

    Raises:
        ValueError: There are not as many as channels, one is not finite, or a deviation is not positive.
        MimError: They look like those of values from 0 to 255; the error has what was meant.
    """
    if len(mean) != channels or len(std) != channels or not all(value > 0 for value in std):
        raise ValueError(
            f"mean {_listed(mean)} and std {_listed(std)} need {counted(channels, 'value')} each, and std must be "
            f"positive. Such as: --data.mean {' '.join(['0.5'] * channels)} --data.std {' '.join(['0.5'] * channels)}"
        )
    if not all(map(math.isfinite, (*mean, *std))):
        raise ValueError(f"mean {tuple(mean)} and std {tuple(std)} must be finite")
    if max(map(abs, mean)) <= 1 and max(std) <= 1:
        return
    texts = []
    for name, values in (("mean", mean), ("std", std)):
        scaled = [value / 255 for value in values] if max(map(abs, values)) > 1 else values
        texts.append(f"--data.{name} {' '.join(f'{value:.4g}' for value in scaled)}")
    raise MimError(
        f"mean {_listed(mean)} and std {_listed(std)} are of values in [0, 1]; these look like values from 0 to 255. "
        f"Divide them by 255: {' '.join(texts)}"
    )


def _listed(values: Sequence[float]) -> str:
    return " ".join(f"{value:g}" for value in values)
