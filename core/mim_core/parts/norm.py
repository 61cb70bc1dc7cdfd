"""Batch normalisation whose statistics are those of the whole batch, over all ranks that share it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mim_core.ranks.tensors import _total


class _Normalise(torch.autograd.Function):
    """(x - mean) / sqrt(var + eps) over all axes but the second of [n, C, m], and its gradient, over all ranks."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        count = x.new_tensor(x.shape[0] * x.shape[2], dtype=torch.float32).reshape(1)
        total = _total(torch.cat([x.sum(dim=(0, 2)), count]))
        number, mean = total[-1], total[:-1] / total[-1]
        # deviations from the mean and not the mean of squares: no cancellation where the mean is large
        variance = _total((x - mean[:, None]).square().sum(dim=(0, 2))) / number
        scale = torch.rsqrt(variance + eps)
        out = (x - mean[:, None]) * scale[:, None]
        ctx.save_for_backward(out, scale, number)
        ctx.mark_non_differentiable(mean, variance, number)
        return out, mean, variance, number

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *unused: Tensor) -> tuple[Tensor, None]:
        out, scale, number = ctx.saved_tensors
        sums = _total(torch.cat([grad.sum(dim=(0, 2)), (grad * out).sum(dim=(0, 2))])) / number
        first, second = sums.chunk(2)
        return (grad - first[:, None] - out * second[:, None]) * scale[:, None], None


class BatchNorm(nn.Module):
    """Batch normalisation of [n, C] or [n, C, ...] (arXiv 1502.03167), equal on one rank and on many.

    In training mode the statistics are of all ranks together; `torch.nn.SyncBatchNorm` does that on GPUs only, this
    also under gloo. Weights and statistics have the names of torch's own, so state dicts are interchangeable. Computes
    in float32.

    Args:
        features: C.
        eps: Added to the variance.
        momentum: Share of a new batch in the running statistics; their variance is the unbiased one, as torch's.
        affine: Whether to scale and shift.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, features: int, eps: float = 1e-5, momentum: float = 0.1, affine: bool = True) -> None:
        super().__init__()
        self.features, self.eps, self.momentum = features, eps, momentum
        self.weight = nn.Parameter(torch.ones(features)) if affine else None
        self.bias = nn.Parameter(torch.zeros(features)) if affine else None
        self.register_buffer("running_mean", torch.zeros(features))
        self.register_buffer("running_var", torch.ones(features))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        """Normalised values in the shape of ``x``.

        Raises:
            ValueError: ``x`` is not [n, features, ...].
        """
        if x.ndim < 2 or x.shape[1] != self.features:
            raise ValueError(f"BatchNorm({self.features}) wants [n, {self.features}, ...], got {tuple(x.shape)}")
        if not self.training:
            return nn.functional.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        flat = x.float().reshape(x.shape[0], self.features, -1)
        out, mean, variance, number = _Normalise.apply(flat, self.eps)
        with torch.no_grad():
            unbiased = variance * number / (number - 1).clamp(min=1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(unbiased, self.momentum)
            self.num_batches_tracked += 1
        if self.weight is not None and self.bias is not None:
            out = out * self.weight[:, None] + self.bias[:, None]
        return out.reshape(x.shape).to(x.dtype)

    def extra_repr(self) -> str:
        """For print."""
        return f"{self.features}, eps={self.eps}, momentum={self.momentum}"
