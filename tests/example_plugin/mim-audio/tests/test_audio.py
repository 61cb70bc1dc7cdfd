"""The contracts of the parts, and what a spectrogram should be."""

import numpy as np
import pytest
from mim_audio.data import Sounds
from mim_audio.spectrogram import log_mel, mel_filters
from mim_audio.tokenizer import SpectrogramTokenizer
from mim_core import BadSample, Draw, Layout, MimError
from mim_core.testing import (
    DataContract,
    MaskerContract,
    MethodContract,
    PluginContract,
    TokenizerContract,
    keys,
    uncovered,
)
from scipy.io import wavfile


class TestSpectrogram(TokenizerContract):
    part = "audio:spectrogram"
    options = {"size": (12, 8), "patch": (3, 4)}


class TestTimeSpans(MaskerContract):
    part = "audio:time-spans"
    expected_hidden = {(16, 4): 32, (6, 3): 12, (4, 5): 10}
    unsuitable = (Layout.on_grid(5, 4), Layout.on_grid(2, 8), Layout(count=8))


class TestLongTimeSpans(MaskerContract):
    part = "audio:time-spans"
    options = {"span": 4, "ratio": 0.75}
    expected_hidden = {(16, 4): 48, (16,): 12}


class TestSounds(DataContract):
    part = "audio:sounds"
    shapes = {"spectrogram": (1, 32, 16)}
    unsuitable = ({"image": (3, 32, 32)}, {})


class TestPlugin(PluginContract):
    plugin = "audio"


class TestMae(MethodContract):
    recipe = "audio:mae-tiny"


class TestFeatures(MethodContract):
    recipe = "audio:features-tiny"


@pytest.mark.parametrize("kind", ["maskers", "tokenizers", "targets", "data"])
def test_every_part_has_a_contract(kind):
    assert not uncovered(kind, globals().values(), plugin="audio")


def test_all_frequencies_are_hidden_together():
    masker = TestTimeSpans().make_masker()
    hidden = masker(Layout.on_grid(16, 4), Draw(keys(32))).hidden.reshape(32, 16, 4)
    assert (hidden == hidden[:, :, :1]).all()


def sounds(root=None):
    tokenizer = SpectrogramTokenizer(SpectrogramTokenizer.Config(), 8)
    return Sounds(Sounds.Config(root=root), tokenizer.shapes)


def test_a_tone_lies_in_its_band():
    seconds = np.arange(20_000) / 8000
    for hertz in (300, 1000, 2500):
        loudest = log_mel(np.sin(2 * np.pi * hertz * seconds), 8000, 64, 32).mean(axis=0).argmax()
        assert loudest == mel_filters(8000, 512, 32)[:, round(hertz / 8000 * 512)].argmax()


def test_made_tones_follow_from_the_key():
    source = sounds()
    one, same, other = source.read(3, 7), source.read(3, 7), source.read(3, 8)
    assert one["spectrogram"].shape == (1, 64, 32)
    assert (one["spectrogram"] == same["spectrogram"]).all()
    assert (one["spectrogram"] != other["spectrogram"]).any()


def test_recordings(tmp_path):
    wavfile.write(tmp_path / "a.wav", 8000, (np.sin(np.arange(9000)) * 20_000).astype(np.int16))
    (tmp_path / "b.wav").write_text("no sound")
    wavfile.write(tmp_path / "c.wav", 8000, np.full(100, np.nan, np.float32))
    source = sounds(tmp_path)
    assert source.read(0, 1)["spectrogram"].isfinite().all()
    for bad in (1, 2):
        with pytest.raises(BadSample):
            source.read(bad, 1)
    with pytest.raises(MimError, match="no labels"):
        source.labelled("train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(MimError, match=r"no \.wav file"):
        sounds(tmp_path / "empty")
