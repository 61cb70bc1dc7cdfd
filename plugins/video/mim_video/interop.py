"""Weights of VideoMAE, VideoMAE V2 and transformers' VideoMAE as methods of this project. The converters carry
names and sizes, no code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from mim_core import IMAGENET_MEAN, IMAGENET_STD, Method, MimError, Part, State, fill, fill_weights, importers
from torch import Tensor

from mim_video.weights import tubelets

RELEASED_HEADS = {
    "encoder_num_heads": {384: 6, 768: 12, 1024: 16, 1280: 16, 1408: 16},
    "decoder_num_heads": {192: 3, 384: 6, 512: 8, 640: 8},
}
"""Attention heads of the released VideoMAE and VideoMAE V2 models, by width."""


@dataclass(frozen=True)
class VideomaeSizes:
    """What may be said of VideoMAE weights, under VideoMAE's own names. What can be read off the weights is checked."""

    img_size: Any = 224
    """Height and width in pixels, or one number for both; the weights do not tell, and take other sizes too."""
    num_frames: int = 16
    """Frames of a clip; the weights do not tell, and take other numbers too."""
    encoder_num_heads: int | None = None
    """Attention heads of the encoder; known for the released widths."""
    decoder_num_heads: int | None = None
    """Attention heads of the decoder; known for the released widths."""
    mask_ratio: float = 0.9
    """For the masker."""
    decoder_mask_ratio: float = 0.5
    """For VideoMAE V2's masker."""
    normalize_target: bool = True
    """Whether the target is normalised per tubelet."""
    norm_eps: float = 1e-6
    """Small number in the normalisation layers."""
    decoder_norm_eps: float | None = None
    """The same in the decoder's last one, where it differs."""
    mean: tuple[float, ...] = IMAGENET_MEAN
    """Mean that the data subtracts."""
    std: tuple[float, ...] = IMAGENET_STD
    """Deviation that the data divides by."""
    position: str | None = None
    """A description, ignored."""
    tubelet_size: int | None = None
    patch_size: Any = None
    encoder_in_chans: int | None = None
    encoder_embed_dim: int | None = None
    encoder_depth: int | None = None
    decoder_embed_dim: int | None = None
    decoder_depth: int | None = None
    decoder_num_classes: int | None = None
    mlp_ratio: float | None = None


@importers.licensed("CC BY-NC 4.0")
def import_videomae(state: State, **sizes: Any) -> Method:
    """Official VideoMAE weights, with the decoder. ``sizes`` are the fields of `VideomaeSizes`.

    VideoMAE's attention has biases for queries and values; timm's has one for keys too, which is set to zero. A bias
    of the keys adds the same number to all scores of a query, so softmax cancels it, and its gradient is zero.

    Raises:
        MimError: Weights of another code base, a size that contradicts them, heads that must be given.
    """
    given = fill(VideomaeSizes, sizes, "import format videomae")
    return _videomae(state, given, Part.of("video:tube", ratio=given.mask_ratio))


def import_videomae_v2(state: State, **sizes: Any) -> Method:
    """Official VideoMAE V2 weights: VideoMAE's names, masked for encoder and decoder; see `import_videomae`."""
    given = fill(VideomaeSizes, sizes, "import format videomae-v2")
    return _videomae(
        state, given, Part.of("video:dual", ratio=given.mask_ratio, decoder_ratio=given.decoder_mask_ratio)
    )


def _videomae(state: State, given: VideomaeSizes, masker: Part) -> Method:
    width, channels, tubelet, *patch = importers.need(state, "encoder.patch_embed.proj.weight", "VideoMAE").shape
    decoder_width = importers.need(state, "encoder_to_decoder.weight", "VideoMAE with its decoder").shape[0]
    read = {
        "encoder_embed_dim": width,
        "encoder_in_chans": channels,
        "encoder_depth": importers.depth_of(state, "encoder.blocks."),
        "tubelet_size": tubelet,
        "patch_size": tuple(patch),
        "decoder_embed_dim": decoder_width,
        "decoder_depth": importers.depth_of(state, "decoder.blocks."),
        "decoder_num_classes": importers.need(state, "decoder.head.weight", "VideoMAE with its decoder").shape[0],
        "mlp_ratio": importers.mlp_ratio_of(state, "encoder.blocks.", width),
    }
    importers.agree(given, read)
    encoder = {
        "heads": importers.heads_of("encoder_num_heads", given, width, RELEASED_HEADS),
        "depth": read["encoder_depth"],
    }
    decoder = {
        "heads": importers.heads_of("decoder_num_heads", given, decoder_width, RELEASED_HEADS),
        "depth": read["decoder_depth"],
        "mlp_ratio": importers.mlp_ratio_of(state, "decoder.blocks.", decoder_width),
        "final_norm_eps": given.decoder_norm_eps,
    }
    method = importers.build(
        tokenizer=tubelets((given.num_frames, *importers.pair(given.img_size)), (tubelet, *patch), channels),
        masker=masker,
        encoder=Part.of(
            "core:vit",
            width=width,
            mlp_ratio=read["mlp_ratio"],
            class_token=False,
            position="flat",
            norm_eps=given.norm_eps,
            final_norm="encoder.norm.weight" in state,
            layer_scale=1.0 if "encoder.blocks.0.gamma_1" in state else None,
            **encoder,
        ),
        decoder=Part.of(
            "core:transformer",
            width=decoder_width,
            position="flat",
            embed_bias=False,
            norm_eps=given.norm_eps,
            **decoder,
        ),
        target=Part.of("video:cubes", normalize=given.normalize_target, mean=given.mean, std=given.std),
    )
    return _filled(method, state)


