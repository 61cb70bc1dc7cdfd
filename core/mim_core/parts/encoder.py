"""Encoders: tokens of the kept units in, latent tokens out. Transformer blocks come from timm, and weights keep timm's
names.

``sees`` says what an encoder receives: "visible" units only (MAE), or "all" with mask tokens at hidden places (SimMIM).
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from timm.layers import PatchEmbed, trunc_normal_
from timm.models import create_model, is_model, vision_transformer
from torch import Tensor, nn
from torch.nn import functional as F

from mim_core.errors import MimError, unknown
from mim_core.parts.blocks import MlpKind, norm_layer, vit_block
from mim_core.parts.layout import Layout, take, tensor_tree
from mim_core.parts.mask import Mask
from mim_core.parts.position import PositionAt, PositionKind, make_position


@tensor_tree
@dataclass(frozen=True)
class Encoded:
    """What an encoder returns.

    Attributes:
        tokens: [R, K, D], one per kept unit, in the order of ``mask.kept_ids``.
        prefix: [R, P, D], class and register tokens; P may be 0.
        levels: Earlier feature maps of encoders that have them: those that `Encoder.give_levels` asked for, [R, K, D]
            each, without the prefix.
        attention: [R, heads, P + K, P + K], softmax weights of the last block, where `Encoder.give_attention` asked.
        places: [R, K, D], what was added to the tokens to say where they lie and of which segment they are, of
            encoders that have vectors of segments: a decoder adds it again (4M).
        ids: int64 [R, K], the code that each token was replaced by, of encoders with ``codes``.
        apart: [R, K], how far each was from it, for the loss.
    """

    tokens: Tensor
    prefix: Tensor
    levels: tuple[Tensor, ...] = ()
    attention: Tensor | None = None
    places: Tensor | None = None
    ids: Tensor | None = None
    apart: Tensor | None = None


class Encoder(nn.Module):
    """Base class. Built from its options and the layout of the units.

    Attributes:
        sees: "visible" when it receives visible units only, "all" when hidden ones are replaced by a mask token.
        takes: "tokens", embedded by the tokenizer, of the kept units; or "values", what the tokenizer split, of all
            units: a hierarchy embeds them itself.
        pads: It leaves out of its attention what ``mask.kept_valid`` says is no unit.
        width: D.
        levels: Blocks, numbered from 1, whose outputs fill `Encoded.levels`; see `give_levels`.
        codes: How many ids it gives tokens, in `Encoded.ids`; 0: none.
        prefix: P, how many tokens stand in front of the units in `Encoded.prefix`, class and register tokens.
    """

    Config: ClassVar[type[Any]]
    sees: Literal["visible", "all"]
    takes: Literal["tokens", "values"] = "tokens"
    pads: bool = False
    width: int
    levels: tuple[int, ...] = ()
    codes: int = 0
    prefix: int = 0

    @classmethod
    def width_for(cls, config: Any) -> int:
        """The width that these options give, before the encoder is built: the tokenizer needs it."""
        return int(config.width)

    def forward(self, tokens: Float[Tensor, "R K D"], layout: Layout, mask: Mask) -> Encoded:
        """Encodes the tokens of ``mask.kept_ids``; positions are added here."""
        raise NotImplementedError

    def after_step(self) -> None:
        """Called after each optimizer step: takes the last batch into what it keeps of past ones, such as codes."""
        return

    def measures(self) -> dict[str, Tensor]:
        """What is worth a column in the metrics, by name: a scalar each, without gradient."""
        return {}

    def give_levels(self, blocks: tuple[int, ...], normed: bool = True) -> None:
        """Asks for the outputs of these blocks, numbered from 1, each through the final norm unless told otherwise.

        Raises:
            ValueError: This encoder gives none, or has no such blocks.
        """
        raise ValueError(f"{type(self).__name__} gives no levels")

    def give_last_levels(self, count: int) -> None:
        """Asks for the outputs of the last blocks, as they are, without the final norm.

        Raises:
            ValueError: This encoder gives none, or has fewer.
        """
        raise ValueError(f"{type(self).__name__} gives no outputs of its blocks")

    def give_attention(self) -> None:
        """Asks for the attention of the last block, `Encoded.attention`.

        Raises:
            ValueError: This encoder gives none.
        """
        raise ValueError(f"{type(self).__name__} gives no attention")

    def timm_weights(self) -> Mapping[str, Tensor]:
        """The weights under timm's names, without the tokenizer's ``patch_embed``."""
        raise NotImplementedError

    def timm_model(self) -> tuple[str, dict[str, Any]]:
        """The timm model that takes these weights: a name for ``timm.create_model`` and its arguments, without input
        sizes."""
        raise NotImplementedError


Init = Literal["xavier", "truncated"]


def init_transformer(module: nn.Module, kind: Init = "xavier") -> None:
    """MAE's initialisation, Xavier-uniform linear layers, or a normal of deviation 0.02 cut at two (Point-MAE); biases
    at zero, normalisation layers at one and zero."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            if kind == "xavier":
                nn.init.xavier_uniform_(part.weight)
            else:
                trunc_normal_(part.weight, std=0.02)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.LayerNorm):
            nn.init.ones_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def through(blocks: nn.Sequential, x: Tensor, places: Tensor | None, seen: Tensor | None = None) -> Any:
    """The tokens after all blocks; ``places``, where given, are added at the input of every one, and tokens that are
    not ``seen``, bool [R, L], are attended to by nobody; with the attention beside them,
    where the last block is watched."""
    if places is None and seen is None:
        return blocks(x)
    keys = None if seen is None else seen[:, None, None, :]
    for block in blocks:
        x = x if places is None else x + places
        x = block(x) if keys is None else block(x, attn_mask=keys)
    return x


