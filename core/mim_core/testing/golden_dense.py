"""Golden cases of necks, heads for every pixel, positions on other grids, and looks at what was learned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from timm.layers.patch_embed import resample_patch_embed
from torch import Tensor, nn

from mim_core.evaluation import representation as looks
from mim_core.parts.encoder_beit import BeitEncoder
from mim_core.parts.mask import Mask
from mim_core.parts.neck import FourLevels, SimplePyramid
from mim_core.parts.position import resampled, sincos_table
from mim_core.parts.tokenizer import PatchTokenizer
from mim_core.parts.upernet import FcnHead, UperNet, pixel_loss
from mim_core.testing.golden_entries import Comparison, GoldenCase
from mim_core.testing.golden_trials import compare_all


def gradients(module: nn.Module, prefix: str = "") -> dict[str, Tensor]:
    """Gradients by name, as a case has them."""
    return {f"grad/{prefix}{name}": p.grad for name, p in module.named_parameters() if p.grad is not None}


def try_pyramid(case: GoldenCase) -> list[Comparison]:
    """ViTDet's pyramid, its weighted sum, and the gradients of both."""
    config = case.config
    pyramid = SimplePyramid(config["dim"], config["out_channels"])
    pyramid.load_state_dict(dict(case.weights["state"]))
    feature = case.inputs["feature"].clone().requires_grad_()
    levels = pyramid(feature)
    loss = sum(((level * case.inputs[f"weight_{name}"]).sum() for name, level in levels.items()), torch.zeros(()))
    loss.backward()
    return compare_all(case, {**levels, "loss": loss, "grad_feature": feature.grad, **gradients(pyramid)}, {})


def try_neck(case: GoldenCase) -> list[Comparison]:
    """BEiT's transformer, what enters its neck, and the levels, in training and in evaluation mode."""
    config, state = case.config, dict(case.weights["state"])
    size, side = config["img_size"], config["patch_size"]
    patch = PatchTokenizer.Config("image", tuple(size), (side, side), state["patch_embed.proj.weight"].shape[1])
    tokenizer = PatchTokenizer(patch, config["embed_dim"])
    encoder = BeitEncoder(_beit_options(config), tokenizer.layout)
    neck = FourLevels(config["embed_dim"], side)
    encoder.give_levels(tuple(number + 1 for number in config["out_indices"]), normed=False)
    module = nn.ModuleDict({"tokenizer": tokenizer, "encoder": encoder, "neck": neck})
    names = _beit_names(module, state)
    fresh = {name: value for name, value in module.state_dict().items() if name not in names}
    module.load_state_dict({**fresh, **{ours: state[theirs] for ours, theirs in names.items()}})
    outputs: dict[str, Any] = {}
    for ending in ("_eval", ""):
        module.train(not ending)
        patches = tokenizer.split({"image": case.inputs["image"]})
        mask = Mask.nothing_hidden(config["batch"], patches.layout, torch.device("cpu"))
        assert isinstance(patches.values, Tensor)
        maps = encoder(tokenizer.embed(patches.values), patches.layout, mask).levels
        maps = [each.transpose(1, 2).unflatten(2, tokenizer.layout.grid) for each in maps]
        outputs |= {f"level_{i}{ending}": level for i, level in enumerate(neck(maps))}
    outputs |= {f"tapped_{number}": each for number, each in enumerate(maps)}
    loss = sum(((outputs[f"level_{i}"] * case.inputs[f"weight_{i}"]).sum() for i in range(len(maps))), torch.zeros(()))
    loss.backward()
    outputs |= {f"after/{name}": value for name, value in neck.state_dict().items()}
    grads = {names[name]: p.grad for name, p in module.named_parameters() if name in names and p.grad is not None}
    if "pos_embed" in grads:
        slot = encoder.prefix_position
        assert slot is not None
        assert slot.grad is not None
        grads["pos_embed"] = torch.cat([slot.grad, grads["pos_embed"]], dim=1)
    return compare_all(case, {**outputs, "loss": loss, **{f"grad/{n}": g for n, g in grads.items()}}, {})


def _beit_options(config: Mapping[str, Any]) -> BeitEncoder.Config:
    own, shared = config.get("use_rel_pos_bias", False), config.get("use_shared_rel_pos_bias", False)
    return BeitEncoder.Config(
        width=config["embed_dim"],
        depth=config["depth"],
        heads=config["num_heads"],
        drop_path=0.0,
        layer_scale=config.get("init_values"),
        bias="own" if own else "shared" if shared else "none",
        position="learned" if config.get("use_abs_pos_emb", False) else "none",
    )


