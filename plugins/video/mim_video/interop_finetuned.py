"""Weights of VideoMAE after fine-tuning as a classifier of this project, and how golden cases of them are tried. The
converter carries names and sizes, no code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mim_core import Method, Part, State, fill, fill_weights, importers
from mim_core.testing.golden import GoldenAdapter, GoldenCase
from torch import Tensor
from torch.nn import functional as F

from mim_video.interop import RELEASED_HEADS, _whole_bias
from mim_video.weights import tubelets


@dataclass(frozen=True)
class FinetunedSizes:
    """What may be said of such weights, under VideoMAE's own names. What can be read off the weights is checked."""

    img_size: Any = 224
    """Height and width in pixels, or one number for both; the weights do not tell."""
    all_frames: int = 16
    """Frames of a clip; the weights do not tell."""
    num_heads: int | None = None
    """Attention heads; known for the released widths."""
    norm_eps: float = 1e-6
    """Small number in the normalisation layers."""
    init_scale: float = 1.0
    """Of no effect: the weights are trained."""
    batch: int = 0
    """Of no effect."""
    patch_size: Any = None
    tubelet_size: int | None = None
    embed_dim: int | None = None
    depth: int | None = None
    mlp_ratio: float | None = None
    num_classes: int | None = None


def import_videomae_finetune(state: State, **sizes: Any) -> Method:
    """Official weights of VideoMAE after fine-tuning: ``fc_norm`` behind mean pooling; or ``norm``, and the first
    token's features are read.

    Raises:
        MimError: Weights of another code base, a size that contradicts them, heads that must be given.
    """
    given = fill(FinetunedSizes, sizes, "import format videomae-finetune")
    width, channels, tubelet, *patch = importers.need(state, "patch_embed.proj.weight", "VideoMAE").shape
    pooled = "fc_norm.weight" in state
    read = {
        "embed_dim": width,
        "depth": importers.depth_of(state, "blocks."),
        "tubelet_size": tubelet,
        "patch_size": tuple(patch),
        "mlp_ratio": importers.mlp_ratio_of(state, "blocks.", width),
        "num_classes": importers.need(state, "head.weight", "VideoMAE after fine-tuning").shape[0],
    }
    importers.agree(given, read)
    heads = importers.heads_of("num_heads", given, width, {"num_heads": RELEASED_HEADS["encoder_num_heads"]})
    method = importers.build(
        tokenizer=tubelets((given.all_frames, *importers.pair(given.img_size)), (tubelet, *patch), channels),
        encoder=Part.of(
            "core:vit",
            width=width,
            depth=read["depth"],
            heads=heads,
            mlp_ratio=read["mlp_ratio"],
            class_token=False,
            position="flat",
            norm_eps=given.norm_eps,
        ),
        method=Part.of(
            "core:classifier",
            classes=read["num_classes"],
            pool="mean" if pooled else "first",
            norm="pooled" if pooled else "encoder",
        ),
    )
    own = method.state_dict()
    tables = {name: own[name] for name in own if name.endswith("position.table")}
    unused = ["norm.weight", "norm.bias"] if pooled else []  # a file may hold both
    fill_weights(method, {**_whole_bias(state), **tables}, {name: _theirs(name) for name in own}, unused)
    return method


def _theirs(ours: str) -> str:
    """Our name of a weight -> VideoMAE's."""
    if ours.endswith("position.table"):
        return ours
    if ours.startswith("tokenizer."):
        return ours.replace("tokenizer.", "patch_embed.")
    return ours.replace("head.0.", "head.").removeprefix("encoder.")


# ---- golden cases ----------------------------------------------------------------------------------------------------


def _features(method: Any, prepared: Any) -> tuple[Any, Tensor]:
    """The outcome, and what enters the head."""
    seen: list[Tensor] = []
    hook = method.head.register_forward_pre_hook(lambda module, given: seen.append(given[0].detach()))
    outcome = method(prepared)
    hook.remove()
    return outcome, seen[0]


def _outputs(case: GoldenCase, method: Any, prepared: Any, outcome: Any) -> dict[str, Tensor]:
    logits = outcome.prediction
    without = {name: value for name, value in case.state().items() if not name.startswith("fc_norm.")}
    first: Any = import_videomae_finetune(without, **case.config).train()
    return {
        "logits": logits,
        "features": _features(method, prepared)[1],
        "loss_smooth": F.cross_entropy(logits, case.inputs["label"], label_smoothing=0.1),
        "logits_first_token": first(prepared).prediction,
        "pos_embed": method.encoder.position.table[0],
    }


def _names(method: Any) -> Mapping[str, str]:
    return {name: _theirs(name) for name, _ in method.named_parameters() if not name.endswith("qkv.bias")}


def _gradients(case: GoldenCase, method: Any) -> dict[str, Tensor]:
    """Of the biases of queries and values, which are one tensor here."""
    entries: dict[str, Tensor] = {}
    for number, block in enumerate(method.encoder.blocks):
        query, _, value = block.attn.qkv.bias.grad.chunk(3)
        entries |= {f"grad/blocks.{number}.attn.q_bias": query, f"grad/blocks.{number}.attn.v_bias": value}
    return entries


GOLDEN = {
    "videomae-finetune": GoldenAdapter(
        sample=lambda case: {"video": case.inputs["video"], "label": case.inputs["label"]},
        mask=lambda case: None,
        outputs=_outputs,
        names=_names,
        after=_gradients,
    )
}
