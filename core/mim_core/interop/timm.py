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

from mim_core.errors import MimError, warn
from mim_core.methods.classifier import Classifier
from mim_core.methods.method import Method
from mim_core.methods.supervised import Supervised
from mim_core.parts.encoder import Encoder
from mim_core.parts.tokenizer import PatchTokenizer
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


POOLS = {"mean": "avg", "prefix": "token", "max": "max"}
"""How a classifier pools -> timm's name."""


def timm_head(method: Method) -> tuple[dict[str, Tensor], str]:
    """A classifier's linear layer under timm's names, and how timm pools for it; empty where timm has no such head, or
    does not pool so."""
    if not isinstance(method, Classifier) or method.config.head != "linear" or method.config.pool not in POOLS:
        return {}, ""
    if "fc_norm" not in method.encoder.timm_model()[1] and method.config.pool != "prefix":
        return {}, ""  # timm's BEiT would pool before its norm
    last = method.head[-1]  # type: ignore[index]
    return {f"head.{name}": value for name, value in last.state_dict().items()}, POOLS[method.config.pool]


def _head(method: Supervised) -> str:
    """A method's head in words."""
    if not isinstance(method, Classifier):
        return f"that of a {type(method).__name__}"
    if method.config.head == "linear" and method.config.pool in POOLS:
        return f"linear on pool {method.config.pool!r} behind the norm of a {type(method.encoder).__name__}"
    return f"{method.config.head} on pool {method.config.pool!r}"


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size)


def notes_on(method: Method) -> list[str]:
    """What a reader of an exported file should know: where timm's model pools otherwise than `evaluate` does."""
    encoder = getattr(method, "encoder", None)
    pool = encoder.timm_model()[1].get("global_pool") if isinstance(encoder, Encoder) else None
    if pool == "token" and not timm_head(method)[0]:
        return [
            "timm's model gives the class token (global_pool='token'); evaluate judges the mean of the units, which is "
            "model.forward_features(x)[:, 1:].mean(dim=1)."
        ]
    return []


def _line(name: str, arguments: Mapping[str, Any], known: Mapping[str, Any], encoder: Encoder, path: Path) -> str:
    """The line of Python that loads the file."""
    shown = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
    eps = getattr(encoder.config, "norm_eps", 1e-6)
    if eps != 1e-6 and getattr(encoder.config, "name", None) is None:  # timm's own is 1e-6
        shown += f", norm_layer=functools.partial(torch.nn.LayerNorm, eps={eps!r})"
    return f'timm.create_model("{name}", {shown}, pretrained_cfg_overlay={known!r}, checkpoint_path={str(path)!r})'


def patch_encoder(method: Method, library: str = "timm") -> tuple[PatchTokenizer, Encoder]:
    """Tokenizer and encoder of a method that a library of pictures has a model for.

    Args:
        method: Has them.
        library: What the error calls the library.

    Raises:
        MimError: It has others.
    """
    tokenizer, encoder = getattr(method, "tokenizer", None), getattr(method, "encoder", None)
    if (
        not isinstance(tokenizer, PatchTokenizer)
        or len(tokenizer.config.patch) != 2
        or not isinstance(encoder, Encoder)
    ):
        several = ", ".join(getattr(tokenizer, "parts", {}))
        has = f"the tokenizers {several} beside each other" if several else "another tokenizer or encoder"
        raise MimError(
            f"{library} holds encoders of two-dimensional patches of one picture; this method has {has}. Other formats "
            "may: --to torch, plain, onnx."
        )
    return tokenizer, encoder


def encoder_of_timm(
    method: Method,
) -> tuple[PatchTokenizer, Encoder, tuple[str, dict[str, Any]], dict[str, Tensor]]:
    """Tokenizer, encoder, timm's model with its arguments, and the encoder's weights under timm's names.

    Raises:
        MimError: timm has no model for the method.
    """
    tokenizer, encoder = patch_encoder(method)
    try:
        return tokenizer, encoder, encoder.timm_model(), dict(encoder.timm_weights())
    except NotImplementedError:
        raise MimError(f"timm has no model for this run's encoder, a {type(encoder).__name__}.") from None


def _with_pooled_norm(
    method: Method, whole: bool, weights: dict[str, Tensor], arguments: dict[str, Any]
) -> dict[str, Any]:
    """Arguments of timm's model where a norm stands behind the pool and none at the encoder's end, as in MAE's
    fine-tuning: with the head that norm is among the weights, without it there is none."""
    norm = getattr(method, "fc_norm", None)
    if norm is None:
        return arguments
    if not whole:
        return {**arguments, "final_norm": False}
    weights |= {f"fc_norm.{name}": value for name, value in norm.state_dict().items()}
    return {**{name: value for name, value in arguments.items() if name != "final_norm"}, "fc_norm": True}


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
    tokenizer, encoder, (name, arguments), weights = encoder_of_timm(method)
    config = tokenizer.config
    weights = {**{f"patch_embed.{key}": value for key, value in tokenizer.state_dict().items()}, **weights}
    patch: Any = config.patch[0] if len(set(config.patch)) == 1 else config.patch
    sizes = {"img_size": config.size, "patch_size": patch} if encoder.takes == "tokens" else {}
    arguments = {**arguments, **sizes, "in_chans": config.channels, "num_classes": 0}
    head, pool = timm_head(method)
    if isinstance(method, Supervised) and not head:
        warn(f"the file has the encoder alone (num_classes=0): timm has no head like this run's, {_head(method)}.")
    if head:
        weights.update(head)
        arguments = {**arguments, "num_classes": len(head["head.bias"]), "global_pool": pool}
    arguments = _with_pooled_norm(method, bool(head), weights, arguments)
    weights = _as_timm_has_it(name, arguments, weights)
    known = {"input_size": (config.channels, *config.size), "num_classes": arguments["num_classes"], **(inputs or {})}
    line = _line(name, arguments, known, encoder, path)
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"timm_model": name, "timm_arguments": json.dumps(arguments), "load": line, **(extra or {})}
    metadata["timm_config"] = json.dumps(known)
    if head and classes:
        metadata["classes"] = json.dumps(list(classes))
    write_tensors(path, {key: value.detach().cpu().contiguous() for key, value in weights.items()}, metadata)
    return line
