"""Patches of a spectrogram: the core's patch tokenizer with sound's names and defaults."""

from dataclasses import dataclass

from mim_core import PatchTokenizer


class SpectrogramTokenizer(PatchTokenizer):
    """Takes ``sample["spectrogram"]`` [B, 1, frames, mels]; the grid is (time, frequency)."""

    @dataclass(frozen=True)
    class Config(PatchTokenizer.Config):
        """Options of the spectrogram tokenizer."""

        modality: str = "spectrogram"
        """The sample's entry that is cut."""
        size: tuple[int, ...] = (64, 32)
        """Frames and mel bands."""
        patch: tuple[int, ...] = (4, 8)
        """Frames and mel bands of a patch."""
        channels: int = 1
        """Recording channels."""
