"""Units that are ids: each a name out of many, embedded by a table (4M, arXiv 2312.06647, section 2)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from timm.layers import trunc_normal_
from torch import Tensor, nn

from mim_core.data.source import Sample
from mim_core.parts.layout import Layout, Patches
from mim_core.parts.mask import Mask
from mim_core.parts.spans import Spans, places_for, sentinels_for, sequence_length
from mim_core.parts.tokenizer import PatchTokenizer, Tokenizer
from mim_core.text import times

MOST_NAMES = 1 << 22
"""Ids of one table; the largest vocabularies have some 300,000."""


def table(names: int, width: int) -> nn.Embedding:
    """A vector for each id, a normal of deviation 0.02.

    Raises:
        ValueError: Fewer than 2 ids, or more than any vocabulary has.
    """
    if not 2 <= names <= MOST_NAMES:
        raise ValueError(f"there must be 2 to {MOST_NAMES:,} ids, got {names:,}")
    made = nn.Embedding(names, width)
    trunc_normal_(made.weight, std=0.02)
    return made


class NamedTokenizer(Tokenizer):
    """Base of tokenizers whose units are ids: ``values`` are int64 [B, N, 1], and `embed` looks them up."""

    unit_shape = (1,)

    def __init__(self, config: Any, names: int, width: int) -> None:
        super().__init__()
        self.config, self.names = config, names
        self.token_embed = table(names, width)

    def embed(self, values: Int[Tensor, "B K 1"]) -> Tensor:
        """Ids [B, K, 1] to tokens [B, K, D]."""
        tokens: Tensor = self.token_embed(values[..., 0])
        return tokens

    def blank(self, values: Tensor, hidden: Bool[Tensor, "B N"]) -> Tensor:
        """Minus one, which is no id, in hidden units."""
        return values.masked_fill(hidden[:, :, None], -1)


class IdTokenizer(NamedTokenizer):
    """Ids that the data hold, on a grid of one, two or three axes: a map of classes, or what a trained tokenizer made
    of a picture.

    Takes ``sample[modality]`` int64 [B, *size]. Ids that are none, below 0 or beyond the last, are no units: they are
    never seen and never asked.
    """

    @dataclass(frozen=True)
    class Config:
        """Options of the id tokenizer."""

        modality: str = "input"
        """The sample's entry whose ids are units."""
        size: tuple[int, ...] = (14, 14)
        """Ids along each axis, outermost first."""
        names: int = 8192
        """How many ids there are; they are 0 to names - 1."""

    def __init__(self, config: Config, width: int) -> None:
        if not 1 <= len(config.size) <= 3 or min(config.size) < 1:
            raise ValueError(f"size has 1 to 3 axes, each of at least 1 id, got {config.size}")
        super().__init__(config, config.names, width)
        self.layout = Layout.on_grid(*config.size)
        self.shapes = {config.modality: tuple(config.size)}
        self.ids = {config.modality: config.names}

    def split(self, sample: Sample) -> Patches:
        """[B, *size] to values int64 [B, N, 1].

        Raises:
            KeyError: The sample has no such entry.
            ValueError: Not whole numbers, or another number of axes.
        """
        name, axes = self.config.modality, len(self.config.size)
        if name not in sample:
            raise KeyError(f"the sample has no {name!r}; it has {', '.join(sample)}")
        ids = sample[name]
        if ids.ndim != 1 + axes or ids.is_floating_point():
            raise ValueError(
                f"{name} must be ids, int64 [B, {times(tuple(self.config.size))}], got {ids.dtype} {tuple(ids.shape)}"
            )
        grid = tuple(ids.shape[1:])
        flat = ids.reshape(len(ids), -1).to(torch.int64)
        known = (flat >= 0) & (flat < self.names)
        return Patches(flat.where(known, 0)[:, :, None], Layout(math.prod(grid), grid, valid=known))

    def join(self, values: Tensor, layout: Layout) -> Tensor:
        """Ids [B, N, 1] back to [B, *size]."""
        assert layout.grid is not None, "these ids lie on a grid"
        return values.reshape(len(values), *layout.grid)