def _filled(method: Method, state: State) -> Method:
    """The method with the weights of the official names."""
    own = method.state_dict()
    tables = {name: own[name] for name in own if name.endswith("position.table")}  # computed, so in no checkpoint
    fill_weights(method, {**_whole_bias(state), **tables}, {name: _videomae_name(name) for name in own})
    return method


def _whole_bias(state: State) -> dict[str, Tensor]:
    """The state with one bias for queries, keys and values, that of keys zero, in place of VideoMAE's two. It has them
    in all blocks, or in none.

    Raises:
        MimError: Some blocks lack one.
    """
    moved = {name: value for name, value in state.items() if not name.endswith((".attn.q_bias", ".attn.v_bias"))}
    weights = {name.removesuffix("qkv.weight"): value for name, value in state.items() if name.endswith("qkv.weight")}
    ours = {start: value for start, value in weights.items() if f"{start}qkv.bias" not in state}
    wanted = [f"{start}{part}" for start in ours for part in ("q_bias", "v_bias")]
    lacking = [name for name in wanted if name not in state]
    if lacking and len(lacking) < len(wanted):
        raise MimError(f"Some blocks of these weights have biases, and others lack them: {', '.join(lacking[:8])}.")
    for start, weight in ours.items():
        none = weight.new_zeros(weight.shape[0] // 3)
        parts = [none if lacking else state[f"{start}{part}"] for part in ("q_bias", "v_bias")]
        if any(part.shape != none.shape for part in parts):
            shapes = " and ".join(str(tuple(part.shape)) for part in parts)
            raise MimError(f"{start}q_bias and v_bias are {shapes}, and {start}qkv.weight is {tuple(weight.shape)}.")
        moved[f"{start}qkv.bias"] = torch.cat([parts[0], none, parts[1]])
    return moved


def _videomae_name(ours: str) -> str:
    """Our name of a weight -> VideoMAE's."""
    if ours.endswith("position.table"):
        return ours
    name = ours.replace(".ls1.gamma", ".gamma_1").replace(".ls2.gamma", ".gamma_2")
    if name.startswith("tokenizer."):
        return name.replace("tokenizer.", "encoder.patch_embed.")
    rest = name.removeprefix(importers.HEAD)
    if rest == name:
        return name
    renamed = {"embed.weight": "encoder_to_decoder.weight", "mask_token": "mask_token"}
    return renamed.get(rest, "decoder." + rest.replace("pred.", "head."))


@importers.licensed("CC BY-NC 4.0")
def import_hf_videomae(state: State, **config: Any) -> Method:
    """transformers' VideoMAEForPreTraining: its state dict, and the entries of its ``config.json``.

    The state is moved to VideoMAE's own names, and query, key and value are joined; then it is read as VideoMAE's.

    Raises:
        MimError: An entry that is needed is missing, or the activation is not gelu.
    """
    from mim_video.hf import NEEDED, to_videomae

    lacking = [name for name in NEEDED if name not in config]
    if lacking:
        raise MimError(
            f"VideoMAE weights of transformers do not tell {' and '.join(lacking)}; give the folder that "
            f"save_pretrained wrote, or the values."
        )
    if config.get("hidden_act", "gelu") != "gelu":
        raise MimError(f"hidden_act is {config['hidden_act']!r}; these transformers have gelu only.")
    colour = config.get("num_channels", 3) == 3  # theirs undoes ImageNet's mean and std of three channels only
    return import_videomae(
        to_videomae(state),
        encoder_num_heads=config["num_attention_heads"],
        decoder_num_heads=config["decoder_num_attention_heads"],
        img_size=config.get("image_size", 224),
        num_frames=config.get("num_frames", 16),
        normalize_target=config.get("norm_pix_loss", True),
        norm_eps=config.get("layer_norm_eps", 1e-12),
        decoder_norm_eps=1e-5,
        **({} if colour else {"mean": (0.0,), "std": (1.0,)}),
    )
