"""Against outputs of the official implementations: the same weights, image and mask give the same loss, predictions,
latent and gradients. Skipped where the cases are not at hand."""

import json
from pathlib import Path

import pytest
import timm
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


def test_trained_positions_are_imported_as_learned(capsys):
    """Of encoder and decoder apart, and said; the encoder's outputs stay timm's."""
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=32, depth=1).eval()
    sizes = {"num_heads": 3, "decoder_num_heads": 2, "decoder_embed_dim": 32, "decoder_depth": 1}
    method = import_checkpoint(model.state_dict(), format="mae", fresh_decoder=True, **sizes).eval()
    said = "positions of the encoder are not MAE's sine-cosine ones: they are taken as learned"
    assert said in capsys.readouterr().err
    assert method.built_from["encoder"].options.position == "learned"
    assert method.built_from["decoder"].options.position == "sincos"
    assert isinstance(method.encoder.position.table, torch.nn.Parameter)
    image = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        wanted = model.forward_features(image)
        features = method.encode({"image": image})
    torch.testing.assert_close(torch.cat([features.prefix, features.tokens], dim=1), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("table", ["pos_embed", "decoder_pos_embed"])
def test_a_mae_with_trained_positions_keeps_them(table, capsys):
    groups, form, config = read("mae_normpix")
    state = {name: value.clone() for name, value in groups["state"].items()}
    state[table][:, 1:] += 0.1 * torch.randn(state[table][:, 1:].shape)
    method = import_checkpoint(state, format=form, **config)
    part, other = ("decoder", "encoder") if table.startswith("decoder") else ("encoder", "decoder")
    assert method.built_from[part].options.position == "learned"
    assert method.built_from[other].options.position == "sincos"
    own = method.heads["main"].decoder if part == "decoder" else method.encoder
    assert torch.equal(own.position.table.detach(), state[table][:, 1:])
    assert f"the {part} are not MAE's" in capsys.readouterr().err
