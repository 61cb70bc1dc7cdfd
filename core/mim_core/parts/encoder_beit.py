"""BEiT's transformer, which SimMIM's ViT is: all positions, mask tokens, one relative position bias."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float
from timm.layers import resize_rel_pos_bias_table, trunc_normal_
from timm.models import beit
from torch import Tensor, nn

from mim_core.parts.encoder import Encoded, Encoder, check_levels, check_sizes, last_blocks, rising, token
from mim_core.parts.layout import Layout, take
from mim_core.parts.mask import Mask
from mim_core.parts.position import TablePosition, Units, make_position


class RelativePositionBias(beit.RelativePositionBias, TablePosition):
    """timm's shared relative position bias of a grid, which follows to other grids as timm's does: interpolated over
    distances whose steps grow outwards (BEiT's fine-tuning).

    Raises:
        ValueError: The units do not lie on a grid of two axes.
    """

    kind = "relative"

    def __init__(self, layout: Layout, heads: int) -> None:
        if layout.grid is None or len(layout.grid) != 2:
            raise ValueError(
                f"the shared relative position bias needs units on a grid of two axes, got grid {layout.grid}"
            )
        super().__init__(window_size=layout.grid, num_heads=heads)
        self.units = Units.of(layout)

    def at(self, layout: Layout) -> Tensor:
        """The bias between all tokens, the class token first: [heads, 1 + N, 1 + N]."""
        units = Units.of(layout)
        if units == self.units:
            bias: Tensor = self()
            return bias
        table, grid = self.tables_at(units)["relative_position_bias_table"], units.grids[0]
        index = beit.gen_relative_position_index(grid, device=table.device)
        return table[index.flatten()].unflatten(0, index.shape).permute(2, 0, 1).contiguous()

    def tables_at(self, units: Units) -> dict[str, Tensor]:
        """The table, one row per distance.

        Raises:
            ValueError: The new units do not lie on a grid of two axes, or a side of either grid is below 2.
        """
        own, new = self.units.grids[0], units.grids[0]
        table: Tensor = self.relative_position_bias_table  # type: ignore[assignment]
        if own == new:
            return {"relative_position_bias_table": table}
        if own is None or new is None or len(new) != 2 or min(*own, *new) < 2:
            raise ValueError(f"the relative position bias of a grid of {own} cannot be interpolated to {new}")
        count = math.prod(2 * n - 1 for n in new) + 3  # and to, from and between class tokens
        with warnings.catch_warnings(action="ignore"):  # of torch, about timm's indexing
            moved = resize_rel_pos_bias_table(table.detach(), new, (count, table.shape[1]), own)
        return {"relative_position_bias_table": moved}


class BeitEncoder(Encoder):
    """BEiT's transformer: all positions, mask tokens, a relative position bias, shared by the blocks (SimMIM's ViT) or
    each block's own (BEiT's fine-tuning).

    Queries and values have a bias, keys have none; a learned scale on each residual branch; absolute positions only
    where they are asked for. The mask token replaces a token before the class token is put in front (SimMIM, arXiv
    2111.09886, section 3).
    """

    @dataclass(frozen=True)
    class Config:
        """Options of the BEiT encoder."""

        width: int = 768
        """Token width D."""
        depth: int = 12
        """Transformer blocks."""
        heads: int = 12
        """Attention heads; they must divide the width."""
        mlp_ratio: float = 4.0
        """Hidden width of the MLP over D."""
        drop_path: float = 0.1
        """Stochastic depth, rising linearly to this rate in the last block."""
        layer_scale: float | None = 0.1
        """Initial value of a learned scale on each residual branch; none leaves it out."""
        bias: Literal["shared", "own", "none"] = "shared"
        """The relative position bias: one for all blocks, each block's own, or none."""
        position: Literal["none", "learned"] = "none"
        """Absolute positions beside it: a learned vector for each unit and for the class token."""

    sees: Literal["visible", "all"] = "all"
    prefix = 1
    levels_normed: bool = False

    def __init__(self, config: Config, layout: Layout) -> None:
        super().__init__()
        check_sizes(config.width, config.depth, config.heads)
        self.config, self.width = config, config.width
        bias: nn.Module | None = None
        if config.bias == "shared":
            bias = RelativePositionBias(layout, config.heads)
        elif config.bias == "own":
            bias = nn.ModuleList(RelativePositionBias(layout, config.heads) for _ in range(config.depth))
        self.cls_token, self.mask_token = token(1, config.width), token(1, config.width)
        self.rel_pos_bias = bias
        rates = rising(config.drop_path, config.depth)
        self.blocks = nn.ModuleList(
            beit.Block(
                config.width,
                config.heads,
                qkv_bias=True,
                mlp_ratio=config.mlp_ratio,
                drop_path=rate,
                init_values=config.layer_scale,
                norm_layer=partial(nn.LayerNorm, eps=1e-6),
            )
            for rate in rates
        )
        self.norm = nn.LayerNorm(config.width, eps=1e-6)
        self.position = make_position(config.position, layout, config.width)
        self.prefix_position = None if self.position is None else nn.Parameter(torch.zeros(1, 1, config.width))
        self._init()

    def _init(self) -> None:
        """BEiT's: truncated normal 0.02, and the two residual layers of block i divided by sqrt(2 i)."""
        for part in self.modules():
            if isinstance(part, nn.Linear):
                trunc_normal_(part.weight, std=0.02)
                if part.bias is not None:
                    nn.init.zeros_(part.bias)
        for number, block in enumerate(self.blocks, start=1):
            assert isinstance(block, beit.Block)
            for weight in (block.attn.proj.weight, block.mlp.fc2.weight):
                weight.data.div_((2 * number) ** 0.5)

    def forward(self, tokens: Float[Tensor, "R K D"], layout: Layout, mask: Mask) -> Encoded:
        """Mask tokens, class token, positions, blocks under their bias, final norm."""
        tokens = torch.where(mask.kept_hidden()[:, :, None], self.mask_token.to(tokens.dtype), tokens)
        front: Tensor = self.cls_token
        if self.position is not None and self.prefix_position is not None:
            tokens, front = tokens + take(self.position(layout), mask.kept_ids), front + self.prefix_position
        x = torch.cat([front.expand(tokens.shape[0], -1, -1).to(tokens.dtype), tokens], dim=1)
        biases = self._biases(layout)
        levels = []
        for number, block in enumerate(self.blocks, start=1):
            x = block(x, shared_rel_pos_bias=biases[number - 1])
            if number in self.levels:
                levels.append((self.norm(x) if self.levels_normed else x)[:, 1:])
        x = self.norm(x)
        return Encoded(x[:, 1:], x[:, :1], tuple(levels))

    def _biases(self, layout: Layout) -> list[Tensor | None]:
        """The bias of each block."""
        if isinstance(self.rel_pos_bias, RelativePositionBias):
            return [self.rel_pos_bias.at(layout)] * len(self.blocks)
        if self.rel_pos_bias is None:
            return [None] * len(self.blocks)
        own: Any = self.rel_pos_bias
        return [bias.at(layout) for bias in own]

    def give_levels(self, blocks: tuple[int, ...], normed: bool = True) -> None:
        """Asks for the outputs of these blocks, numbered from 1 and rising, each through the final norm unless told
        otherwise."""
        check_levels(blocks, len(self.blocks))
        self.levels, self.levels_normed = blocks, normed

    def give_last_levels(self, count: int) -> None:
        """Asks for the outputs of the last blocks, without the final norm."""
        self.levels, self.levels_normed = last_blocks(count, len(self.blocks)), False

    def timm_weights(self) -> dict[str, Tensor]:
        """All but the mask token. Most names are timm's already; each block's own bias stands within its attention."""
        weights = {name: value for name, value in self.state_dict().items() if name != "mask_token"}
        for name in [name for name in weights if self.config.bias == "own" and name.startswith("rel_pos_bias.")]:
            number, _, last = name.removeprefix("rel_pos_bias.").partition(".")
            weights[f"blocks.{number}.attn.{last}"] = weights.pop(name)
        if self.position is not None:
            slot, table = weights.pop("prefix_position"), weights.pop("position.table")
            weights["pos_embed"] = torch.cat([slot, table], dim=1)
        return weights

    def timm_model(self) -> tuple[str, dict[str, Any]]:
        """timm's BEiT with these positions."""
        config = self.config
        return "beit_base_patch16_224", {
            "embed_dim": config.width,
            "depth": config.depth,
            "num_heads": config.heads,
            "mlp_ratio": config.mlp_ratio,
            "init_values": config.layer_scale or 0.0,  # timm drops None and takes its own default
            "use_abs_pos_emb": config.position != "none",
            "use_rel_pos_bias": config.bias == "own",
            "use_shared_rel_pos_bias": config.bias == "shared",
            "global_pool": "token",
        }
