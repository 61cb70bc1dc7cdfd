"""Fine-tuning for an answer at every pixel (MultiMAE, arXiv 2204.01678, section 4): what its methods share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from mim_core import (
    DataSource,
    Encoder,
    JoinedTokenizer,
    MimError,
    Picture,
    Sample,
    Supervised,
    Taught,
    Tokenizer,
    init_transformer,
    standard_errors,
)
from torch import Tensor

from mim_multimodal.dense_heads import (
    ConvNextHead,
    DenseHead,
    DptHead,
    HeadKind,
    LinearHead,
    UperHead,
    as_maps,
    quarters,
)
from mim_multimodal.map_sources import ANSWER, MapSource

if TYPE_CHECKING:
    from mim_core import Parts

STEPS_OF_TEST = 16
"""Most pictures per forward pass of a test."""
ERRORS = f"In brackets: standard errors over the test items, by the jackknife with {standard_errors.GROUPS} groups."
"""What is said below a table."""


@dataclass(frozen=True)
class DenseOptions:
    """Options that methods with an answer at every pixel share."""

    init: Path | None = None
    """Checkpoint that the weights of tokenizer and encoder are taken from; none: as drawn. finetune fills it in."""
    head: HeadKind = "convnext"
    """linear: one layer on normalised features; convnext: MultiMAE's for classes; dpt: MultiMAE's for depth, from four
    blocks; upernet: UPerNet on BEiT's neck, from four blocks."""
    inputs: tuple[str, ...] = ()
    """Inputs whose tokens the head sees, side by side; none: all."""
    levels: tuple[int, ...] = ()
    """Blocks, from 1, whose outputs dpt and upernet take; none: those that end the quarters."""
    inner: int = 6144
    """convnext: the width that a token has before it becomes its places."""
    places: int = 16
    """convnext: places of a token, a square number."""
    blocks: int = 4
    """convnext: blocks."""
    widths: tuple[int, ...] = (96, 192, 384, 768)
    """dpt: of the four levels."""
    channels: int = 256
    """dpt and upernet: of what the levels are put together to."""
    dropout: float = 0.1
    """upernet: share of channels left out in front of the classes."""

    def __post_init__(self) -> None:
        if min((*self.widths, self.inner, self.channels, self.places)) < 1 or len(self.widths) != 4 or self.blocks < 0:
            raise MimError("method: widths must be four, and they, inner, channels and places at least 1.")
        if not 0 <= self.dropout < 1:
            raise MimError(f"method: dropout must lie in [0, 1), got {self.dropout}.")


