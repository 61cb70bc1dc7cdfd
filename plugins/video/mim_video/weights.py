"""The tokenizer that importers build."""

from __future__ import annotations

from mim_core import Part


def tubelets(size: tuple[int, ...], patch: tuple[int, ...], channels: int) -> Part:
    """The tokenizer."""
    return Part.of("video:tubelet", size=size, patch=patch, channels=channels)
