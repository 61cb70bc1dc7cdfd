"""Strong augmentation for training on labels: timm's RandAugment (arXiv 1909.13719) and random erasing (arXiv
1708.04896), whose draws follow from a sample's key."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mim_core.errors import MimError, one_line
from mim_core.randomness import torch_seed


@contextmanager
def drawn(key: int, stream: str) -> Iterator[None]:
    """Inside, Python's, NumPy's and torch's global generators follow from the key; afterwards they are as before: timm
    draws from these."""
    seed = torch_seed(key, stream)
    python, array = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            random.seed(seed)
            np.random.seed(seed % 2**32)
            torch.default_generator.manual_seed(seed)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(array)


class Strong:
    """RandAugment on pictures, then random erasing of their values.

    Args:
        policy: timm's text, such as "rand-m9-mstd0.5-inc1": two operations of magnitude 9, which varies; empty: none.
        erase: Chance that a box is filled with noise.
        size: Height and width of pictures.
        fill: What lies beyond a picture that was turned or moved, 0 to 255 for each channel.

    Raises:
        MimError: The text is no policy.
    """

    def __init__(self, policy: str, erase: float, size: tuple[int, int], fill: Sequence[int]) -> None:
        from timm.data.auto_augment import rand_augment_transform

        self.erase, self.transform = erase, None
        if not 0 <= erase <= 1:
            raise MimError(f"data: erase must lie in [0, 1], got {erase}.")
        if policy:
            shift = {"translate_const": int(min(size) * 0.45), "img_mean": tuple(fill)}
            try:
                strange = [part for part in policy.split("-")[1:] if not re.fullmatch(r"t\w+|[a-z]+\d+(\.\d+)?", part)]
                if strange:  # timm passes them over
                    raise ValueError(f"{', '.join(map(repr, strange))} is no setting")
                self.transform = rand_augment_transform(policy, shift)
            except Exception as error:  # timm asserts, and raises many kinds
                raise MimError(
                    f"data: rand_augment {policy!r} is no policy of timm's, such as rand-m9-mstd0.5-inc1: "
                    f"{one_line(error) or type(error).__name__}."
                ) from error

    def pictures(self, pictures: Sequence[Any], key: int) -> list[Any]:
        """RGB pictures of PIL, all changed alike: frames of one clip, or one picture."""
        if self.transform is None:
            return list(pictures)
        changed = []
        for picture in pictures:
            with drawn(key, "rand augment"):
                changed.append(self.transform(picture))
        return changed

    def erased(self, values: Tensor, key: int) -> Tensor:
        """Values [C, ..., H, W] from 0 to 255 with a box of noise, in all frames alike, as often as ``erase`` says."""
        if not self.erase:
            return values
        with drawn(key, "erase"):
            if random.random() >= self.erase:
                return values
            height, width = values.shape[-2:]
            for _ in range(10):
                area = random.uniform(0.02, 1 / 3) * height * width
                ratio = float(np.exp(random.uniform(*np.log((0.3, 1 / 0.3)))))
                high, wide = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
                if high < height and wide < width:
                    break
            else:
                return values
            top, left = random.randint(0, height - high), random.randint(0, width - wide)
            noise = torch.randn(values.shape[0], *values.shape[1:-2], high, wide) * 64 + 128
        noisy = values.clone()
        noisy[..., top : top + high, left : left + wide] = noise.clamp(0, 255).to(values.dtype)
        return noisy
