"""Official 4M weights, and how its golden cases are tried."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from mim_core import Mask, Method, MimError, Part, State, fill, fill_weights, importers
from mim_core.testing.golden import GoldenAdapter, GoldenCase
from torch import Tensor

HEADS = {"num_heads": {384: 6, 768: 12, 1024: 16, 2048: 32}}
"""Attention heads of the released models, by width."""
TOTALS = {"mod": "mean", "token": "answers"}
"""4M's names of the ways in which losses of modalities are averaged, and ours."""
BLOCKS = {"self_attn": "attn", "cross_attn": "cross", "fc1": "fc1_g", "fc3": "fc1_x"}
"""4M's names of modules in a block -> ours, where they differ; fc1 where there is a gate."""


@dataclass(frozen=True)
class FourmSizes:
    """What may be said of 4M weights. What can be read off the weights is checked."""

    modalities: Any = None
    """Name -> kind ("pixels", "tokens" or "seq"), in, out, and num_channels, vocab_size or max_length: needed, in the
    order of the model."""
    image_size: Any = 224
    """Height and width in pixels, or one number for both."""
    patch_size: Any = 16
    num_input_tokens: int = 128
    num_target_tokens: int = 128
    num_heads: int | None = None
    loss_type: str = "mod"
    share_embedding: bool = True
    arch: str = ""
    """Of no effect: read off the weights."""
    dim: int | None = None
    encoder_depth: int | None = None
    decoder_depth: int | None = None
    mlp_ratio: float | None = None
    """Of no effect: read off the weights."""
    max_sincos_pos_emb: int | None = None
    """Of no effect: tables of sequences are as long as those that are read."""
    decoder_sep_mask: bool = True
    decoder_causal_mask: bool = False


def import_fourm(state: State, **sizes: Any) -> Method:
    """Official 4M weights, encoder and decoder, with the modalities that are told.

    Raises:
        MimError: Weights of another code base, a size that contradicts them, a decoder that is limited otherwise, or
            embeddings of ids that are not those of the scores although both should be shared.
    """
    given = fill(FourmSizes, sizes, "import format fourm")
    if not isinstance(given.modalities, Mapping) or not given.modalities:
        raise MimError(
            "4M's weights do not tell their modalities: give modalities={'rgb@224': {'kind': 'pixels', "
            "'num_channels': 3, 'in': True, 'out': False}, ...}, in the order of the model."
        )
    if given.loss_type not in TOTALS or given.decoder_causal_mask or not given.decoder_sep_mask:
        raise MimError(
            f"loss_type must be {' or '.join(TOTALS)}, and each modality's answers see their own alone "
            f"(decoder_sep_mask true, decoder_causal_mask false); got {given.loss_type}, {given.decoder_sep_mask} and "
            f"{given.decoder_causal_mask}."
        )
    width = importers.need(state, "mask_token", "4M").shape[-1]
    read = {"dim": width, "encoder_depth": importers.depth_of(state, "encoder."),
            "decoder_depth": importers.depth_of(state, "decoder.")}  # fmt: skip
    importers.agree(replace(given, patch_size=None), read)
    method = importers.build(**_parts(state, given, read))
    own = method.state_dict()
    moved, unused = _moved(state, given, own)
    fill_weights(method, {**state, **moved}, {name: name if name in moved else _theirs(name) for name in own}, unused)
    return method


