"""Against outputs of the official implementations: the same weights, image and mask give the same loss, predictions,
latent and gradients. Skipped where the cases are not at hand."""

import json
from pathlib import Path

import pytest
import torch
from mim_core.interop.weights import import_checkpoint
from mim_core.testing import seeded
from safetensors import safe_open

GOLDEN = Path(__file__).resolve().parents[2].parent / "shared" / "golden"
GRADIENTS = {  # official name -> ours
    "mae": {
        "blocks.0.attn.qkv.weight": "encoder.blocks.0.attn.qkv.weight",
        "decoder_pred.weight": "heads.main.decoder.pred.weight",
        "mask_token": "heads.main.decoder.mask_token",
        "patch_embed.proj.weight": "tokenizer.proj.weight",
    },
    "simmim": {
        "decoder.0.weight": "heads.main.decoder.pred.weight",
        "encoder.mask_token": "encoder.mask_token",
        "encoder.patch_embed.proj.weight": "tokenizer.proj.weight",
    },
}


def read(name):
    """The case's tensors by group (state, in, out, grad), its format and its sizes."""
    path = GOLDEN / f"{name}.safetensors"
    if not path.exists():
        pytest.skip(f"no {path}")
    groups = {"state": {}, "in": {}, "out": {}, "grad": {}}
    with safe_open(path, "pt") as file:
        for key in file.keys():  # noqa: SIM118 - not a dict
            group, _, rest = key.partition("/")
            groups[group][rest] = file.get_tensor(key)
        config = json.loads(file.metadata()["config"])
    return groups, config.pop("method"), config


def case(name):
    """The case, the imported method in training mode, and what it makes of the case's input."""
    groups, form, config = read(name)
    method = import_checkpoint(groups["state"], format=form, **config).train()
    prepared = method.prepare({"image": groups["in"]["image"]}, mask=groups["in"]["mask"])
    with seeded():  # an imported method has no drop path: nothing may depend on this
        outcome = method(prepared)
    return groups, method, prepared, outcome


def close(found, wanted, tolerance=1e-4):
    """Apart by no more than this share of the largest value."""
    assert found.shape == wanted.shape
    assert float((found.detach() - wanted).abs().max()) <= tolerance * float(wanted.abs().max())


def check_gradients(form, groups, method, outcome):
    outcome.loss.backward()
    assert set(groups["grad"]) == set(GRADIENTS[form])
    for theirs, ours in GRADIENTS[form].items():
        found = method.get_parameter(ours).grad
        close(found.reshape(groups["grad"][theirs].shape), groups["grad"][theirs])


def in_order(tokens):
    """Each row's tokens sorted by their first value: official MAE leaves them in the order in which they were drawn."""
    order = tokens[:, :, 0].argsort(dim=1)
    return tokens.gather(1, order[:, :, None].expand_as(tokens))


@pytest.mark.parametrize("name", ["mae_normpix", "mae_rawpix"])
def test_mae(name):
    groups, method, prepared, outcome = case(name)
    out, hidden = groups["out"], groups["in"]["mask"]
    assert float(outcome.loss.detach()) == pytest.approx(float(out["loss"]), rel=1e-5)
    assert torch.equal(prepared.mask.hidden, hidden)
    close(outcome.prediction, prepared.mask.take(out["pred"], prepared.mask.query_ids))
    close(outcome.latent[:, :1], out["latent"][:, :1])
    close(in_order(outcome.latent[:, 1:]), in_order(out["latent"][:, 1:]))
    check_gradients("mae", groups, method, outcome)


def test_simmim():
    groups, method, prepared, outcome = case("simmim")
    out = groups["out"]
    assert groups["in"]["mask"].sum(dim=1).unique().numel() > 1, "the case is there for unequal counts"
    assert float(outcome.loss.detach()) == pytest.approx(float(out["loss"]), rel=1e-5)
    close(outcome.latent[:, 1:], out["latent"].flatten(2).transpose(1, 2))
    assert outcome.prediction.shape[:2] == prepared.mask.query_ids.shape
    check_gradients("simmim", groups, method, outcome)


@pytest.mark.parametrize("name", ["mae_normpix", "mae_rawpix", "simmim"])
def test_the_mask_decides_the_loss(name):
    """The comparison above has teeth: the same case with its mask turned round gives another loss."""
    groups, method, _, outcome = case(name)
    other = method(method.prepare({"image": groups["in"]["image"]}, mask=groups["in"]["mask"].flip(1)))
    assert abs(float((other.loss - outcome.loss).detach())) > 1e-3 * float(outcome.loss.detach())


def test_mae_read_without_sizes():
    """Sizes that can be read off the weights need not be given."""
    groups, _, config = read("mae_normpix")
    heads = {key: value for key, value in config.items() if key.endswith("num_heads")}
    method = import_checkpoint(groups["state"], format="mae", **heads)
    loss = method(method.prepare({"image": groups["in"]["image"]}, mask=groups["in"]["mask"])).loss
    assert float(loss.detach()) == pytest.approx(float(groups["out"]["loss"]), rel=1e-5)
