"""What the operations refuse, and coordinates of any size."""

import numpy as np
import pytest
import torch
from mim_core.errors import MimError
from mim_pointcloud.geometry import farthest_points, nearest, within
from mim_pointcloud.tokenizer import GroupTokenizer


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_farthest_points_of_what_is_not_finite(bad):
    x = torch.rand(3, 20, 3)
    x[1, 7, 2] = bad
    with pytest.raises(ValueError, match="cloud 1 has NaN or infinities"):
        farthest_points(x, 4)


@pytest.mark.parametrize("scale", [2.0**-130, 2.0**-80, 2.0**80, 2.0**126])
def test_farthest_points_of_any_scale(scale):
    x = torch.randint(1, 2**10, (3, 50, 3)) / 2**10
    other = (x * scale).contiguous()
    assert farthest_points(other, 20).tolist() == farthest_points(x, 20).tolist()
    wide = x.double() * (scale**6 if abs(np.log2(scale)) > 100 else scale)
    assert farthest_points(wide, 20).tolist() == farthest_points(x, 20).tolist()
    mixed = torch.stack([x[0], other[1], x[2]])
    assert farthest_points(mixed, 20).tolist() == farthest_points(x, 20).tolist()
    assert farthest_points(torch.zeros(1, 5, 3), 3).tolist() == [[0, 0, 0]]


def test_within_of_no_points():
    with pytest.raises(ValueError, match="without points"):
        within(torch.rand(2, 4, 3), torch.rand(2, 0, 3), 1.0, 3)


def test_start_of_any_whole_number():
    x = torch.rand(2, 9, 3)
    expected = farthest_points(x, 4, 5).tolist()
    for start in (np.int64(5), np.int32(5), torch.tensor([5, 5], dtype=torch.int32), torch.tensor([5, 5])):
        assert farthest_points(x, 4, start).tolist() == expected
    with pytest.raises(ValueError, match="whole numbers"):
        farthest_points(x, 4, torch.tensor([5.0, 5.0]))


@pytest.mark.parametrize("ops", ["auto", "torch", "fpsample"])
def test_a_plan_on_meta_reaches_no_library(ops):
    x = torch.empty(2, 30, 3, device="meta")
    assert farthest_points(x, 4, ops=ops).shape == (2, 4)
    assert nearest(x[:, :4], x, 3, ops=ops)[1].shape == (2, 4, 3)


@pytest.mark.skipif(torch.cuda.is_available(), reason="triton has its GPU")
def test_triton_without_a_gpu_is_refused_at_once(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(MimError, match="triton needs a CUDA GPU"):
        GroupTokenizer(GroupTokenizer.Config(points=64, groups=4, size=4, ops="triton"), 8)
