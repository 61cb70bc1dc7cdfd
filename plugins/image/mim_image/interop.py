"""Weights of MAE, SimMIM and transformers' ViTMAE as methods of this project. The converters carry names and sizes, no
code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mim_core.build import build_method
from mim_core.errors import MimError
from mim_core.interop import fill_weights
from mim_core.method import Method
from mim_core.plugins import installed
from mim_core.recipe import Part, RunConfig, resolve
from torch import Tensor

State = Mapping[str, Tensor]


def _depth(state: State, prefix: str) -> int:
    """The number of blocks whose keys start with the prefix."""
    numbers = {int(key.removeprefix(prefix).split(".")[0]) for key in state if key.startswith(prefix)}
    return max(numbers, default=-1) + 1


def _mlp_ratio(state: State, prefix: str, width: int) -> float:
    """Hidden width of the first block's MLP over the width; 4 where there are no blocks."""
    hidden = state.get(f"{prefix}0.mlp.fc1.weight")
    return 4.0 if hidden is None else hidden.shape[0] / width


def _need(state: State, key: str, code: str) -> Tensor:
    if key not in state:
        raise MimError(
            f"These weights have no {key!r}: they are not those of {code}. They start with: "
            f"{', '.join(list(state)[:5])}."
        )
    return state[key]


def _pair(size: Any) -> tuple[int, int]:
    return (int(size[0]), int(size[1])) if isinstance(size, (list, tuple)) else (int(size), int(size))


def _agree(name: str, given: Any, read: Any) -> None:
    """A size that was given must be what the weights have."""
    if given is not None and given != read:
        raise MimError(f"{name} is given as {given}, and the weights have {read}.")


def _image_size(given: Any, patch: tuple[int, int], units: int) -> tuple[int, int]:
    """Height and width: given, or a square of that many patches."""
    if given is not None:
        size = _pair(given)
        if size[0] // patch[0] * (size[1] // patch[1]) != units:
            raise MimError(
                f"img_size {size} with patch {patch} makes another number of patches than the weights' {units}."
            )
        return size
    side = round(units**0.5)
    if side * side != units:
        raise MimError(f"The weights are for {units} patches, which is no square; give img_size=(height, width).")
    return side * patch[0], side * patch[1]


def _fold_class_position(state: State, token: str, table: str) -> dict[str, Tensor]:
    """Adds the class token's own position, zero in MAE's tables, to the token, and leaves the units' positions."""
    moved = dict(state)
    moved[token] = state[token] + state[table][:, :1]
    moved[table] = state[table][:, 1:]
    return moved


