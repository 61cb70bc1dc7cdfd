"""From a waveform to a log-mel spectrogram."""

import functools

import numpy as np
from scipy import signal

FLOOR = 1e-5  # of the power, before the logarithm: silence is -11.5


@functools.cache
def mel_filters(rate, window, count):
    """Triangles of equal width on the mel scale, 2595 log10(1 + f / 700) (O'Shaughnessy, 1987): [count, window // 2 +
    1]."""
    top = 2595 * np.log10(1 + rate / 2 / 700)
    corners = 700 * (10 ** (np.linspace(0, top, count + 2) / 2595) - 1)
    frequencies = np.fft.rfftfreq(window, 1 / rate)[None]
    low, middle, high = corners[:-2, None], corners[1:-1, None], corners[2:, None]
    return np.clip(np.minimum((frequencies - low) / (middle - low), (high - frequencies) / (high - middle)), 0, None)


def log_mel(wave, rate, frames, mels, window=512):
    """float32 [frames, mels] of a waveform, which is cut or padded with silence to the frames.

    Roughly centred and scaled: (log power + 6) / 4.
    """
    hop = window // 2
    wave = np.pad(wave, (0, max(0, (frames + 1) * hop - len(wave))))[: (frames + 1) * hop]
    _, _, spectrum = signal.stft(wave, rate, "hann", window, window - hop, boundary=None, padded=False)
    power = (np.abs(spectrum.T) ** 2) @ mel_filters(rate, window, mels).T
    return ((np.log(power * window + FLOOR) + 6) / 4).astype(np.float32)
