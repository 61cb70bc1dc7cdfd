"""Against outputs of the official implementation: the same weights, clouds and mask give the same centres, groups,
loss, latent and gradients. Skipped where the case is not at hand."""

import json
from pathlib import Path

import pytest
import torch
from mim_core.errors import MimError
from mim_core.interop.weights import import_checkpoint
from safetensors import safe_open

GOLDEN = Path(__file__).resolve().parents[3].parent / "shared" / "golden" / "point_mae.safetensors"
GRADIENTS = {  # official name -> ours
    "MAE_encoder.encoder.first_conv.0.weight": "tokenizer.local.0.weight",
    "increase_dim.0.weight": "heads.main.decoder.pred.weight",
    "mask_token": "heads.main.decoder.mask_token",
}
NEEDED = ("num_points", "num_group", "heads")


def read():
    """The case's tensors by group (state, in, out, grad), and its sizes."""
    if not GOLDEN.exists():
        pytest.skip(f"no {GOLDEN}")
    groups = {"state": {}, "in": {}, "out": {}, "grad": {}}
    with safe_open(GOLDEN, "pt") as file:
        for key in file.keys():  # noqa: SIM118 - not a dict
            group, _, rest = key.partition("/")
            groups[group][rest] = file.get_tensor(key)
        config = json.loads(file.metadata()["config"])
    assert config.pop("method") == "point_mae"
    return groups, config


def run(groups, config, mask=None):
    """The imported method in training mode, and what it makes of the case's input."""
    method = import_checkpoint(groups["state"], format="point-mae", **config).train()
    hidden = groups["in"]["mask"] if mask is None else mask
    prepared = method.prepare({"points": groups["in"]["points"]}, mask=hidden)
    return method, prepared, method(prepared)


def close(found, wanted, tolerance=1e-4):
    """Apart by no more than this share of the largest value."""
    assert found.shape == wanted.shape
    assert float((found.detach() - wanted).abs().max()) <= tolerance * float(wanted.abs().max())


def test_point_mae():
    groups, config = read()
    method, prepared, outcome = run(groups, config)
    out = groups["out"]
    assert torch.equal(prepared.layout.positions, out["centers"])
    assert torch.equal(prepared.inputs, out["groups"])
    assert float(outcome.loss.detach()) == pytest.approx(float(out["loss"]), rel=1e-5)
    close(outcome.latent, out["latent"])
    outcome.loss.backward()
    assert set(groups["grad"]) == set(GRADIENTS)
    for theirs, ours in GRADIENTS.items():
        close(method.get_parameter(ours).grad.reshape(groups["grad"][theirs].shape), groups["grad"][theirs])


def test_the_mask_decides_the_loss():
    """The comparison above has teeth: the same case with its mask turned round gives another loss."""
    groups, config = read()
    _, _, outcome = run(groups, config)
    _, _, other = run(groups, config, groups["in"]["mask"].flip(1))
    assert abs(float((other.loss - outcome.loss).detach())) > 1e-3 * float(outcome.loss.detach())


def test_read_with_few_sizes():
    """Sizes that can be read off the weights need not be given; those that contradict them are named."""
    groups, config = read()
    few = {key: value for key, value in config.items() if key in NEEDED}
    _, _, outcome = run(groups, few)
    assert float(outcome.loss.detach()) == pytest.approx(float(groups["out"]["loss"]), rel=1e-5)
    with pytest.raises(MimError, match="decoder_depth is given as 7"):
        import_checkpoint(groups["state"], format="point-mae", **few, decoder_depth=7)
    with pytest.raises(MimError, match="heads"):
        import_checkpoint(groups["state"], format="point-mae")


def test_a_file_as_the_official_code_writes_it(tmp_path):
    """A ``.pth`` with optimizer and metrics beside the weights, under Point-MAE's own names of sizes."""
    groups, config = read()
    weights = {f"module.{name}": value for name, value in groups["state"].items()}
    torch.save({"base_model": weights, "epoch": 300, "metrics": {"acc": 0.0}}, tmp_path / "pretrain.pth")
    own = {"num_points": config["num_points"], "num_group": config["num_group"], "num_heads": 3, "trans_dim": 48}
    method = import_checkpoint(tmp_path / "pretrain.pth", format="point-mae", **own).train()
    loss = method(method.prepare({"points": groups["in"]["points"]}, mask=groups["in"]["mask"])).loss
    assert float(loss.detach()) == pytest.approx(float(groups["out"]["loss"]), rel=1e-5)


def test_a_lost_weight_is_named():
    groups, config = read()
    state = {**groups["state"], "cls_head.weight": torch.zeros(2, 2)}
    del state["MAE_decoder.norm.bias"]
    with pytest.raises(MimError, match=r"(?s)missing: MAE_decoder\.norm\.bias.*unexpected: cls_head\.weight"):
        import_checkpoint(state, format="point-mae", **config)