def _parts(state: State, given: FourmSizes, read: Mapping[str, Any]) -> dict[str, Part]:
    parts, asked = {}, []
    for name, about in given.modalities.items():
        parts[f"{name}.tokenizer"] = _tokenizer(name, about, given)
        if about.get("out", True):
            parts[f"{name}.target"] = Part.of("core:ids")
            asked.append(name)
    first = importers.need(state, "encoder.0.mlp.fc1.weight", "4M").shape[0] / read["dim"]
    gated = "encoder.0.mlp.fc3.weight" in state
    sizes = {
        "width": read["dim"],
        "heads": importers.heads_of("num_heads", given, read["dim"], HEADS),
        "mlp": "swiglu" if gated else "gelu",
        "mlp_ratio": 1.5 * (first + 1e-6) if gated else first,  # a gate is two thirds as wide, rounded down
        "bias": "encoder.0.attn.qkv.bias" in state,
    }
    silent = tuple(name for name in given.modalities if name not in asked)
    hidden = tuple(name for name, about in given.modalities.items() if not about.get("in", True))
    return {
        **parts,
        "method": Part.of("core:masked-autoencoder", total=TOTALS[given.loss_type]),
        "masker": Part.of("multimodal:budgets", seen=given.num_input_tokens, asked=given.num_target_tokens,
                          only_seen=silent, only_asked=hidden),
        "encoder": Part.of("core:vit", depth=read["encoder_depth"], class_token=False, position="sincos-first",
                           segments=True, **sizes),
        "decoder": Part.of("core:joint", depth=read["decoder_depth"], tied=given.share_embedding, **sizes),
    }  # fmt: skip


