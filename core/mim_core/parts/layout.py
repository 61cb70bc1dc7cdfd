"""Where the units of a sample lie, and their values: `Layout` and `Patches`.

A *unit* is what is hidden as a whole. A ViT's unit is one token; a Swin's, Hiera's or ConvNet's holds several. Sizes
always come from here: nothing in the project takes the square root of a token count.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils import _pytree as pytree

T = TypeVar("T")


def tensor_tree(cls: type[T]) -> type[T]:
    """Registers a frozen dataclass as a pytree, so that FSDP2's hooks and ``tree_map`` see the tensors inside.

    Fields marked ``metadata={"static": True}`` are part of the structure. Rebuilding skips ``__post_init__``: the
    checks ran once.
    """
    static = [f.name for f in fields(cls) if f.metadata.get("static")]  # type: ignore[arg-type]
    moving = [f.name for f in fields(cls) if not f.metadata.get("static")]  # type: ignore[arg-type]

    def flatten(value: Any) -> tuple[list[Any], tuple[Any, ...]]:
        return [getattr(value, name) for name in moving], tuple(getattr(value, name) for name in static)

    def unflatten(children: Any, context: Any) -> T:
        value = object.__new__(cls)
        for name, child in zip(moving, children, strict=True):
            object.__setattr__(value, name, child)
        for name, child in zip(static, context, strict=True):
            object.__setattr__(value, name, child)
        return value

    pytree.register_pytree_node(cls, flatten, unflatten, serialized_type_name=f"{cls.__module__}.{cls.__qualname__}")
    return cls


@tensor_tree
@dataclass(frozen=True)
class Layout:
    """Where the N units of each sample lie.

    Attributes:
        count: N, the units per sample.
        grid: Units along each axis (outermost first), their product N; None where units lie freely, as groups of
            points do.
        positions: Coordinates of the units, [N, d] or [B, N, d], in the tokenizer's own unit; None on a grid, where
            they follow from it.
        valid: bool [B, N], False for padding and for a modality that a sample lacks; None when all are valid.
        segments: The layouts that `join` put side by side, by name; empty for a single one.
        sequence: The units are places of a sequence, told one after another: first what is seen of it, then what is
            asked, see `mim_core.parts.spans`.

    Raises:
        ValueError: The grid, the segments, the positions or ``valid`` have another number of units than ``count``.
    """

    count: int = field(metadata={"static": True})
    grid: tuple[int, ...] | None = field(default=None, metadata={"static": True})
    positions: Float[Tensor, "*B N d"] | None = None
    valid: Bool[Tensor, "B N"] | None = None
    segments: tuple[tuple[str, Layout], ...] = ()
    sequence: bool = field(default=False, metadata={"static": True})

    def __post_init__(self) -> None:
        if self.grid is not None and math.prod(self.grid) != self.count:
            raise ValueError(f"grid {self.grid} holds {math.prod(self.grid)} units, not {self.count}")
        if self.segments and sum(part.count for _, part in self.segments) != self.count:
            raise ValueError(f"segments hold {sum(part.count for _, part in self.segments)} units, not {self.count}")
        for name in ("positions", "valid"):
            value = getattr(self, name)
            units = None if value is None else value.shape[-2 if name == "positions" else -1]
            if units is not None and units != self.count:
                raise ValueError(f"{name} has {units} units, not {self.count}")

    @staticmethod
    def on_grid(*grid: int) -> Layout:
        """Units on a full grid, in row-major order."""
        return Layout(count=math.prod(grid), grid=tuple(grid))

    @staticmethod
    def join(parts: Mapping[str, Layout]) -> Layout:
        """Several layouts as one, side by side in the order given. One masker then shares its budget over all of
        them."""
        count = sum(part.count for part in parts.values())
        valid = None
        flags = [part.valid for part in parts.values()]
        given = [flag for flag in flags if flag is not None]
        if given:
            rows, device = given[0].shape[0], given[0].device
            valid = torch.cat(
                [
                    torch.ones(rows, part.count, dtype=torch.bool, device=device) if flag is None else flag
                    for part, flag in zip(parts.values(), flags, strict=True)
                ],
                dim=1,
            )
        return Layout(count=count, valid=valid, segments=tuple(parts.items()))

    def rows(self, ids: Int[Tensor, " b"]) -> Layout:
        """The layout of some of the samples, wherever the samples differ."""
        return Layout(
            count=self.count,
            grid=self.grid,
            positions=self.positions[ids]
            if self.positions is not None and self.positions.ndim == 3
            else self.positions,
            valid=None if self.valid is None else self.valid[ids],
            segments=tuple((name, part.rows(ids)) for name, part in self.segments),
            sequence=self.sequence,
        )

    def parts(self) -> tuple[tuple[str, Layout], ...]:
        """The segments by name; of a single layout itself, under an empty name."""
        return self.segments or (("", self),)

    def span(self, segment: str) -> tuple[int, Layout]:
        """The first unit and the layout of one segment; of a single layout all, under an empty name.

        Raises:
            KeyError: There is no such segment.
        """
        if not self.segments and not segment:
            return 0, self
        start = 0
        for name, part in self.segments:
            if name == segment:
                return start, part
            start += part.count
        raise KeyError(f"no segment {segment!r}; there are: {', '.join(name for name, _ in self.segments) or 'none'}")

    def coordinates(self, device: torch.device | None = None) -> Float[Tensor, "*B N d"]:
        """The units' coordinates: ``positions``, or grid indices (float32 [N, axes]) where there is a grid.

        Raises:
            ValueError: There are neither positions nor a grid.
        """
        if self.positions is not None:
            return self.positions
        if self.grid is None:
            raise ValueError("this layout has neither positions nor a grid")
        axes = [torch.arange(n, device=device, dtype=torch.float32) for n in self.grid]
        return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(self.count, len(self.grid))


@tensor_tree
@dataclass(frozen=True)
class Patches:
    """What `Tokenizer.split` returns: the values of every unit, with no gradient.

    Attributes:
        values: [B, N, ...], the input values of each unit; a dict of such tensors, by segment, where several
            modalities are joined.
        layout: Where the units lie.
        aux: Whatever else `Tokenizer.join` or a target needs, such as the centres of groups of points.
    """

    values: Tensor | dict[str, Tensor]
    layout: Layout
    aux: dict[str, Tensor] = field(default_factory=dict)

    def segment(self, name: str) -> Patches:
        """The patches of one segment of a joined layout.

        Raises:
            KeyError: There is no such segment, or these patches are of a single modality.
        """
        if not isinstance(self.values, dict):
            raise KeyError(f"no segment {name!r}: these patches are of a single modality")
        return Patches(self.values[name], self.layout.span(name)[1], self.aux)


def take(values: Tensor, ids: Int[Tensor, "R K"]) -> Tensor:
    """Gathers units: values [B, N, ...] or [1, N, ...] at ids [R, K] gives [R, K, ...].

    R is B times the masks per sample; the rows of one sample are adjacent. A leading 1 is shared by all rows.
    """
    rows, kept = ids.shape
    flat = values.reshape(values.shape[0], values.shape[1], -1)
    if flat.shape[0] not in (1, rows):
        flat = flat.repeat_interleave(rows // flat.shape[0], dim=0)
    flat = flat.expand(rows, -1, -1)
    index = ids[:, :, None].expand(-1, -1, flat.shape[2])
    return flat.gather(1, index).reshape(rows, kept, *values.shape[2:])
