"""Tokenizers: from a sample to units, from units to tokens, and back for pictures.

``split`` has nothing trainable and no gradient; ``embed`` is learned and is called on kept units only, unless
``embeds`` is "all"; ``join`` undoes ``split``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.nn import functional as F

from mim_core.data.source import Sample
from mim_core.parts.layout import Layout, Patches
from mim_core.parts.mask import Mask
from mim_core.text import times

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


@dataclass(frozen=True)
class PlainUnits:
    """How a modality becomes tokens with torch alone, for the model file of ``export --to plain``.

    Attributes:
        code: Python: classes that it needs, without imports; torch and nn are there.
        module: Python: makes a module from an input [B, ...] to tokens [B, D, *grid], as a convolution gives them.
        weights: Of that module, by name.
        free: The units lie on no grid, and the module gives a pair: tokens [B, D, N], and where they lie, [B, N, 3].
    """

    code: str
    module: str
    weights: Mapping[str, Tensor]
    free: bool = False


class Tokenizer(nn.Module):
    """Base class. Built from its options and the width of the encoder.

    Attributes:
        embeds: "kept" when `embed` is called on kept units only; "all" when it needs every unit (Point-MAE's
            BatchNorm, masked convolutions, joined modalities); "none" after `leave_values`.
        layout: The geometry of a sample as configured; where units lie freely, its count alone.
        shapes: What each modality must look like, without the batch: ``{"image": (3, 224, 224)}``. Data sources read
            it.
        unit_shape: The shape of one unit's values.
        ids: Modalities that are not measured but named, int64: how many names there are (classes, words). All others
            are float32.
        names: Where each unit is one id, int64 values of the shape [1]: how many ids there are; 0 elsewhere.
        gives_features: What `join` gives is no modality but a map of features of it, float [B, D, *grid]; data sources
            know nothing of it, so reports draw it, and files are arrays.
    """

    Config: ClassVar[type[Any]]
    embeds: Literal["kept", "all", "none"] = "kept"
    layout: Layout
    shapes: dict[str, tuple[int, ...]]
    unit_shape: tuple[int, ...]
    ids: Mapping[str, int] = {}
    names: int = 0
    gives_features: bool = False

    def check_filled(self) -> None:
        """Called before the first step of a run.

        Raises:
            ValueError: Its weights should be those of another run, and are only drawn.
        """
        return

    def split(self, sample: Sample) -> Patches:
        """The values of every unit."""
        raise NotImplementedError

    def embed(self, values: Any) -> Tensor:
        """Values [B, K, ...] to tokens [B, K, D] (or [B, K, S, D] where a unit holds S tokens)."""
        raise NotImplementedError

    def arrange(self, values: Any, mask: Mask) -> Any:
        """Values [B, N, ...] of all units once it is known what is hidden, where ``mask.spans``: a sequence is written
        anew, with a sentinel for each hidden span. Nothing else changes."""
        return values

    def plain(self) -> PlainUnits:
        """How a sample becomes tokens with torch alone, for ``export --to plain``.

        Raises:
            ValueError: It has no such form.
        """
        raise ValueError(f"a {type(self).__name__} has no form in torch alone")

    def leave_values(self) -> None:
        """Called when the method is built, where the encoder embeds the values itself: takes the embedding out, which
        would be weights that nothing trains, and sets ``embeds`` to "none": `embed` gives values as they are.

        Raises:
            ValueError: These units have no values that an encoder could take.
        """
        raise ValueError(f"the encoder takes values of units, and a {type(self).__name__} cannot leave its own out")

    def join(self, values: Tensor, layout: Layout) -> Tensor:
        """Unit values [B, N, ...] back to the modality's own shape."""
        raise NotImplementedError

    def blank(self, values: Tensor, hidden: Bool[Tensor, "B N"]) -> Tensor:
        """Unit values [B, N, ...] with nothing to see in hidden units, for pictures: zeros there."""
        return values.masked_fill(hidden.reshape(*hidden.shape, *([1] * (values.ndim - 2))), 0.0)


def zeros(
    shapes: Mapping[str, tuple[int, ...]], ids: Mapping[str, int], rows: int, device: torch.device | None = None
) -> Sample:
    """A batch of zeros of these shapes, int64 where modalities are ids."""
    types = {name: torch.int64 if name in ids else torch.float32 for name in shapes}
    return {name: torch.zeros(rows, *shape, dtype=types[name], device=device) for name, shape in shapes.items()}


