"""The published SSMCTB against its golden cases, and weights that are none of its."""

from pathlib import Path

import pytest
import torch
from mim_core import SSMCTB, MimError, ssmctb_from
from mim_core.interop.ssmctb import official_names
from mim_core.testing.golden import try_case
from safetensors import safe_open
from safetensors.torch import save_file

CASES = Path(__file__).resolve().parents[2].parent / "shared" / "golden"
NAMES = ("ssmctb_2d", "ssmctb_3d")


def case(name):
    path = CASES / f"{name}.safetensors"
    if not path.exists():
        pytest.skip(f"no {path}")
    return path


@pytest.mark.parametrize("name", NAMES)
def test_every_entry_holds(name):
    lines = try_case(case(name))
    assert [line.name for line in lines if not line.fits or line.apart is None] == []
    assert {line.allowed for line in lines} == {1e-5}
    assert len(lines) == 11


@pytest.mark.parametrize("name", NAMES)
def test_a_spoiled_case_fails(name, tmp_path):
    with safe_open(case(name), "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
        about = file.metadata()
    tensors["state/conv1.weight"], tensors["state/conv2.weight"] = (
        tensors["state/conv2.weight"],
        tensors["state/conv1.weight"],
    )
    save_file(tensors, tmp_path / "spoiled.safetensors", metadata=about)
    off = {line.name for line in try_case(tmp_path / "spoiled.safetensors") if not line.fits}
    assert {"masked", "loss", "output"} <= off


@pytest.mark.parametrize(("axes", "kernel", "channels"), [(2, 3, 5), (3, 2, 1)])
def test_there_and_back(axes, kernel, channels):
    block = SSMCTB(channels, axes, kernel, dilation=2, width=8)
    own = block.state_dict()
    state = {theirs: own[ours] for ours, theirs in official_names(block).items()}
    assert len(state) == len(own)
    other = ssmctb_from(state, dilation=2)
    x = torch.randn(2, channels, *[6] * axes)
    assert torch.equal(block(x), other(x))


def test_weights_of_something_else():
    state = {theirs: SSMCTB(3).state_dict()[ours] for ours, theirs in official_names(SSMCTB(3)).items()}
    with pytest.raises(MimError, match=r"conv1\.weight is missing"):
        ssmctb_from({})
    with pytest.raises(MimError, match=r"conv3\.bias missing"):
        ssmctb_from({name: value for name, value in state.items() if name != "conv3.bias"})
    with pytest.raises(MimError, match="extra left over"):
        ssmctb_from({**state, "extra": torch.zeros(1)})
    with pytest.raises(MimError, match="do not fit"):
        ssmctb_from({**state, "conv2.weight": torch.zeros(3, 3, 2, 2)})
    with pytest.raises(MimError, match="2 or 3 axes"):
        official_names(SSMCTB(3, axes=1))
