"""Other views of a sample: what a method asks for, their shapes, and where one view lies in another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class View:
    """What a method wants of every sample beside the plain one, which stays as it is.

    Attributes:
        kind: "target": one more of the same shape, such as image_target. "pair": every item gives two samples, one
            after the other, each a view of its own. "local": several smaller ones, image_local [B, count, C, *size].
            "place": where in the item the view and the target view lie, image.place and image_target.place, see
            `carried`.
        count: Local views of each sample.
        size: Their last axes.

    Raises:
        ValueError: Local views lack a count or a size of 1 or more.
    """

    kind: Literal["target", "pair", "local", "place"]
    count: int = 0
    size: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.kind == "local" and (self.count < 1 or not self.size or min(self.size) < 1):
            raise ValueError(f"local views need a count and a size of 1 or more, got {self.count} of {self.size}")

    def small(self, shapes: Shapes) -> dict[str, tuple[int, ...]]:
        """The shape of one local view of each modality.

        Raises:
            ValueError: It is no image and no clip, or the view would be larger.
        """
        axes = len(self.size)
        for name, shape in shapes.items():
            if len(shape) <= axes:
                raise ValueError(f"no local views of {self.size} can be cut from {name}, which is {shape}")
            if any(n > whole for n, whole in zip(self.size, shape[-axes:], strict=True)):
                raise ValueError(f"local views of {self.size} do not fit into {name}, which is {shape}")
        return {name: (*shape[:-axes], *self.size) for name, shape in shapes.items()}


def kinds(views: tuple[View, ...]) -> set[str]:
    """Which kinds of views are asked for."""
    return {view.kind for view in views}


def entries(shapes: Shapes, views: tuple[View, ...]) -> dict[str, tuple[int, ...]]:
    """The shapes of a sample's entries, with those of its views; of a pair, each sample has them."""
    sizes = dict(shapes)
    for view in views:
        if view.kind == "target":
            sizes |= {f"{name}_target": shape for name, shape in shapes.items()}
        elif view.kind == "local":
            sizes |= {f"{name}_local": (view.count, *shape) for name, shape in view.small(shapes).items()}
        elif view.kind == "place":
            ends = [each for each in ("", "_target") if not each or "target" in kinds(views)]
            sizes |= {f"{name}{each}.place": (2, len(shape) - 1) for name, shape in shapes.items() for each in ends}
    return sizes


def carried(
    boxes: Float[Tensor, "B n 2 axes"], place: Float[Tensor, "B 2 axes"], other: Float[Tensor, "B 2 axes"]
) -> Float[Tensor, "B n 2 axes"]:
    """Boxes of one view in another view of the same item.

    Args:
        boxes: First and last corner of each, as shares of the view: (0, 0) is its upper left, (1, 1) its lower right.
        place: Where the item's own shares lie that the view's first and last corner show; of a flipped view the first
            is beyond the last on that axis.
        other: The same of the other view.

    Returns:
        The boxes as shares of the other view, the lower corner first; what lies outside [0, 1] is not in it.
    """
    start, end = place[:, None, :1], place[:, None, 1:]
    item_boxes = start + boxes * (end - start)
    start, end = other[:, None, :1], other[:, None, 1:]
    return ((item_boxes - start) / (end - start)).sort(dim=2).values