class DenseMethod(Supervised):
    """An answer at every pixel, from the tokens of inputs that share a grid.

    Attributes:
        label: The modality that is the answer.
    """

    label: ClassVar[str]
    lacks_units = True
    train_options: ClassVar[Mapping[str, Any]] = {"base_lr": 1e-4, "batch_size": 16, "lr_batch": 16}
    config: Any
    head: DenseHead

    @classmethod
    def build(cls, config: Any, parts: Parts) -> DenseMethod:
        """Roles: tokenizer and encoder."""
        tokenizer = parts.tokenizer()
        made: DenseMethod = cls(tokenizer, parts.encoder(tokenizer), config)  # type: ignore[call-arg]
        return made

    def __init__(self, tokenizer: Tokenizer, encoder: Encoder, config: Any, outputs: int) -> None:
        super().__init__(tokenizer, encoder)
        self.config = config
        names, self.grids, self.size, self.patch = _places(tokenizer)
        self.names, used = names, config.inputs or names
        unknown = [name for name in used if name not in names]
        if unknown:
            raise ValueError(f"inputs {', '.join(unknown)} are not among the tokenizers': {', '.join(names)}")
        self.used = tuple(names.index(name) for name in used)
        if len({self.grids[number] for number in self.used}) > 1:
            raise ValueError(f"the inputs {', '.join(used)} lie on different grids; name those of one: --method.inputs")
        self.head = self._head(encoder.width * len(used), outputs)
        init_transformer(self.head)
        if self.head.levels > 1:
            levels = config.levels or quarters(self.depth())
            if len(levels) != self.head.levels:
                raise ValueError(f"{config.head} takes {self.head.levels} levels, got {levels}")
            encoder.give_levels(levels, normed=False)

    def _head(self, width: int, outputs: int) -> DenseHead:
        config, size = self.config, self.size
        if config.head == "linear":
            return LinearHead(width, outputs, size)
        if config.head == "convnext":
            return ConvNextHead(width, outputs, size, config.inner, config.places, config.blocks)
        if config.head == "dpt":
            return DptHead(width, outputs, size, config.widths, config.channels)
        return UperHead(width, outputs, size, self.patch, config.channels, config.dropout)

    def training_source(self, source: DataSource) -> DataSource:
        """Items with a map."""
        return MapSource(source, self.label, self.size)

    def answers(self, sample: Sample) -> Tensor:
        """The map.

        Raises:
            ValueError: The sample has none.
        """
        if ANSWER in sample:
            return sample[ANSWER]
        first = next(iter(sample.values()))
        if first.is_meta:
            return self._empty(first.shape[0], first.device)
        raise ValueError(f"the sample has no {self.label} to learn from; it has {', '.join(sample)}")

    def blank(self, sample: Sample) -> Sample:
        """A map without anything to learn."""
        first = next(iter(sample.values()))
        return {ANSWER: self._empty(first.shape[0], first.device)}

    def _empty(self, rows: int, device: torch.device) -> Tensor:
        raise NotImplementedError

    def compared(self, sample: Sample, predictions: Mapping[str, Tensor], source: DataSource) -> dict[str, Picture]:
        """The inputs, the right map, the answer, and of the answer what is wrong, the rest grey."""
        inputs = {name: source.picture(name, sample[name]) for name in self.names if name in sample}
        right, answer, well = self._maps(sample, predictions)
        rows = {"truth": source.picture(self.label, right), "answer": source.picture(self.label, answer)}
        return {**inputs, **rows, "wrong": source.masked_picture(self.label, answer, well)}

    def _maps(self, sample: Sample, predictions: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """The right map and the answer, as the data source draws them, and where the answer is right or nothing is
        known."""
        raise NotImplementedError

    def answered(self, prepared: Taught) -> tuple[Tensor, Tensor]:
        """(the head's answers [B, K, H, W], the encoder's output).

        Raises:
            ValueError: The encoder does not give a token of each unit of all inputs.
        """
        encoded = self.encoded(prepared)
        if encoded.tokens.shape[1] != sum(map(math.prod, self.grids)):
            raise ValueError(
                f"a head of maps sees all of its inputs, {', '.join(self.names)}, so none can be left out; train it on "
                f"fewer: finetune with --use {self.names[-1]}.tokenizer=none"
            )
        levels = encoded.levels if self.head.levels > 1 else (encoded.tokens,)
        answers = self.head([as_maps(level, self.grids, self.used) for level in levels])
        return answers, torch.cat([encoded.prefix, encoded.tokens], dim=1)


def _places(tokenizer: Tokenizer) -> tuple[tuple[str, ...], list[tuple[int, int]], tuple[int, int], int]:
    """Inputs, their grids, the size of the largest picture, and the pixels along a patch of it.

    Raises:
        ValueError: An input does not lie on a grid of two axes.
    """
    layout = tokenizer.layout
    parts = dict(layout.segments) if isinstance(tokenizer, JoinedTokenizer) else {next(iter(tokenizer.shapes)): layout}
    for name, part in parts.items():
        if part.grid is None or len(part.grid) != 2:
            raise ValueError(
                f"an answer at every pixel needs units on a grid of two axes; those of {name} are not. Train without: "
                f"--use {name}.tokenizer=none"
            )
    sizes = [(shape[-2], shape[-1]) for shape in tokenizer.shapes.values()]
    size = max(sizes, key=math.prod)
    grids = [(part.grid[0], part.grid[1]) for part in parts.values() if part.grid is not None]
    return tuple(parts), grids, size, size[0] // max(grid[0] for grid in grids)
