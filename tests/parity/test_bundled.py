"""Parity for everybody: the cases that lie beside these tests, made by other people's code (golden/README.md). The same
weights, input and mask give the same loss, predictions, latent and gradients."""

import json
from pathlib import Path

import pytest
import torch
from mim_core.interop.weights import import_checkpoint
from safetensors import safe_open

FOLDER = Path(__file__).parent / "golden"
CASES = ["mae_oblong", "simmim", "videomae", "videomae_raw", "vitmae", "vitmae_grey"]


def read(name):
    """The case's tensors by group (state, in, out, grad), and what its metadata say."""
    groups = {"state": {}, "in": {}, "out": {}, "grad": {}}
    with safe_open(FOLDER / f"{name}.safetensors", "pt") as file:
        for key in file.keys():  # noqa: SIM118 - not a dict
            group, _, rest = key.partition("/")
            groups[group][rest] = file.get_tensor(key)
        about = file.metadata()
    return groups, {**about, "config": json.loads(about["config"])}


@pytest.fixture(scope="module", params=CASES)
def case(request):
    """The case and the imported method in training mode."""
    groups, about = read(request.param)
    return groups, about, import_checkpoint(groups["state"], format=about["format"], **about["config"]).train()


def outcome_of(method, groups, about, mask):
    return method(method.prepare({about["modality"]: groups["in"][about["modality"]]}, mask=mask))


def close(found, wanted, tolerance=1e-4):
    """Apart by no more than this share of the largest value."""
    assert found.shape == wanted.shape
    assert float((found.detach() - wanted).abs().max()) <= tolerance * float(wanted.abs().max())


def test_the_same_numbers(case):
    groups, about, method = case
    out = groups["out"]
    method.zero_grad()
    outcome = outcome_of(method, groups, about, groups["in"]["mask"])
    assert float(outcome.loss.detach()) == pytest.approx(float(out["loss"]), rel=1e-5)
    close(outcome.latent, out["latent"])
    if "pred" in out:
        close(outcome.prediction, out["pred"])
    outcome.loss.backward()
    for name, wanted in groups["grad"].items():
        close(method.get_parameter(name).grad.reshape(wanted.shape), wanted)


def test_the_mask_decides_the_loss(case):
    """The comparison above has teeth: the same case with its mask turned round gives another loss."""
    groups, about, method = case
    with torch.no_grad():
        loss = outcome_of(method, groups, about, groups["in"]["mask"].flip(1)).loss
    assert abs(float(loss - groups["out"]["loss"])) > 1e-4 * float(loss)  # ten times what is let pass above


def test_all_cases_are_small_and_compared():
    files = sorted(FOLDER.glob("*.safetensors"))
    assert [path.stem for path in files] == CASES
    assert sum(path.stat().st_size for path in files) < 4e6
