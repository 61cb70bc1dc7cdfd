"""Weights of MultiMAE after fine-tuning on classes of pixels and on depth, and how golden cases of them are tried. The
converters carry names and sizes, no code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from mim_core import Method, Part, State, fill, fill_weights, importers, sincos_table
from mim_core.testing.golden import GoldenAdapter, GoldenCase
from torch import Tensor

from mim_multimodal.interop import RELEASED_HEADS, _names


@dataclass(frozen=True)
class DenseSizes:
    """What may be said of such weights, under MultiMAE's own names. What can be read off the weights is checked."""

    image_size: Any = None
    """Height and width in pixels, or one number for both; that of the positions by default."""
    num_heads: int | None = None
    """Attention heads; known for the released widths."""
    decoder_main_tasks: Any = ()
    """Inputs whose tokens the head sees; all by default."""
    decoder_preds_per_patch: int = 16
    """Places of a token in the head for classes."""
    hooks: Any = ()
    """Blocks, from 0, that the head for depth takes."""
    mean: float = 0.0
    """Depth that the network answers 0 for."""
    std: float = 1.0
    """Depth that one of its units is."""
    in_domains: Any = None
    patch_size: int | None = None
    num_global_tokens: int = 1
    dim_tokens: int | None = None
    depth: int | None = None
    num_classes: int | None = None
    decoder_dim: int | None = None
    decoder_depth: int | None = None
    decoder_interpolate_mode: str = "bilinear"
    layer_dims: Any = None
    feature_dim: int | None = None
    head_type: str = "regression"
    batch: int = 0


def import_semseg(state: State, **sizes: Any) -> Method:
    """Official MultiMAE weights of semantic segmentation, with the ConvNeXt head."""
    given = fill(DenseSizes, sizes, "import format multimae-semseg")
    head = "output_adapters.semseg."
    last = importers.need(state, f"{head}final_layer.weight", "MultiMAE's segmentation with its ConvNeXt head")
    inner = state[f"{head}proj_dec.weight"].shape[0]
    depth = importers.depth_of(state, f"{head}blocks.")
    importers.agree(given, {"num_classes": last.shape[0], "decoder_dim": inner, "decoder_depth": depth})
    options = {"classes": last.shape[0], "inner": inner, "places": given.decoder_preds_per_patch, "blocks": depth}
    return _imported(state, given, "segmenter", "convnext", options, head)


def import_depth(state: State, **sizes: Any) -> Method:
    """Official MultiMAE weights of depth, with the DPT head."""
    given = fill(DenseSizes, sizes, "import format multimae-depth")
    head = "output_adapters.depth."
    importers.need(state, f"{head}head.4.weight", "MultiMAE's depth with its DPT head")
    widths = tuple(state[f"{head}act_{number}_postprocess.0.weight"].shape[0] for number in (1, 2, 3, 4))
    channels = state[f"{head}scratch.layer1_rn.weight"].shape[0]
    importers.agree(given, {"feature_dim": channels})
    options = {
        "widths": widths,
        "channels": channels,
        "levels": tuple(number + 1 for number in given.hooks),
        "mean": given.mean,
        "std": given.std,
    }
    return _imported(state, given, "depth-regressor", "dpt", options, head)


