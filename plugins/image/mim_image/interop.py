"""Weights of MAE, SimMIM and transformers' ViTMAE as methods of this project. The converters carry names and sizes, no
code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mim_core import Method, MimError, Part, State, fill, fill_weights, importers, warn
from torch import Tensor


def _image_size(given: Any, patch: tuple[int, int], units: int) -> tuple[int, int]:
    """Height and width: given, or a square of that many patches."""
    if given is not None:
        size = importers.pair(given)
        if size[0] // patch[0] * (size[1] // patch[1]) != units:
            raise MimError(
                f"img_size {size} with patch {patch} makes another number of patches than the weights' {units}."
            )
        return size
    side = round(units**0.5)
    if side * side != units:
        raise MimError(f"The weights are for {units} patches, which is no square; give img_size=(height, width).")
    return side * patch[0], side * patch[1]


@dataclass(frozen=True)
class MaeSizes:
    """What may be said of MAE weights, under MAE's own names. Most is read off the weights, and checked where given."""

    num_heads: int | None = None
    """Attention heads of the encoder; the weights do not tell. Known for the released widths 768, 1024 and 1280."""
    decoder_num_heads: int | None = None
    """Attention heads of the decoder; known for the released width of 512."""
    mask_ratio: float = 0.75
    """For the masker."""
    norm_pix_loss: bool = True
    """Whether the target is normalised per patch."""
    img_size: Any = None
    """Needed for inputs that are not square."""
    norm_eps: float = 1e-6
    """Small number in the normalisation layers."""
    fresh_decoder: bool = False
    """For files of the encoder alone, as most released ones are: a decoder of the paper's size (or of the sizes given
    here) is randomly initialised, so that features are right and reconstructions are not."""
    patch_size: Any = None
    embed_dim: int | None = None
    depth: int | None = None
    decoder_embed_dim: int | None = None
    decoder_depth: int | None = None
    in_chans: int | None = None
    mlp_ratio: float | None = None


