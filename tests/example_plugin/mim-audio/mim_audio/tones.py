"""A bank of made tones: six kinds at any pitch, by a formula each."""

import numpy as np

KINDS = ("pure", "string", "reed", "bell", "rising", "falling")
RATE = 8000
SECONDS = 2.1


def tone(kind, generator):
    """A waveform, float64 [RATE * SECONDS]: pitch, onset, length, loudness and noise are the generator's."""
    seconds = np.arange(int(RATE * SECONDS)) / RATE
    pitch = 200 * 2 ** generator.uniform(0, 1.5)
    start, length, level = generator.uniform(0, 0.5), generator.uniform(0.6, 1.4), generator.uniform(0.2, 1)
    age = seconds - start
    shape = {"bell": np.exp(-4 * np.maximum(age, 0) / length)}.get(
        KINDS[kind], np.minimum(1, (start + length - seconds) * 20)
    )
    loud = level * np.clip(shape, 0, 1) * np.clip(age * 50, 0, 1)
    bend = {"rising": 1.0, "falling": -1.0}.get(KINDS[kind], 0.0)
    phase = 2 * np.pi * pitch * (age + bend * age**2 / (2 * length) * 0.6)
    ratios, strengths = {
        "string": (range(1, 9), [1 / n for n in range(1, 9)]),  # all harmonics
        "reed": (range(1, 12, 2), [1 / n for n in range(1, 12, 2)]),  # the odd ones
        "bell": ((1, 2.76, 5.4, 8.93), (1, 0.7, 0.5, 0.3)),  # a bar's, which are no multiples
    }.get(KINDS[kind], ((1,), (1,)))
    wave = sum(strength * np.sin(ratio * phase) for ratio, strength in zip(ratios, strengths, strict=True))
    return loud * wave + 0.01 * generator.standard_normal(len(seconds))
