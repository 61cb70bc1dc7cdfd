"""An encoder, with its head, as a folder for transformers' ViT. Names are those of the published weights, which every
version reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mim_core.errors import MimError
from mim_core.interop.exporters import Exported, label_names, one_or_all, refuse, transformers_blocks
from mim_core.interop.timm import patch_encoder, timm_head
from mim_core.methods.method import Method
from mim_core.methods.supervised import Supervised
from mim_core.parts.encoder import ViTEncoder

_OUTER = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
    "norm.weight": "layernorm.weight",
    "norm.bias": "layernorm.bias",
}
PREPROCESSOR = "preprocessor_config.json"


def export_hf_vit(method: Method, inputs: Mapping[str, Any], classes: tuple[str, ...]) -> Exported:
    """transformers' ``ViTModel``, or ``ViTForImageClassification`` of a classifier.

    Args:
        method: Has a plain ViT with a class token behind square or oblong patches of one picture.
        inputs: ``mean`` and ``std`` of values in [0, 1], where they are known.
        classes: Names of a classifier's classes.

    Raises:
        MimError: transformers' ViT is no such encoder, or has no such head.
    """
    tokenizer, encoder = patch_encoder(method, "transformers' ViT")
    check_vit("transformers' ViT", encoder)
    head, pool = timm_head(method)
    if isinstance(method, Supervised) and pool != "token":
        raise MimError(
            "transformers' ViT puts its head on the class token. Fine-tune with --method.pool prefix, or export to "
            "timm, torch or onnx."
        )
    state = {f"{'vit.' if head else ''}{name}": value for name, value in encoder_weights(tokenizer, encoder).items()}
    state |= {name.replace("head.", "classifier."): value for name, value in head.items()}
    loader = "ViTForImageClassification" if head else "ViTModel"
    config = {
        "architectures": [loader],
        "model_type": "vit",
        **encoder_config(tokenizer.config, encoder.config),
        **(label_names(classes, len(head["head.bias"])) if head else {}),
    }
    files, notes = processed(tokenizer.config, inputs)
    if not head:
        notes = ("evaluate judges the mean of the units: last_hidden_state[:, 1:].mean(dim=1).", *notes)
    more = "" if head else ", add_pooling_layer=False"
    return Exported(state, config, f"transformers.{loader}.from_pretrained({{folder}}{more})", notes, files)


def check_vit(what: str, encoder: Any) -> None:
    """Raises MimError for what transformers' ViT, or another of its kind, does not have."""
    if not isinstance(encoder, ViTEncoder) or encoder.config.name is not None:
        raise MimError(f"{what} is no {type(encoder).__name__} of this kind; export to timm, torch or onnx.")
    config = encoder.config
    refuse(
        what,
        {
            "encoder without a class token": encoder.cls_token is None,
            "register tokens": encoder.reg_token is not None,
            "layer scale": config.layer_scale is not None,
            "queries, keys and values without biases": not config.qkv_bias,
            "encoder without a norm at the end": not config.final_norm,
            "encoder that sees all units": config.sees == "all",
            "positions that are no table for each unit": "pos_embed" not in encoder.timm_weights(),
        },
    )
    encoder.timm_model()  # refuses positions that neither library has


def encoder_weights(tokenizer: Any, encoder: Any) -> dict[str, Tensor]:
    """Tokenizer and encoder under transformers' names, without what stands in front of them."""
    weights = {f"patch_embed.{key}": value for key, value in tokenizer.state_dict().items()} | encoder.timm_weights()
    renamed = {_OUTER[name]: value for name, value in weights.items() if name in _OUTER}
    return renamed | transformers_blocks(weights, "blocks.", "encoder.layer.")


def encoder_config(patches: Any, encoder: Any) -> dict[str, Any]:
    """Entries of ``config.json`` that ViT and ViTMAE share."""
    return {
        "hidden_size": encoder.width,
        "num_hidden_layers": encoder.depth,
        "num_attention_heads": encoder.heads,
        "intermediate_size": int(encoder.width * encoder.mlp_ratio),
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": encoder.norm_eps,
        "image_size": one_or_all(patches.size),
        "patch_size": one_or_all(patches.patch),
        "num_channels": patches.channels,
        "qkv_bias": encoder.qkv_bias,
    }


def processed(patches: Any, inputs: Mapping[str, Any]) -> tuple[dict[str, dict[str, Any]], tuple[str, ...]]:
    """How a picture becomes the input, as ``preprocessor_config.json``, and what to know of it; empty where the mean
    and the deviation are not known. As evaluation does it: the shorter side is resized, the centre taken. transformers
    cuts no oblong part so; it resizes the whole picture."""
    if not {"mean", "std"} <= set(inputs):
        return {}, ()
    height, width = patches.size
    centred = height == width and "crop_pct" in inputs
    if centred:
        cut = {
            "image_processor_type": "CLIPImageProcessor",  # the one that cuts and stands in every version
            "size": {"shortest_edge": round(height / inputs["crop_pct"])},
            "do_center_crop": True,
            "crop_size": {"height": height, "width": width},
            "do_convert_rgb": patches.channels == 3,
        }
    else:
        cut = {"image_processor_type": "ViTImageProcessor", "size": {"height": height, "width": width}}
    table = {
        **cut,
        "do_resize": True,
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(inputs["mean"]),
        "image_std": list(inputs["std"]),
    }
    note = "transformers resizes a picture to the whole input; the run takes its centre. Crop it first."
    return {PREPROCESSOR: table}, () if centred else (note,)