def _imported(
    state: State, given: DenseSizes, method: str, head: str, options: Mapping[str, Any], prefix: str
) -> Method:
    inputs = _names(state, "input_adapters.")
    parts: dict[str, Part] = {}
    width = 0
    for name in inputs:
        weight = importers.need(state, f"input_adapters.{name}.proj.weight", "MultiMAE")
        width, patch = weight.shape[0], (weight.shape[2], weight.shape[3])
        grid = importers.need(state, f"input_adapters.{name}.pos_emb", "MultiMAE").shape[2:]
        size = (grid[0] * patch[0], grid[1] * patch[1])
        if given.image_size is not None:
            size = importers.pair(given.image_size)
        tokenizer = {"modality": name, "size": size, "patch": patch, "channels": weight.shape[1]}
        parts[f"{name}.tokenizer"] = Part.of("core:patch", **tokenizer)
    importers.agree(given, {"dim_tokens": width, "depth": importers.depth_of(state, "encoder.")})
    heads = given.num_heads or importers.heads_within("encoder", {}, "num_heads", RELEASED_HEADS["heads"], width)
    learned = any(not _is_computed(state[f"input_adapters.{name}.pos_emb"]) for name in inputs)
    parts["encoder"] = Part.of(
        "core:vit",
        width=width,
        depth=importers.depth_of(state, "encoder."),
        heads=heads,
        mlp_ratio=importers.mlp_ratio_of(state, "encoder.", width),
        final_norm=False,
        position="learned" if learned else "sincos-first",
    )
    chosen = {"head": head, "inputs": tuple(given.decoder_main_tasks), **options}
    model = importers.build(**parts, method=Part.of(f"multimodal:{method}", **chosen))
    own = model.state_dict()
    tables = {name: own[name] for name in own if name.endswith("position.table")}
    unused = [] if learned else [name for name in state if name.endswith("pos_emb")]
    if learned:
        state = {n: v.flatten(2).transpose(1, 2) if n.endswith("pos_emb") else v for n, v in state.items()}
    aliases = [name for name in state if ".scratch.layer_rn." in name or ".act_postprocess." in name]
    spare = [name for name in state if ".refinenet4.resConfUnit1." in name]  # in the files, and never used
    names = {name: _theirs(name, prefix) for name in own}
    fill_weights(model, {**state, **tables}, names, [*unused, *aliases, *spare])
    return model


def _is_computed(table: Tensor) -> bool:
    """Whether this is MultiMAE's sine-cosine table [1, D, h, w]."""
    own = sincos_table((table.shape[2], table.shape[3]), table.shape[1], last=False)
    return torch.allclose(table[0].flatten(1).T.float().cpu(), own, atol=1e-3)


def _theirs(ours: str, prefix: str) -> str:
    """Our name of a weight -> MultiMAE's."""
    if ours.startswith("encoder.position.parts."):
        return ours.replace("encoder.position.parts.", "input_adapters.").replace(".table", ".pos_emb")
    if ours.endswith("position.table"):
        return ours
    if ours.startswith("tokenizer.parts."):
        return ours.replace("tokenizer.parts.", "input_adapters.")
    if ours == "encoder.cls_token":
        return "global_tokens"
    if ours.startswith("encoder.blocks."):
        return ours.replace("encoder.blocks.", "encoder.")
    return prefix + ours.removeprefix("head.")


# ---- golden cases ----------------------------------------------------------------------------------------------------


def _tokens(method: Any, prepared: Any) -> Tensor:
    """The output of every block, global tokens last: [depth, B, N + global, D]."""
    seen: list[Tensor] = []
    hooks = [block.register_forward_hook(lambda m, given, out: seen.append(out.detach())) for block in method.blocks()]
    encoded = method.encoded(prepared)
    for hook in hooks:
        hook.remove()
    count = encoded.prefix.shape[1]
    return torch.stack([torch.cat([each[:, count:], each[:, :count]], dim=1) for each in seen[-method.depth() :]])


def _segmented(case: GoldenCase, method: Any, prepared: Any, outcome: Any) -> dict[str, Tensor]:
    return {"pred": outcome.prediction, "tokens": _tokens(method, prepared)}


def _regressed(case: GoldenCase, method: Any, prepared: Any, outcome: Any) -> dict[str, Tensor]:
    entries: dict[str, Tensor] = {"pred": outcome.prediction, "tokens": _tokens(method, prepared)}
    for loss in ("l1", "mse"):
        other = replace(method.config, loss=loss)
        method.config, own = other, method.config
        entries[f"alt_loss_{loss}"] = method(prepared).loss
        method.config = own
    return entries


def _sample(case: GoldenCase, answer: Tensor) -> dict[str, Tensor]:
    pictures: dict[str, Tensor] = {name: case.inputs[name] for name in ("rgb", "depth") if name in case.inputs}
    return {**pictures, "answer": answer}


def _adapter(prefix: str, sample: Any, outputs: Any) -> GoldenAdapter:
    return GoldenAdapter(
        sample=sample,
        mask=lambda case: None,
        outputs=outputs,
        names=lambda method: {name: _theirs(name, prefix) for name, _ in method.named_parameters()},
    )


GOLDEN = {
    "multimae-semseg": _adapter(
        "output_adapters.semseg.", lambda case: _sample(case, case.inputs["label"]), _segmented
    ),
    "multimae-depth": _adapter(
        "output_adapters.depth.",
        lambda case: _sample(case, case.inputs["target"].masked_fill(~case.inputs["mask_valid"], torch.nan)),
        _regressed,
    ),
}
