"""A method with its decoder as a folder for transformers' ViTMAE. `mim_image.interop.import_hf_vitmae` is the way
back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mim_core import (
    Method,
    MimError,
    TransformerDecoder,
    ValueTarget,
    exporters,
    hugging_face,
    importers,
)

WHAT = "transformers' ViTMAE"
_DECODER = {
    "embed.weight": "decoder_embed.weight",
    "embed.bias": "decoder_embed.bias",
    "norm.weight": "decoder_norm.weight",
    "norm.bias": "decoder_norm.bias",
    "pred.weight": "decoder_pred.weight",
    "pred.bias": "decoder_pred.bias",
    "mask_token": "mask_token",
}


def export_hf_vitmae(method: Method, inputs: Mapping[str, Any], classes: tuple[str, ...]) -> exporters.Exported:
    """transformers' ``ViTMAEForPreTraining``: encoder and decoder (MAE, arXiv 2111.06377).

    Args:
        method: Has MAE's parts: a plain ViT with a class token, a transformer decoder, pixels as the target.
        inputs: ``mean`` and ``std`` of values in [0, 1], where they are known.
        classes: Not used.

    Raises:
        MimError: ViTMAE is no such method; says in what.
    """
    decoder, target = exporters.only_head(WHAT, method)
    tokenizer, encoder = hugging_face.patch_encoder(method, WHAT)
    hugging_face.check_vit(WHAT, encoder)
    patches: Any = tokenizer.config
    _check(patches, encoder.config, decoder, target)
    own = decoder.state_dict()
    state = {f"vit.{name}": value for name, value in hugging_face.encoder_weights(tokenizer, encoder).items()}
    state |= {f"decoder.{theirs}": own[ours] for ours, theirs in _DECODER.items()}
    state |= exporters.transformers_blocks(own, "blocks.", "decoder.decoder_layers.")
    table = own["position.table"]
    state["decoder.decoder_pos_embed"] = importers.with_slot(table.new_zeros(1, 1, table.shape[2]), table)
    depth = decoder.config
    config = {
        "architectures": ["ViTMAEForPreTraining"],
        "model_type": "vit_mae",
        **hugging_face.encoder_config(patches, encoder.config),
        "decoder_hidden_size": depth.width,
        "decoder_num_hidden_layers": depth.depth,
        "decoder_num_attention_heads": depth.heads,
        "decoder_intermediate_size": int(depth.width * depth.mlp_ratio),
        "mask_ratio": exporters.share_hidden(method),
        "norm_pix_loss": target.config.normalize,
    }
    files, notes = hugging_face.processed(patches, inputs)
    notes = ("It hides units at random, as in training; from_pretrained(..., mask_ratio=0.0) encodes all.", *notes)
    load = "transformers.ViTMAEForPreTraining.from_pretrained({folder})"
    return exporters.Exported(state, config, load, notes, files)


def _check(patches: Any, encoder: Any, decoder: Any, target: Any) -> None:
    """Raises MimError for parts that ViTMAE does not have."""
    if not isinstance(decoder, TransformerDecoder) or type(target) is not ValueTarget:
        raise MimError(
            f"{WHAT} decodes pixels with a transformer; this run has a {type(decoder).__name__} and a "
            f"{type(target).__name__}."
        )
    own = decoder.config
    exporters.refuse(
        WHAT,
        {
            "oblong pictures or patches": len({*patches.size}) > 1 or len({*patches.patch}) > 1,
            "decoder without a table of positions": "position.table" not in decoder.state_dict(),
            "positions at every block of the decoder": own.position_at != "input",
            "decoder without a biased layer in front": not (own.embed and own.embed_bias),
            "decoder with a token of its own": own.prefix != "encoder",
            "decoder without biases of queries, keys and values": not own.qkv_bias,
            "norms of another small number in the decoder": {own.norm_eps, own.final_norm_eps or own.norm_eps}
            != {encoder.norm_eps},
            f"loss {target.config.loss}": target.config.loss != "l2",
            "order of values": target.config.channels_first,
        },
    )
