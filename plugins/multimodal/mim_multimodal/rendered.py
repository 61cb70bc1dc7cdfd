"""Shapes of another source with the depth of a view, rendered from their own points."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from jaxtyping import Float
from mim_core import Labelled, Picture, Sample, WrappedSource, randomness
from torch import Tensor

from mim_multimodal.inner_sources import Option, open_inner, options_of

HIDDEN = (70, 100, 160)
"""Colour of hidden pixels of a view."""
FARTHEST = 0.1
"""Value of the far side of the view; the background is 0, so that the two differ."""
SOURCE, ENTRY = "pointcloud:clouds", "points"
AXES = "xyz"
RAW_NOTE = "Of the view, the raw input is its pixels."


class Rendered(WrappedSource):
    """Clouds, and the depth of an orthographic view of each: ``depth`` float32 [B, 1, H, W], from 1 (near) to 0.1
    (far); the background is 0.

    The view is drawn about the upright axis from the sample's key, and fixed in evaluation, where samples have no key.
    It is rendered from the very points of the sample, augmented as they are, so depth tells no more than they do.
    """

    @dataclass(frozen=True)
    class Config:
        """Options of rendered data."""

        root: Path | None = None
        """What the source of shapes reads; "sample" is its bundled one."""
        source: str = SOURCE
        """Data source of the shapes; it gives "points" [P, 3 or more]."""
        options: dict[str, bool | int | float | str] = field(default_factory=dict)
        """Its other options: augment false. Lists are written as text: "[0.8, 1.2]"."""
        extent: float = 1.25
        """Half the side of the view, and half its depth, in the points' unit; clouds are in the unit sphere before
        they are augmented."""
        elevation: float = 20.0
        """Degrees by which the viewer looks down."""
        angle: float = 30.0
        """Degrees about the upright axis in evaluation, and always without `turn`."""
        turn: bool = True
        """Draw the angle in training."""
        splat: int | None = None
        """Pixels that a point covers each way beyond its own. None: as many as leave few holes."""
        up: str = "auto"
        """The axis that points up. auto: as the source has it, else y."""
        labels: float = 0.0
        """Training on labels uses so many labelled samples, each class by its share; below 1 it is that share of
        each; 0: all. Which ones follows from their names."""
        max_bad: float = 0.5
        """Largest share of unusable files; beyond it the run stops. Each is named in skipped.jsonl."""

    def __init__(self, config: Config, shapes: Mapping[str, tuple[int, ...]]) -> None:
        if set(shapes) != {ENTRY, "depth"} or len(shapes["depth"]) != 3 or shapes["depth"][0] != 1:
            text = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
            raise ValueError(f"rendered data give 'points' [P, C] and 'depth' [1, H, W]; the tokenizers want {text}")
        if config.extent <= 0 or not -90 < config.elevation < 90 or (config.splat or 0) < 0:
            raise ValueError("extent must be positive, elevation within 90 degrees, and splat not negative")
        if config.up not in ("auto", *AXES):
            raise ValueError(f"up must be auto, x, y or z, got {config.up!r}")
        options: dict[str, Option] = {
            "max_bad": config.max_bad,
            **options_of({ENTRY: config.source}, config.options)[ENTRY],
        }
        inner = open_inner(config.source, config.root, options, {ENTRY: shapes[ENTRY]}, "the source of points")
        super().__init__(inner, config, shapes)
        self.up = str(getattr(inner, "up", "y")) if config.up == "auto" else config.up
        height, width = shapes["depth"][1:]
        holes = math.sqrt(height * width / shapes[ENTRY][0])  # side of the square that each point stands for
        self.splat = max(0, math.ceil((holes - 1) / 2)) if config.splat is None else config.splat

    def finish(self, sample: Sample) -> Sample:
        """The source's, and the view of each sample on the device where its points are."""
        done = self.source.finish(sample)
        if ENTRY not in done:
            return done
        config, points = self.config, done[ENTRY]
        angle = torch.full((len(points),), math.radians(config.angle), dtype=torch.float64, device=points.device)
        if config.turn and "key" in done:
            angle = randomness.uniform(done["key"], "view", 1)[:, 0] * 2 * math.pi
        size = (self.shapes["depth"][1], self.shapes["depth"][2])
        turned = turn(points[..., :3], angle, math.radians(config.elevation), self.up)
        return {**done, "depth": render(turned, size, config.extent, self.splat)}

    def labelled(self, split: str) -> Labelled:
        """The source's; the view is rendered in `finish`."""
        inner = self.source.labelled(split)
        return replace(inner, note=f"{inner.note} {RAW_NOTE}".strip())

    def raw(self, sample: Sample) -> Tensor:
        """The source's description of the points, and the pixels of the view."""
        parts = [self.source.raw(sample)] if ENTRY in sample else []
        return torch.cat([*parts, *([sample["depth"].flatten(1)] if "depth" in sample else [])], dim=1)

    def picture(self, modality: str, values: Tensor) -> Picture:
        """Depth in grey, near is bright; points as the source draws them."""
        return _grey(values) if modality == "depth" else self.source.picture(modality, values)

    def masked_picture(self, modality: str, values: Tensor, hidden: Tensor) -> Picture:
        """The same, where hidden pixels of the view are blue, which no depth is."""
        return _grey(values, hidden) if modality == "depth" else self.source.masked_picture(modality, values, hidden)

    def file(self, modality: str, values: Tensor) -> tuple[str, bytes]:
        """Depth from 0 to 1 as PNG of 16 bits, 65,535 for 1; points as the source writes them."""
        if modality != "depth":
            return self.source.file(modality, values)
        from PIL import Image

        content = io.BytesIO()
        code = (values[0].float().clamp(0, 1) * 65535).round().cpu().numpy().astype("uint16")
        Image.fromarray(code).save(content, "png")
        return ".png", content.getvalue()

    def animation(self, modality: str, values: Tensor) -> Picture | None:
        """The source's."""
        return None if modality == "depth" else self.source.animation(modality, values)

    def page(self, modality: str, rows: Mapping[str, Tensor], names: Sequence[str] = ()) -> str | None:
        """The source's."""
        return None if modality == "depth" else self.source.page(modality, rows, names)

    def controls(self) -> Mapping[str, Callable[[Sample], Sample]]:
        """None: the source's would change the points and not the view."""
        return {}

    def plan(self) -> dict[str, str]:
        """The source's, and how it is seen."""
        config, (_, height, width) = self.config, self.shapes["depth"]
        side = 2 * self.splat + 1
        way = f"any angle about {self.up}" if config.turn else f"{config.angle:g} degrees about {self.up}"
        view = f"{height} x {width}, {way}, from {config.elevation:g} degrees above, {side} x {side} pixels a point"
        return {**self.source.plan(), "depth": view}


