"""Against outputs of the official implementations: the same weights, clip and mask give the same loss, targets,
predictions, latent and gradients. Skipped where the cases are not at hand."""

import json
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from mim_core.errors import MimError
from mim_core.interop.weights import import_checkpoint
from mim_core.parts.mask import Mask
from safetensors import safe_open

GOLDEN = Path(__file__).resolve().parents[3].parent / "shared" / "golden"
DECODER = "heads.main.decoder."
VIDEOMAE = {  # official name -> ours
    "decoder.head.weight": f"{DECODER}pred.weight",
    "encoder.blocks.0.attn.qkv.weight": "encoder.blocks.0.attn.qkv.weight",
    "encoder.patch_embed.proj.weight": "tokenizer.proj.weight",
    "mask_token": f"{DECODER}mask_token",
}
GRADIENTS = {
    "videomae": VIDEOMAE,
    "videomae_v2": {name: ours for name, ours in VIDEOMAE.items() if "qkv" not in name},
    "mae_st": {
        "decoder_pred.weight": f"{DECODER}pred.weight",
        "mask_token": f"{DECODER}mask_token",
        "patch_embed.proj.weight": "tokenizer.proj.weight",
        "pos_embed_temporal": "encoder.position.first",
    },
}
CASES = list(GRADIENTS)


def read(name):
    """The case's tensors by group (state, in, out, grad), and its sizes."""
    path = GOLDEN / f"{name}.safetensors"
    if not path.exists():
        pytest.skip(f"no {path}")
    groups = {"state": {}, "in": {}, "out": {}, "grad": {}}
    with safe_open(path, "pt") as file:
        for key in file.keys():  # noqa: SIM118 - not a dict
            group, _, rest = key.partition("/")
            groups[group][rest] = file.get_tensor(key)
        config = json.loads(file.metadata()["config"])
    assert config.pop("method") == name
    return groups, config


def mask_of(groups):
    hidden, decode = groups["in"]["mask"], groups["in"].get("decode")
    return hidden if decode is None else Mask.from_bool(hidden, queries=decode)


def case(name):
    """The case, the imported method in training mode, and what it makes of the case's input."""
    groups, config = read(name)
    method = import_checkpoint(groups["state"], format=name.replace("_", "-"), **config).train()
    prepared = method.prepare({"video": groups["in"]["video"]}, mask=mask_of(groups))
    return groups, method, prepared, method(prepared)


def close(found, wanted, tolerance=1e-4):
    """Apart by no more than this share of the largest value."""
    assert found.shape == wanted.shape
    assert float((found.detach() - wanted).abs().max()) <= tolerance * float(wanted.abs().max())


def check_gradients(name, groups, method, outcome):
    outcome.loss.backward()
    assert set(groups["grad"]) == set(GRADIENTS[name])
    for theirs, ours in GRADIENTS[name].items():
        close(method.get_parameter(ours).grad.reshape(groups["grad"][theirs].shape), groups["grad"][theirs])


def in_order(tokens):
    """Each row's tokens sorted by their first value: MAE-ST leaves them in the order in which they were drawn."""
    order = tokens[:, :, 0].argsort(dim=1)
    return tokens.gather(1, order[:, :, None].expand_as(tokens))


@pytest.mark.parametrize("name", ["videomae", "videomae_v2"])
def test_videomae(name):
    groups, method, prepared, outcome = case(name)
    out = groups["out"]
    assert float(outcome.loss.detach()) == pytest.approx(float(out["loss"]), rel=1e-5)
    close(prepared.targets["main"], out["target"])
    close(outcome.prediction, out["pred"])
    close(outcome.latent, out["latent"])
    check_gradients(name, groups, method, outcome)


def test_queries_of_v2_include_visible_units():
    groups, _ = read("videomae_v2")
    mask = mask_of(groups)
    assert 0 < float(mask.weight.mean()) < 1, "the case is there for queries that do not count"


def test_mae_st():
    groups, method, prepared, outcome = case("mae_st")
    out = groups["out"]
    assert float(outcome.loss.detach()) == pytest.approx(float(out["loss"]), rel=1e-5)
    close(outcome.prediction, prepared.mask.take(out["pred"], prepared.mask.query_ids))
    close(in_order(outcome.latent[:, 1:]), in_order(out["latent"]))
    check_gradients("mae_st", groups, method, outcome)


@pytest.mark.parametrize("name", CASES)
def test_the_mask_decides_the_loss(name):
    """The comparison above has teeth: the same case with its mask turned round gives another loss."""
    groups, method, _, outcome = case(name)
    other = method(method.prepare({"video": groups["in"]["video"]}, mask=groups["in"]["mask"].flip(1)))
    assert abs(float((other.loss - outcome.loss).detach())) > 1e-3 * float(outcome.loss.detach())


@pytest.mark.parametrize("name", CASES)
def test_read_with_few_sizes(name):
    """Sizes that can be read off the weights need not be given; those that contradict them are named."""
    groups, config = read(name)
    needed = ("encoder_num_heads", "decoder_num_heads", "num_heads", "img_size")
    few = {key: value for key, value in config.items() if key in needed}
    method = import_checkpoint(groups["state"], format=name, **few)
    loss = method(method.prepare({"video": groups["in"]["video"]}, mask=mask_of(groups))).loss
    assert float(loss.detach()) == pytest.approx(float(groups["out"]["loss"]), rel=1e-5)
    with pytest.raises(MimError, match="decoder_depth is given as 7"):
        import_checkpoint(groups["state"], format=name, **few, decoder_depth=7)


def test_a_bias_of_keys_changes_nothing():
    """VideoMAE has none: the imported one is zero, any other gives the same loss, and no gradient reaches it."""
    _, method, prepared, outcome = case("videomae")
    outcome.loss.backward()
    for block in [*method.encoder.blocks, *method.heads["main"].decoder.blocks]:
        width = block.attn.qkv.bias.shape[0] // 3
        keys = slice(width, 2 * width)
        assert not block.attn.qkv.bias[keys].any()
        assert block.attn.qkv.bias.grad[keys].abs().max() < 1e-6 * block.attn.qkv.bias.grad.abs().max()
        with torch.no_grad():
            block.attn.qkv.bias[keys] += torch.linspace(-2, 2, width)
    assert float(method(prepared).loss.detach()) == pytest.approx(float(outcome.loss.detach()), rel=1e-5)


def test_a_file_as_the_official_code_writes_it(tmp_path):
    """A ``.pth`` with settings, optimizer and the prefix of a wrapper beside and around the weights."""
    groups, config = read("videomae")
    weights = {f"module.{name}": value for name, value in groups["state"].items()}
    torch.save({"model": weights, "epoch": 3, "args": Namespace(lr=1e-3)}, tmp_path / "checkpoint.pth")
    method = import_checkpoint(tmp_path / "checkpoint.pth", format="videomae", **config)
    loss = method(method.prepare({"video": groups["in"]["video"]}, mask=groups["in"]["mask"])).loss
    assert float(loss.detach()) == pytest.approx(float(groups["out"]["loss"]), rel=1e-5)


def test_a_lost_weight_is_named():
    groups, config = read("videomae")
    state = {**groups["state"], "head.weight": torch.zeros(2, 2)}
    del state["decoder.norm.bias"]
    with pytest.raises(MimError, match=r"(?s)missing: decoder\.norm\.bias.*unexpected: head\.weight"):
        import_checkpoint(state, format="videomae", **config)
