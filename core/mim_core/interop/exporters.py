"""For exporters: weights under the names of another library, as a folder that it reads.

An exporter is a function ``(method, inputs, classes) -> Exported``, registered by `mim_register_exporters` under the
name that ``export --to NAME`` takes. It refuses with `MimError` what the other library has not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from mim_core.disk import filled, write_whole
from mim_core.errors import MimError
from mim_core.host.registry import Registry
from mim_core.methods.masked_autoencoder import Head, MaskedAutoencoder
from mim_core.methods.method import Method
from mim_core.tensor_files import write_tensors

ANY = "hf"
"""``--to hf``: the first of the exporters whose names begin with ``hf-`` that takes the method."""

_BLOCK = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
"""Within a block: timm's name -> that of the weights published for transformers, which every version reads."""


@dataclass(frozen=True)
class Exported:
    """What an exporter gives.

    Attributes:
        weights: Under the other library's names; written as ``model.safetensors``.
        config: Written as ``config.json``.
        load: How the folder is loaded, in Python; ``{folder}`` stands for it.
        notes: What a reader should know.
        files: More tables of JSON, by the name of the file.
    """

    weights: Mapping[str, Tensor]
    config: Mapping[str, Any]
    load: str
    notes: tuple[str, ...] = ()
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


Exporter = Callable[[Method, Mapping[str, Any], tuple[str, ...]], Exported]


def transformers_blocks(state: Mapping[str, Tensor], start: str, to: str, key_bias: bool = True) -> dict[str, Tensor]:
    """Pre-norm blocks of timm under transformers' names, queries, keys and values apart.

    Args:
        state: Weights, those of the blocks under ``start`` and others.
        start: What stands in front of a block's number, such as ``"encoder.blocks."``.
        to: The same of the other library, such as ``"vit.encoder.layer."``.
        key_bias: Whether it has biases of keys. Where it has none (VideoMAE), queries' and values' are ``q_bias`` and
            ``v_bias``. A bias of the keys adds the same number to all scores of a query, which softmax cancels.
    """
    weights: dict[str, Tensor] = {}
    for name, value in state.items():
        block = re.fullmatch(rf"{re.escape(start)}(\d+)\.(.+)\.(weight|bias)", name)
        if block is None:
            continue
        number, inner, kind = block.groups()
        if inner != "attn.qkv":
            weights[f"{to}{number}.{_BLOCK[inner]}.{kind}"] = value
            continue
        own = dict(zip(("query", "key", "value"), value.chunk(3), strict=True))
        for part in own:
            if kind == "weight" or key_bias:
                weights[f"{to}{number}.attention.attention.{part}.{kind}"] = own[part]
            elif part != "key":
                weights[f"{to}{number}.attention.attention.{part[0]}_bias"] = own[part]
    return weights


def refuse(what: str, faults: Mapping[str, bool]) -> None:
    """Raises MimError that names what another library does not have.

    Args:
        what: Its model, such as "transformers' ViTMAE".
        faults: What it lacks, in words -> whether the method has it.
    """
    unsupported = [name for name, wrong in faults.items() if wrong]
    if unsupported:
        raise MimError(
            f"{what} does not have this run's {', '.join(unsupported)}. Other formats may: --to torch, plain, onnx."
        )


def only_head(what: str, method: Method) -> tuple[Any, Any]:
    """Decoder and target of a masked autoencoder with one head and without teachers.

    Raises:
        MimError: The method is another.
    """
    if type(method) is MaskedAutoencoder and len(method.heads) == 1 and not len(method.teachers):
        head = next(iter(method.heads.values()))
        assert isinstance(head, Head)
        return head.decoder, head.target
    heads, teachers = len(getattr(method, "heads", ())), len(getattr(method, "teachers", ()))
    more = f" of {heads} heads" if heads > 1 else " with a teacher" if teachers else ""
    raise MimError(f"{what} is a masked autoencoder with one decoder; this run is a {type(method).__name__}{more}.")


def share_hidden(method: Any) -> float:
    """A share of the units that hides as many as the method does, where int(units * (1 - share)) are kept."""
    count = method.tokenizer.layout.count
    kept = count - method.masker.count(method.tokenizer.layout)
    asked = float(getattr(getattr(method.masker, "config", None), "ratio", 1 - kept / count))
    return asked if int(count * (1 - asked)) == kept else 1 - (kept + 0.5) / count


def label_names(classes: tuple[str, ...], count: int) -> dict[str, Any]:
    """``id2label`` and ``label2id``: the classes' names, or their numbers."""
    names = classes if len(classes) == count else tuple(map(str, range(count)))
    return {"id2label": dict(enumerate(names)), "label2id": {name: number for number, name in enumerate(names)}}


def one_or_all(sizes: tuple[int, ...]) -> int | list[int]:
    """Sizes along axes as configurations have them: one number where all are alike."""
    return sizes[0] if len(set(sizes)) == 1 else list(sizes)


def convert(
    method: Method, name: str, registry: Registry, inputs: Mapping[str, Any], classes: tuple[str, ...]
) -> Exported:
    """What the exporter of that name gives; of ``hf``, the first that takes the method.

    Args:
        method: The run's.
        name: ``hf``, or an exporter's name.
        registry: Where names are looked up.
        inputs: What is known of the inputs: ``mean`` and ``std`` of values from 0 to 1, ``crop_pct``.
        classes: Names of a classifier's classes.

    Raises:
        MimError: No exporter of that name, or none takes the method; says why of each.
    """
    if name != ANY:
        exporter: Exporter = registry.get("exporters", name).resolve()
        return exporter(method, inputs, classes)
    refused = {}
    known = [entry for entry in registry.of_kind("exporters") if entry.name.startswith(f"{ANY}-")]
    for entry in sorted(known, key=lambda entry: (entry.plugin != "core", entry.full_name)):
        try:
            return entry.resolve()(method, inputs, classes)
        except MimError as error:
            refused[entry.name] = str(error)
    raise MimError("\n".join(f"{name}: {why}" for name, why in refused.items()))


def write_folder(exported: Exported, folder: Path) -> str:
    """Writes the folder; returns the line of Python that loads it."""
    kept = {name: value.detach().cpu().contiguous() for name, value in exported.weights.items()}
    with filled(folder) as part:
        write_tensors(part / "model.safetensors", kept, {"format": "pt"})
        for name, table in {"config.json": exported.config, **exported.files}.items():
            write_whole(part / name, json.dumps(table, indent=1))
    return exported.load.replace("{folder}", repr(str(folder)))