def turn(
    points: Float[Tensor, "B P 3"], angle: Float[Tensor, " B"], elevation: float, up: str
) -> Float[Tensor, "B P 3"]:
    """Points as a viewer sees them: to the right, upwards, and towards the viewer; float32.

    Args:
        points: x, y, z.
        angle: About the upright axis, in radians; a viewer walks around the shape by it.
        elevation: By which the viewer looks down, in radians.
        up: The upright axis.
    """
    axis = AXES.index(up)
    # such that (right, up, towards) is right-handed, as (x, y, z) is
    toward, high, right = (points[..., (axis + step) % 3].float() for step in (1, 0, 2))
    cos, sin = (value.float()[:, None] for value in (angle.cos(), angle.sin()))
    right, toward = cos * right - sin * toward, sin * right + cos * toward
    low, tall = math.sin(elevation), math.cos(elevation)
    return torch.stack([right, tall * high - low * toward, low * high + tall * toward], dim=-1)


def render(
    points: Float[Tensor, "B P 3"], size: tuple[int, int], extent: float = 1.0, splat: int = 0
) -> Float[Tensor, "B 1 H W"]:
    """Depth of an orthographic view, by a z-buffer: every point covers a square of pixels, and the nearest wins.

    Args:
        points: To the right, upwards, and towards the viewer.
        size: Height and width.
        extent: The view shows -extent to extent each way; points outside are not drawn.
        splat: Pixels that a point covers each way beyond its own.

    Returns:
        float32: 1 at ``extent`` and nearer, falling evenly to 0.1 at ``-extent`` and farther; 0 where there is
        nothing.
    """
    height, width = size
    x, y, z = (points / extent).float().unbind(dim=-1)
    column = ((x + 1) / 2 * width).floor()
    row = ((1 - y) / 2 * height).floor()
    near = FARTHEST + (1 - FARTHEST) * ((z + 1) / 2).clamp(0, 1)
    shift = torch.arange(-splat, splat + 1, device=points.device, dtype=torch.float32)
    rows = (row[..., None, None] + shift[:, None]).expand(*row.shape, len(shift), len(shift))
    columns = (column[..., None, None] + shift).expand_as(rows)
    drawn = (
        (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width) & points.isfinite().all(-1)[..., None, None]
    )
    pixel = (rows * width + columns).where(drawn, height * width).long().flatten(1)  # one more, for what is outside
    values = near[..., None, None].expand_as(rows).flatten(1).nan_to_num()
    canvas = torch.zeros(len(points), height * width + 1, device=points.device)
    canvas = canvas.scatter_reduce(1, pixel, values, "amax")
    return canvas[:, :-1].reshape(len(points), 1, height, width)


def _grey(values: Tensor, hidden: Tensor | None = None) -> Picture:
    from PIL import Image

    grey = (values[0].float().clamp(0, 1) * 255).round().to(torch.uint8).cpu()
    pixels = grey[..., None].repeat(1, 1, 3)
    if hidden is not None:
        pixels[hidden[0].cpu()] = torch.tensor(HIDDEN, dtype=torch.uint8)
    image = Image.fromarray(pixels.numpy())
    factor = max(1, -(-112 // image.width))
    content = io.BytesIO()
    image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST).save(content, "png")
    return Picture("image/png", content.getvalue())
