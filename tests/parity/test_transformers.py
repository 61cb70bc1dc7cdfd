"""Against transformers' ViTMAE with random weights: the same loss under the same mask, the same latent."""

import pytest
import torch
from mim_core.errors import MimError
from mim_core.interop.weights import import_checkpoint
from mim_core.parts.layout import Layout
from mim_core.parts.mask import Draw
from mim_core.parts.masker import RandomMasker
from mim_core.testing import keys, seeded

transformers = pytest.importorskip("transformers")

SIZES = {
    "small": {
        "image_size": 32,
        "patch_size": 8,
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "intermediate_size": 192,
        "decoder_hidden_size": 32,
        "decoder_num_hidden_layers": 1,
        "decoder_num_attention_heads": 2,
        "decoder_intermediate_size": 128,
        "norm_pix_loss": True,
    },
    "grey": {
        "image_size": 28,
        "patch_size": 4,
        "num_channels": 1,
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 128,
        "decoder_hidden_size": 48,
        "decoder_num_hidden_layers": 2,
        "decoder_num_attention_heads": 4,
        "decoder_intermediate_size": 144,  # another share of the width than the encoder's
        "mask_ratio": 0.6,
        "layer_norm_eps": 1e-5,
    },
}


def theirs(**sizes):
    """Their model with all weights moved away from their initial values, so that no bias or norm is trivial."""
    with seeded(3):
        model = transformers.ViTMAEForPreTraining(transformers.ViTMAEConfig(**sizes)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.05 * torch.randn(parameter.shape))
    return model


def masked_inputs(model, rows=3):
    """Images, a mask of their own count, and the noise that makes them draw that mask with visible units in order."""
    config = model.config
    count = model.vit.embeddings.patch_embeddings.num_patches
    images = torch.randn(rows, config.num_channels, config.image_size, config.image_size)
    mask = RandomMasker(RandomMasker.Config(ratio=config.mask_ratio))(Layout(count=count), Draw(keys(rows)))
    noise = mask.hidden.float() + torch.arange(count) / (2 * count)
    return images, mask, noise


@pytest.fixture(params=list(SIZES), scope="module")
def pair(request, tmp_path_factory):
    """Their model and ours, through a folder that ``save_pretrained`` wrote."""
    model = theirs(**SIZES[request.param])
    folder = tmp_path_factory.mktemp("vitmae")
    model.save_pretrained(folder)
    return model, import_checkpoint(folder, format="hf-vitmae").eval()


def test_loss_predictions_and_latent(pair):
    model, ours = pair
    images, mask, noise = masked_inputs(model)
    with torch.no_grad():
        wanted = model(images, noise=noise)
        latent = model.vit(images, noise=noise).last_hidden_state
        outcome = ours(ours.prepare({"image": images}, mask=mask.hidden))
    assert torch.equal(wanted.mask.bool(), mask.hidden)
    assert outcome.loss.item() == pytest.approx(wanted.loss.item(), rel=1e-5)
    torch.testing.assert_close(outcome.latent, latent, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(outcome.prediction, mask.take(wanted.logits, mask.query_ids), rtol=1e-4, atol=1e-5)


def test_gradients(pair):
    model, ours = pair
    images, mask, noise = masked_inputs(model)
    model.zero_grad()
    ours.zero_grad()
    model(images, noise=noise).loss.backward()
    ours(ours.prepare({"image": images}, mask=mask.hidden)).loss.backward()
    for found, wanted in (
        (ours.tokenizer.proj, model.vit.embeddings.patch_embeddings.projection),
        (ours.encoder.norm, model.vit.layernorm),
        (ours.heads["main"].decoder.embed, model.decoder.decoder_embed),
        (ours.heads["main"].decoder.pred, model.decoder.decoder_pred),
    ):
        torch.testing.assert_close(found.weight.grad, wanted.weight.grad, rtol=1e-4, atol=1e-6)


def test_encode_is_their_encoder_with_nothing_masked(pair):
    model, ours = pair
    images, _, _ = masked_inputs(model)
    whole = theirs(**{**model.config.to_dict(), "mask_ratio": 0.0})
    whole.load_state_dict(model.state_dict())
    with torch.no_grad():
        wanted = whole.vit(images, noise=torch.arange(whole.vit.embeddings.patch_embeddings.num_patches).expand(3, -1))
        features = ours.encode({"image": images})
    torch.testing.assert_close(features.tokens, wanted.last_hidden_state[:, 1:], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(features.prefix, wanted.last_hidden_state[:, :1], rtol=1e-4, atol=1e-5)


def test_settings_come_from_the_folder(pair):
    model, ours = pair
    assert ours.masker.config.ratio == model.config.mask_ratio
    assert ours.heads["main"].target.config.normalize == model.config.norm_pix_loss
    assert ours.encoder.norm.eps == model.config.layer_norm_eps
    assert ours.tokenizer.shapes == {"image": (model.config.num_channels, *[model.config.image_size] * 2)}


def test_default_eps_matters():
    """transformers' 1e-12 and MAE's 1e-6 differ where a token hardly varies; the folder's is taken."""
    model = theirs(**SIZES["small"])
    assert model.config.layer_norm_eps == 1e-12
    ours = import_checkpoint(model.state_dict(), format="hf-vitmae", **model.config.to_dict())
    assert ours.encoder.blocks[0].norm1.eps == ours.heads["main"].decoder.norm.eps == 1e-12


def test_a_lost_weight_is_named():
    model = theirs(**SIZES["small"])
    state = dict(model.state_dict())
    del state["decoder.decoder_norm.bias"]
    with pytest.raises(MimError, match=r"missing: decoder_norm\.bias"):
        import_checkpoint(state, format="hf-vitmae", **model.config.to_dict())
    state = {**model.state_dict(), "head.weight": torch.zeros(2, 2)}
    with pytest.raises(MimError, match=r"unexpected: head\.weight"):
        import_checkpoint(state, format="hf-vitmae", **model.config.to_dict())


def test_heads_must_be_known():
    with pytest.raises(MimError, match="num_attention_heads and decoder_num_attention_heads"):
        import_checkpoint(theirs(**SIZES["small"]).state_dict(), format="hf-vitmae")


def test_another_activation_is_refused():
    model = theirs(**SIZES["small"], hidden_act="relu")
    with pytest.raises(MimError, match="hidden_act"):
        import_checkpoint(model.state_dict(), format="hf-vitmae", **model.config.to_dict())
