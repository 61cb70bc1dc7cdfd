"""Against outputs of the official implementation: the same weights, pictures and masks give the same losses,
predictions and gradients. Skipped where the case is not at hand."""

import json
from pathlib import Path

import pytest
import torch
from mim_core.errors import MimError
from mim_core.interop.weights import import_checkpoint
from mim_core.parts.tokenizer import PatchTokenizer
from safetensors import safe_open

GOLDEN = Path(__file__).resolve().parents[3].parent / "shared" / "golden" / "multimae.safetensors"
MODALITIES = ("rgb", "depth", "semseg")
GRADIENTS = {  # official name -> ours
    "encoder.0.attn.qkv.weight": "encoder.blocks.0.attn.qkv.weight",
    "input_adapters.rgb.proj.weight": "tokenizer.parts.rgb.proj.weight",
    "output_adapters.depth.mask_token": "heads.depth.decoder.mask_token",
}


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
    assert config.pop("method") == "multimae"
    return groups, config


def run(groups, config, turn=False):
    """The imported method in training mode, and what it makes of the case's input."""
    method = import_checkpoint(groups["state"], format="multimae", **config).train()
    sample = {name: groups["in"][name] for name in MODALITIES}
    masks = {name: groups["in"][f"mask_{name}"] for name in MODALITIES}
    masks = {name: mask.flip(1) for name, mask in masks.items()} if turn else masks
    prepared = method.prepare(sample, mask=masks)
    return method, prepared, method(prepared)


def close(found, wanted, tolerance=1e-4):
    """Apart by no more than this share of the largest value."""
    assert found.shape == wanted.shape
    assert float((found.detach() - wanted).abs().max()) <= tolerance * float(wanted.abs().max())


def picture(answers, wanted, grid):
    """Answers [B, N, C * p * q], ordered (class or channel, row, column), as maps [B, C, H, W]."""
    rows, channels, height, width = wanted.shape
    p, q = height // grid[0], width // grid[1]
    cut = answers.reshape(rows, *grid, channels, p, q)
    return cut.permute(0, 3, 1, 4, 2, 5).reshape(wanted.shape)


def test_multimae():
    groups, config = read()
    method, _, outcome = run(groups, config)
    out = groups["out"]
    assert float(outcome.loss.detach()) == pytest.approx(float(out["loss"]), rel=1e-5)
    assert set(outcome.parts) == {*MODALITIES, "norm_rgb"}
    for task, loss in outcome.parts.items():
        assert float(loss.detach()) == pytest.approx(float(out[f"loss_{task}"]), rel=1e-5), task
        close(picture(outcome.predictions[task], out[f"pred_{task}"], (4, 4)), out[f"pred_{task}"])
    outcome.loss.backward()
    assert set(groups["grad"]) == set(GRADIENTS)
    for theirs, ours in GRADIENTS.items():
        close(method.get_parameter(ours).grad.reshape(groups["grad"][theirs].shape), groups["grad"][theirs])


def test_the_mask_decides_the_loss():
    groups, config = read()
    _, _, outcome = run(groups, config)
    _, _, other = run(groups, config, turn=True)
    assert abs(float((other.loss - outcome.loss).detach())) > 1e-4 * float(outcome.loss.detach())


def test_positions_are_those_of_the_weights():
    """Fixed tables, computed and not read: they are the ones that the weights carry."""
    groups, config = read()
    method, _, _ = run(groups, config)
    theirs = groups["state"]["input_adapters.depth.pos_emb"].flatten(2).transpose(1, 2)
    assert torch.allclose(method.encoder.position.table[:, 16:32], theirs, atol=1e-6)
    theirs = groups["state"]["output_adapters.semseg.pos_emb"].flatten(2).transpose(1, 2)
    assert torch.allclose(method.heads["semseg"].decoder.position.table[:, 32:], theirs, atol=1e-6)


def test_read_with_few_sizes():
    groups, config = read()
    few = {name: config[name] for name in ("heads", "decoder_heads", "num_encoded_tokens")}
    _, _, outcome = run(groups, few)
    assert float(outcome.loss.detach()) == pytest.approx(float(groups["out"]["loss"]), rel=1e-5)
    with pytest.raises(MimError, match="num_classes is given as 9"):
        import_checkpoint(groups["state"], format="multimae", **few, num_classes=9)
    with pytest.raises(MimError, match="heads"):
        import_checkpoint(groups["state"], format="multimae")


def test_a_lost_weight_is_named():
    groups, config = read()
    state = {**groups["state"], "cls_head.weight": torch.zeros(2, 2)}
    del state["output_adapters.rgb.out_norm.bias"]
    with pytest.raises(MimError, match=r"(?s)missing: output_adapters\.rgb\.out_norm\.bias.*unexpected: cls_head"):
        import_checkpoint(state, format="multimae", **config)


def test_other_weights_are_refused():
    with pytest.raises(MimError, match="no MultiMAE weights"):
        import_checkpoint({"encoder.norm.weight": torch.zeros(3)}, format="multimae")


def test_any_subset_is_encoded():
    """RGB alone is encoded as if nothing else existed; modalities that a sample lacks change nothing for it."""
    groups, config = read()
    method, _, _ = run(groups, config)
    method.eval()
    sample = {name: groups["in"][name] for name in MODALITIES}
    alone = method.encode({"rgb": sample["rgb"]})
    assert alone.tokens.shape == (2, 16, 48)
    both = method.encode({"rgb": sample["rgb"], "depth": sample["depth"]})
    assert both.tokens.shape == (2, 32, 48)
    assert not torch.allclose(both.tokens[:, 16:], alone.tokens, atol=1e-3), "depth comes first in these weights"
    here = torch.tensor([True, False])
    mixed = method.encode({"rgb": sample["rgb"], "depth": sample["depth"], "depth.present": here})
    for whole, row in ((both, 0), (alone, 1)):
        assert torch.allclose(mixed.pooled[row], whole.pooled[row], atol=1e-6)
        assert torch.allclose(mixed.tokens[row, -whole.tokens.shape[1] :], whole.tokens[row], atol=1e-6)
    assert not mixed.tokens[1, :16].any()
    assert isinstance(method.tokenizer.part("depth"), PatchTokenizer)


def test_training_needs_every_modality():
    groups, config = read()
    method, _, _ = run(groups, config)
    with pytest.raises(ValueError, match="no depth, semseg"):
        method.prepare({"rgb": groups["in"]["rgb"], "key": torch.arange(2)})
    with pytest.raises(KeyError, match="none of depth, rgb, semseg"):
        method.encode({"image": groups["in"]["rgb"]})


@pytest.mark.parametrize("name", ["input_adapters.depth.pos_emb", "output_adapters.rgb.pos_emb"])
def test_trained_positions_are_refused_by_name(name):
    groups, config = read()
    state = {key: value.clone() for key, value in groups["state"].items()}
    if name not in state:
        pytest.skip(f"the case has no {name}")
    state[name] += 0.1 * torch.randn(state[name].shape)
    with pytest.raises(MimError, match=f"{name} is not MultiMAE's sine-cosine table: these positions are trained"):
        import_checkpoint(state, format="multimae", **config)
