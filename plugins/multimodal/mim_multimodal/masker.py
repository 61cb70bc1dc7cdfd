"""A budget of visible units that several modalities share (MultiMAE, arXiv 2204.01678, section 3.2)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from mim_core import Draw, Layout, Masker, MimError, did_you_mean, randomness
from torch import Tensor

TRIES = 24
"""Candidates for one gamma variable; one is taken with a probability of at least 0.95 each (Marsaglia and Tsang
2000), so that none is with less than 1e-31."""


class DirichletMasker(Masker):
    """Keeps exactly ``visible`` units per sample: shares of the budget are drawn from a symmetric Dirichlet
    distribution over the modalities, units within a modality uniformly.

    A modality gets round(share * visible) units, no more than it has. Rounding and full modalities leave some over or
    too many: the whole is made exact by units drawn uniformly from what is left, or dropped uniformly. Units that are
    not valid (a modality that a sample lacks, padding) are always hidden. A sample that has not ``visible`` others is
    an error; on a GPU an assertion of the device, so that nothing waits. Works for any tokenizers: a modality is a
    segment of the layout. Shares are in float64 on the keys' device: the last bit of a logarithm differs between
    devices, which moves a count once in some 1e13 draws.

    Differs from the code: a share of zero units is possible for every modality, and a sample keeps nothing twice.
    """

    sequences = True

    @dataclass(frozen=True)
    class Config:
        """Options of the Dirichlet masker."""

        visible: int = 98
        """Units per sample that the encoder sees, over all modalities."""
        alpha: float = 1.0
        """Concentration: small values give most of the budget to one modality, large ones equal shares."""
        inputs: tuple[str, ...] = ()
        """Modalities that may be seen, with spaces between: rgb depth. The others are always hidden and only
        predicted. All by default."""
        weights: dict[str, float] = field(default_factory=dict)
        """Factor of a modality's concentration; 1 where not named."""
        subsets: bool = False
        """First draw which modalities share the budget, every non-empty set alike."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        if config.visible < 1:
            raise ValueError(f"visible must be at least 1, got {config.visible}")
        if not 0 < config.alpha < math.inf or any(not 0 < weight < math.inf for weight in config.weights.values()):
            raise ValueError(f"alpha and weights must be positive, got {config.alpha} and {config.weights}")

    def _segments(self, layout: Layout) -> list[tuple[str, int]]:
        """Names and counts of the modalities, checked against the options."""
        segments = [(name, part.count) for name, part in layout.segments] or [("", layout.count)]
        names = [name for name, _ in segments]
        for option in ("inputs", "weights"):
            wrong = [name for name in getattr(self.config, option) if name not in names]
            if wrong:
                guess = did_you_mean(wrong[0], names, "; did you mean ")
                lists = " (write several with spaces between: rgb depth)" if any("," in name for name in wrong) else ""
                raise ValueError(
                    f"{option} names {', '.join(wrong)}{lists}; the modalities are {', '.join(names)}{guess}"
                )
        seen = sum(count for name, count in segments if not self.config.inputs or name in self.config.inputs)
        if self.config.visible > seen:
            raise ValueError(f"visible is {self.config.visible}, and there are {seen} units that may be seen")
        return segments

    def inputs_of(self, layout: Layout) -> list[tuple[str, Layout]]:
        """Those of the option ``inputs``, or all."""
        return [(name, part) for name, part in layout.segments if not self.config.inputs or name in self.config.inputs]

    def usable(self, layout: Layout) -> Bool[Tensor, "B N"] | None:
        """Valid units of the modalities that may be seen."""
        if layout.valid is None and not self.config.inputs:
            return None
        return self._usable(layout, None if layout.valid is None else layout.valid.device)

    def _usable(self, layout: Layout, device: torch.device | None) -> Bool[Tensor, "B N"]:
        """The same as a tensor in any case, with one row where all samples are alike."""
        allowed = [
            torch.full((1, count), not self.config.inputs or name in self.config.inputs, device=device)
            for name, count in self._segments(layout)
        ]
        usable = torch.cat(allowed, dim=1)
        return usable if layout.valid is None else usable & layout.valid

    def _refuse(self, available: Int[Tensor, "B S"], names: list[str]) -> None:
        """Raises MimError where a sample has too few units that may be seen; on a GPU the device does, because to look
        would be to wait."""
        enough = available.sum(dim=1) >= self.config.visible
        if available.is_meta:
            return
        if available.is_cuda:
            torch._assert_async(enough.all(), "a sample has fewer units that may be seen than masker.visible")
            return
        if not bool(enough.all()):
            row = int((~enough).nonzero()[0])
            units = ", ".join(
                f"{name or 'units'} {count}" for name, count in zip(names, available[row].tolist(), strict=True)
            )
            raise MimError(
                f"Sample {row} of the batch has fewer units that may be seen ({units}) than --masker.visible "
                f"{self.config.visible}. Lower it, allow more with --masker.inputs, or leave such samples out of the "
                "data."
            )

    def count(self, layout: Layout) -> int:
        """All but ``visible``."""
        self._segments(layout)
        return layout.count - self.config.visible

    def hide(self, layout: Layout, draw: Draw, scores: Float[Tensor, "B N"] | None) -> Bool[Tensor, "R N"]:
        """Ranks units: wanted by their modality's share first, then the other usable ones, then the rest; within each
        by random bits. The first ``visible`` are kept."""
        segments = self._segments(layout)
        counts = [count for _, count in segments]
        usable = self._usable(layout, draw.key.device).expand(len(draw.key), -1)
        available = torch.stack([part.sum(dim=1) for part in usable.split(counts, dim=1)], dim=1)
        if layout.valid is not None:
            self._refuse(available, [name for name, _ in segments])
        wanted = self._budget(available, draw, [name for name, _ in segments])
        bits = (randomness.bits(draw.key, "mask", layout.count) >> 2) & ((1 << 61) - 1)
        bits = bits + (~usable).to(torch.int64) * (1 << 61)
        tiers = []
        for part, quota in zip(bits.split(counts, dim=1), wanted.unbind(dim=1), strict=True):
            place = part.argsort(dim=1, stable=True).argsort(dim=1, stable=True)
            tiers.append((place >= quota[:, None]).to(torch.int64))
        tier = torch.cat(tiers, dim=1).masked_fill(~usable, 2)
        rank = (bits & ((1 << 61) - 1)) + tier * (1 << 61)
        kept = rank.argsort(dim=1, stable=True)[:, : self.config.visible]
        return torch.ones_like(usable).scatter_(1, kept, False)

    def _budget(self, available: Int[Tensor, "B S"], draw: Draw, names: list[str]) -> Int[Tensor, "B S"]:
        """Units that each modality should keep, before the whole is made exact."""
        alpha = torch.tensor([self.config.alpha * self.config.weights.get(name, 1.0) for name in names])
        logs = log_gamma_draws(draw.key, alpha.to(torch.float64))
        logs = logs.masked_fill(~self._chosen(available, draw), -torch.inf)
        shares = logs.softmax(dim=1)
        return torch.minimum((shares * self.config.visible).round().to(torch.int64), available)

    def _chosen(self, available: Int[Tensor, "B S"], draw: Draw) -> Bool[Tensor, "B S"]:
        """Modalities that share the budget: those that are there, or, with ``subsets``, a non-empty set of them."""
        usable = available > 0
        if not self.config.subsets:
            return usable
        each = randomness.bits(draw.key, "mask.subset", available.shape[1] * TRIES).reshape(len(available), TRIES, -1)
        tries = ((each >> 40) & 1).to(torch.bool) & usable[:, None]
        first = tries.any(dim=2).to(torch.uint8).argmax(dim=1)
        subset = tries[torch.arange(len(tries), device=tries.device), first]
        return torch.where(subset.any(dim=1, keepdim=True), subset, usable)


def log_gamma_draws(
    key: Int[Tensor, " B"], alpha: Float[Tensor, "*B S"], stream: str = "mask.gamma"
) -> Float[Tensor, "B S"]:
    """Logarithms of gamma variables with these shapes, the same or others of each row, float64; their softmax is a
    Dirichlet draw.

    Marsaglia and Tsang 2000 for shape + 1, then times u^(1 / shape): logarithms do not underflow where shapes are
    small.
    """
    size = alpha.shape[-1]
    alpha = alpha.to(key.device)
    draws = randomness.uniform(key, stream, size * (3 * TRIES + 1)).to(torch.float64)
    draws = draws.reshape(len(key), size, 3 * TRIES + 1).clamp(min=2.0**-54)
    u, v, accept = draws[..., :-1].unflatten(2, (3, TRIES)).unbind(dim=2)
    normal = (-2 * u.log()).sqrt() * (2 * math.pi * v).cos()
    d = (alpha + 1 - 1 / 3)[..., None]
    cube = (1 + normal / (9 * d).sqrt()).clamp(min=1e-12) ** 3
    good = accept.log() < 0.5 * normal**2 + d * (1 - cube + cube.log())
    first = good.to(torch.uint8).argmax(dim=2, keepdim=True)
    taken = (d * cube).gather(2, first)[..., 0]
    return taken.log() + draws[..., -1].log() / alpha
