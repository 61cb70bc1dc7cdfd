"""Weights of Point-MAE after fine-tuning, as a classifier and as a part segmenter of this project, and how golden cases
of them are tried. The converters carry names and sizes, no code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from mim_core import Method, Part, State, fill, fill_weights, importers
from mim_core.testing.golden import GoldenAdapter, GoldenCase
from torch import Tensor

from mim_pointcloud.interop import CONVOLUTIONS, RELEASED_HEADS

SEGMENTER = {
    "category.0.": "label_conv.0.",
    "category.1.": "label_conv.1.",
    "propagation.0.": "propagation_0.mlp_convs.0.",
    "propagation.1.": "propagation_0.mlp_bns.0.",
    "propagation.3.": "propagation_0.mlp_convs.1.",
    "propagation.4.": "propagation_0.mlp_bns.1.",
    "head.0.": "convs1.",
    "head.1.": "bns1.",
    "head.4.": "convs2.",
    "head.5.": "bns2.",
    "head.7.": "convs3.",
}
"""Starts of our names -> Point-MAE's, in the part segmenter's own layers."""
CLASSIFIER = {"head.": "cls_head_finetune."}
"""The same of the classifier."""


@dataclass(frozen=True)
class FinetunedSizes:
    """What may be said of such weights, under Point-MAE's own names. What can be read off the weights is checked."""

    num_points: int = 1024
    """Points of a cloud; the weights do not tell, and take other numbers too."""
    num_group: int = 64
    """Groups of a cloud; the weights do not tell, and take other numbers too."""
    group_size: int = 32
    """Points of a group; the weights do not tell."""
    num_heads: int | None = None
    """Attention heads; known for the released width."""
    drop_path_rate: float = 0.0
    """Stochastic depth, for training that goes on."""
    dropout: float = 0.0
    """Share of hidden values of the head that are left out, for training that goes on; Point-MAE's is 0.5."""
    owners: tuple[int, ...] = ()
    """Of a part segmenter: the category of every part; none: each part is a category's own turn by turn."""
    batch: int = 0
    """Of no effect."""
    trans_dim: int | None = None
    encoder_dims: int | None = None
    depth: int | None = None
    cls_dim: int | None = None
    num_part: int | None = None
    fetch_idx: Any = None
    prop_dim: int | None = None
    head_dims: Any = None


def _body(state: State, given: FinetunedSizes, read: dict[str, Any], token: bool) -> dict[str, Part]:
    """Tokenizer and encoder."""
    width, depth = read["trans_dim"], read["depth"]
    return {
        "tokenizer": Part.of(
            "pointcloud:groups",
            points=given.num_points,
            groups=given.num_group,
            size=given.group_size,
            channels=importers.need(state, "encoder.first_conv.0.weight", "Point-MAE").shape[1],
            hidden=tuple(state[f"encoder.{name}.bias"].shape[0] for name in CONVOLUTIONS),
        ),
        "encoder": Part.of(
            "core:vit",
            width=width,
            depth=depth,
            heads=given.num_heads or importers.heads_within("encoder", {}, "num_heads", RELEASED_HEADS["heads"], width),
            mlp_ratio=importers.mlp_ratio_of(state, "blocks.blocks.", width),
            class_token=token,
            position="coordinates",
            position_at="blocks",
            norm_eps=1e-5,
            qkv_bias="blocks.blocks.0.attn.qkv.bias" in state,
            drop_path=given.drop_path_rate,
        ),
    }


def _read(state: State) -> dict[str, Any]:
    width = importers.need(state, "norm.weight", "Point-MAE after fine-tuning").shape[0]
    return {"trans_dim": width, "encoder_dims": width, "depth": importers.depth_of(state, "blocks.blocks.")}


def import_classifier(state: State, **sizes: Any) -> Method:
    """Official weights of Point-MAE's classifier: two hidden layers on the class token beside the largest values.

    Raises:
        MimError: Weights of another code base, a size that contradicts them, heads that must be given.
    """
    given = fill(FinetunedSizes, sizes, "import format point-mae-cls")
    last = importers.need(state, "cls_head_finetune.8.weight", "Point-MAE's classifier")
    read = {**_read(state), "cls_dim": last.shape[0]}
    importers.agree(given, read)
    hidden = tuple(state[f"cls_head_finetune.{number}.weight"].shape[0] for number in (0, 4))
    method = Part.of(
        "core:classifier",
        classes=read["cls_dim"],
        pool="prefix-max",
        head="mlp",
        hidden=hidden,
        dropout=given.dropout,
    )
    model = importers.build(**_body(state, given, read, token=True), method=method)
    fill_weights(model, state, {name: _theirs(name, CLASSIFIER) for name in model.state_dict()})
    return model


