"""A trained encoder, with a classifier's head, as a state_dict and one short file of Python that needs torch alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from jinja2 import Environment, PackageLoader
from timm.layers import LayerScale, Mlp
from timm.models import vision_transformer
from torch import Tensor, nn

from mim_core.disk import filled, write_whole
from mim_core.errors import MimError
from mim_core.interop.program_export import NEAR, Program, random_inputs
from mim_core.methods.classifier import Classifier
from mim_core.methods.method import Method
from mim_core.methods.supervised import Supervised
from mim_core.parts.encoder import ViTEncoder
from mim_core.parts.norm import BatchNorm
from mim_core.parts.position import CoordinatePosition, SegmentPositions
from mim_core.parts.tokenizer import JoinedTokenizer, PlainUnits, Tokenizer
from mim_core.tensor_files import write_tensors

OTHERS = "--to torch holds any method"


def export_plain(method: Method, folder: Path, about: Mapping[str, Any]) -> str:
    """Writes ``model.py``, ``model.safetensors`` and ``about.json``, once the file has given the method's answers.

    Args:
        method: In evaluation mode.
        folder: Where to.
        about: What JSON has of the inputs and of where the weights are from.

    Returns:
        How to load it, in Python.

    Raises:
        MimError: The method has parts that this file has no form of, or it gives other answers.
    """
    tokenizer: Any = method.eval().to("cpu").tokenizer
    try:
        text, weights = plain_model(method)
    except ValueError as error:
        raise MimError(f"No plain model of this run: {error}; {OTHERS}.") from error
    shapes = dict(tokenizer.shapes)
    _check(text, weights, method, shapes, tokenizer.ids)
    metadata = {**about, "inputs": {name: list(shape) for name, shape in shapes.items()}}
    with filled(folder) as part:
        write_tensors(part / "model.safetensors", weights)
        write_whole(part / "model.py", text)
        write_whole(part / "about.json", json.dumps(metadata, indent=2) + "\n")
    return "\n".join(
        (
            "from model import Model  # within the folder",
            "from safetensors.torch import load_file",
            "",
            "model = Model().eval()",
            'model.load_state_dict(load_file("model.safetensors"))',
            f"model({_call(shapes)})",
        )
    )


def _call(shapes: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={name}" for name in shapes)


def _check(text: str, weights: Mapping[str, Tensor], method: Method, shapes: Any, ids: Any) -> None:
    """Raises MimError where the file gives other answers than the method."""
    room: dict[str, Any] = {"__name__": "model"}
    exec(compile(text, "model.py", "exec"), room)
    model = room["Model"]().eval()
    model.load_state_dict(weights)
    inputs = random_inputs(shapes, ids, 2, 1)
    with torch.no_grad():
        wanted = next(iter(Program(method, tuple(shapes))(*inputs).values()))
        output = model(**dict(zip(shapes, inputs, strict=True)))
    if not torch.allclose(output, wanted, rtol=NEAR, atol=NEAR):
        apart = float((output - wanted).abs().max())
        raise MimError(
            f"The plain model gives other answers than the run, {apart:.2g} apart, and was not written. Please report "
            f"it; {OTHERS}."
        )


def plain_model(method: Method) -> tuple[str, dict[str, Tensor]]:
    """The text of the file, and its state_dict.

    Raises:
        ValueError: The method has parts that have no such form.
    """
    tokenizer: Any = getattr(method, "tokenizer", None)
    encoder: Any = getattr(method, "encoder", None)
    if not isinstance(encoder, ViTEncoder) or not isinstance(tokenizer, Tokenizer):
        raise ValueError(f"it is written for core:vit, and this encoder is a {type(encoder or method).__name__}")
    if method.rebuilds == "all":
        raise ValueError("it holds what gives features, and this one gives codes")
    if isinstance(method, Supervised) and type(method) is not Classifier:
        raise ValueError(f"of what is trained on labels it holds classifiers, and this is a {type(method).__name__}")
    if not isinstance(encoder.norm_pre, nn.Identity):
        raise ValueError("the encoder has a norm before its blocks")
    units, weights = _units(tokenizer), dict[str, Tensor]()
    free = [name for name, plain in units.items() if plain.free]
    if free and len(units) > 1 and encoder.config.position_at == "blocks":
        raise ValueError(f"positions of {free[0]} beside others are added in every block")
    names = list(tokenizer.shapes)
    one = names[0] if len(names) == 1 else None
    for name, plain in units.items():
        room = "embed" if one else f"embed.{name}"
        weights |= {f"{room}.{key}": value for key, value in plain.weights.items()}
    tables, networks = _positions(tokenizer, encoder, units, weights)
    context = {
        **_trunk(encoder, weights),
        **_head(method, weights),
        "one": one,
        "inputs": tokenizer.shapes,
        "ids": tokenizer.ids,
        "call": _call(tokenizer.shapes),
        "codes": _codes(units),
        "modules": {name: plain.module for name, plain in units.items()},
        "free": free,
        "tables": tables,
        "networks": networks,
        "what": f"The {'classifier' if isinstance(method, Classifier) else 'encoder'} of a run, with every unit seen",
    }
    rooms = Environment(loader=PackageLoader("mim_core", "templates"), trim_blocks=True, lstrip_blocks=True)
    text = rooms.get_template("plain-model.py.jinja").render(context)
    return text.rstrip() + "\n", {name: value.detach().contiguous().clone() for name, value in weights.items()}


def _parts(tokenizer: Any) -> dict[str, Tokenizer]:
    """Tokenizers by segment; one without a name where there are no segments."""
    if isinstance(tokenizer, JoinedTokenizer):
        return {name: tokenizer.part(name) for name in tokenizer.parts}
    return {"": tokenizer}


def _units(tokenizer: Any) -> dict[str, PlainUnits]:
    """By modality."""
    units = {}
    for part in _parts(tokenizer).values():
        if len(part.shapes) != 1:
            raise ValueError(f"a {type(part).__name__} takes several modalities")
        units[next(iter(part.shapes))] = part.plain()
    return units


def _codes(units: Mapping[str, PlainUnits]) -> list[str]:
    """Each class once."""
    classes: dict[str, str] = {}
    for plain in units.values():
        for code in plain.code.split("\n\n\n") if plain.code else ():
            classes.setdefault(code.strip().partition("\n")[0], code.strip() + "\n")
    return list(classes.values())


def _positions(
    tokenizer: Any, encoder: ViTEncoder, units: Mapping[str, PlainUnits], weights: dict[str, Tensor]
) -> tuple[dict[str, str], dict[str, str]]:
    """Python of each modality's positions: tables, which have the segment's vector too; and networks over places."""
    tables, networks, start = {}, {}, 0
    for segment, part in _parts(tokenizer).items():
        name, layout = next(iter(part.shapes)), part.layout
        position: Any = encoder.position
        position = position.parts[segment] if isinstance(position, SegmentPositions) else position
        if isinstance(position, CoordinatePosition) and units[name].free:
            if encoder.segment is not None:
                raise ValueError("vectors of segments lie on positions that are computed")
            first: Any = position.layers[0]
            room = "position" if len(units) == 1 else f"position_of_{name}"
            weights |= {f"{room}.{key}": value for key, value in position.layers.state_dict().items()}
            sizes = (first.in_features, first.out_features)
            networks[name] = f"nn.Sequential(nn.Linear{sizes}, nn.GELU(), nn.Linear({sizes[1]}, {encoder.width}))"
            continue
        table = _table(encoder, tokenizer, start, part)
        if encoder.segment is not None:
            table = table + encoder.segment[segment]
        weights["position" if len(units) == 1 else f"position.{name}"] = table
        tables[name] = f"torch.zeros(1, {layout.count}, {encoder.width})"
        start += layout.count
    return tables, networks


def _table(encoder: ViTEncoder, tokenizer: Any, start: int, part: Tokenizer) -> Tensor:
    """Positions of the units of a part, [1, N, D], the first of which is ``start`` in the whole layout."""
    position: Any = encoder.position
    if position is None:
        return torch.zeros(1, part.layout.count, encoder.width)
    if isinstance(position, SegmentPositions):
        names = [name for name, other in _parts(tokenizer).items() if other is part]
        positions: Tensor = position.parts[names[0]](part.layout)
        return positions
    whole: Tensor = position(tokenizer.layout)
    return whole[:, start : start + part.layout.count]


def _trunk(encoder: ViTEncoder, weights: dict[str, Tensor]) -> dict[str, Any]:
    """What the template says of blocks, norm and front tokens."""
    blocks: Any = encoder.blocks
    for number, block in enumerate(blocks):
        weights |= {f"blocks.{number}.{name}": value for name, value in _block(block).items()}
    front = [value for value in (encoder.cls_token, encoder.reg_token) if value is not None]
    in_blocks, own = encoder.config.position_at == "blocks", encoder.prefix_position
    if front:
        tokens = torch.cat(front, dim=1)
        weights["front"] = tokens if own is None or in_blocks else tokens + own
    if front and in_blocks:
        weights["front_position"] = torch.zeros_like(tokens) if own is None else own
    first = blocks[0] if len(blocks) else None
    return {
        "in_blocks": in_blocks,
        "front": encoder.prefix,
        "width": encoder.width,
        "depth": len(blocks),
        "heads": first.attn.num_heads if first else 1,
        "hidden": first.mlp.fc1.out_features if first else 1,
        "eps": first.norm1.eps if first else 1e-6,
        "norm": _norm(encoder.norm, "norm", weights),
    }


def _norm(norm: Any, name: str, weights: dict[str, Tensor]) -> str:
    """Python of a norm; of none, nothing."""
    if isinstance(norm, nn.Identity) or norm is None:
        return ""
    weights |= {f"{name}.weight": norm.weight, f"{name}.bias": _bias(norm)}
    return f"nn.LayerNorm({norm.normalized_shape[0]}, {norm.eps})"


def _bias(layer: Any) -> Tensor:
    return layer.weight.new_zeros(len(layer.weight)) if layer.bias is None else layer.bias


def _block(block: Any) -> dict[str, Tensor]:
    """The weights of a block; scales of its branches are in the layers before them."""
    plain = isinstance(block, vision_transformer.Block) and isinstance(block.mlp, Mlp)
    plain = plain and isinstance(block.mlp.act, nn.GELU) and block.mlp.act.approximate == "none"
    inner = (block.attn.q_norm, block.attn.k_norm, block.mlp.norm, getattr(block.attn, "norm", nn.Identity()))
    if not plain or not all(isinstance(each, nn.Identity) for each in inner):
        raise ValueError("its blocks have other parts than attention and an MLP with GELU")
    layers = {"norm1": block.norm1, "norm2": block.norm2, "self_attn.in_proj_": block.attn.qkv,
              "self_attn.out_proj": block.attn.proj, "linear1": block.mlp.fc1, "linear2": block.mlp.fc2}  # fmt: skip
    scales = {"self_attn.out_proj": block.ls1, "linear2": block.ls2}
    weights: dict[str, Tensor] = {}
    for name, layer in layers.items():
        weight, bias, scale = layer.weight, _bias(layer), scales.get(name)
        if isinstance(scale, LayerScale):
            weight, bias = weight * scale.gamma[:, None], bias * scale.gamma
        dot = "" if name.endswith("_") else "."
        weights |= {f"{name}{dot}weight": weight, f"{name}{dot}bias": bias}
    return weights


def _head(method: Method, weights: dict[str, Tensor]) -> dict[str, Any]:
    """What the template says of a classifier's head; nothing of an encoder's."""
    if not isinstance(method, Classifier):
        return {"head": "", "answer": f"features [B, {method.encoder.width}], the mean of the units"}  # type: ignore[union-attr]
    encoder, head = cast(ViTEncoder, method.encoder), cast(nn.Sequential, method.head)
    first = encoder.prefix
    units = f"x[:, {first}:]" if first else "x"
    pools = {"mean": f"{units}.mean(1)", "max": f"{units}.amax(1)", "prefix": "x[:, 0]", "first": f"x[:, {first}]"}
    weights |= {f"head.{name}": value for name, value in head.state_dict().items()}
    return {
        "head": f"nn.Sequential({', '.join(map(_layer, head))})",
        "pools": [pools[kind] for kind in method.config.pool.split("-")],
        "pooled_norm": _norm(method.fc_norm, "pooled_norm", weights),
        "answer": f"probabilities of the classes [B, {method.classes}]",
    }


def _layer(layer: Any) -> str:
    """Python of a layer of a head."""
    if isinstance(layer, nn.Linear):
        return f"nn.Linear({layer.in_features}, {layer.out_features})"
    if isinstance(layer, BatchNorm):
        return f"nn.BatchNorm1d({layer.features}, {layer.eps}, affine={layer.weight is not None})"
    return "nn.ReLU()" if isinstance(layer, nn.ReLU) else "nn.Identity()"  # dropout
