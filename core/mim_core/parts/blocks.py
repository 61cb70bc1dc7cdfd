"""Transformer blocks of every kind that the parts use: timm's, with the MLP and the biases that a recipe wants."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

from timm.layers import Mlp, SwiGLU
from timm.models import vision_transformer
from torch import Tensor, nn
from torch.nn import functional as F

MlpKind = Literal["gelu", "swiglu"]


def norm_layer(eps: float, bias: bool = True) -> partial[nn.LayerNorm]:
    """What makes a normalisation layer of a width."""
    return partial(nn.LayerNorm, eps=eps) if bias else partial(nn.LayerNorm, eps=eps, bias=False)


def mlp_options(kind: MlpKind, ratio: float) -> dict[str, Any]:
    """Options of timm's block for an MLP that is ``ratio`` times as wide as its input. A SwiGLU (arXiv 2002.05202) has
    three matrices in place of two, so each is two thirds as wide."""
    if kind == "gelu":
        return {"mlp_ratio": ratio}
    return {"mlp_ratio": 1.0, "mlp_layer": partial(_gated, ratio=ratio), "act_layer": nn.SiLU}


def _gated(in_features: int, hidden_features: int, ratio: float, **options: Any) -> SwiGLU:
    """A SwiGLU as wide as an MLP of that ratio has weights."""
    return SwiGLU(in_features, int(2 * ratio * in_features / 3), **options)


def vit_block(
    width: int,
    heads: int,
    mlp_ratio: float = 4.0,
    mlp: MlpKind = "gelu",
    bias: bool = True,
    qkv_bias: bool = True,
    norm_eps: float = 1e-6,
    **options: Any,
) -> vision_transformer.Block:
    """timm's pre-norm block. Without ``bias`` no linear and no normalisation layer has one."""
    return vision_transformer.Block(
        width,
        heads,
        qkv_bias=qkv_bias and bias,
        proj_bias=bias,
        norm_layer=norm_layer(norm_eps, bias),
        **mlp_options(mlp, mlp_ratio),
        **options,
    )


class CrossAttention(nn.Module):
    """Attention of queries [R, Q, W] over a context [R, K, W]; ``allowed``, bool [R, 1, 1, K], says where to look."""

    def __init__(self, width: int, heads: int, bias: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width, bias=bias)
        self.kv = nn.Linear(width, 2 * width, bias=bias)
        self.proj = nn.Linear(width, width, bias=bias)

    def forward(self, queries: Tensor, context: Tensor, allowed: Tensor | None = None) -> Tensor:
        """[R, Q, W]."""
        q = self.q(queries).unflatten(2, (self.heads, -1)).transpose(1, 2)
        k, v = self.kv(context).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
        out: Tensor = self.proj(attended.transpose(1, 2).flatten(2))
        return out


class CrossBlock(nn.Module):
    """A decoder's block: queries attend to each other, then to the context, then an MLP (arXiv 1706.03762, section 3.1,
    with the norms in front)."""

    def __init__(
        self, width: int, heads: int, mlp_ratio: float, mlp: MlpKind, bias: bool, qkv_bias: bool, norm_eps: float
    ) -> None:
        super().__init__()
        norm, qkv_bias = norm_layer(norm_eps, bias), qkv_bias and bias
        self.norm1, self.query_norm, self.context_norm, self.norm2 = (norm(width) for _ in range(4))
        self.attn = vision_transformer.Attention(width, heads, qkv_bias=qkv_bias, proj_bias=bias)
        self.cross = CrossAttention(width, heads, bias)
        if mlp == "gelu":
            self.mlp: nn.Module = Mlp(width, int(width * mlp_ratio), bias=bias)
        else:
            self.mlp = _gated(width, width, mlp_ratio, bias=bias)

    def forward(self, x: Tensor, context: Tensor, among: Tensor | None = None, seen: Tensor | None = None) -> Tensor:
        """[R, Q, W]; ``among``, bool [R, 1, Q, Q], says which queries see which, ``seen``, bool [R, 1, 1, K], which of
        the context there is."""
        x = x + self.attn(self.norm1(x), attn_mask=among)
        x = x + self.cross(self.query_norm(x), self.context_norm(context), seen)
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


def open_rows(allowed: Tensor) -> Tensor:
    """What may be attended to, bool [..., keys]: rows that allow nothing, which only fill a batch up, allow all, for a
    softmax of nothing is no number."""
    return allowed | ~allowed.any(dim=-1, keepdim=True)


def keys_of(valid: Tensor | None, front: int) -> Tensor | None:
    """Which of ``front`` tokens and K units behind them are keys, bool [R, 1, 1, front + K]; None where all are."""
    if valid is None:
        return None
    return open_rows(F.pad(valid, (front, 0), value=True))[:, None, None, :]
