"""4M: its recipe keeps the contract of methods, and gives what the official implementation gives."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from mim_core import Part, codes_text, parts_text
from mim_core.errors import MimError
from mim_core.host.loading import installed
from mim_core.interop.weights import import_checkpoint
from mim_core.methods.build import build_method
from mim_core.recipes.resolve import load_recipe
from mim_core.testing import MethodContract
from mim_core.testing.golden import read_case, try_case
from mim_multimodal.recipes_vq import vq_depth_base, vq_features_base, vq_normal_base, vq_rgb_base, vq_semseg_base
from safetensors.torch import save_file

GOLDEN = Path(__file__).resolve().parents[3].parent / "shared" / "golden" / "fourm.safetensors"


class TestTiny(MethodContract):
    recipe = "multimodal:4m-vit-tiny"

    @classmethod
    def setup_class(cls):
        pytest.importorskip("tokenizers")


def case():
    if not GOLDEN.exists():
        pytest.skip(f"no {GOLDEN}")
    return read_case(GOLDEN)


def test_golden():
    """Loss, parts, latent, decoded, logits, attention of the decoder and gradients."""
    case()
    lines = try_case(GOLDEN)
    assert [line.name for line in lines if not line.fits] == []
    assert [line.name for line in lines if line.apart is None] == []
    assert len(lines) == 25


@pytest.mark.parametrize("name", ["decoder.1.mlp.fc3.weight", "decoder_norm.weight"])
def test_a_spoiled_weight_is_off(name, tmp_path):
    from safetensors import safe_open

    case()
    with safe_open(GOLDEN, "pt") as file:
        about = file.metadata()
        held = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118 - not a dict
    held[f"state/{name}"] *= 1.01
    save_file(held, tmp_path / "spoiled.safetensors", metadata=about)
    lines = {line.name: line for line in try_case(tmp_path / "spoiled.safetensors")}
    assert not lines["loss"].fits
    assert not lines["decoded"].fits


def test_weights_that_do_not_fit_are_named():
    read = case()
    state = dict(read.weights["state"])
    with pytest.raises(MimError, match="give modalities"):
        import_checkpoint(state, format="fourm", num_heads=3)
    with pytest.raises(MimError, match="dim is given as 50, and the weights have 48"):
        import_checkpoint(state, format="fourm", **{**read.config, "dim": 50})
    with pytest.raises(MimError, match="decoder_causal_mask"):
        import_checkpoint(state, format="fourm", **{**read.config, "decoder_causal_mask": True})
    lost = {name: value for name, value in state.items() if name != "decoder.0.query_norm.weight"}
    with pytest.raises(MimError, match=r"missing: decoder\.0\.query_norm\.weight"):
        import_checkpoint(lost, format="fourm", **read.config)
    other = {**state, "decoder_embeddings.caption.token_emb.weight": torch.zeros(32, 48)}
    with pytest.raises(MimError, match="share_embedding=False"):
        import_checkpoint(other, format="fourm", **read.config)
    apart = {**state, "encoder_embeddings.caption.mod_emb": torch.zeros(1, 1, 48)}
    with pytest.raises(MimError, match="one vector of a modality for both"):
        import_checkpoint(apart, format="fourm", **read.config)
    method = import_checkpoint(other, format="fourm", **{**read.config, "share_embedding": False})
    assert not method.heads["caption"].decoder.token_embed.any()


def test_weights_of_a_modality_that_is_only_asked():
    """4M embeds no ids of what it never sees: only the decoder has its vector."""
    read = case()
    name = "tok_depth@224"
    kept = {key: value for key, value in read.weights["state"].items() if f"encoder_embeddings.{name}" not in key}
    asked = {**read.config["modalities"], name: {**read.config["modalities"][name], "in": False}}
    method = import_checkpoint(kept, format="fourm", **{**read.config, "modalities": asked})
    assert method.masker.config.only_asked == (name,)
    vector = method.get_parameter(f"encoder.segment.{name}")
    assert torch.equal(vector, kept[f"decoder_embeddings.{name}.mod_emb"])
    with pytest.raises(MimError, match=f"missing: .*{name}"):
        import_checkpoint(kept, format="fourm", **read.config)


def test_imported_weights_are_trained_on():
    """The masker draws for them, spans of captions too."""
    read = case()
    method = import_checkpoint(dict(read.weights["state"]), format="fourm", **read.config).train()
    sample = {name: read.inputs[f"{name}.tensor"] for name in read.config["modalities"]}
    sample["caption"] = sample["caption"][:, :12] % 24
    prepared = method.prepare({**sample, "key": torch.arange(2)})
    assert int(prepared.mask.kept_valid.sum()) == 2 * 19
    assert int(prepared.mask.query_valid.sum()) == 2 * 22
    method(prepared).loss.backward()


def test_what_a_sample_lacks_is_neither_seen_nor_asked():
    pytest.importorskip("tokenizers")
    method = build_method(load_recipe("multimodal:4m-vit-tiny", installed(), twin=True)).train()
    sample = TestTiny().make_sample(method, 8)
    here = torch.arange(8) % 2 == 0
    prepared = method.prepare({**sample, "depth.present": here})
    start, part = prepared.layout.span("depth")
    for ids, valid in (
        (prepared.mask.kept_ids, prepared.mask.kept_valid),
        (prepared.mask.query_ids, prepared.mask.query_valid),
    ):
        own = (ids >= start) & (ids < start + part.count) & valid
        assert own[here].any()
        assert not own[~here].any()
        assert bool(valid.all()), "the budgets are full without it"
    assert bool(method(prepared).loss.isfinite())


@pytest.mark.parametrize(("size", "millions"), [("base", 198), ("large", 705)])
def test_the_recipe_has_the_papers_numbers(size, millions):
    """Encoder and decoder have the parameters that the paper states: SwiGLU, no biases, as deep on both sides."""
    run = load_recipe(f"multimodal:4m-vit-{size}", installed())
    ids = {}
    features = vq_features_base()
    drawn = parts_text(
        tokenizer=Part.of("image:patch", size=(224, 224), patch=(16, 16), channels=3),
        encoder=Part.of("core:vit", width=768, depth=1, heads=12),
    )
    drawn = Part.of("core:features", modality="rgb", random=True, parts=drawn)
    trained = {"rgb_ids": vq_rgb_base(), "depth": vq_depth_base(), "normal": vq_normal_base()}
    trained |= {"semseg": vq_semseg_base(), "features": replace(features, parts={**features.parts, "tokenizer": drawn})}
    for name, recipe in trained.items():
        text = codes_text(**{role: part for role, part in recipe.parts.items() if role != "data"})
        part = run.parts[f"{name}.tokenizer"]
        ids[f"{name}.tokenizer"] = replace(part, options=replace(part.options, random=True, parts=text))
    masker, train = run.parts["masker"].options, run.train
    assert (masker.seen, masker.asked, masker.mixture) == (128, 128, (0.5, 0.5))
    assert (masker.seen_alphas, masker.seen_alpha, masker.asked_alpha) == (
        {"rgb": (1000.0, 0.5)},
        (0.0, 0.5),
        (0.5, 0.5),
    )
    assert (train.base_lr, train.lr_batch, train.batch_size, train.betas) == (1e-4, 256, 8192, (0.9, 0.95))
    assert train.epochs * 12e6 * 256 == pytest.approx(500e9, rel=0.01)
    assert train.warmup_epochs * 12e6 * 256 == pytest.approx(10e9, rel=0.01)
    with torch.device("meta"):
        method = build_method(replace(run, parts={**run.parts, **ids}))
    blocks = sum(p.numel() for part in (method.encoder, method.decoder) for p in part.blocks.parameters())
    assert round(blocks / 1e6) == millions
    names = {name: head.target.size for name, head in method.heads.items()}
    others = {"depth": 8192, "normal": 8192, "semseg": 4096, "features": 8192, "caption": 49_408 + 129}
    assert names == {"rgb_ids": 16_384, **others}
    assert run.parts["data"].options.missing == "mask"
    assert method.total == "mean"
    assert not any(
        "bias" in name for part in (method.encoder, method.decoder.blocks) for name, _ in part.named_parameters()
    )