class WatchedBlock(vision_transformer.Block):
    """timm's block that gives its softmax weights [R, heads, L, L] too, which fused attention does not keep: computed
    beside it, where the weights of a sharded block are whole."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, **options: Any) -> Any:
        """timm's answer, and the weights."""
        part = self.attn
        shape = (*x.shape[:2], 3, part.num_heads, -1)
        query, key, _ = part.qkv(self.norm1(x)).reshape(shape).permute(2, 0, 3, 1, 4).unbind(0)
        scores = (part.q_norm(query) * part.scale) @ part.k_norm(key).transpose(-2, -1)
        if attn_mask is not None:
            scores = scores.masked_fill(~attn_mask, -torch.inf)
            options["attn_mask"] = attn_mask
        return super().forward(x, **options), scores.softmax(dim=-1)


def token(count: int, width: int) -> nn.Parameter:
    """Learned tokens [1, count, width], normal with standard deviation 0.02."""
    return nn.Parameter(torch.randn(1, count, width) * 0.02)


DEEPEST = 10_000
"""Blocks; the deepest encoders have about 50."""


def check_sizes(width: int, depth: int, heads: int) -> None:
    """Raises ValueError for sizes that make no transformer."""
    if min(width, heads) < 1 or depth < 0:
        raise ValueError(f"width {width}, depth {depth} and heads {heads} must be positive")
    if depth > DEEPEST:
        raise ValueError(f"depth {depth:,} is beyond the {DEEPEST:,} blocks that can be built")
    if width % heads:
        raise ValueError(f"width {width} is not a multiple of {heads} heads")


def check_levels(blocks: tuple[int, ...], depth: int) -> None:
    """Raises ValueError for numbers of blocks, from 1, that do not rise or that there are not."""
    if list(blocks) != sorted({*blocks}) or not all(1 <= number <= depth for number in blocks):
        raise ValueError(f"levels must rise and lie in 1 to {depth}, the encoder's blocks; got {blocks}")


def last_blocks(count: int, depth: int) -> tuple[int, ...]:
    """The numbers of the last blocks, counted from 1.

    Raises:
        ValueError: There are fewer.
    """
    if not 1 <= count <= depth:
        raise ValueError(f"the encoder has {depth} blocks; outputs of the last {count} are asked for")
    return tuple(range(depth - count + 1, depth + 1))


def rising(last: float, depth: int) -> list[float]:
    """Drop-path rates of the blocks: from 0 in the first linearly to ``last``."""
    return [last * i / max(1, depth - 1) for i in range(depth)]