def _tokenizer(name: str, about: Mapping[str, Any], given: FourmSizes) -> Part:
    size, patch = importers.pair(given.image_size), importers.pair(given.patch_size)
    if about["kind"] == "pixels":
        channels = about.get("num_channels", 3)
        return Part.of("core:patch", modality=name, size=size, patch=patch, channels=channels, bias=False)
    if about["kind"] == "tokens":
        grid = tuple(n // p for n, p in zip(size, patch, strict=True))
        return Part.of("core:ids", modality=name, size=grid, names=about["vocab_size"])
    if about["kind"] != "seq":
        raise MimError(f"{name}: the kind of a modality is pixels, tokens or seq, not {about['kind']!r}.")
    length = about["max_length"]
    sentinels = (length + 1) // 2 + 1
    return Part.of("core:sequence", modality=name, length=length, vocabulary=about["vocab_size"] - sentinels)


def _moved(state: State, given: FourmSizes, own: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Weights that are laid out otherwise here, under our names; and 4M's names of those that are not used."""
    moved: dict[str, Tensor] = {}
    unused = [name for name in state if name.endswith("pos_emb")]
    for side, ours in (("encoder_embeddings", "encoder"), ("decoder_embeddings", "decoder")):
        name = f"{ours}.position.table"
        moved[name] = _tables(state, given, side, own[name])
    for name, about in given.modalities.items():
        proj = f"encoder_embeddings.{name}.proj.weight"
        if about["kind"] == "pixels" and proj in state:
            height, across = importers.pair(given.patch_size)
            weight = state[proj].unflatten(1, (height, across, -1))  # 4M: (row, column, channel)
            moved[f"tokenizer.parts.{name}.proj.weight"] = weight.permute(0, 3, 1, 2)
            unused.append(proj)
        _check_same(state, *(f"{side}_embeddings.{name}.mod_emb" for side in ("encoder", "decoder")))
        tokens, scores = (f"decoder_embeddings.{name}.{last}.weight" for last in ("token_emb", "to_logits"))
        if tokens in state and scores in state and f"heads.{name}.decoder.token_embed" not in own:
            if given.share_embedding and not torch.equal(state[tokens], state[scores]):
                raise MimError(f"{tokens} is not {scores}: give share_embedding=False.")
            unused.append(tokens)
    moved |= _never_seen(state, given, own)
    unused += [name for name in state if name.endswith("bias") and _is_norm(name) and not bool(state[name].any())]
    return moved, [name for name in unused if name not in {_theirs(ours) for ours in own}]


def _never_seen(state: State, given: FourmSizes, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of modalities that are only asked, what 4M has none of: its ids are not embedded, so those stay as drawn; its
    vector is the decoder's."""
    moved: dict[str, Tensor] = {}
    for name, about in given.modalities.items():
        vector, of_decoder = f"encoder_embeddings.{name}.mod_emb", f"decoder_embeddings.{name}.mod_emb"
        if about.get("in", True) or vector in state:
            continue
        moved[f"encoder.segment.{name}"] = importers.need(state, of_decoder, "4M")
        start = f"tokenizer.parts.{name}."
        moved |= {ours: weight for ours, weight in own.items() if ours.startswith(start)}
    return moved


def _check_same(state: State, one: str, other: str) -> None:
    """Raises MimError where encoder and decoder have vectors of a modality that differ: 4M trains one for both."""
    if one in state and other in state and not torch.equal(state[one], state[other]):
        raise MimError(f"{one} and {other} differ; 4M has one vector of a modality for both, and so has this method.")


def _is_norm(name: str) -> bool:
    return "norm" in name.rpartition(".")[0].rpartition(".")[2]


def _tables(state: State, given: FourmSizes, side: str, own: Tensor) -> Tensor:
    """Positions of all modalities side by side, [1, N, width]: as they are read, which off the square are in another
    order than ours; what 4M has none of stays as it is."""
    grid = [n // p for n, p in zip(importers.pair(given.image_size), importers.pair(given.patch_size), strict=True)]
    tables, start = own.clone(), 0
    for name, about in given.modalities.items():
        count = 2 * (about["max_length"] + 1) if about["kind"] == "seq" else grid[0] * grid[1]
        table = state.get(f"{side}.{name}.pos_emb")
        if table is not None:
            if table.shape[1] < count or table.shape[2] != own.shape[2]:
                raise MimError(f"{side}.{name}.pos_emb is {tuple(table.shape)}, and {count} places are needed.")
            tables[:, start : start + count] = table[:, :count]
        start += count
    return tables


def _theirs(ours: str) -> str:
    """Our name of a weight -> 4M's."""
    if ours.startswith("tokenizer.parts."):
        name, _, rest = ours.removeprefix("tokenizer.parts.").rpartition(".token_embed.")
        return f"encoder_embeddings.{name}.token_emb.{rest}" if name else ours
    if ours.startswith("encoder.segment."):
        return f"encoder_embeddings.{ours.removeprefix('encoder.segment.')}.mod_emb"
    if ours.startswith("heads."):
        name, _, rest = ours.removeprefix("heads.").partition(".decoder.")
        return f"decoder_embeddings.{name}." + {
            "kind": "mod_emb", "pred.weight": "to_logits.weight", "token_embed": "token_emb.weight"
        }[rest]  # fmt: skip
    fixed = {"decoder.mask_token": "mask_token", "decoder.embed": "decoder_proj_context",
             "encoder.norm": "encoder_norm", "decoder.norm": "decoder_norm"}  # fmt: skip
    for start, theirs in fixed.items():
        if ours == start or ours.startswith(f"{start}."):
            return theirs + ours.removeprefix(start)
    side, _, rest = ours.partition(".blocks.")
    back = {own: theirs for theirs, own in BLOCKS.items()}
    names = [back.get(part, part) for part in rest.split(".")]
    if side == "encoder":
        names = ["attn" if part == "self_attn" else part for part in names]
    return ".".join([side, *names])


def _sample(case: GoldenCase) -> dict[str, Tensor]:
    return {name: case.inputs[f"{name}.tensor"] for name in case.config["modalities"]}


def _firsts(blocked: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The first ``count`` units, those first that are not blocked: their ids, and which of them are not."""
    ids = blocked.to(torch.uint8).argsort(dim=1, stable=True)[:, :count]
    return ids, ~blocked.gather(1, ids)


def _mask(case: GoldenCase) -> Mask:
    """What is seen and asked, as the case's own masks have it."""
    seen, asked = [], []
    for name, about in case.config["modalities"].items():
        own = case.inputs[f"{name}.input_mask"]
        seen.append(own)
        target = case.inputs[f"{name}.target_mask"] if about["out"] else torch.ones_like(own)
        if about["kind"] == "seq":  # the last id is only asked
            both = target[:, 1:] | target[:, :-1]
            target = torch.nn.functional.pad(both, (0, 1), value=True)
        asked.append(target)
    kept_ids, kept_valid = _firsts(torch.cat(seen, dim=1), case.config["num_input_tokens"])
    query_ids, query_valid = _firsts(torch.cat(asked, dim=1), case.config["num_target_tokens"])
    return Mask(torch.cat(seen, dim=1), kept_ids, query_ids, query_valid.float(), 1, 1, kept_valid, query_valid)


def _outputs(case: GoldenCase, method: Any, prepared: Any, outcome: Any) -> dict[str, Tensor]:
    mask, layout, heads = prepared.mask, prepared.layout, {name: head.decoder for name, head in method.heads.items()}
    encoded = method._encoded(prepared.inputs, layout, mask)
    decoded = method.decoder.decode(encoded, layout, mask, prepared.told, heads)
    fills, blocked = ~mask.query_valid, ~method.decoder.among(layout, mask)
    modality, start, target = torch.full_like(mask.query_ids, -1), 0, torch.zeros_like(mask.query_ids)
    seen = torch.full_like(mask.kept_ids, -1)
    outputs: dict[str, Tensor] = {}
    for name, part in layout.segments:
        number = case.config["modalities"][name]["id"]
        ids = mask.query_ids
        modality = modality.masked_fill((ids >= start) & (ids < start + part.count) & ~fills, number)
        ids = mask.kept_ids
        seen = seen.masked_fill((ids >= start) & (ids < start + part.count) & mask.kept_valid, number)
        start += part.count
        if name in method.heads:
            at, valid = mask.own_queries(layout, name)
            target = target.scatter_add(1, at, prepared.targets[name] * valid)
            outputs |= {f"loss_{name}": outcome.parts[name], f"logits_{name}": outcome.predictions[name][valid],
                      f"targets_{name}": prepared.targets[name][valid]}  # fmt: skip
    wanted = case.outputs
    outputs["decoded"] = torch.where(fills[..., None], wanted["decoded"], decoded)  # what fills a row up says nothing
    outputs["decoder_attention"] = torch.where(fills[..., None], wanted["decoder_attention"].bool(), blocked)
    latent = torch.where(mask.kept_valid[..., None], outcome.latent, wanted["latent"])
    outputs |= {"latent": latent, "target_ids": target, "decoder_pad": fills, "encoder_pad": ~mask.kept_valid,
              "decoder_modality": modality, "encoder_modality": seen}  # fmt: skip
    return outputs | {"alt_loss_token": _by_token(case, method)}


def _by_token(case: GoldenCase, method: Any) -> Tensor:
    """The loss as 4M's other way has it."""
    total, method.total = method.total, "answers"
    try:
        with torch.no_grad():
            loss: Tensor = method(method.prepare(_sample(case), mask=_mask(case))).loss
    finally:
        method.total = total
    return loss


def _after(case: GoldenCase, method: Any) -> dict[str, Tensor]:
    """Gradients of pixel embeddings in 4M's order of values, and those of weights that go by two names in 4M."""
    gradients = {}
    for name in case.gradients:
        modality = name.removeprefix("encoder_embeddings.").removesuffix(".proj.weight")
        if name == f"encoder_embeddings.{modality}.proj.weight":
            gradient = method.get_parameter(f"tokenizer.parts.{modality}.proj.weight").grad
            gradients[f"grad/{name}"] = gradient.permute(0, 2, 3, 1).flatten(1)
        modality, _, last = name.removeprefix("decoder_embeddings.").partition(".")
        shared = {"mod_emb": f"encoder.segment.{modality}"}
        if case.config.get("share_embedding", True):
            shared["token_emb.weight"] = f"heads.{modality}.decoder.pred.weight"
        if name.startswith("decoder_embeddings.") and last in shared:
            gradients[f"grad/{name}"] = method.get_parameter(shared[last]).grad
    return gradients


GOLDEN = {
    "fourm": GoldenAdapter(
        sample=_sample,
        mask=_mask,
        outputs=_outputs,
        names=lambda method: {name: _theirs(name) for name, _ in method.named_parameters()},
        after=_after,
    )
}
