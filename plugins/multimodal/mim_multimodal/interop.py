"""Weights of MultiMAE as a method of this project. The converter carries names and sizes, no code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from mim_core import Method, MimError, Part, State, fill, fill_weights, importers, sincos_table

RELEASED_HEADS = {"heads": {768: 12, 1024: 16}, "decoder_heads": {256: 8}}
"""Attention heads of the released MultiMAE models, by width."""
OUTER = {"proj_context": "embed", "out_proj": "pred", "decoder": "attend", "decoder_transformer": "blocks"}
"""MultiMAE's name of a module in its output adapters -> ours, where they differ."""
LOSSES = {"rgb": "l2", "norm_rgb": "l2", "depth": "l1"}


@dataclass(frozen=True)
class MultimaeSizes:
    """What may be said of MultiMAE weights. What can be read off the weights is checked."""

    image_size: Any = None
    """Height and width in pixels, or one number for both; a square by default."""
    num_encoded_tokens: int = 98
    """For the masker."""
    alpha: float = 1.0
    """For the masker."""
    heads: int | None = None
    """Attention heads of the encoder; known for the released widths."""
    decoder_heads: int | None = None
    """Attention heads of the decoders; known for the released width."""
    standardize_depth: bool = True
    """Of no effect: the data does it."""
    tasks: Any = None
    """The heads."""
    patch_size: Any = None
    dim: int | None = None
    depth: int | None = None
    decoder_dim: int | None = None
    decoder_depth: int | None = None
    num_classes: int | None = None
    dim_class_emb: int | None = None


@importers.licensed("CC BY-NC 4.0")
def import_multimae(state: State, **sizes: Any) -> Method:
    """Official MultiMAE weights, with the decoders: input adapters rgb, depth and semseg, and any of the heads rgb,
    norm_rgb, depth and semseg.

    Raises:
        MimError: Weights of another code base, a size that contradicts them, heads that must be given.
    """
    given = fill(MultimaeSizes, sizes, "import format multimae")
    inputs = _names(state, "input_adapters.")
    tasks = _names(state, "output_adapters.")
    unknown = [name for name in {*inputs, *tasks} if name not in ("rgb", "depth", "semseg", "norm_rgb")]
    if not inputs or not tasks or unknown:
        raise MimError(
            f"These are no MultiMAE weights with rgb, depth and semseg: they have the inputs "
            f"{', '.join(inputs) or 'none'} and the tasks {', '.join(tasks) or 'none'}."
        )
    if given.tasks is not None and sorted(given.tasks) != sorted(tasks):
        raise MimError(f"tasks are given as {', '.join(given.tasks)}, and the weights have {', '.join(tasks)}.")
    method = importers.build(**_parts(state, given, inputs, tasks))
    own = method.state_dict()
    tables = {name: own[name] for name in own if name.endswith("position.table")}  # fixed, and checked by outputs
    unused = [name for name in state if name.endswith("pos_emb")]
    _check_positions(state, unused)
    fill_weights(method, {**state, **tables}, {name: _theirs(name) for name in own}, unused)
    return method


def _check_positions(state: State, names: list[str]) -> None:
    """Raises MimError for tables that are trained: MultiMAE's are computed, and ours take their place."""
    for name in names:
        table = state[name]
        if table.ndim != 4:
            continue
        own = sincos_table((table.shape[2], table.shape[3]), table.shape[1], last=False)
        if not torch.allclose(table[0].flatten(1).T.float().cpu(), own, atol=1e-3):
            raise MimError(
                f"{name} is not MultiMAE's sine-cosine table: these positions are trained (learnable_pos_emb), and "
                "this importer takes computed ones only."
            )


def _names(state: State, prefix: str) -> list[str]:
    """Names of adapters, in the order of the weights."""
    return list(dict.fromkeys(key.removeprefix(prefix).split(".")[0] for key in state if key.startswith(prefix)))