class PatchTokenizer(Tokenizer):
    """Non-overlapping patches on a regular grid of one, two or three axes, embedded linearly (ViT, arXiv 2010.11929,
    equation 1).

    Takes ``sample[modality]`` [B, C, *size]; a unit's values are [*patch, C]: channels last, as MAE and VideoMAE order
    their targets. The weight has a convolution's shape [D, C, *patch], so timm's ``patch_embed.proj`` is this one's.
    Inputs of another size are taken as long as the patch divides them.
    """

    @dataclass(frozen=True)
    class Config:
        """Options of the patch tokenizer."""

        modality: str = "input"
        """The sample's entry that is split."""
        size: tuple[int, ...] = (224, 224)
        """Input size along each axis, outermost first."""
        patch: tuple[int, ...] = (16, 16)
        """Patch size along each axis; it must divide the input size."""
        channels: int = 3
        """Values at each input position."""
        bias: bool = True
        """A bias in the embedding; 4M has none."""

        def __post_init__(self) -> None:
            if len(self.size) == 1 and len(self.patch) == 2:  # one number is a square
                object.__setattr__(self, "size", self.size * 2)

    def __init__(self, config: Config, width: int) -> None:
        super().__init__()
        self.config = config
        if not 1 <= len(config.patch) <= 3:
            raise ValueError(f"patches have 1 to 3 axes, got patch {config.patch}")
        if config.channels < 1:
            raise ValueError(f"channels must be at least 1, got {config.channels}")
        self.layout = Layout.on_grid(*self.grid_of(config.size))
        self.shapes = {config.modality: (config.channels, *config.size)}
        self.unit_shape = (*config.patch, config.channels)
        convolution: Any = CONVOLUTIONS[len(config.patch)]
        self.proj: Any = convolution(config.channels, width, config.patch, stride=config.patch, bias=config.bias)
        nn.init.xavier_uniform_(self.proj.weight.view(width, -1))  # MAE: initialised as the linear layer that it is

    def leave_values(self) -> None:
        """No linear embedding."""
        self.proj, self.embeds = None, "none"

    def plain(self) -> PlainUnits:
        """A convolution."""
        config, name = self.config, self.proj.__class__.__name__
        sizes = f"{config.channels}, {self.proj.out_channels}, {tuple(config.patch)}, {tuple(config.patch)}"
        bias = "" if config.bias else ", bias=False"
        return PlainUnits("", f"nn.{name}({sizes}{bias})", self.proj.state_dict())

    def grid_of(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """Patches along each axis of an input of this size.

        Raises:
            ValueError: The number of axes differs, or the patch does not divide the size; both are named.
        """
        patch = self.config.patch
        if len(size) != len(patch):
            raise ValueError(f"size {times(size)} has {len(size)} axes and patch {times(patch)} has {len(patch)}")
        if any(p < 1 or n < p or n % p for n, p in zip(size, patch, strict=True)):
            fitting = [p for p in range(2, min(*size, 1000) + 1) if all(n % p == 0 for n in size)]
            advice = f"; patches that do: {', '.join(map(str, fitting[:12]))}" if fitting else ""
            raise ValueError(f"a patch of {times(patch)} does not divide the input of {times(size)}{advice}")
        return tuple(n // p for n, p in zip(size, patch, strict=True))

    def split(self, sample: Sample) -> Patches:
        """[B, C, *size] to values [B, N, *patch, C].

        Raises:
            KeyError: The sample lacks the modality.
            ValueError: It has another number of axes or channels.
        """
        config = self.config
        if config.modality not in sample:
            raise KeyError(f"the sample has no {config.modality!r}; it has {', '.join(sample)}")
        x = sample[config.modality]
        if x.ndim != 2 + len(config.patch) or x.shape[1] != config.channels:
            wanted = times((config.channels, *config.size))
            raise ValueError(f"{config.modality} must be [B, {wanted}], got [{times(tuple(x.shape))}]")
        grid = self.grid_of(tuple(x.shape[2:]))
        cut = [x.shape[0], config.channels]
        for n, p in zip(grid, config.patch, strict=True):
            cut += [n, p]
        axes = len(grid)
        order = [0, *range(2, 2 + 2 * axes, 2), *range(3, 3 + 2 * axes, 2), 1]
        values = x.reshape(cut).permute(order).reshape(x.shape[0], math.prod(grid), *self.unit_shape)
        return Patches(values, Layout.on_grid(*grid))

    def embed(self, values: Tensor) -> Tensor:
        """Values [B, K, *patch, C] to tokens [B, K, D]; to themselves after `leave_values`."""
        if self.embeds == "none":
            return values
        weight = self.proj.weight.movedim(1, -1).flatten(1)
        return F.linear(values.flatten(2), weight, self.proj.bias)

    def join(self, values: Tensor, layout: Layout) -> Tensor:
        """Values [B, N, *patch, C] back to [B, C, *size].

        Raises:
            ValueError: The units lie on no grid of as many axes as the patch has.
        """
        grid, patch = layout.grid, self.config.patch
        if grid is None or len(grid) != len(patch):
            raise ValueError(f"these units lie on no grid of {len(patch)} axes")
        axes = len(grid)
        pairs = [axis for i in range(axes) for axis in (1 + i, 1 + axes + i)]
        x = values.reshape(values.shape[0], *grid, *self.unit_shape).permute(0, 1 + 2 * axes, *pairs)
        return x.reshape(values.shape[0], self.config.channels, *(n * p for n, p in zip(grid, patch, strict=True)))


class JoinedTokenizer(Tokenizer):
    """Several tokenizers as one: their units lie side by side in one layout, and one masker shares its budget over
    them (MultiMAE, arXiv 2204.01678).

    A sample may lack whole modalities, for `Method.encode`; then their segments are left out. Where some samples of a
    batch lack one, ``sample["MODALITY.present"]``, bool [B], says which have it, and its values elsewhere do not count.
    """

    embeds: Literal["kept", "all", "none"] = (
        "all"  # which modality a kept unit belongs to differs between samples; shapes must not
    )

    def __init__(self, tokenizers: Mapping[str, Tokenizer]) -> None:
        super().__init__()
        self.parts = nn.ModuleDict(tokenizers)
        self._check_shapes()
        self.layout = Layout.join({name: part.layout for name, part in tokenizers.items()})
        self.shapes = {modality: shape for part in tokenizers.values() for modality, shape in part.shapes.items()}
        self.unit_shape = ()
        self.ids = {modality: count for part in tokenizers.values() for modality, count in part.ids.items()}

    def _check_shapes(self) -> None:
        """Raises ValueError where two of them want the same modality in other shapes."""
        known: dict[str, tuple[str, tuple[int, ...]]] = {}
        for name in self.parts:
            for modality, shape in self.part(name).shapes.items():
                other, first = known.setdefault(modality, (name, shape))
                if first != shape:
                    raise ValueError(
                        f"{other} takes {modality} as {times(first)} and {name} as {times(shape)}: give both one size"
                    )

    def check_filled(self) -> None:
        """That of every segment.

        Raises:
            ValueError: The weights of one should be those of another run, and are only drawn.
        """
        for name in self.parts:
            try:
                self.part(name).check_filled()
            except ValueError as error:
                raise ValueError(str(error).replace("--tokenizer.", f"--{name}.tokenizer.")) from error

    def part(self, name: str) -> Tokenizer:
        """The tokenizer of one segment."""
        part = self.parts[name]
        assert isinstance(part, Tokenizer)
        return part

    def lacking(self, sample: Sample) -> list[str]:
        """The segments whose modality the sample does not have."""
        return [name for name in self.parts if not all(modality in sample for modality in self.part(name).shapes)]

    def split(self, sample: Sample) -> Patches:
        """Every tokenizer's units: values by segment, in one layout.

        Raises:
            KeyError: The sample has none of the modalities.
        """
        lacking = self.lacking(sample)
        if len(lacking) == len(self.parts):
            available = ", ".join(sample) or "nothing"
            raise KeyError(f"the sample has none of {', '.join(self.shapes)}; it has {available}")
        patches = {name: self._split(name, sample) for name in self.parts if name not in lacking}
        aux = {f"{name}.{key}": value for name, part in patches.items() for key, value in part.aux.items()}
        values: dict[str, Any] = {name: part.values for name, part in patches.items()}
        return Patches(values, Layout.join({name: part.layout for name, part in patches.items()}), aux)

    def _split(self, name: str, sample: Sample) -> Patches:
        part = self.part(name)
        patches = part.split(sample)
        for modality in part.shapes:
            present = sample.get(f"{modality}.present")
            if present is not None:
                layout = patches.layout
                valid = present[:, None].expand(-1, layout.count)
                valid = valid if layout.valid is None else valid & layout.valid
                patches = replace(patches, layout=replace(layout, valid=valid))
        return patches

    def arrange(self, values: dict[str, Tensor], mask: Mask) -> dict[str, Tensor]:
        """Each segment's, by its own tokenizer."""
        arranged, start = {}, 0
        for name, value in values.items():
            count = value.shape[1]
            hidden = mask.hidden[:, start : start + count]
            arranged[name] = self.part(name).arrange(value, replace(mask, hidden=hidden))
            start += count
        return arranged

    def embed(self, values: dict[str, Tensor]) -> Tensor:
        """All units of all segments, [B, N, D]."""
        return torch.cat([self.part(name).embed(value) for name, value in values.items()], dim=1)

    def join(self, values: Tensor, layout: Layout) -> Tensor:
        """Refused: join one segment with its own tokenizer, `part`.

        Raises:
            ValueError: Always.
        """
        raise ValueError("join one segment at a time: tokenizer.part(name).join(values, layout)")
