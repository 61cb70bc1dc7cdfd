"""Means and standard deviations that users state for their data."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mim_core.errors import MimError
from mim_core.text import counted


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
