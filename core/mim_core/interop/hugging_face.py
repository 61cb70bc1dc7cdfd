"""Writes an encoder, with its head, as a folder for transformers' ViT. Names are those of the published weights, which
every version reads."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mim_core.disk import write_whole
from mim_core.errors import MimError
from mim_core.interop.timm import patch_encoder, timm_head
from mim_core.methods.method import Method
from mim_core.methods.supervised import Supervised
from mim_core.parts.encoder import ViTEncoder
from mim_core.tensor_files import write_tensors

_BLOCK = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
"""Within a block: timm's name -> transformers'."""
_OUTER = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
    "norm.weight": "layernorm.weight",
    "norm.bias": "layernorm.bias",
}


def export_hf(
    method: Method, folder: Path, inputs: Mapping[str, Any], classes: tuple[str, ...]
) -> tuple[str, list[str]]:
    """Writes ``config.json``, ``model.safetensors`` and ``preprocessor_config.json``.

    Args:
        method: Has a plain ViT with a class token behind square or oblong patches of one picture.
        folder: Made where it is not there.
        inputs: ``mean`` and ``std`` of values in [0, 1], where they are known.
        classes: Names of a classifier's classes.

    Returns:
        How to load it, in Python; and what to know of it.

    Raises:
        MimError: transformers' ViT is no such encoder, or has no such head.
    """
    tokenizer, encoder = patch_encoder(method)
    _check(encoder)
    head, pool = timm_head(method)
    if isinstance(method, Supervised) and pool != "token":
        raise MimError(
            "transformers' ViT puts its head on the class token. Fine-tune with --method.pool prefix, or export to "
            "timm, torch or onnx."
        )
    weights = {f"patch_embed.{key}": value for key, value in tokenizer.state_dict().items()}
    weights.update(encoder.timm_weights())
    start = "vit." if head else ""
    state = {f"{start}{name}": value for name, value in _renamed(weights).items()}
    state |= {name.replace("head.", "classifier."): value for name, value in head.items()}
    folder.mkdir(parents=True, exist_ok=True)
    kept = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    write_tensors(folder / "model.safetensors", kept, {"format": "pt"})
    write_whole(folder / "config.json", json.dumps(_config(tokenizer.config, encoder.config, head, classes), indent=1))
    notes = [] if head else ["evaluate judges the mean of the units: last_hidden_state[:, 1:].mean(dim=1)."]
    if {"mean", "std"} <= set(inputs):
        write_whole(folder / "preprocessor_config.json", json.dumps(_preprocessor(tokenizer.config, inputs), indent=1))
        notes.append("transformers resizes a picture to the whole input; the run takes its centre. Crop it first.")
    loader = "ViTForImageClassification" if head else "ViTModel"
    more = "" if head else ", add_pooling_layer=False"
    return f"transformers.{loader}.from_pretrained({str(folder)!r}{more})", notes


def _check(encoder: Any) -> None:
    """Raises MimError for what transformers' ViT does not have."""
    config = encoder.config
    if not isinstance(encoder, ViTEncoder) or config.name is not None:
        raise MimError(f"transformers' ViT is no {type(encoder).__name__} of this kind; export to timm, torch or onnx.")
    faults = {
        "no class token": encoder.cls_token is None,
        "register tokens": encoder.reg_token is not None,
        "layer scale": config.layer_scale is not None,
        "no biases of queries, keys and values": not config.qkv_bias,
        "no norm at the end": not config.final_norm,
        "positions that are no table for each unit": "pos_embed" not in encoder.timm_weights(),
    }
    found = [name for name, wrong in faults.items() if wrong]
    encoder.timm_model()  # refuses positions that neither library has
    if found:
        raise MimError(f"transformers' ViT does not have this encoder's {', '.join(found)}; export to torch or onnx.")


def _renamed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights under transformers' names, with queries, keys and values apart."""
    found: dict[str, Tensor] = {}
    for name, value in weights.items():
        block = re.fullmatch(r"blocks\.(\d+)\.(.+)\.(weight|bias)", name)
        if block is None:
            found[_OUTER[name]] = value
            continue
        number, inner, kind = block.groups()
        start = f"encoder.layer.{number}"
        if inner == "attn.qkv":
            for part, own in zip(("query", "key", "value"), value.chunk(3), strict=True):
                found[f"{start}.attention.attention.{part}.{kind}"] = own
        else:
            found[f"{start}.{_BLOCK[inner]}.{kind}"] = value
    return found


def _config(patches: Any, encoder: Any, head: Mapping[str, Tensor], classes: tuple[str, ...]) -> dict[str, Any]:
    names = classes or tuple(map(str, range(len(head["head.bias"])))) if head else ()
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}} if head else {}
    return {
        "architectures": ["ViTForImageClassification" if head else "ViTModel"],
        "model_type": "vit",
        "hidden_size": encoder.width,
        "num_hidden_layers": encoder.depth,
        "num_attention_heads": encoder.heads,
        "intermediate_size": int(encoder.width * encoder.mlp_ratio),
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": encoder.norm_eps,
        "image_size": list(patches.size) if len(set(patches.size)) > 1 else patches.size[0],
        "patch_size": list(patches.patch) if len(set(patches.patch)) > 1 else patches.patch[0],
        "num_channels": patches.channels,
        "qkv_bias": True,
        **labels,
    }


def _preprocessor(patches: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    height, width = patches.size
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": height, "width": width},
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(inputs["mean"]),
        "image_std": list(inputs["std"]),
    }
