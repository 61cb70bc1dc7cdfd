"""Writes an encoder for timm."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor

from mim_core.errors import MimError
from mim_core.interop.weights import _timm_head
from mim_core.methods.method import Method
from mim_core.tensor_files import write_tensors


def _as_timm_has_it(name: str, arguments: dict[str, Any], weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights that timm's model wants, checked by name and shape.

    Models with a norm before their blocks have no bias in the patch embedding; ours moves into the position table,
    which is added to the same tokens.
    """
    with torch.device("meta"):
        wanted = timm.create_model(name, **arguments).state_dict()
    bias = weights.get("patch_embed.proj.bias")
    if bias is not None and "patch_embed.proj.bias" not in wanted and "pos_embed" in weights:
        weights = {key: value for key, value in weights.items() if key != "patch_embed.proj.bias"}
        table = weights["pos_embed"].clone()
        units = math.prod(n // p for n, p in zip(arguments["img_size"], _pair(arguments["patch_size"]), strict=True))
        table[:, -units:] += bias
        weights["pos_embed"] = table
    faults = sorted(set(wanted) ^ set(weights))
    faults += [key for key in wanted if key in weights and wanted[key].shape != weights[key].shape]
    if faults:
        raise MimError(f"timm's {name} has other weights than this encoder, in: {', '.join(faults[:8])}.")
    return weights


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size)


def export_timm(
    method: Method,
    path: Path,
    extra: Mapping[str, str] | None = None,
    inputs: Mapping[str, Any] | None = None,
    classes: tuple[str, ...] = (),
) -> str:
    """Writes the encoder as safetensors under timm's names, with how to load it in the metadata. Returns that line of
    Python. A classifier with one linear layer keeps it, where timm pools as it does.

    Args:
        method: Has the encoder.
        path: The file.
        extra: More metadata.
        inputs: What timm should know of the inputs, under timm's names: ``mean``, ``std``, ``interpolation``, ...
        classes: Names of a classifier's classes.

    Raises:
        MimError: The method has no single patch tokenizer in front of an encoder that timm knows.
    """
    from mim_core.parts.tokenizer import PatchTokenizer

    tokenizer, encoder = getattr(method, "tokenizer", None), getattr(method, "encoder", None)
    if (
        not isinstance(tokenizer, PatchTokenizer)
        or len(tokenizer.config.patch) != 2
        or not hasattr(encoder, "timm_weights")
    ):
        several = ", ".join(getattr(tokenizer, "parts", {}))
        has = f"the tokenizers {several} beside each other" if several else "another tokenizer or encoder"
        raise MimError(f"timm holds encoders of two-dimensional patches of one picture; this method has {has}.")
    assert encoder is not None
    config = tokenizer.config
    name, arguments = encoder.timm_model()
    patch: Any = config.patch[0] if len(set(config.patch)) == 1 else config.patch
    arguments = {
        **arguments,
        "img_size": config.size,
        "patch_size": patch,
        "in_chans": config.channels,
        "num_classes": 0,
    }
    weights = {f"patch_embed.{key}": value for key, value in tokenizer.state_dict().items()}
    weights.update(encoder.timm_weights())
    head, pool = _timm_head(method, arguments)
    if head:
        weights.update(head)
        arguments = {**arguments, "num_classes": len(head["head.bias"]), "global_pool": pool}
    weights = _as_timm_has_it(name, arguments, weights)
    shown = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
    eps = getattr(encoder.config, "norm_eps", 1e-6)
    if eps != 1e-6 and getattr(encoder.config, "name", None) is None:  # timm's own is 1e-6
        shown += f", norm_layer=functools.partial(torch.nn.LayerNorm, eps={eps!r})"
    known = {"input_size": (config.channels, *config.size), "num_classes": arguments["num_classes"], **(inputs or {})}
    shown += f", pretrained_cfg_overlay={known!r}"
    line = f'timm.create_model("{name}", {shown}, checkpoint_path="{path.name}")'
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"timm_model": name, "timm_arguments": json.dumps(arguments), "load": line, **(extra or {})}
    metadata["timm_config"] = json.dumps(known)
    if head and classes:
        metadata["classes"] = json.dumps(list(classes))
    write_tensors(path, {key: value.detach().cpu().contiguous() for key, value in weights.items()}, metadata)
    return line
