"""Two views of an image: nearly the same place, the second in other colours."""

from __future__ import annotations

from typing import Any

import torch
from mim_core import randomness
from PIL import Image
from torchvision.transforms import v2


class SecondView:
    """Makes a pair of views (CMAE, arXiv 2207.13532, section 3.4 "pixel shifting augmentation", and its code).

    One random crop, larger than the input by the shift and a pixel, and a flip, are of both. The first view is its
    upper left corner; the second begins up to ``view_shift`` pixels below and to the right of it, and is changed in
    colour and blurred. All draws follow from the item's key.

    Args:
        config: Options of `Images`.
        size: Height and width of a view.
        channels: Of the image; grey and other bands keep their saturation and hue.
    """

    def __init__(self, config: Any, size: tuple[int, int], channels: int) -> None:
        low, high = 0, min(size) * 4
        if not low <= config.view_shift <= high:
            raise ValueError(f"view_shift must lie in {low} to {high} pixels, got {config.view_shift}")
        if not 0 <= config.view_colour <= 2:
            raise ValueError(f"view_colour must lie in [0, 2], got {config.view_colour}")
        for name in ("view_grey", "view_blur"):
            if not 0 <= getattr(config, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(config, name)}")
        self.size, self.shift, self.blur = size, config.view_shift, config.view_blur
        more = config.view_shift + 1 if config.view_shift else 0
        height, width = size[0] + more, size[1] + more
        shape = width / height
        crop = v2.RandomResizedCrop(
            (height, width), config.crop, (3 / 4 * shape, 4 / 3 * shape), v2.InterpolationMode.BICUBIC, antialias=True
        )
        self.both = v2.Compose([crop, v2.RandomHorizontalFlip(config.flip)])
        colour = channels == 3
        strength = config.view_colour
        own = (strength, strength, strength, strength / 4) if colour else (strength, strength)
        jitter = v2.ColorJitter(*own)
        changes: list[Any] = [v2.RandomApply([jitter], 0.8)] if channels in (1, 3) else []
        self.changes = v2.Compose([*changes, v2.RandomGrayscale(config.view_grey if colour else 0.0)])

    def __call__(self, image: Image.Image, key: int) -> list[tuple[str, Image.Image]]:
        """The entries of a sample: its image, and the second view."""
        with torch.random.fork_rng(devices=[]):  # torchvision draws from the global generator
            torch.default_generator.manual_seed(randomness.torch_seed(key, "augment"))
            whole = self.both(image)
            torch.default_generator.manual_seed(randomness.torch_seed(key, "second view"))
            top, left = torch.randint(0, self.shift + 1, (2,)).tolist()
            second = self._changed(self._cut(whole, top, left))
        return [("image", self._cut(whole, 0, 0)), ("image_target", second)]

    def _cut(self, image: Image.Image, top: int, left: int) -> Image.Image:
        height, width = self.size
        return image.crop((left, top, left + width, top + height))

    def _changed(self, image: Image.Image) -> Image.Image:
        image = self.changes(image)
        if torch.rand(()) < self.blur:
            deviation = float(0.1 + 1.9 * torch.rand(()))
            side = max(3, 2 * round(2 * deviation) + 1)
            image = v2.functional.gaussian_blur(image, [side, side], [deviation, deviation])
        return image