def import_mae(
    state: State,
    *,
    num_heads: int | None = None,
    decoder_num_heads: int | None = None,
    mask_ratio: float = 0.75,
    norm_pix_loss: bool = True,
    img_size: Any = None,
    patch_size: Any = None,
    embed_dim: int | None = None,
    depth: int | None = None,
    decoder_embed_dim: int | None = None,
    decoder_depth: int | None = None,
    in_chans: int | None = None,
    mlp_ratio: float | None = None,
    norm_eps: float = 1e-6,
) -> Method:
    """Official MAE weights. Heads are 64 wide in the encoder's released sizes and 32 in the decoder's, which is
    assumed unless given.

    Args:
        state: The weights under MAE's names, with the decoder.
        num_heads: Attention heads of the encoder; not to be seen in the weights.
        decoder_num_heads: Attention heads of the decoder.
        mask_ratio: For the masker.
        norm_pix_loss: Whether the target is normalised per patch.
        img_size: Needed for inputs that are not square.
        patch_size: Checked, as are the following: all are read off the weights.
        embed_dim: Encoder width.
        depth: Encoder blocks.
        decoder_embed_dim: Decoder width.
        decoder_depth: Decoder blocks.
        in_chans: Input channels.
        mlp_ratio: Hidden width of the MLPs over the width.
        norm_eps: Small number in the normalisation layers.
    """
    projection = _need(state, "patch_embed.proj.weight", "MAE")
    decoder = _need(state, "decoder_embed.weight", "MAE with its decoder")
    width, channels, *patch = projection.shape
    ratio = _mlp_ratio(state, "blocks.", width)
    blocks, decoder_blocks = _depth(state, "blocks."), _depth(state, "decoder_blocks.")
    for name, given, read in (
        ("embed_dim", embed_dim, width),
        ("depth", depth, blocks),
        ("in_chans", in_chans, channels),
        ("mlp_ratio", mlp_ratio, ratio),
        ("decoder_embed_dim", decoder_embed_dim, decoder.shape[0]),
        ("decoder_depth", decoder_depth, decoder_blocks),
        ("patch_size", None if patch_size is None else _pair(patch_size), tuple(patch)),
    ):
        _agree(name, given, read)
    size = _image_size(img_size, (patch[0], patch[1]), _need(state, "pos_embed", "MAE").shape[1] - 1)
    decoder_width = decoder.shape[0]
    method = _build(
        tokenizer=Part.of("image:patch", size=size, patch=tuple(patch), channels=channels),
        masker=Part.of("core:random", ratio=mask_ratio),
        encoder=Part.of(
            "core:vit",
            width=width,
            depth=blocks,
            heads=num_heads or max(1, width // 64),
            mlp_ratio=ratio,
            norm_eps=norm_eps,
        ),
        decoder=Part.of(
            "core:transformer",
            width=decoder_width,
            depth=decoder_blocks,
            mlp_ratio=_mlp_ratio(state, "decoder_blocks.", decoder_width),
            heads=decoder_num_heads or max(1, decoder_width // 32),
            norm_eps=norm_eps,
        ),
        target=Part.of("core:values", normalize=norm_pix_loss, loss="l2"),
    )
    moved = _fold_class_position(state, "cls_token", "pos_embed")
    moved["decoder_pos_embed"] = _decoder_table(state)
    fill_weights(method, moved, {name: _mae_name(name) for name in method.state_dict()})
    return method


def _decoder_table(state: State) -> Tensor:
    table = _need(state, "decoder_pos_embed", "MAE with its decoder")
    if bool(table[:, 0].any()):
        raise MimError("The class token's slot of decoder_pos_embed is not zero; MAE's is.")
    return table[:, 1:]


def _mae_name(ours: str) -> str:
    """Our name of a weight -> MAE's."""
    head = "heads.main.decoder."
    if ours.startswith(head):
        rest = ours.removeprefix(head)
        renamed = {"position.table": "decoder_pos_embed", "mask_token": "mask_token"}
        return renamed.get(rest, f"decoder_{rest}")
    if ours.startswith("tokenizer."):
        return ours.replace("tokenizer.", "patch_embed.")
    return {"encoder.position.table": "pos_embed"}.get(ours, ours.removeprefix("encoder."))


def import_simmim(
    state: State,
    *,
    heads: int | None = None,
    num_heads: int | None = None,
    mask_ratio: float = 0.6,
    img_size: Any = None,
    patch_size: Any = None,
    dim: int | None = None,
    embed_dim: int | None = None,
    depth: int | None = None,
    init_values: float | None = None,
    in_chans: int | None = None,
    position: str | None = None,
) -> Method:
    """Official SimMIM weights of a ViT with a shared relative position bias.

    The bias table tells the number of heads and, for square inputs, the grid. Mask blocks are 32 pixels, or one patch
    where that is more or does not divide the grid. An imported method starts with drop path 0.

    Args:
        state: The weights under SimMIM's names (``encoder.`` and ``decoder.``).
        heads: Checked, as are the sizes below: all are read off the weights.
        num_heads: The same.
        mask_ratio: For the masker.
        img_size: Needed for inputs that are not square.
        patch_size: Patch side in pixels.
        dim: Width.
        embed_dim: The same.
        depth: Blocks.
        init_values: Layer scale at the start; the weights hold the trained ones.
        in_chans: Input channels.
        position: A description, ignored.
    """
    projection = _need(state, "encoder.patch_embed.proj.weight", "SimMIM")
    table = _need(
        state, "encoder.rel_pos_bias.relative_position_bias_table", "SimMIM's ViT with a shared relative position bias"
    )
    width, channels, *patch = projection.shape
    blocks = _depth(state, "encoder.blocks.")
    for name, given, read in (
        ("heads", heads, table.shape[1]),
        ("num_heads", num_heads, table.shape[1]),
        ("dim", dim, width),
        ("embed_dim", embed_dim, width),
        ("depth", depth, blocks),
        ("in_chans", in_chans, channels),
        ("patch_size", None if patch_size is None else _pair(patch_size), tuple(patch)),
    ):
        _agree(name, given, read)
    index = _need(state, "encoder.rel_pos_bias.relative_position_index", "SimMIM's ViT")
    size = _image_size(img_size, (patch[0], patch[1]), index.shape[0] - 1)
    grid = (size[0] // patch[0], size[1] // patch[1])
    block = tuple(
        32 // p if 32 % p == 0 and n % max(1, 32 // p) == 0 and 32 // p < n else 1
        for p, n in zip(patch, grid, strict=True)
    )
    scaled = "encoder.blocks.0.gamma_1" in state
    ratio = state["encoder.blocks.0.mlp.fc1.weight"].shape[0] / width if blocks else 4.0
    method = _build(
        tokenizer=Part.of("image:patch", size=size, patch=tuple(patch), channels=channels),
        masker=Part.of("core:grid", ratio=mask_ratio, block=block),
        encoder=Part.of(
            "core:beit",
            width=width,
            depth=blocks,
            heads=table.shape[1],
            mlp_ratio=ratio,
            drop_path=0.0,
            layer_scale=(init_values or 0.1) if scaled else None,
        ),
        decoder=Part.of("core:linear"),
        target=Part.of("core:values", normalize=False, loss="l1", channels_first=True),
    )
    index_key = "encoder.rel_pos_bias.relative_position_index"
    keys = {name: _simmim_name(name) for name in method.state_dict()}
    unused = [key for key in state if key.endswith(".k_bias")] + ([] if index_key in keys.values() else [index_key])
    fill_weights(method, state, keys, unused)
    return method


def _simmim_name(ours: str) -> str:
    """Our name of a weight -> SimMIM's."""
    if ours.startswith("tokenizer."):
        return ours.replace("tokenizer.", "encoder.patch_embed.")
    return ours.replace("heads.main.decoder.pred.", "decoder.0.")


def import_hf_vitmae(state: State, **config: Any) -> Method:
    """transformers' ViTMAEForPreTraining: its state dict, and the entries of its ``config.json``.

    The state is moved to MAE's own names, and query, key and value are joined, then `import_mae` takes it.
    """
    from mim_image.vitmae import to_mae

    needed = ("num_attention_heads", "decoder_num_attention_heads")
    lacking = [name for name in needed if name not in config]
    if lacking:
        raise MimError(
            f"ViTMAE weights alone do not tell {' and '.join(lacking)}; give the folder that save_pretrained wrote, "
            f"or the values."
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


def _build(**parts: Part) -> Method:
    return build_method(resolve(RunConfig(parts=parts), installed()))