@importers.licensed("CC BY-NC 4.0")
def import_mae(state: State, **sizes: Any) -> Method:
    """Official MAE weights, with the decoder or, where that is asked for, without. ``sizes`` are the fields of
    `MaeSizes`.

    Raises:
        MimError: Weights of another code base, a size that contradicts them, heads that must be given.
    """
    given = fill(MaeSizes, sizes, "import format mae")
    width, channels, *patch = importers.need(state, "patch_embed.proj.weight", "MAE").shape
    decoder_width, decoder_depth = _decoder_size(state, given)
    read = {
        "embed_dim": width,
        "depth": importers.depth_of(state, "blocks."),
        "in_chans": channels,
        "mlp_ratio": importers.mlp_ratio_of(state, "blocks.", width),
        "decoder_embed_dim": decoder_width,
        "decoder_depth": decoder_depth,
        "patch_size": (patch[0], patch[1]),
    }
    importers.agree(given, read)
    size = _image_size(given.img_size, (patch[0], patch[1]), importers.need(state, "pos_embed", "MAE").shape[1] - 1)
    grid = (size[0] // patch[0], size[1] // patch[1])
    encoder = {"width": width, "depth": read["depth"], "mlp_ratio": read["mlp_ratio"]}
    decoder = {"width": decoder_width, "depth": decoder_depth}
    method = importers.build(
        tokenizer=Part.of("image:patch", size=size, patch=tuple(patch), channels=channels),
        masker=Part.of("core:random", ratio=given.mask_ratio),
        encoder=Part.of(
            "core:vit",
            **encoder,
            heads=importers.heads_of("num_heads", given, width, RELEASED_HEADS),
            norm_eps=given.norm_eps,
            position=importers.position_of(state["pos_embed"][:, 1:], grid),
        ),
        decoder=Part.of(
            "core:transformer",
            **decoder,
            mlp_ratio=importers.mlp_ratio_of(state, "decoder_blocks.", decoder_width),
            heads=importers.heads_of("decoder_num_heads", given, decoder_width, RELEASED_HEADS),
            norm_eps=given.norm_eps,
            position=importers.position_of(_decoder_table(state), grid) if "decoder_pos_embed" in state else "sincos",
        ),
        target=Part.of("core:values", normalize=given.norm_pix_loss, loss="l2"),
    )
    _say_what_is_learned(method)
    return _with_decoder(method, state, given)


def _with_decoder(method: Method, state: State, given: MaeSizes) -> Method:
    """The method with the weights; with a fresh decoder where that is asked for."""
    moved = importers.without_slot(state, "cls_token", "pos_embed")
    if given.fresh_decoder:
        warn("the decoder is not in these weights and is randomly initialised: its reconstructions mean nothing yet.")
        moved |= {
            _mae_name(name): value for name, value in method.state_dict().items() if name.startswith(importers.HEAD)
        }
    else:
        moved["decoder_pos_embed"] = _decoder_table(state)
    fill_weights(method, moved, {name: _mae_name(name) for name in method.state_dict()})
    return method


def _say_what_is_learned(method: Method) -> None:
    learned = [name for name in ("encoder", "decoder") if method.built_from[name].options.position == "learned"]
    if learned:
        warn(f"the positions of the {' and '.join(learned)} are not MAE's sine-cosine ones: they are taken as learned.")


RELEASED_HEADS = {"num_heads": {768: 12, 1024: 16, 1280: 16}, "decoder_num_heads": {512: 16}}
"""Attention heads of the released MAE models, by width."""


def _decoder_size(state: State, given: MaeSizes) -> tuple[int, int]:
    """Width and depth of the decoder: of the weights, or for a fresh one as given or as in the paper, 512 x 8."""
    has_decoder = "decoder_embed.weight" in state
    if given.fresh_decoder:
        if has_decoder:
            raise MimError("These weights have a decoder; leave fresh_decoder out.")
        return given.decoder_embed_dim or 512, given.decoder_depth or 8
    if not has_decoder and "cls_token" in state and "blocks.0.attn.qkv.weight" in state:
        raise MimError(
            "These weights are an encoder alone: there is no 'decoder_embed.weight'. Features need no more: give "
            "fresh_decoder=True, or mim-core import --sizes fresh_decoder=true, which makes a run that --init takes; "
            "the decoder is randomly initialised."
        )
    return importers.need(state, "decoder_embed.weight", "MAE with its decoder").shape[0], importers.depth_of(
        state, "decoder_blocks."
    )


def _decoder_table(state: State) -> Tensor:
    table = importers.need(state, "decoder_pos_embed", "MAE with its decoder")
    if bool(table[:, 0].any()):
        raise MimError("The class token's slot of decoder_pos_embed is not zero; MAE's is.")
    return table[:, 1:]


def _mae_name(ours: str) -> str:
    """Our name of a weight -> MAE's."""
    if ours.startswith(importers.HEAD):
        rest = ours.removeprefix(importers.HEAD)
        renamed = {"position.table": "decoder_pos_embed", "mask_token": "mask_token"}
        return renamed.get(rest, f"decoder_{rest}")
    if ours.startswith("tokenizer."):
        return ours.replace("tokenizer.", "patch_embed.")
    return {"encoder.position.table": "pos_embed"}.get(ours, ours.removeprefix("encoder."))


@dataclass(frozen=True)
class SimmimSizes:
    """What may be said of SimMIM weights, under SimMIM's own names. Most is read off the weights, and checked where
    given."""

    mask_ratio: float = 0.6
    """For the masker."""
    img_size: Any = None
    """Needed for inputs that are not square."""
    init_values: float | None = None
    """Layer scale at the start; the weights hold the trained one."""
    position: str | None = None
    """A description, ignored."""
    heads: int | None = None
    num_heads: int | None = None
    patch_size: Any = None
    dim: int | None = None
    embed_dim: int | None = None
    depth: int | None = None
    in_chans: int | None = None
    mlp_ratio: float | None = None


@importers.licensed("MIT")
def import_simmim(state: State, **sizes: Any) -> Method:
    """Official SimMIM weights of a ViT with a shared relative position bias. ``sizes`` are the fields of `SimmimSizes`.

    The bias table tells the number of heads. An imported method starts with drop path 0.

    Raises:
        MimError: Weights of another code base, or a size that contradicts them.
    """
    given = fill(SimmimSizes, sizes, "import format simmim")
    width, channels, *patch = importers.need(state, "encoder.patch_embed.proj.weight", "SimMIM").shape
    heads = importers.need(
        state, "encoder.rel_pos_bias.relative_position_bias_table", "SimMIM's ViT with a shared bias"
    ).shape[1]
    depth = importers.depth_of(state, "encoder.blocks.")
    read = {"heads": heads, "num_heads": heads, "dim": width, "embed_dim": width, "depth": depth, "in_chans": channels}
    importers.agree(
        given,
        {
            **read,
            "mlp_ratio": importers.mlp_ratio_of(state, "encoder.blocks.", width),
            "patch_size": (patch[0], patch[1]),
        },
    )
    index_key = "encoder.rel_pos_bias.relative_position_index"
    size = _image_size(
        given.img_size, (patch[0], patch[1]), importers.need(state, index_key, "SimMIM's ViT").shape[0] - 1
    )
    scaled = "encoder.blocks.0.gamma_1" in state
    method = importers.build(
        tokenizer=Part.of("image:patch", size=size, patch=tuple(patch), channels=channels),
        masker=Part.of("core:grid", ratio=given.mask_ratio, block=_mask_block(size, patch)),
        encoder=Part.of(
            "core:beit",
            width=width,
            depth=depth,
            heads=heads,
            mlp_ratio=importers.mlp_ratio_of(state, "encoder.blocks.", width),
            drop_path=0.0,
            layer_scale=(given.init_values or 0.1) if scaled else None,
        ),
        decoder=Part.of("core:linear"),
        target=Part.of("core:values", normalize=False, loss="l1", channels_first=True),
    )
    keys = {name: _simmim_name(name) for name in method.state_dict()}
    unused = [key for key in state if key.endswith(".k_bias")] + ([] if index_key in keys.values() else [index_key])
    fill_weights(method, state, keys, unused)
    return method


def _mask_block(size: tuple[int, int], patch: list[int]) -> tuple[int, ...]:
    """SimMIM's 32 pixels in patches; one patch where that is no whole number of them, or does not divide the grid."""
    return tuple(32 // p if 32 % p == 0 and n % 32 == 0 and n > 32 else 1 for n, p in zip(size, patch, strict=True))


def _simmim_name(ours: str) -> str:
    """Our name of a weight -> SimMIM's."""
    if ours.startswith("tokenizer."):
        return ours.replace("tokenizer.", "encoder.patch_embed.")
    return ours.replace("heads.main.decoder.pred.", "decoder.0.")


def import_hf_vitmae(state: State, **config: Any) -> Method:
    """transformers' ViTMAEForPreTraining: its state dict, and the entries of its ``config.json``.

    The state is moved to MAE's own names, and query, key and value are joined, then `import_mae` takes it.

    Raises:
        MimError: The numbers of heads are not known, or the activation is not gelu.
    """
    from mim_image.vitmae import to_mae

    needed = ("num_attention_heads", "decoder_num_attention_heads")
    lacking = [name for name in needed if name not in config]
    if lacking:
        raise MimError(
            f"ViTMAE weights alone do not tell {' and '.join(lacking)}; give the folder that save_pretrained wrote, "
            f"or the values (mim-core import: --sizes {' '.join(f'{name}=NUMBER' for name in lacking)})."
        )
    if config.get("hidden_act", "gelu") != "gelu":
        raise MimError(f"hidden_act is {config['hidden_act']!r}; these transformers have gelu only.")
    return import_mae(
        to_mae(state),
        num_heads=config["num_attention_heads"],
        decoder_num_heads=config["decoder_num_attention_heads"],
        mask_ratio=config.get("mask_ratio", 0.75),
        norm_pix_loss=config.get("norm_pix_loss", False),
        img_size=config.get("image_size"),
        norm_eps=config.get("layer_norm_eps", 1e-12),
    )