def import_part_segmenter(state: State, **sizes: Any) -> Method:
    """Official weights of Point-MAE's part segmentation.

    Raises:
        MimError: Weights of another code base, a size that contradicts them, heads that must be given.
    """
    given = fill(FinetunedSizes, sizes, "import format point-mae-partseg")
    parts = importers.need(state, "convs3.weight", "Point-MAE's part segmentation").shape[0]
    categories = importers.need(state, "label_conv.0.weight", "Point-MAE's part segmentation").shape[1]
    read = {
        **_read(state),
        "num_part": parts,
        "prop_dim": importers.need(state, "propagation_0.mlp_convs.1.weight", "Point-MAE").shape[0],
        "head_dims": [state["convs1.weight"].shape[0], state["convs2.weight"].shape[0]],
    }
    importers.agree(given, read)
    levels = tuple(number + 1 for number in given.fetch_idx) if given.fetch_idx else ()
    method = Part.of(
        "pointcloud:part-segmenter",
        owners=given.owners or _spread(parts, categories),
        levels=levels,
        propagation=(state["propagation_0.mlp_convs.0.weight"].shape[0], read["prop_dim"]),
        hidden=tuple(read["head_dims"]),
        category=state["label_conv.0.weight"].shape[0],
        categories=categories,
        dropout=given.dropout,
    )
    model = importers.build(**_body(state, given, read, token=False), method=method)
    fill_weights(model, state, {name: _theirs(name, SEGMENTER) for name in model.state_dict()})
    return model


def _spread(parts: int, categories: int) -> tuple[int, ...]:
    """A category for every part, where nobody says which: the weights do not tell."""
    return tuple(part % min(parts, categories) for part in range(parts))


def _theirs(ours: str, own: Mapping[str, str]) -> str:
    """Our name of a weight -> Point-MAE's; ``own`` are starts of names of the head."""
    for start, other in (("tokenizer.local.", "first_conv."), ("tokenizer.whole.", "second_conv.")):
        if ours.startswith(start):
            return "encoder." + other + ours.removeprefix(start)
    for start, other in own.items():
        if ours.startswith(start):
            return other + ours.removeprefix(start)
    ours = ours.replace("position.layers.", "pos_embed.").removeprefix("encoder.")
    if ours.startswith("blocks."):
        return "blocks." + ours
    return {"prefix_position": "cls_pos"}.get(ours, ours)


# ---- golden cases ----------------------------------------------------------------------------------------------------


def _watched(method: Any, prepared: Any) -> tuple[Any, dict[str, Tensor]]:
    """The outcome, and what the head and its parts were given or gave."""
    seen: dict[str, Tensor] = {}
    hooks = [method.head.register_forward_pre_hook(lambda module, given: seen.update(head=given[0].detach()))]
    for name in ("category", "propagation"):
        part = getattr(method, name, None)
        if part is not None:
            hooks.append(part.register_forward_hook(lambda m, g, out, name=name: seen.update({name: out.detach()})))
    statistics = {name: value.clone() for name, value in method.named_buffers()}
    outcome = method(prepared)
    if levels := method.encoded(prepared).levels:
        seen["stacked"] = torch.cat(levels, dim=2).detach()
    for hook in hooks:
        hook.remove()
    for name, value in method.named_buffers():
        value.copy_(statistics[name])  # this pass would count twice
    return outcome, seen


def _classified(case: GoldenCase, method: Any, prepared: Any, outcome: Any) -> dict[str, Tensor]:
    after = {f"after/{_theirs(name, CLASSIFIER)}": v.clone() for name, v in method.state_dict().items()}
    label, logits = case.inputs["label"], outcome.prediction
    features = _watched(method, prepared)[1]["head"]
    evaluated = import_classifier(case.state(), **case.config).eval()(prepared).prediction
    return {
        **after,
        "logits": logits,
        "features": features,
        "logits_eval": evaluated,
        "acc": 100 * (logits.argmax(dim=1) == label).float().mean(),
        "centers": prepared.layout.positions,
        "groups": prepared.inputs,
    }


def _segmented(case: GoldenCase, method: Any, prepared: Any, outcome: Any) -> dict[str, Tensor]:
    seen = _watched(method, prepared)[1]
    evaluated = import_part_segmenter(case.state(), **case.config).eval()(prepared).prediction
    rows, points = case.inputs["label"].shape
    return {
        "logp": outcome.prediction.log_softmax(dim=2),
        "logp_eval": evaluated.log_softmax(dim=2),
        "centers": prepared.layout.positions,
        "label_feature": seen["category"],
        "propagated": seen["propagation"].unflatten(0, (rows, points)).transpose(1, 2),
        "stacked": seen["stacked"].transpose(1, 2),
    }


GOLDEN = {
    "point-mae-cls": GoldenAdapter(
        sample=lambda case: {"points": case.inputs["points"], "label": case.inputs["label"]},
        mask=lambda case: None,
        outputs=_classified,
        names=lambda method: {name: _theirs(name, CLASSIFIER) for name, _ in method.named_parameters()},
    ),
    "point-mae-partseg": GoldenAdapter(
        sample=lambda case: {
            "points": case.inputs["points"],
            "label": case.inputs["category"],
            "parts": case.inputs["label"],
        },
        mask=lambda case: None,
        outputs=_segmented,
        names=lambda method: {name: _theirs(name, SEGMENTER) for name, _ in method.named_parameters()},
    ),
}
