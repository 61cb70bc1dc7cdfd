"""Official files are read without running what is in them."""

import argparse
import contextlib
import pathlib
import sys
import types

import pytest
import torch
from mim_core.errors import MimError
from mim_core.interop.weights import clean, read_state


class Settings(dict):
    """Like yacs' CfgNode, which SimMIM saves beside its weights."""


class Harmful:
    def __reduce__(self):
        return (exec, ("import sys; sys.modules['harmed'] = sys",))


def test_settings_of_any_class_are_passed_over(tmp_path, monkeypatch):
    module = types.ModuleType("yacs_like")
    Settings.__module__ = "yacs_like"
    module.Settings = Settings
    monkeypatch.setitem(sys.modules, "yacs_like", module)
    settings = Settings(A=Settings(x=1))
    arguments = argparse.Namespace(lr=1e-3, out=pathlib.Path("/x"))
    path = tmp_path / "weights.pth"
    torch.save({"model": {"a": torch.ones(2)}, "config": settings, "args": arguments, "epoch": 3}, path)
    monkeypatch.delitem(sys.modules, "yacs_like")
    content, _ = read_state(path)
    assert torch.equal(content["model"]["a"], torch.ones(2))


def test_nothing_in_a_file_is_run(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"model": {"a": torch.ones(2)}, "extra": Harmful()}, path)
    with contextlib.suppress(MimError):
        read_state(path)
    assert "harmed" not in sys.modules


def test_what_holds_no_weights_is_refused(tmp_path):
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(MimError, match="holds a list, not weights"):
        read_state(tmp_path / "list.pth")
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(MimError, match="cannot be read as weights"):
        read_state(tmp_path / "text.pth")


@pytest.mark.parametrize("outer", ["model", "model_state", "state_dict", "module"])
def test_weights_are_taken_out_of_what_training_saved(outer):
    """``model_state`` is what SlowFast calls them, and with it some files of MAE-ST."""
    assert list(clean({outer: {"module.a": torch.ones(2)}, "epoch": 3})) == ["a"]
