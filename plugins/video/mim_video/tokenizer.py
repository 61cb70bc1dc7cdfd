"""Tubelets of a clip: the core's patch tokenizer with a clip's names and defaults."""

from __future__ import annotations

from dataclasses import dataclass

from mim_core import PatchTokenizer, times


class TubeletTokenizer(PatchTokenizer):
    """Takes ``sample["video"]`` [B, C, T, H, W], normalised; values are [B, N, t, p, p, C] in (frame, row, column,
    channel) order. The weight is that of VideoMAE's three-dimensional convolution."""

    @dataclass(frozen=True)
    class Config(PatchTokenizer.Config):
        """Options of the tubelet tokenizer."""

        modality: str = "video"
        """The sample's entry that is split."""
        size: tuple[int, ...] = (16, 224, 224)
        """Frames of a clip, and the height and width in pixels that they are cropped to."""
        patch: tuple[int, ...] = (2, 16, 16)
        """Frames, height and width of a tubelet; they must divide the size."""
        channels: int = 3
        """3 reads colour, 1 grey."""

    def __init__(self, config: Config, width: int) -> None:
        for name, value in (("size", config.size), ("patch", config.patch)):
            if len(value) != 3:
                raise ValueError(f"{name} should be three numbers: frames, height, width; got {times(value)}")
        super().__init__(config, width)