class BinTokenizer(NamedTokenizer):
    """Patches of measured values, named by their mean: each channel's is put into one of ``levels`` bins of equal
    width. No weights, so it needs no training; what a trained tokenizer's ids tell beyond the mean, these do not.

    Takes ``sample[modality]`` float [B, C, *size].
    """

    @dataclass(frozen=True)
    class Config:
        """Options of the bin tokenizer."""

        modality: str = "input"
        """The sample's entry that is split."""
        size: tuple[int, ...] = (224, 224)
        """Input size along each axis, outermost first."""
        patch: tuple[int, ...] = (16, 16)
        """Patch size along each axis; it must divide the input size."""
        channels: int = 1
        """Values at each input position."""
        levels: int = 64
        """Bins of each channel; there are levels to the power of channels ids."""
        low: float = -3.0
        """Where the first bin begins; smaller means fall into it."""
        high: float = 3.0
        """Where the last bin ends; larger means fall into it."""

    def __init__(self, config: Config, width: int) -> None:
        if config.levels < 2 or config.channels < 1 or config.levels**config.channels > MOST_NAMES:
            raise ValueError(
                f"{config.levels} bins of {config.channels} channels: give 2 or more, and at most {MOST_NAMES:,} in all"
            )
        if not -math.inf < config.low < config.high < math.inf:
            raise ValueError(f"low must be less than high, got {config.low} and {config.high}")
        super().__init__(config, config.levels**config.channels, width)
        own = PatchTokenizer.Config(config.modality, config.size, config.patch, config.channels)
        self.patches = PatchTokenizer(own, width)
        self.patches.leave_values()
        self.layout, self.shapes = self.patches.layout, self.patches.shapes

    def split(self, sample: Sample) -> Patches:
        """[B, C, *size] to values int64 [B, N, 1]."""
        config, cut = self.config, self.patches.split(sample)
        assert isinstance(cut.values, Tensor)
        means = cut.values.flatten(2, -2).mean(dim=2)  # [B, N, C]
        share = (means - config.low) / (config.high - config.low)
        bins = (share * config.levels).floor().clamp(0, config.levels - 1).to(torch.int64)
        ids = bins[..., 0]
        for channel in range(1, config.channels):
            ids = ids * config.levels + bins[..., channel]
        return Patches(ids[:, :, None], cut.layout)

    def join(self, values: Tensor, layout: Layout) -> Tensor:
        """Ids [B, N, 1] to [B, C, *size], each patch in the middle of its bin; zeros where there is no id."""
        config, left, bins = self.config, values[..., 0], []
        for _ in range(config.channels):
            bins.append(left % config.levels)
            left = left.div(config.levels, rounding_mode="floor")
        middle = (torch.stack(bins[::-1], dim=-1).float() + 0.5) / config.levels
        centres = (config.low + middle * (config.high - config.low)).masked_fill(values < 0, 0.0)
        wide = centres[:, :, None].expand(-1, -1, math.prod(config.patch), -1)
        return self.patches.join(wide.reshape(*centres.shape[:2], *self.patches.unit_shape), layout)


class SequenceTokenizer(NamedTokenizer):
    """A sequence of ids whose hidden spans are told one id after another, see `mim_core.parts.spans`.

    Takes ``sample[modality]`` int64 [B, length], 0 behind its end. Its units are 2 (length + 1) places, of which the
    ids fill the first; `arrange` writes what is seen and what is asked into them. Ids beyond ``vocabulary`` are the
    sentinels. A sample may also hold all places, as they are to be: [B, 2 (length + 1)].
    """

    @dataclass(frozen=True)
    class Config:
        """Options of the sequence tokenizer."""

        modality: str = "input"
        """The sample's entry that holds the ids."""
        length: int = 32
        """Most ids of a sequence."""
        vocabulary: int = 49_408
        """Ids of the data, 0 among them, which fills a sequence up."""

    def __init__(self, config: Config, width: int) -> None:
        if config.length < 1 or config.vocabulary < 2:
            raise ValueError(
                f"length {config.length} must be at least 1, and vocabulary {config.vocabulary} at least 2"
            )
        super().__init__(config, config.vocabulary + sentinels_for(config.length), width)
        places = places_for(config.length)
        self.layout = Layout(places, (places,), sequence=True)
        self.shapes = {config.modality: (config.length,)}
        self.ids = {config.modality: config.vocabulary}

    def split(self, sample: Sample) -> Patches:
        """[B, length] to values int64 [B, 2 (length + 1), 1], whose first places are valid as far as the ids go.

        Raises:
            KeyError: The sample has no such entry.
            ValueError: Not whole numbers, or another number of them.
        """
        name, length = self.config.modality, self.config.length
        if name not in sample:
            raise KeyError(f"the sample has no {name!r}; it has {', '.join(sample)}")
        ids, places = sample[name], self.layout.count
        if ids.ndim != 2 or ids.shape[1] not in (length, places) or ids.is_floating_point():
            raise ValueError(f"{name} must be ids, int64 [B, {length}], got {ids.dtype} {tuple(ids.shape)}")
        ids = nn.functional.pad(ids.to(torch.int64), (0, places - ids.shape[1]))
        ids = ids.where((ids >= 0) & (ids < self.names), 0)
        used = (ids != 0).flip(1).to(torch.int64).cumsum(1).flip(1) > 0  # up to the last id that is none of 0
        return Patches(ids[:, :, None], Layout(places, (places,), valid=used, sequence=True))

    def arrange(self, values: Int[Tensor, "B N 1"], mask: Mask) -> Int[Tensor, "B N 1"]:
        """What is seen and what is asked of sequences of which ``mask.hidden`` hides some ids.

        Raises:
            ValueError: There are several masks of each sample.
        """
        if mask.per_sample != 1:
            raise ValueError(f"a sequence is written for one mask of each sample, not for {mask.per_sample}")
        length = sequence_length(self.layout)
        ids = values[:, :length, 0]
        present = (ids != 0).flip(1).to(torch.int64).cumsum(1).flip(1) > 0
        hidden = mask.hidden[:, :length]
        return Spans(present & ~hidden, present & hidden).write(ids, self.config.vocabulary)[:, :, None]

    def join(self, values: Tensor, layout: Layout) -> Tensor:
        """Places [B, 2 (length + 1), 1] back to [B, length]."""
        return values[:, : self.config.length, 0]
