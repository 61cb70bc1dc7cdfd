"""Core's own data source keeps the contract."""

from mim_core.testing import DataContract, uncovered


class TestNoise(DataContract):
    part = "core:noise"
    options = {"items": 40}
    shapes = {"signal": (2, 12), "picture": (3, 8, 6)}
    labels = False


class TestNoiseOfIds(DataContract):
    part = "core:noise"
    options = {"items": 40}
    shapes = {"words": (7,)}
    ids = {"words": 5}
    labels = False


def test_every_source_has_a_contract():
    assert not uncovered("data", globals().values(), "core")