def _parts(state: State, given: MultimaeSizes, inputs: list[str], tasks: list[str]) -> dict[str, Part]:
    first = importers.need(state, f"input_adapters.{inputs[0]}.proj.weight", "MultiMAE")
    width, decoder = first.shape[0], f"output_adapters.{tasks[0]}."
    decoder_width = importers.need(state, f"{decoder}proj_context.weight", "MultiMAE with its decoders").shape[0]
    read: dict[str, Any] = {
        "dim": width,
        "depth": importers.depth_of(state, "encoder."),
        "decoder_dim": decoder_width,
        "decoder_depth": importers.depth_of(state, f"{decoder}decoder_transformer."),
    }
    pictures = [name for name in inputs if name != "semseg"]
    if pictures:
        weight = importers.need(state, f"input_adapters.{pictures[0]}.proj.weight", "MultiMAE")
        read["patch_size"] = (weight.shape[2], weight.shape[3])
    if "semseg" in inputs:
        classes, vector = importers.need(state, "input_adapters.semseg.class_emb.weight", "MultiMAE").shape
        read |= {"num_classes": classes, "dim_class_emb": vector}
    importers.agree(given, read)
    parts = _tokenizers(state, given, inputs, read)
    for name in tasks:
        own = Part.of("multimodal:class-map") if name == "semseg" else _values(name)
        parts[f"{name}.target"] = own
    parts["masker"] = Part.of("multimodal:dirichlet", visible=given.num_encoded_tokens, alpha=given.alpha)
    parts["encoder"] = Part.of(
        "core:vit",
        width=width,
        depth=read["depth"],
        heads=importers.heads_of("heads", given, width, RELEASED_HEADS),
        mlp_ratio=importers.mlp_ratio_of(state, "encoder.", width),
        final_norm=False,
        position="sincos-first",
    )
    parts["decoder"] = Part.of(
        "multimodal:cross-attention",
        width=decoder_width,
        depth=read["decoder_depth"],
        heads=importers.heads_of("decoder_heads", given, decoder_width, RELEASED_HEADS),
    )
    segments = {"norm_rgb": "rgb"} if "norm_rgb" in tasks else {}
    parts["method"] = Part.of("core:masked-autoencoder", average="sample", segments=segments)
    return parts


def _values(name: str) -> Part:
    return Part.of("core:values", normalize=name == "norm_rgb", loss=LOSSES[name], channels_first=True)


def _tokenizers(state: State, given: MultimaeSizes, inputs: list[str], read: dict[str, Any]) -> dict[str, Part]:
    """A tokenizer per input, for the size that is given or that the positions have."""
    parts = {}
    for name in inputs:
        weight = importers.need(state, f"input_adapters.{name}.proj.weight", "MultiMAE")
        patch = (weight.shape[2], weight.shape[3])
        grid = importers.need(state, f"input_adapters.{name}.pos_emb", "MultiMAE").shape[2:]
        size = (grid[0] * patch[0], grid[1] * patch[1])
        if given.image_size is not None:
            whole = read.get("patch_size", patch)
            size = tuple(n // p * own for n, p, own in zip(importers.pair(given.image_size), whole, patch, strict=True))
        if name == "semseg":
            classes, vector = read["num_classes"], read["dim_class_emb"]
            options = {"classes": classes, "embed_width": vector, "unknown": False}
            parts["semseg.tokenizer"] = Part.of("multimodal:class-map", size=size, patch=patch, **options)
        else:
            channels = weight.shape[1]
            options = {"modality": name, "size": size, "patch": patch, "channels": channels}
            parts[f"{name}.tokenizer"] = Part.of("core:patch", **options)
    return parts


def _theirs(ours: str) -> str:
    """Our name of a weight -> MultiMAE's."""
    if ours.endswith("position.table"):
        return ours
    if ours.startswith("tokenizer.parts."):
        name, _, rest = ours.removeprefix("tokenizer.parts.").partition(".")
        rest = rest.replace("patches.proj", "proj").replace("class_embed", "class_emb")
        return f"input_adapters.{name}.{rest}"
    if ours == "encoder.cls_token":
        return "global_tokens"
    if ours.startswith("encoder.blocks."):
        return ours.replace("encoder.blocks.", "encoder.")
    name, _, rest = ours.removeprefix("heads.").partition(".decoder.")
    if rest.startswith("modality."):
        return f"output_adapters.{name}.task_embeddings.{rest.removeprefix('modality.')}"
    module, dot, last = rest.partition(".")
    outer = {ours: theirs for theirs, ours in OUTER.items()}
    return f"output_adapters.{name}.{outer.get(module, module)}{dot}{last}"
