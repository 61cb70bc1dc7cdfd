"""Against transformers' VideoMAE with random weights: the same loss under the same mask, the same predictions, latent
and gradients, through a folder that ``save_pretrained`` wrote."""

import pytest
import torch
from mim_core.errors import MimError
from mim_core.interop.weights import import_checkpoint
from mim_core.parts.mask import Draw
from mim_core.testing import keys, seeded

transformers = pytest.importorskip("transformers")

SIZES = {
    "small": {
        "image_size": 32,
        "patch_size": 8,
        "num_frames": 8,
        "tubelet_size": 2,
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "intermediate_size": 192,
        "use_mean_pooling": False,
        "decoder_hidden_size": 32,
        "decoder_num_hidden_layers": 1,
        "decoder_num_attention_heads": 2,
        "decoder_intermediate_size": 128,
    },
    "raw": {
        "image_size": [24, 40],
        "patch_size": 4,
        "num_frames": 6,
        "tubelet_size": 3,
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 128,
        "use_mean_pooling": True,  # their default: no norm after the last block
        "norm_pix_loss": False,
        "layer_norm_eps": 1e-5,
        "qv_bias": False,
        "decoder_hidden_size": 48,
        "decoder_num_hidden_layers": 2,
        "decoder_num_attention_heads": 4,
        "decoder_intermediate_size": 144,
    },
    "grey": {
        "image_size": 16,
        "patch_size": 8,
        "num_frames": 16,
        "num_channels": 1,
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "use_mean_pooling": False,
        "decoder_hidden_size": 16,
        "decoder_num_hidden_layers": 1,
        "decoder_num_attention_heads": 2,
        "decoder_intermediate_size": 32,
    },
}


def theirs(**sizes):
    """Their model with all weights moved away from their initial values, so that no bias or norm is trivial."""
    with seeded(3):
        model = transformers.VideoMAEForPreTraining(transformers.VideoMAEConfig(**sizes)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape))
    return model


def inputs(ours, rows=2):
    """Clips, and a mask of the imported method's own."""
    (shape,) = ours.tokenizer.shapes.values()
    with seeded(5):
        clips = torch.randn(rows, *shape)
    return clips, ours.masker(ours.tokenizer.layout, Draw(keys(rows))).hidden


@pytest.fixture(params=list(SIZES), scope="module")
def pair(request, tmp_path_factory):
    """Their model and ours."""
    model = theirs(**SIZES[request.param])
    folder = tmp_path_factory.mktemp("videomae")
    model.save_pretrained(folder)
    return model, import_checkpoint(folder, format="hf-videomae").train()


def test_loss_predictions_latent_and_gradients(pair):
    model, ours = pair
    clips, hidden = inputs(ours)
    model.zero_grad()
    ours.zero_grad()
    wanted = model(clips.transpose(1, 2), bool_masked_pos=hidden)
    latent = model.videomae(clips.transpose(1, 2), bool_masked_pos=hidden).last_hidden_state
    outcome = ours(ours.prepare({"video": clips}, mask=hidden))
    assert outcome.loss.item() == pytest.approx(wanted.loss.item(), rel=1e-5)
    torch.testing.assert_close(outcome.prediction, wanted.logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(outcome.latent, latent, rtol=1e-4, atol=1e-5)
    wanted.loss.backward()
    outcome.loss.backward()
    for found, expected in (
        (ours.tokenizer.proj, model.videomae.embeddings.patch_embeddings.projection),
        (ours.encoder.blocks[0].mlp.fc1, model.videomae.encoder.layer[0].intermediate.dense),
        (ours.heads["main"].decoder.embed, model.encoder_to_decoder),
        (ours.heads["main"].decoder.pred, model.decoder.head),
    ):
        torch.testing.assert_close(found.weight.grad, expected.weight.grad, rtol=1e-4, atol=1e-6)


def test_encode_is_their_model_with_nothing_masked(pair):
    model, ours = pair
    clips, _ = inputs(ours)
    with torch.no_grad():
        wanted = model.videomae(clips.transpose(1, 2)).last_hidden_state
        features = ours.encode({"video": clips})
    torch.testing.assert_close(features.tokens, wanted, rtol=1e-4, atol=1e-5)
    assert features.prefix.shape[1] == 0


def test_settings_come_from_the_folder(pair):
    model, ours = pair
    config = model.config
    assert ours.heads["main"].target.config.normalize == config.norm_pix_loss
    assert ours.encoder.blocks[0].norm1.eps == config.layer_norm_eps
    assert ours.heads["main"].decoder.norm.eps == 1e-5  # theirs takes torch's default there
    (shape,) = ours.tokenizer.shapes.values()
    assert shape[:2] == (config.num_channels, config.num_frames)


def test_biases_under_their_old_names():
    """What lies on the hub has q_bias and v_bias."""
    model = theirs(**SIZES["small"])
    old = {
        name.replace("attention.query.bias", "attention.q_bias").replace("attention.value.bias", "attention.v_bias"): x
        for name, x in model.state_dict().items()
    }
    assert any(name.endswith("attention.attention.q_bias") for name in old)
    new = import_checkpoint(model.state_dict(), format="hf-videomae", **model.config.to_dict()).state_dict()
    for name, value in import_checkpoint(old, format="hf-videomae", **model.config.to_dict()).state_dict().items():
        assert torch.equal(value, new[name])


def test_what_cannot_be_imported():
    model = theirs(**SIZES["small"])
    with pytest.raises(MimError, match="num_attention_heads and decoder_num_attention_heads"):
        import_checkpoint(model.state_dict(), format="hf-videomae")
    settings = {**model.config.to_dict(), "hidden_act": "relu"}
    with pytest.raises(MimError, match="hidden_act is 'relu'"):
        import_checkpoint(model.state_dict(), format="hf-videomae", **settings)