def _beit_names(module: nn.Module, state: dict[str, Tensor]) -> dict[str, str]:
    """Our names -> BEiT's, for weights that the case has; its table of positions is parted into units and class
    token."""
    if "pos_embed" in state:
        state["class_position"], state["pos_embed"] = state["pos_embed"][:, :1], state["pos_embed"][:, 1:]
    names = {}
    for ours in module.state_dict():
        theirs = ours.removeprefix("neck.").removeprefix("encoder.").replace("tokenizer.", "patch_embed.")
        number, _, last = theirs.removeprefix("rel_pos_bias.").partition(".")
        if theirs.startswith("rel_pos_bias.") and number.isdecimal():
            theirs = f"blocks.{number}.attn.{last}"
        renamed = {"position.table": "pos_embed", "prefix_position": "class_position"}
        names[ours] = renamed.get(theirs, theirs)
    return {ours: theirs for ours, theirs in names.items() if theirs in state}


def try_upernet(case: GoldenCase) -> list[Comparison]:
    """UPerNet's head and the one beside it, in training and in evaluation mode."""
    config, state = case.config, case.weights["state"]
    widths, index = config["in_channels"], config["auxiliary_in_index"]
    head = UperNet(widths, config["num_classes"], config["channels"], config["pool_scales"], dropout=0.0)
    beside = FcnHead(
        widths[index],
        config["num_classes"],
        config["auxiliary_channels"],
        config["auxiliary_num_convs"],
        dropout=0.0,
    )
    for module, prefix in ((head, "decode_head."), (beside, "auxiliary_head.")):
        module.load_state_dict({n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)})
    levels = [case.inputs[f"level_{i}"].clone().requires_grad_() for i in range(len(widths))]
    outputs: dict[str, Any] = {}
    with torch.no_grad():
        outputs["logits_eval"] = head.eval()(levels)
        outputs["logits_auxiliary_eval"] = beside.eval()(levels[index])
    logits, other = head.train()(levels), beside.train()(levels[index])
    label = case.inputs["label"]
    decode, auxiliary = pixel_loss(logits, label), pixel_loss(other, label)
    loss = decode + 0.4 * auxiliary
    loss.backward()
    outputs |= {"logits": logits, "logits_auxiliary": other, "loss_decode": decode, "loss_auxiliary": auxiliary}
    outputs |= {f"grad_level_{number}": level.grad for number, level in enumerate(levels)}
    return compare_all(
        case,
        {**outputs, "loss": loss, **gradients(head, "decode_head."), **gradients(beside, "auxiliary_head.")},
        {},
    )


def try_positions(case: GoldenCase) -> list[Comparison]:
    """Tables of positions on other grids, as timm and as MAE's code move them, and a kernel of another size."""
    config, table = case.config, case.inputs["table"]
    old, new, prefix = tuple(config["old"]), tuple(config["new"]), config["prefix"]

    def moved(given: Tensor, own: tuple[int, ...], to: tuple[int, ...], smooth: bool) -> Tensor:
        return torch.cat([given[:, :prefix], resampled(given[:, prefix:], own, to, antialias=smooth)], dim=1)

    computed = torch.cat([table.new_zeros(1, prefix, table.shape[2]), sincos_table(old, table.shape[2])[None]], dim=1)
    outputs = {"timm_no_antialias": moved(table, old, new, False), "sincos": computed}
    for name, smooth in (("mae", False), ("timm", True)):
        resized = moved(table, old, new, smooth)
        outputs |= {name: resized, f"{name}_back": moved(resized, new, old, smooth)}
        outputs[f"{name}_sincos"] = moved(computed, old, new, smooth)
        outputs |= {f"{name}_square_{side}": moved(table, old, (side, side), smooth) for side in config["square"]}
    outputs["kernel"] = resample_patch_embed(case.inputs["kernel"], list(config["kernel_new"]))
    return compare_all(case, outputs, {})


def try_representation(case: GoldenCase) -> list[Comparison]:
    """Rank, likeness, alignment, uniformity and the reach of attention."""
    given, config = case.inputs, case.config
    features, other = given["features"], given["other"]
    outputs = {
        "rankme": looks.rank_me(features),
        "rankme_other": looks.rank_me(other),
        "cka": looks.cka(features, other),
        "cka_debiased": looks.cka(features, other, debiased=True),
        "alignment": looks.alignment(given["anchor"], given["positive"]),
        "alignment_alpha1": looks.alignment(given["anchor"], given["positive"], alpha=1.0),
        "uniformity": looks.uniformity(given["anchor"]),
        "uniformity_t3": looks.uniformity(given["anchor"], t=3.0),
        "attention_distance": looks.attention_distance(given["attention"], tuple(config["grid"]), config["patch_size"]),
    }
    return compare_all(case, outputs, {})
