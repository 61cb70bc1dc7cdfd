"""Methods with teachers against outputs of the official implementations, by `tools/golden.py`. Skipped where the cases
are not at hand."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mim_core.errors import MimError
from mim_core.testing.golden import read_case, try_case
from safetensors import safe_open
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT.parent / "shared" / "golden"
CASES = ["cmae", "convmae", "ijepa", "mvd", "sdae"]


def golden(name):
    path = GOLDEN / f"{name}.safetensors"
    if not path.exists():
        pytest.skip(f"no {path}")
    return path


def rewritten(path, to, change):
    """The case with some tensors changed."""
    with safe_open(path, "pt") as file:
        about, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    change(tensors)
    save_file(tensors, to, about)
    return to


@pytest.mark.parametrize("name", CASES)
def test_the_same_numbers(name):
    lines = try_case(golden(name))
    assert not [line for line in lines if not line.fits]
    compared = [line.name for line in lines if line.apart is not None]
    assert {"loss", "latent"} <= set(compared)
    assert sum(line.startswith("grad/") for line in compared) == len(read_case(golden(name)).gradients)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("entry", ["out/loss", "out/latent", "grad/"])
def test_a_spoiled_case_fails(name, entry, tmp_path):
    def spoil(tensors):
        key = next(key for key in tensors if key.startswith(entry))
        tensors[key] = tensors[key] * (1 + 3e-4)

    lines = try_case(rewritten(golden(name), tmp_path / "spoiled.safetensors", spoil))
    assert [f"out/{line.name}".startswith(entry) or line.name.startswith(entry) for line in lines if not line.fits] == [
        True
    ]


@pytest.mark.parametrize("name", ["cmae", "convmae"])
@pytest.mark.parametrize("entry", ["pred", "target"])
def test_answers_at_visible_units_count_too(name, entry, tmp_path):
    """Official codes put them out, though they are in no loss."""

    def spoil(tensors):
        row, unit = (~tensors["in/mask"]).nonzero()[0].tolist()
        tensors[f"out/{entry}"][row, unit] += 0.01 * tensors[f"out/{entry}"].abs().max()

    lines = try_case(rewritten(golden(name), tmp_path / "spoiled.safetensors", spoil))
    assert [line.name for line in lines if not line.fits] == [entry]


def test_the_teachers_weights_count(tmp_path):
    def spoil(tensors):
        tensors["teacher/norm.weight"] = tensors["teacher/norm.weight"] + 0.01 * torch.randn(48)

    lines = try_case(rewritten(golden("ijepa"), tmp_path / "spoiled.safetensors", spoil))
    assert {"teacher_features", "teacher_after/norm.weight"} <= {line.name for line in lines if not line.fits}


def test_the_tool_by_its_command(tmp_path):
    def spoil(tensors):
        tensors["out/latent"] = tensors["out/latent"] * 1.01

    bad = rewritten(golden("sdae"), tmp_path / "spoiled.safetensors", spoil)
    command = [sys.executable, str(ROOT / "tools" / "golden.py")]
    done = subprocess.run([*command, str(golden("sdae")), str(bad)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stderr
    assert "sdae.safetensors: 14 entries compared, 0 off" in done.stdout
    assert "spoiled.safetensors: 14 entries compared, 1 off" in done.stdout


def test_what_is_no_case(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"nothing")
    with pytest.raises(MimError, match="is no golden case"):
        try_case(path)
    save_file({"state/x": torch.ones(1)}, path, {"config": '{"method": "mae"}'})
    with pytest.raises(MimError, match="has no golden adapter"):
        try_case(path)
