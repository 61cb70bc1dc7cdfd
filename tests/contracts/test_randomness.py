"""Draws against whole-number arithmetic in plain Python."""

import hashlib
import math

import pytest
import torch
from mim_core import randomness

MASK = (1 << 64) - 1
STEP = 0x9E3779B97F4A7C15
INTEGERS = [0, 1, 2, 63, 1 << 31, (1 << 62) + 12345, (1 << 63) - 1, -1, -2, -(1 << 63), 0x1234567890ABCDEF]


def plain_mix(x):
    """SplitMix64 (Steele, Lea and Flood 2014, figure 16) on integers of any size."""
    z = (x + STEP) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def plain_name(name):
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def plain_bits(key, stream, count):
    start = plain_mix((key & MASK) ^ plain_name(stream))
    return [plain_mix(start + i * STEP) for i in range(count)]


def unsigned(tensor):
    return [value & MASK for value in tensor.flatten().tolist()]


def test_mix_is_splitmix64():
    assert unsigned(randomness.mix(torch.tensor(INTEGERS))) == [plain_mix(x & MASK) for x in INTEGERS]


def test_known_outputs_of_splitmix64():
    """The first outputs for seed 1234567, as published with the generator's reference code."""
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    seeds = [(1234567 + i * STEP) & MASK for i in range(4)]
    signed = torch.tensor([s - (1 << 64) if s >> 63 else s for s in seeds])
    assert unsigned(randomness.mix(signed)) == published


def test_make_key():
    keys = randomness.make_key(7, 3, torch.tensor([0, 1, 99]), 2)
    for key, index in zip(unsigned(keys), [0, 1, 99], strict=True):
        assert key == plain_mix(plain_mix(plain_mix(plain_mix(7) + 3) + index) + 2)


def test_keys_of_all_coordinates_differ():
    index = torch.arange(50)
    every = [randomness.make_key(s, e, index, r) for s in (0, 1, -1) for e in range(5) for r in range(3)]
    assert torch.cat(every).unique().numel() == 3 * 5 * 3 * 50


@pytest.mark.parametrize("stream", ["mask", "crop", ""])
def test_bits(stream):
    found = randomness.bits(torch.tensor(INTEGERS), stream, 5)
    for row, key in zip(found, INTEGERS, strict=True):
        assert unsigned(row) == plain_bits(key, stream, 5)


def test_uniform():
    key = torch.arange(2000)
    draws = randomness.uniform(key, "u", 10)
    assert draws.dtype == torch.float64
    assert draws[3].tolist() == [(b >> 11) / (1 << 53) for b in plain_bits(3, "u", 10)]
    assert 0 <= draws.min() < 0.001
    assert 0.999 < draws.max() < 1
    assert abs(float(draws.mean()) - 0.5) < 5 * math.sqrt(1 / 12 / draws.numel())


def test_the_largest_uniform_draw_is_below_one(monkeypatch):
    monkeypatch.setattr(randomness, "bits", lambda key, stream, count: torch.full((len(key), count), -1))
    assert float(randomness.uniform(torch.zeros(1, dtype=torch.int64), "u", 1)) == 1 - 2**-53


def test_permutation():
    found = randomness.permutation(torch.arange(6), "order", 1568)
    assert torch.equal(found.sort(dim=1).values, torch.arange(1568).expand(6, -1))
    signed = [b - (1 << 64) if b >> 63 else b for b in plain_bits(4, "order", 1568)]
    assert found[4].tolist() == sorted(range(1568), key=lambda i: signed[i])
    assert found.unique(dim=0).shape[0] == 6


def test_permutations_are_even():
    """All 6 orders of 3 come about equally often in 6,000: each within five standard deviations of 1,000."""
    orders = randomness.permutation(torch.arange(6000), "order", 3)
    counts = (orders * torch.tensor([9, 3, 1])).sum(dim=1).unique(return_counts=True)[1]
    assert len(counts) == 6
    assert (counts - 1000).abs().max() < 5 * math.sqrt(6000 * (1 / 6) * (5 / 6))


def test_streams_do_not_meet():
    key = torch.arange(100)
    assert not torch.isin(randomness.bits(key, "mask", 20), randomness.bits(key, "mask.fill", 20)).any()


def test_torch_seed_fits_a_generator():
    seeds = {randomness.torch_seed(key, "augment") for key in INTEGERS}
    assert len(seeds) == len(INTEGERS)
    for key in INTEGERS:
        assert randomness.torch_seed(key, "augment") == plain_mix((key & MASK) ^ plain_name("augment")) & (MASK >> 1)
        torch.Generator().manual_seed(randomness.torch_seed(key, "augment"))
