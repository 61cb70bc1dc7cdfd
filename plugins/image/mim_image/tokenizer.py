"""Patches of an image: the core's patch tokenizer with an image's names and defaults."""

from __future__ import annotations

from dataclasses import dataclass

from mim_core import PatchTokenizer


class ImagePatchTokenizer(PatchTokenizer):
    """Takes ``sample["image"]`` [B, C, H, W], normalised; values are [B, N, p, p, C] in (row, column, channel)
    order."""

    @dataclass(frozen=True)
    class Config(PatchTokenizer.Config):
        """Options of the image patch tokenizer."""

        modality: str = "image"
        """The sample's entry that is split."""
        size: tuple[int, ...] = (224, 224)
        """Height and width in pixels that images are cropped to; one number for a square."""
        patch: tuple[int, ...] = (16, 16)
        """Height and width of a patch in pixels; they must divide the size."""
        channels: int = 3
        """3 reads colour, 1 grey, 4 colour and opacity."""
