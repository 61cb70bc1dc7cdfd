"""Views of an image beside the plain one: near it or elsewhere, in other colours, smaller; and where each lies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mim_core import View, keys_of, torch_seed
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from mim_image.pixels import bands_of

Box = tuple[float, float, float, float]
"""Top, left, bottom, right, as shares of the image; a mirrored view has its left beyond its right."""


class ImageViews:
    """Makes the views that a method asks for. All draws follow from the item's key.

    A second view ("target") lies near the first (CMAE, arXiv 2207.13532, section 3.4 "pixel shifting augmentation", and
    its code): one random crop, larger than the input by the shift and a pixel, and a flip, are of both; the first is
    its upper left corner, the second begins up to ``view_shift`` pixels below and to the right of it. Or it is a crop
    of its own (MoCo, DINO). It is changed in colour and blurred; with ``view_changes`` "all" the first is too. Local
    views are small crops (DINO's multi-crop).

    Args:
        config: Options of `Images`.
        size: Height and width of a view.
        channels: Of the image; grey and other bands keep their saturation and hue.
        views: What the method asks for.

    Raises:
        ValueError: An option is out of range, or a local view larger than the image.
    """

    def __init__(self, config: Any, size: tuple[int, int], channels: int, views: tuple[View, ...]) -> None:
        _check(config, size)
        asked = {view.kind: view for view in views}
        self.config, self.size, self.channels = config, size, channels
        self.pair, self.target, self.place = "pair" in asked, "target" in asked, "place" in asked
        self.shift = config.view_shift if self.target and config.view_place == "shift" else 0
        self.local = asked.get("local")
        if self.local is not None:
            self.local.small({"image": (channels, *size)})
        strength = config.view_colour
        own = (strength, strength, strength, strength / 4) if channels == 3 else (strength, strength)
        changes: list[Any] = [v2.RandomApply([v2.ColorJitter(*own)], 0.8)] if channels in (1, 3) else []
        self.changes = v2.Compose([*changes, v2.RandomGrayscale(config.view_grey if channels == 3 else 0.0)])

    def __call__(self, image: Image.Image, key: int) -> dict[str, Tensor]:
        """The entries of an item: its image and the views of it; of a pair, two of each."""
        if not self.pair:
            return self._one(image, key)
        first, second = (self._one(image, each) for each in keys_of(key, "pair", 2))
        return {name: torch.stack([first[name], second[name]]) for name in first}

    def _one(self, image: Image.Image, key: int) -> dict[str, Tensor]:
        views: dict[str, Tensor] = {}
        second: tuple[Image.Image, Box] | None
        if self.target and self.config.view_place == "shift":
            first, second = self._near(image, key)
        else:
            first = self._crop(image, key, "augment")
            second = self._crop(image, key, "second view") if self.target else None
        if self.config.view_changes == "all":
            with _drawn(key, "first view"):
                first = (self._changed(first[0]), first[1])
        self._add(views, "image", *first)
        if second is not None:
            with _drawn(key, "second colours"):
                # a shifted view is changed already, by the draws of its place
                changed = second[0] if self.config.view_place == "shift" else self._changed(second[0])
            self._add(views, "image_target", changed, second[1])
        if self.local is not None:
            views["image_local"] = torch.stack(
                [self._small(image, key, f"local view {n}") for n in range(self.local.count)]
            )
        return views

    def _add(self, views: dict[str, Tensor], name: str, view: Image.Image, box: Box) -> None:
        views[name] = torch.from_numpy(bands_of(view, self.channels))
        if self.place:
            views[f"{name}.place"] = torch.tensor(box).reshape(2, 2)

    def _near(self, image: Image.Image, key: int) -> tuple[tuple[Image.Image, Box], tuple[Image.Image, Box]]:
        """The two views of one larger crop, the second changed."""
        more = self.shift + 1 if self.shift else 0
        height, width = self.size[0] + more, self.size[1] + more
        with _drawn(key, "augment"):
            whole, box = self._cropped(image, (height, width), self.config.crop)
        with _drawn(key, "second view"):
            top, left = torch.randint(0, self.shift + 1, (2,)).tolist()
            second = self._changed(_cut(whole, top, left, self.size))
        places = [_inside(box, (height, width), y, x, self.size) for y, x in ((0, 0), (top, left))]
        return (_cut(whole, 0, 0, self.size), places[0]), (second, places[1])

    def _crop(self, image: Image.Image, key: int, what: str) -> tuple[Image.Image, Box]:
        with _drawn(key, what):
            return self._cropped(image, self.size, self.config.crop)

    def _small(self, image: Image.Image, key: int, what: str) -> Tensor:
        assert self.local is not None
        with _drawn(key, what):
            height, width = self.local.size
            view, _ = self._cropped(image, (height, width), self.config.local_crop)
            return torch.from_numpy(bands_of(self._changed(view), self.channels))

    def _cropped(
        self, image: Image.Image, size: tuple[int, int], share: tuple[float, float]
    ) -> tuple[Image.Image, Box]:
        """A random crop of this size, perhaps mirrored, and where it lies."""
        shape = size[1] / size[0]
        ratio = [3 / 4 * shape, 4 / 3 * shape]
        y, x, high, wide = v2.RandomResizedCrop.get_params(image, list(share), ratio)
        bicubic = v2.InterpolationMode.BICUBIC
        view = v2.functional.resized_crop(image, y, x, high, wide, list(size), bicubic, antialias=True)
        top, left, bottom, right = (
            y / image.height,
            x / image.width,
            (y + high) / image.height,
            (x + wide) / image.width,
        )
        if torch.rand(1) < self.config.flip:
            return v2.functional.horizontal_flip(view), (top, right, bottom, left)
        return view, (top, left, bottom, right)

    def _changed(self, image: Image.Image) -> Image.Image:
        image = self.changes(image)
        if torch.rand(()) < self.config.view_blur:
            deviation = float(0.1 + 1.9 * torch.rand(()))
            side = max(3, 2 * round(2 * deviation) + 1)
            image = v2.functional.gaussian_blur(image, [side, side], [deviation, deviation])
        if self.config.view_solarize and torch.rand(()) < self.config.view_solarize:
            image = v2.functional.solarize(image, 128)
        return image


@contextmanager
def _drawn(key: int, what: str) -> Iterator[None]:
    """torchvision draws from the global generator: from here on by the key."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(torch_seed(key, what))
        yield


def _cut(image: Image.Image, top: int, left: int, size: tuple[int, int]) -> Image.Image:
    return image.crop((left, top, left + size[1], top + size[0]))


def _inside(box: Box, whole: tuple[int, int], top: int, left: int, size: tuple[int, int]) -> Box:
    """Where a part of a crop lies in the image, in pixels of the crop."""
    y, x = (box[2] - box[0]) / whole[0], (box[3] - box[1]) / whole[1]
    return (box[0] + y * top, box[1] + x * left, box[0] + y * (top + size[0]), box[1] + x * (left + size[1]))


def _check(config: Any, size: tuple[int, int]) -> None:
    """Raises ValueError where an option is out of range."""
    low, high = 0, min(size) * 4
    if not low <= config.view_shift <= high:
        raise ValueError(f"view_shift must lie in {low} to {high} pixels, got {config.view_shift}")
    if not 0 <= config.view_colour <= 2:
        raise ValueError(f"view_colour must lie in [0, 2], got {config.view_colour}")
    for name in ("view_grey", "view_blur", "view_solarize"):
        if not 0 <= getattr(config, name) <= 1:
            raise ValueError(f"{name} must lie in [0, 1], got {getattr(config, name)}")
    small, large = config.local_crop
    if not 0 < small <= large <= 1:
        raise ValueError(f"local_crop must be two rising shares in (0, 1], got {config.local_crop}")
