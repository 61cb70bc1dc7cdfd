"""Units that are features of a frozen network, to be named by a tokenizer that is trained on them (4M, arXiv
2312.06647, section 2.1)."""

from __future__ import annotations

from typing import Any, Literal, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from mim_core.data.source import Sample
from mim_core.parts.layout import Layout, Patches
from mim_core.parts.tokenizer import Tokenizer

T = TypeVar("T", bound="FeatureTokenizer")
FeatureNorm = Literal["none", "layer"]


class FeatureTokenizer(Tokenizer):
    """Base of tokenizers whose units are what a frozen network makes of a modality, one vector for each place of a
    grid; ``values`` are float [B, N, D]. A subclass says which, in `features`, and calls `begin` once it is made.

    `join` gives the map of features, [B, D, *grid]: the modality itself does not come back.
    """

    gives_features = True

    def begin(self, size: int, width: int, norm: FeatureNorm) -> None:
        """The embedding of vectors of ``size``; ``norm`` "layer" standardises each over its channels."""
        self.size, self.norm = size, norm
        self.unit_shape = (size,)
        self.proj = nn.Linear(size, width)
        nn.init.xavier_uniform_(self.proj.weight)

    def frozen(self) -> nn.Module:
        """The network; it stays in evaluation mode."""
        raise NotImplementedError

    def features(self, sample: Sample) -> tuple[Float[Tensor, "B N D"], Layout]:
        """What it makes of every unit, and where these lie."""
        raise NotImplementedError

    def train(self: T, mode: bool = True) -> T:
        """The frozen network stays in evaluation mode."""
        super().train(mode)
        self.frozen().train(False)
        return self

    @torch.no_grad()
    def split(self, sample: Sample) -> Patches:
        """The features of every unit, of the sample's type."""
        features, layout = self.features(sample)
        if self.norm == "layer":
            features = F.layer_norm(features.float(), features.shape[-1:])
        kinds = [sample[name].dtype for name in self.shapes if name in sample]
        return Patches(features.to(kinds[0]) if kinds[0].is_floating_point else features.float(), layout)

    def embed(self, values: Float[Tensor, "B K D"]) -> Tensor:
        """Features [B, K, D] to tokens [B, K, width]."""
        tokens: Tensor = self.proj(values)
        return tokens

    def join(self, values: Float[Tensor, "B N D"], layout: Layout) -> Float[Tensor, "B D *grid"]:
        """The map of features.

        Raises:
            ValueError: The units lie on no grid.
        """
        if layout.grid is None:
            raise ValueError("these features lie on no grid")
        return values.transpose(1, 2).reshape(len(values), self.size, *layout.grid)


def named(sample: Sample, mine: str, theirs: str) -> dict[str, Any]:
    """One modality of a sample under another name, alone.

    Raises:
        KeyError: The sample has it not.
    """
    if mine not in sample:
        raise KeyError(f"the sample has no {mine!r}; it has {', '.join(sample)}")
    return {theirs: sample[mine]}
