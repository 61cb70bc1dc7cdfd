"""Recordings from a folder, or made tones, as log-mel spectrograms."""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from mim_core import BadSample, DataSource, Labelled, MimError, Picture, make_key, torch_seed
from scipy.io import wavfile
from torch.utils.data import Dataset

from mim_audio.spectrogram import log_mel
from mim_audio.tones import KINDS, RATE, tone


class Sounds(DataSource):
    """Spectrograms [1, frames, mels]; the tokenizer says how many frames and mels."""

    @dataclass(frozen=True)
    class Config:
        """Options of the sounds."""

        root: Path | None = None
        """A folder of .wav files, nested as it likes; none makes tones."""
        items: int = 960
        """Tones to train on, where there is no folder."""

    def __init__(self, config, shapes):
        super().__init__(config, shapes)
        if set(shapes) != {"spectrogram"}:
            raise ValueError(f"sounds are spectrograms; the tokenizer asks for {', '.join(shapes)}")
        self.files = sorted(config.root.rglob("*.wav")) if config.root is not None else []
        if config.root is not None and not self.files:
            raise MimError(f"There is no .wav file in {config.root}. Name a folder of recordings: --data.root FOLDER")

    def __len__(self):
        return len(self.files) or self.config.items

    def read(self, index, key):
        """One spectrogram; a recording is cut where the key says."""
        seed = torch_seed(key, "sounds")
        if not self.files:
            return self.made(index % len(KINDS), seed)
        path = self.files[index]
        try:
            rate, wave = wavfile.read(path)
        except (OSError, ValueError, EOFError) as error:
            raise BadSample(str(path), f"no readable .wav file: {error}") from None
        if wave.dtype.kind != "f":
            wave = wave.astype(np.float64) / np.iinfo(wave.dtype).max
        wave = wave.reshape(len(wave), -1).mean(axis=1)
        if not len(wave) or not np.isfinite(wave).all():
            raise BadSample(str(path), "it holds no sound, or values that are not finite")
        start = np.random.default_rng(seed).integers(0, max(1, len(wave) - rate))
        return self.spectrogram(wave[start:], rate)

    def made(self, kind, seed):
        """A made tone."""
        return self.spectrogram(tone(kind, np.random.default_rng(seed)), RATE)

    def spectrogram(self, wave, rate):
        """The sample."""
        _, frames, mels = self.shapes["spectrogram"]
        return {"spectrogram": torch.from_numpy(log_mel(wave, rate, frames, mels))[None]}

    def name_of(self, index):
        """The recording's path, or which tone."""
        return str(self.files[index]) if self.files else f"tone {index}"

    def labelled(self, split):
        """Made tones by kind."""
        if self.files:
            raise MimError(
                "These recordings have no labels. Judge the features on the made tones: leave --data.root out."
            )
        count, seed = (240, 1) if split == "train" else (120, 2)
        return Labelled(split, torch.arange(count) % len(KINDS), KINDS, Tones(self, count, seed))

    def picture(self, modality, values):
        """Time to the right, frequency upwards."""
        from matplotlib.image import imsave

        content = io.BytesIO()
        imsave(content, values[0].float().cpu().numpy().T[::-1], cmap="magma", vmin=-1.5, vmax=1.5, format="png")
        return Picture("image/png", content.getvalue())

    def plan(self):
        """What the plan and the report say."""
        return {"data": f"{len(self):,} {'recordings' if self.files else 'made tones'}"}


class Tones(Dataset):
    """A labelled split of made tones, the same each time."""

    def __init__(self, source, count, seed):
        self.source, self.keys = source, make_key(seed, 0, torch.arange(count)).tolist()

    def __len__(self):
        return len(self.keys)

    def __getitem__(self, index):
        return self.source.made(index % len(KINDS), torch_seed(self.keys[index], "sounds"))
