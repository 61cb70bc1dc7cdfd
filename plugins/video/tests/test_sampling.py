"""Which frames a clip takes: by stride, by rate on irregular times, from equal parts; short files; test-time views."""

import pytest
import torch
from mim_video import sampling

IRREGULAR = torch.tensor([0.5, 0.54, 0.6, 0.9, 1.0, 1.5, 1.51, 1.52, 2.0, 2.5], dtype=torch.float64)


def stride(count, frames, step, place, short="last"):
    return sampling.by_stride(count, frames, step, place, short).tolist()


def fps(frames, rate, place, short="last", times=IRREGULAR):
    return sampling.by_fps(times, frames, rate, place, short).tolist()


def test_stride():
    assert stride(20, 4, 3, 0.0) == [0, 3, 6, 9]
    assert stride(20, 4, 3, 1.0) == [10, 13, 16, 19]
    assert stride(20, 4, 3, 0.5) == [5, 8, 11, 14]
    assert stride(10, 4, 3, 0.99) == [0, 3, 6, 9]  # the clip just fits


def test_stride_is_fair_to_all_starts():
    starts = [stride(12, 4, 3, i / 300)[0] for i in range(300)]
    assert torch.tensor(starts).bincount().tolist() == [100, 100, 100]


def test_short_files():
    assert stride(5, 4, 3, 0.7) == [0, 3, 4, 4]
    assert stride(5, 4, 3, 0.7, "loop") == [0, 3, 1, 4]
    assert stride(1, 4, 3, 0.7) == stride(1, 4, 3, 0.7, "loop") == [0, 0, 0, 0]


def test_rate_on_irregular_times():
    # moments 0.5, 1.0, 1.5, 2.0: the frames shown nearest to them, not every so many
    assert fps(4, 2.0, 0.0) == [0, 4, 5, 8]
    assert fps(4, 2.0, 1.0) == [4, 5, 8, 9]
    # moments 0.75, 1.25, 1.75, 2.25: the first and the last are as close to two frames, and take the earlier
    assert fps(4, 2.0, 0.5) == [2, 4, 7, 8]


def test_rate_moments_are_met_as_closely_as_frames_allow():
    for place in torch.linspace(0, 1, 11).tolist():
        chosen = fps(5, 3.0, place)
        moments = 0.5 + place * (2.0 - 4 / 3) + torch.arange(5, dtype=torch.float64) / 3
        best = (IRREGULAR[None] - moments[:, None]).abs().min(dim=1).values
        assert torch.allclose((IRREGULAR[chosen] - moments).abs(), best)


def test_rate_beyond_the_files_own_repeats_frames():
    regular = torch.arange(4, dtype=torch.float64) / 10
    assert fps(7, 20.0, 0.0, times=regular) == [0, 0, 1, 1, 2, 2, 3]


def test_rate_of_short_files():
    regular = torch.arange(4, dtype=torch.float64) / 10 + 7
    assert fps(6, 10.0, 0.3, times=regular) == [0, 1, 2, 3, 3, 3]
    assert fps(6, 10.0, 0.3, "loop", times=regular) == [0, 1, 2, 3, 0, 1]
    assert fps(3, 10.0, 0.3, "loop", times=regular[:1]) == fps(3, 10.0, 0.3, times=regular[:1]) == [0, 0, 0]


def segments(count, *places):
    return sampling.by_segments(count, torch.tensor(places, dtype=torch.float64)).tolist()


def test_segments():
    assert segments(12, 0.5, 0.5, 0.5, 0.5) == [1, 4, 7, 10]
    assert segments(12, 0.0, 0.0, 0.0, 0.0) == [0, 3, 6, 9]
    assert segments(12, 0.999, 0.0, 0.4, 1.0) == [2, 3, 7, 11]
    assert segments(2, 0.5, 0.5, 0.5, 0.5) == [0, 0, 1, 1]
    draws = torch.rand(50, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for row in draws:
        found = sampling.by_segments(31, row)
        assert ((found >= torch.arange(7) * 31 // 7) & (found <= (torch.arange(7) + 1) * 31 / 7)).all()


def test_window():
    assert sampling.window(IRREGULAR, 0.54, 1.5) == (1, 5)
    assert sampling.window(IRREGULAR, 0.0, 99.0) == (0, 10)
    assert sampling.window(IRREGULAR, 3.0, 4.0) == (10, 10)


@pytest.mark.parametrize(("times", "sides"), [(5, 3), (2, 3), (1, 1)])
def test_views(times, sides):
    found = sampling.views(times, sides)
    assert len(set(found)) == times * sides
    if times == sides == 1:
        assert found == [(0.5, 0.5)]
    else:
        assert {side for _, side in found} == {0.0, 0.5, 1.0}
        assert (min(found)[0], max(found)[0]) == (0.0, 1.0)