def _timm_vit(name: str, drop_path: float) -> vision_transformer.VisionTransformer:
    """A timm VisionTransformer by name, without weights, head and pooling."""
    if not is_model(name):
        from timm import list_models

        close = difflib.get_close_matches(name, list_models(), n=12, cutoff=0.4)
        raise unknown("timm model", name, close or list_models("vit_*_224"), "See timm.list_models() for all.")
    with torch.device("meta"):
        empty = create_model(name, pretrained=False, num_classes=0)
    if type(empty) is not vision_transformer.VisionTransformer:
        raise ValueError(
            f"{name} is a timm {type(empty).__name__}, not a plain VisionTransformer: it has parts (windows, rotary "
            f"or relative "
            "positions, a second class token) that this encoder does not carry"
        )
    if type(empty.patch_embed) is not PatchEmbed:
        raise ValueError(
            f"{name} has a {type(empty.patch_embed).__name__} in front of its blocks, which the patch tokenizer would "
            f"replace"
        )
    return create_model(name, pretrained=False, num_classes=0, global_pool="", drop_path_rate=drop_path)


class ViTEncoder(Encoder):
    """A plain vision transformer (arXiv 2010.11929) of any depth and width, or any timm ``VisionTransformer`` by name.

    Pre-norm blocks, LayerNorm with eps 1e-6 and a final norm, as MAE has them. The class token is no unit: it is never
    hidden, has no position of its own (its slot in MAE's table is zero) and comes first.
    """

    pads = True
    gives_attention: bool = False
    levels_normed: bool = True

    @dataclass(frozen=True)
    class Config:
        """Options of the ViT encoder."""

        name: str | None = None
        """A timm VisionTransformer, such as vit_small_patch16_224; then width, depth, heads, mlp_ratio, mlp, bias,
        class_token, layer_scale, final_norm and norm_eps are its."""
        width: int = 768
        """Token width D."""
        depth: int = 12
        """Transformer blocks."""
        heads: int = 12
        """Attention heads; they must divide the width."""
        mlp_ratio: float = 4.0
        """Hidden width of the MLP over D."""
        class_token: bool = True
        """Put one learned token in front."""
        registers: int = 0
        """Further learned tokens in front that nothing is read from, as in DINOv2 with registers (arXiv 2309.16588)."""
        position: PositionKind = "sincos"
        """sincos, sincos-first (first axis first), sincos-quarter (of three axes, a quarter of the channels for the
        first), flat (sine-cosine over the sequence of units), learned, separable (learned per axis), coordinates (an
        MLP of where units lie) or none."""
        position_at: PositionAt = "input"
        """Add positions once, or at the input of every block (Point-MAE); then the class token has a learned one."""
        class_position: bool = False
        """With positions that are added once: a learned one of the class token too, as tables of timm and of MAE's
        fine-tuning have it; it starts at zero."""
        norm_eps: float = 1e-6
        """Small number in the normalisation layers: 1e-6 in MAE's and timm's code, 1e-12 in transformers' ViTMAE."""
        qkv_bias: bool = True
        """Biases of queries, keys and values."""
        bias: bool = True
        """Biases at all; without, linear and normalisation layers have none (4M)."""
        mlp: MlpKind = "gelu"
        """The blocks' MLP: gelu, or swiglu, two thirds as wide with a gate (4M)."""
        segments: bool = False
        """Of several modalities, a learned vector for each is added to its tokens with the positions (4M)."""
        init: Init = "xavier"
        """How linear layers start: xavier (MAE), or truncated, a normal of deviation 0.02 (Point-MAE)."""
        final_norm: bool = True
        """A normalisation layer after the last block."""
        drop_path: float = 0.0
        """Stochastic depth, rising linearly to this rate in the last block."""
        layer_scale: float | None = None
        """Initial value of a learned scale on each residual branch; none leaves it out."""
        sees: Literal["visible", "all"] = "visible"
        """Visible units only, or all with mask tokens in place of hidden ones."""

    def __init__(self, config: Config, layout: Layout) -> None:
        super().__init__()
        self.config = config
        self.sees = config.sees
        if config.name is not None:
            model = _timm_vit(config.name, config.drop_path)
            self.blocks, self.norm, self.norm_pre = model.blocks, model.norm, model.norm_pre
            self.width = model.embed_dim
            self.cls_token, self.reg_token = model.cls_token, model.reg_token
        else:
            check_sizes(config.width, config.depth, config.heads)
            if config.registers < 0:
                raise ValueError(f"registers must not be negative, got {config.registers}")
            self.width = config.width
            self.blocks, self.norm_pre = self._own_blocks(config), nn.Identity()
            self.norm = norm_layer(config.norm_eps, config.bias)(config.width) if config.final_norm else nn.Identity()
            self.cls_token = token(1, config.width) if config.class_token else None
            self.reg_token = token(config.registers, config.width) if config.registers else None
        init_transformer(self, config.init)
        for learned in (self.cls_token, self.reg_token):
            if learned is not None:
                nn.init.normal_(learned, std=0.02)
        self.position = make_position(config.position, layout, self.width)
        if self.position is not None and config.init == "truncated":
            init_transformer(self.position, config.init)
        self.mask_token = token(1, self.width) if config.sees == "all" else None
        self.prefix = count = sum(learned.shape[1] for learned in self._front())
        self.prefix_position = token(count, self.width) if count and config.position_at == "blocks" else None
        if config.segments and (not layout.segments or config.position_at == "blocks"):
            raise ValueError("vectors of segments need several modalities, and positions that are added at the input")
        names = [name for name, _ in layout.segments] if config.segments else []
        self.segment = nn.ParameterDict({name: token(1, self.width) for name in names}) if names else None
        if count and config.class_position and config.position_at == "input":
            self.prefix_position = nn.Parameter(torch.zeros(1, count, self.width))

    @staticmethod
    def _own_blocks(config: Config) -> nn.Sequential:
        return nn.Sequential(
            *(
                vit_block(
                    config.width,
                    config.heads,
                    config.mlp_ratio,
                    config.mlp,
                    config.bias,
                    config.qkv_bias,
                    config.norm_eps,
                    init_values=config.layer_scale,
                    drop_path=rate,
                )
                for rate in rising(config.drop_path, config.depth)
            )
        )

    @classmethod
    def width_for(cls, config: Any) -> int:
        """The configured width, or the named model's."""
        if config.name is None:
            check_sizes(config.width, config.depth, config.heads)
            return int(config.width)
        with torch.device("meta"):
            return int(_timm_vit(config.name, 0.0).embed_dim)

    def forward(self, tokens: Float[Tensor, "R K D"], layout: Layout, mask: Mask) -> Encoded:
        """Mask tokens where the encoder sees all, then positions, prefix, blocks and the final norm."""
        if self.mask_token is not None:
            tokens = torch.where(mask.kept_hidden()[:, :, None], self.mask_token.to(tokens.dtype), tokens)
        places = None if self.position is None else take(self.position(layout), mask.kept_ids)
        added = None if self.segment is None else self._with_segments(places, layout, mask)
        if added is not None:
            tokens, places = tokens + added, None
            if mask.kept_valid is not None:  # what only fills a row says nothing
                tokens = tokens.masked_fill(~mask.kept_valid[:, :, None], 0.0)
        elif places is not None and self.config.position_at == "input":
            tokens, places = tokens + places, None
        front = self._front()
        x = torch.cat([*(learned.expand(tokens.shape[0], -1, -1).to(tokens.dtype) for learned in front), tokens], dim=1)
        count = x.shape[1] - tokens.shape[1]
        if self.prefix_position is not None and self.config.position_at == "input":
            x = x + F.pad(self.prefix_position.to(x.dtype), (0, 0, 0, x.shape[1] - count))
        x = self.norm_pre(x)
        if places is not None and self.prefix_position is not None:
            places = torch.cat([self.prefix_position.expand(len(places), -1, -1).to(places.dtype), places], dim=1)
        seen = None if mask.kept_valid is None else F.pad(mask.kept_valid, (count, 0), value=True)
        levels, done, attention = [], 0, None
        for number in dict.fromkeys((*self.levels, len(self.blocks))):
            some = self.blocks if number - done == len(self.blocks) else self.blocks[done:number]
            x, done = through(some, x, places, seen), number
            if self.gives_attention and number == len(self.blocks):
                x, attention = x
            if number in self.levels:
                levels.append((self.norm(x) if self.levels_normed else x)[:, count:])
        x = self.norm(x)
        return Encoded(x[:, count:], x[:, :count], tuple(levels), attention, added)

    def _with_segments(self, places: Tensor | None, layout: Layout, mask: Mask) -> Float[Tensor, "R K D"]:
        """Positions of the kept units, where there are any, and the vectors of their segments."""
        vectors: Any = self.segment
        each = [vectors[name].expand(1, part.count, -1) for name, part in layout.segments]
        positions = take(torch.cat(each, dim=1), mask.kept_ids)
        positions = positions if places is None else positions + places
        return positions if mask.kept_valid is None else positions.masked_fill(~mask.kept_valid[:, :, None], 0.0)

    def give_levels(self, blocks: tuple[int, ...], normed: bool = True) -> None:
        """Asks for the outputs of these blocks, numbered from 1 and rising, each through the final norm unless told
        otherwise."""
        check_levels(blocks, len(self.blocks))
        self.levels, self.levels_normed = blocks, normed

    def give_last_levels(self, count: int) -> None:
        """Asks for the outputs of the last blocks, without the final norm."""
        self.levels, self.levels_normed = last_blocks(count, len(self.blocks)), False

    def give_attention(self) -> None:
        """Asks for the attention of the last block, whose queries and keys are computed twice.

        Raises:
            ValueError: The last block is no plain transformer block, or there is none.
        """
        last: Any = self.blocks[-1] if len(self.blocks) else None
        if type(last) not in (vision_transformer.Block, WatchedBlock):
            raise ValueError("an encoder without plain transformer blocks has no attention to give")
        last.__class__ = WatchedBlock
        self.gives_attention = True

    def _front(self) -> list[Tensor]:
        """The learned tokens that stand before the units."""
        return [learned for learned in (self.cls_token, self.reg_token) if learned is not None]

    def timm_weights(self) -> dict[str, Tensor]:
        """Blocks, norms and tokens as they are; the position table gets the prefix's slots, zeros, in front."""
        state = dict(self.state_dict())
        state.pop("mask_token", None)
        own = state.pop("prefix_position", None) if self.config.position_at == "input" else None
        table = state.pop("position.table", None)
        state = {name: value for name, value in state.items() if not name.startswith("position.")}
        if table is not None:
            slots = 0 if self.cls_token is None else 1
            slots += 0 if self.reg_token is None else self.reg_token.shape[1]
            front = table.new_zeros(1, slots, table.shape[2]) if own is None else own
            state["pos_embed"] = torch.cat([front, table], dim=1)
        return state

    def timm_model(self) -> tuple[str, dict[str, Any]]:
        """The named model, or a generic ViT with these sizes.

        Raises:
            MimError: Positions are computed from coordinates or per axis, which timm does not.
        """
        config = self.config
        if config.mlp != "gelu" or not config.bias or config.segments:
            raise MimError(
                "timm's transformers have no vectors of modalities, no normalisation without biases and no such gates."
            )
        if config.position in ("coordinates", "separable") or config.position_at == "blocks":
            raise MimError(
                "timm's transformers have no positions that are computed from coordinates, learned per axis, or added "
                "at every block."
            )
        position = {"pos_embed": "none"} if config.position == "none" else {}
        if config.name is not None:
            return config.name, {"no_embed_class": False, "global_pool": "avg", "fc_norm": False, **position}
        return "vit_base_patch16_224", {
            **position,
            "embed_dim": config.width,
            "depth": config.depth,
            "num_heads": config.heads,
            "mlp_ratio": config.mlp_ratio,
            "class_token": config.class_token,
            **({"reg_tokens": config.registers} if config.registers else {}),
            "qkv_bias": config.qkv_bias,
            "init_values": config.layer_scale,
            "global_pool": "avg",  # of the units, as evaluate pools
            **({} if config.final_norm else {"final_norm": False}),
            "fc_norm": False,  # the final norm is on every token, with either pooling
        }
