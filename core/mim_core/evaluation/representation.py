"""What features look like without labels: their rank, how alike two sets of them are, how near positives lie and how
evenly all are spread, and how far attention reaches."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def rank_me(features: Float[Tensor, "n D"], eps: float = 1e-7) -> float:
    """RankMe (arXiv 2210.02885, equation 1): exp of the entropy of the singular values' shares. Features are not
    centred."""
    values = torch.linalg.svdvals(features.double())
    shares = values / values.sum() + eps
    return float((-(shares * shares.log()).sum()).exp())


def cka(one: Float[Tensor, "n D"], other: Float[Tensor, "n E"], debiased: bool = False) -> float:
    """Linear centred kernel alignment of two encoders' features of the same samples (arXiv 1905.00414, section 3).

    Args:
        one: Features; they are centred here.
        other: The same samples, of another encoder.
        debiased: Without the bias of few samples (the unbiased estimator of the numerator and of both norms).
    """
    a, b = (x.double() - x.double().mean(dim=0) for x in (one, other))
    shared, first, second = (float(m.square().sum()) for m in (a.T @ b, a.T @ a, b.T @ b))
    if debiased:
        rows, columns = a.square().sum(dim=1), b.square().sum(dim=1)
        shared = _debiased(shared, rows, columns)
        first, second = _debiased(first, rows, rows), _debiased(second, columns, columns)
    return float(shared / (first * second) ** 0.5)


def _debiased(value: float, rows: Tensor, columns: Tensor) -> float:
    """A sum of squared scalar products of centred features without the bias of its diagonal."""
    n = len(rows)
    return float(
        value - n / (n - 2.0) * float(rows @ columns) + float(rows.sum() * columns.sum()) / ((n - 1.0) * (n - 2.0))
    )


def alignment(one: Float[Tensor, "n D"], other: Float[Tensor, "n D"], alpha: float = 2.0) -> float:
    """The mean distance of positives to the power ``alpha`` (arXiv 2005.10242, equation 1); features of unit length."""
    return float((one - other).double().norm(dim=1).pow(alpha).mean())


def uniformity(features: Float[Tensor, "n D"], t: float = 2.0) -> float:
    """The logarithm of the mean of exp(-t d^2) over pairs i < j (arXiv 2005.10242, equation 2); features of unit
    length."""
    return float(torch.pdist(features.double()).square().mul(-t).exp().mean().log())


def attention_distance(
    attention: Float[Tensor, "B heads L L"], grid: tuple[int, int], patch: int, prefix: int = 1
) -> Float[Tensor, " heads"]:
    """How many pixels away each head attends on average (ViT, arXiv 2010.11929, section 4.5).

    Prefix tokens are left out and rows divided by what remains; distances are between centres of patches.

    Args:
        attention: Softmax weights, prefix tokens first.
        grid: Patches along both axes.
        patch: Pixels along a patch.
        prefix: Class and register tokens.
    """
    weights = attention[..., prefix:, prefix:].double()
    weights = weights / weights.sum(dim=-1, keepdim=True)
    places = torch.cartesian_prod(*(torch.arange(n, dtype=torch.float64) for n in grid)) * patch
    distance = torch.cdist(places, places)
    return (weights * distance).sum(dim=-1).mean(dim=(0, 2))
