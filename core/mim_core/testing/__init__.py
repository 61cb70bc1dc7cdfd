"""Contracts of parts as pytest classes. Whoever writes a part inherits one, and pytest runs its checks:

    from mim_core.testing import MaskerContract, uncovered

    class TestChecker(MaskerContract):
        part = "mine:checker"  # as registered; or give make_masker
        expected_hidden = {(14, 14): 98}

    def test_all_are_covered():
        assert not uncovered("maskers", globals().values(), plugin="mine")

There is one for maskers, tokenizers, targets, teachers, scorers, methods, data sources, and whole plugins. What follows
from a plugin's registration alone can be had without a file:

    MIM_PLUGIN=mine pytest --pyargs mim_core.testing.suite

Every check says in words what is broken, so nothing here needs pytest, nor its rewriting of asserts. Checks that need a
GPU are ignored without one.
"""

from mim_core.testing.checks import keys, noise, on_gpu, refusal, seeded, tensors, unchecked, uncovered
from mim_core.testing.data import DataContract
from mim_core.testing.maskers import MaskerContract
from mim_core.testing.methods import MethodContract
from mim_core.testing.plugins import PluginContract
from mim_core.testing.targets import TargetContract
from mim_core.testing.teachers import ScorerContract, TeacherContract
from mim_core.testing.tokenizers import TokenizerContract

__all__ = [
    "DataContract",
    "MaskerContract",
    "MethodContract",
    "PluginContract",
    "ScorerContract",
    "TargetContract",
    "TeacherContract",
    "TokenizerContract",
    "keys",
    "noise",
    "on_gpu",
    "refusal",
    "seeded",
    "tensors",
    "unchecked",
    "uncovered",
]
