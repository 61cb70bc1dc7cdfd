"""A source around another one: everything is the inner source's but what a subclass changes."""

import inspect
import pickle

import pytest
import torch
from mim_core.data.noise import Noise
from mim_core.data.source import DataSource
from mim_core.data.wrapped import WrappedSource

METHODS = [name for name, value in vars(DataSource).items() if inspect.isfunction(value) and name != "__init__"]


class Answers(DataSource):
    """Answers every method with its name and what it was given; has an attribute of its own."""

    samples_per_item, item_seconds, ids, extra = 3, 7.0, {"words": 5}, "its own"
    judges_anomalies = True

    def __init__(self):
        super().__init__("options", {"words": (4,)})


def _answer(name):
    return lambda self, *args, **options: 11 if name == "__len__" else (name, args, options)


for _name in METHODS:
    setattr(Answers, _name, _answer(_name))


class Longer(WrappedSource):
    """Changes one method."""

    def __len__(self):
        return 2 * len(self.source)


@pytest.mark.parametrize("name", [name for name in METHODS if name != "__len__"])
def test_every_method_is_the_inner_sources(name):
    assert getattr(WrappedSource(Answers()), name)(1, key=2) == (name, (1,), {"key": 2})


def test_attributes_are_the_inner_sources():
    source = WrappedSource(Answers())
    assert len(source) == 11
    assert (source.config, source.shapes, source.ids) == ("options", {"words": (4,)}, {"words": 5})
    assert (source.samples_per_item, source.item_seconds, source.extra) == (3, 7.0, "its own")
    assert source.judges_anomalies
    assert not hasattr(source, "nowhere")
    source.ids, source.item_seconds = {"words": 6}, 8.0
    assert (source.source.ids, source.source.item_seconds) == ({"words": 6}, 8.0)
    other = WrappedSource(Answers(), "others", {"sound": (1,)})
    assert (other.config, other.shapes, other.source.config) == ("others", {"sound": (1,)}, "options")


def test_a_subclass_changes_what_it_says_and_no_more():
    source = Longer(WrappedSource(Answers()))
    assert len(source) == 22
    assert source.plan() == ("plan", (), {})


def test_it_goes_to_another_process():
    source = pickle.loads(pickle.dumps(Longer(Noise(Noise.Config(items=3), {"words": (2,)}))))
    assert len(source) == 6
    assert torch.equal(source.read(1, 5)["words"], source.source.read(1, 5)["words"])
