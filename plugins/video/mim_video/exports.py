"""A method with its decoder as a folder for transformers' VideoMAE. `mim_video.interop.import_hf_videomae` is the way
back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mim_core import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Method,
    MimError,
    PatchTokenizer,
    Supervised,
    TransformerDecoder,
    exporters,
    usual_statistics,
)
from torch import Tensor

from mim_video.target import CubeTarget

WHAT = "transformers' VideoMAE"
LAST_EPS = 1e-5
"""The small number in the last norm of its decoder, which nothing sets."""


def export_hf_videomae(method: Method, inputs: Mapping[str, Any], classes: tuple[str, ...]) -> exporters.Exported:
    """transformers' ``VideoMAEForPreTraining``, encoder and decoder (VideoMAE, arXiv 2203.12602); of a run that was
    trained on classes ``VideoMAEForVideoClassification``.

    Args:
        method: Has VideoMAE's parts: a plain ViT without a class token on tubelets, flat positions, a transformer
            decoder, pixels of tubelets as the target; or the pooled norm and the linear head of its fine-tuning.
        inputs: ``mean`` and ``std`` of values in [0, 1] and ``crop_pct``, where they are known.
        classes: Names of a classifier's classes.

    Raises:
        MimError: VideoMAE is no such method; says in what.
    """
    if isinstance(method, Supervised):
        return _classifier(method, inputs, classes)
    decoder, target = exporters.only_head(WHAT, method)
    tokenizer, encoder = _encoder(method)
    _check_decoder(encoder.config, decoder, target)
    own, depth = decoder.state_dict(), decoder.config
    state = _encoder_weights(tokenizer, encoder)
    state |= exporters.transformers_blocks(own, "blocks.", "decoder.decoder_layers.", key_bias=False)
    state |= {"encoder_to_decoder.weight": own["embed.weight"], "mask_token": own["mask_token"]}
    for kind in ("weight", "bias"):
        state |= {f"decoder.norm.{kind}": own[f"norm.{kind}"], f"decoder.head.{kind}": own[f"pred.{kind}"]}
    config = {
        "architectures": ["VideoMAEForPreTraining"],
        **_config(tokenizer.config, encoder.config),
        "decoder_hidden_size": depth.width,
        "decoder_num_hidden_layers": depth.depth,
        "decoder_num_attention_heads": depth.heads,
        "decoder_intermediate_size": int(depth.width * depth.mlp_ratio),
        "norm_pix_loss": target.config.normalize,
    }
    files, notes = _processed(tokenizer.config, inputs)
    last = depth.final_norm_eps or depth.norm_eps
    if last != LAST_EPS:
        notes = (
            f"The last norm of its decoder has the small number {LAST_EPS:g}, this run's {last:g}: predictions differ "
            "a little; features do not.",
            *notes,
        )
    return exporters.Exported(
        state, config, "transformers.VideoMAEForPreTraining.from_pretrained({folder})", notes, files
    )


def _classifier(method: Any, inputs: Mapping[str, Any], classes: tuple[str, ...]) -> exporters.Exported:
    """The mean of the units, a norm, and a linear layer."""
    tokenizer, encoder = _encoder(method)
    own, norm = getattr(method, "config", None), getattr(method, "fc_norm", None)
    if (getattr(own, "pool", ""), getattr(own, "head", "")) != ("mean", "linear") or norm is None:
        advice = "Fine-tune with --method.norm pooled, or export" if hasattr(own, "norm") else "Export"
        raise MimError(
            f"{WHAT} classifies by the mean of the units, a norm behind it and a linear layer; this run has "
            f"{type(method).__name__} with pool {getattr(own, 'pool', 'none')!r}, head {getattr(own, 'head', 'none')!r}"
            f"{'' if norm is not None else ' and no norm behind the pool'}. {advice} to torch or onnx."
        )
    state = _encoder_weights(tokenizer, encoder, last=False)
    for kind in ("weight", "bias"):
        state[f"fc_norm.{kind}"] = norm.state_dict()[kind]
        state[f"classifier.{kind}"] = method.head[-1].state_dict()[kind]
    count = len(state["classifier.bias"])
    config = {"architectures": ["VideoMAEForVideoClassification"], **_config(tokenizer.config, encoder.config)}
    config |= {"use_mean_pooling": True, **exporters.label_names(classes, count)}
    files, notes = _processed(tokenizer.config, inputs)
    if norm.eps != LAST_EPS:
        note = f"Its norm in front of the head has the small number {LAST_EPS:g}, this run's {norm.eps:g}"
        notes = (f"{note}: answers differ a little.", *notes)
    load = "transformers.VideoMAEForVideoClassification.from_pretrained({folder})"
    return exporters.Exported(state, config, load, notes, files)


def _encoder(method: Any) -> tuple[PatchTokenizer, Any]:
    """Tokenizer and encoder.

    Raises:
        MimError: transformers has no such.
    """
    tokenizer, encoder = method.tokenizer, method.encoder
    if not isinstance(tokenizer, PatchTokenizer) or len(tokenizer.config.patch) != 3:
        raise MimError(f"{WHAT} takes tubelets of clips; this run has a {type(tokenizer).__name__}.")
    config, patches = encoder.config, tokenizer.config
    if getattr(config, "name", "") is not None or type(encoder).__name__ != "ViTEncoder":
        raise MimError(f"{WHAT} is no {type(encoder).__name__} of this kind; export to torch or onnx.")
    exporters.refuse(
        WHAT,
        {
            "class token": encoder.cls_token is not None,
            "layer scale": config.layer_scale is not None,
            "encoder that sees all units": config.sees == "all",
            f"positions of the kind {config.position}": (config.position, config.position_at) != ("flat", "input"),
            "oblong patches": patches.patch[1] != patches.patch[2],
        },
    )
    if config.position == "flat" and not encoder.position.is_counted():
        raise MimError(f"{WHAT} counts its positions anew; this run's were interpolated to its size.")
    return tokenizer, encoder


def _check_decoder(encoder: Any, decoder: Any, target: Any) -> None:
    """Raises MimError for a decoder or a target that VideoMAE does not have."""
    if not isinstance(decoder, TransformerDecoder) or type(target) is not CubeTarget:
        raise MimError(
            f"{WHAT} decodes tubelets with a transformer; this run has a {type(decoder).__name__} and a "
            f"{type(target).__name__}."
        )
    own, colours = decoder.config, target.unit_shape[-1]
    theirs = (IMAGENET_MEAN, IMAGENET_STD)
    statistics = usual_statistics(target.config.mean, target.config.std, colours)
    exporters.refuse(
        WHAT,
        {
            f"positions of the decoder of the kind {own.position}": (own.position, own.position_at)
            != ("flat", "input"),
            "decoder without a layer in front": not own.embed,
            "bias in the layer in front of the decoder": own.embed and own.embed_bias,
            "decoder with a token of its own": own.prefix != "encoder",
            "biases of queries and values in encoder or decoder alone": own.qkv_bias != encoder.qkv_bias,
            "norms of another small number in the decoder": own.norm_eps != encoder.norm_eps,
            "raw pixels of another mean and deviation than ImageNet's": not target.config.normalize
            and (colours != 3 or tuple(map(tuple, statistics)) != theirs),
        },
    )


def _encoder_weights(tokenizer: PatchTokenizer, encoder: Any, last: bool = True) -> dict[str, Tensor]:
    """Tokenizer and encoder, with the norm at its end where it has one and ``last`` says so."""
    own, weights = encoder.state_dict(), {}
    for kind in ("weight", "bias"):
        weights[f"videomae.embeddings.patch_embeddings.projection.{kind}"] = tokenizer.state_dict()[f"proj.{kind}"]
        if encoder.config.final_norm and last:
            weights[f"videomae.layernorm.{kind}"] = own[f"norm.{kind}"]
    return weights | exporters.transformers_blocks(own, "blocks.", "videomae.encoder.layer.", key_bias=False)


def _config(patches: Any, encoder: Any) -> dict[str, Any]:
    frames, *size = patches.size
    return {
        "model_type": "videomae",
        "hidden_size": encoder.width,
        "num_hidden_layers": encoder.depth,
        "num_attention_heads": encoder.heads,
        "intermediate_size": int(encoder.width * encoder.mlp_ratio),
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": encoder.norm_eps,
        "image_size": exporters.one_or_all(tuple(size)),
        "patch_size": patches.patch[1],
        "num_channels": patches.channels,
        "num_frames": frames,
        "tubelet_size": patches.patch[0],
        "qv_bias": encoder.qkv_bias,
        "use_mean_pooling": not encoder.final_norm,
    }


def _processed(patches: Any, inputs: Mapping[str, Any]) -> tuple[dict[str, dict[str, Any]], tuple[str, ...]]:
    """How frames become the input, as ``preprocessor_config.json``, and what to know of it."""
    _, height, width = patches.size
    order = "transformers takes clips as [B, frames, channels, height, width]; the run as [B, channels, frames, ...]."
    if not {"mean", "std"} <= set(inputs):
        return {}, (order,)
    table = {
        "image_processor_type": "VideoMAEImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": round(min(height, width) / inputs.get("crop_pct", 1.0))},
        "resample": 2,
        "do_center_crop": True,
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(inputs["mean"]),
        "image_std": list(inputs["std"]),
    }
    oblong = () if height == width else ("transformers scales frames by their shorter side; crop them to shape first.",)
    return {"preprocessor_config.json": table}, (order, *oblong)
