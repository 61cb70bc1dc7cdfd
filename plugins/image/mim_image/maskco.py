"""MaskCo's region head and its contrast: the place that is hidden in one view, found again in another."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from mim_core import (
    BatchNorm,
    ContrastTarget,
    Decoder,
    Encoded,
    Encoder,
    Keys,
    Layout,
    Lesson,
    Mask,
    Patches,
    Sample,
    Tokenizer,
    View,
    carried,
    gather,
)
from timm.models.resnet import Bottleneck
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import roi_align

from mim_image.resnet import shared_statistics

VIEWS = (View("target"), View("place"))


@dataclass(frozen=True)
class Regions:
    """Where a batch is looked at.

    Attributes:
        hidden: [B, 1, 2, 2], the rectangle that is hidden in the view, as shares of it: (top, left), (bottom, right).
        found: [B, 1, 2, 2], the same place in the target view.
        inside: bool [B], whether the target view shows all of it.
        others: [B, n, 2, 2], other regions of the target view: a grid of boxes as large as the hidden one is in its
            own view.
        apart: bool [B, n], which of these do not overlap the place that is found.
    """

    hidden: Float[Tensor, "B 1 2 2"]
    found: Float[Tensor, "B 1 2 2"]
    inside: Bool[Tensor, " B"]
    others: Float[Tensor, "B n 2 2"]
    apart: Bool[Tensor, "B n"]

    @staticmethod
    def of(sample: Sample, mask: Mask, layout: Layout, grid: int) -> Regions:
        """Those of a batch of images with their places, and of its masks; ``grid`` other regions along each axis."""
        hidden = box_of(mask, layout)
        corners = carried(hidden, sample["image.place"], sample["image_target.place"])
        inside = ((corners > -1e-4) & (corners < 1 + 1e-4)).flatten(1).all(dim=1)
        steps = torch.linspace(0, 1, grid, device=hidden.device) if grid > 1 else hidden.new_full((1,), 0.5)
        starts = torch.stack(torch.meshgrid(steps, steps, indexing="ij"), dim=-1).reshape(1, -1, 2)
        size = hidden[:, :, 1] - hidden[:, :, 0]
        first = starts * (1 - size)
        others = torch.stack([first, first + size], dim=2)
        meets = (others[:, :, 0] < corners[:, :, 1] - 1e-6) & (corners[:, :, 0] < others[:, :, 1] - 1e-6)
        return Regions(hidden, corners, inside, others, ~meets.all(dim=2))


def box_of(mask: Mask, layout: Layout) -> Float[Tensor, "B 1 2 2"]:
    """The smallest rectangle around the hidden units, as shares of the view."""
    size = torch.tensor(layout.grid, device=mask.hidden.device)
    where = layout.coordinates(mask.hidden.device)[None]
    hidden = mask.hidden[:, :, None]
    first = where.masked_fill(~hidden, math.inf).amin(dim=1)
    last = where.masked_fill(~hidden, -math.inf).amax(dim=1) + 1
    return torch.stack([first / size, last / size], dim=1)[:, None]


def cut(tokens: Float[Tensor, "B N D"], layout: Layout, boxes: Tensor, side: int) -> Float[Tensor, "k D side side"]:
    """Features at boxes [B, n, 2, 2], each on a small grid (Mask R-CNN, arXiv 1703.06870, section 3 "RoIAlign")."""
    height, width = layout.grid or (0, 0)
    maps = tokens.float().transpose(1, 2).unflatten(2, (height, width))
    scale = boxes.new_tensor([width, height, width, height])
    corners = boxes.flip(-1).flatten(2) * scale  # (left, top, right, bottom), in units
    rows = torch.arange(len(tokens), device=tokens.device).repeat_interleave(boxes.shape[1])
    rois = torch.cat([rows[:, None].to(corners), corners.flatten(0, 1)], dim=1)
    features: Tensor = roi_align(maps, rois, side, sampling_ratio=2, aligned=True)
    return features


class RegionProjector(nn.Module):
    """Features of a region to its answer, with regard to what lies where in it: a convolution as large as the
    region's grid, ReLU, linear. A teacher's copy answers at the place that is found, then at the other regions."""

    needs_mask = True

    def __init__(self, width: int, hidden: int, size: int, side: int, grid: int) -> None:
        super().__init__()
        self.side, self.grid = side, grid
        self.conv, self.fc = nn.Conv2d(width, hidden, side), nn.Linear(hidden, size)

    def forward(self, tokens: Tensor, layout: Layout, boxes: Tensor) -> Float[Tensor, "B n size"]:
        """One answer for each box [B, n, 2, 2]."""
        x = self.conv(cut(tokens, layout, boxes, self.side)).flatten(1)
        return self.fc(F.relu(x)).unflatten(0, boxes.shape[:2])

    def teach(self, encoded: Encoded, layout: Layout, sample: Sample, mask: Mask) -> Float[Tensor, "S n size"]:
        """What a teacher's copy says of the target view."""
        regions = Regions.of(sample, mask, layout, self.grid)
        return self(encoded.tokens, layout, torch.cat([regions.found, regions.others], dim=1))


class RegionDecoder(Decoder):
    """An answer for the region that is hidden (MaskCo, arXiv 2108.07954, section 3.3): a mask prediction head fills it
    in from what lies around it, its features are cut out, and a projector follows."""

    asks = "region"

    @dataclass(frozen=True)
    class Config:
        """Options of the region decoder."""

        depth: int = 2
        """Bottleneck blocks of the mask prediction head; 0 leaves it out."""
        bottleneck: int = 512
        """Their inner width."""
        side: int = 3
        """A region is cut out on a grid of side x side."""
        hidden: int = 2048
        """Hidden width of the projector."""
        grid: int = 3
        """Other regions of the target view along each axis, which a teacher answers too."""

    def __init__(self, config: Config, encoder: Encoder, layout: Layout, size: int) -> None:
        super().__init__()
        if min(config.bottleneck, config.side, config.hidden, config.grid) < 1 or config.depth < 0:
            raise ValueError("bottleneck, side, hidden and grid must be 1 or more, and depth not negative")
        if layout.grid is None or len(layout.grid) != 2 or encoder.sees != "all":
            raise ValueError("regions need an encoder that sees all units, on a grid of two axes")
        self.config = config
        blocks = [Bottleneck(encoder.width, config.bottleneck) for _ in range(config.depth)]
        for block in blocks:  # back to the encoder's width, whatever the bottleneck is
            block.conv3 = nn.Conv2d(config.bottleneck, encoder.width, 1, bias=False)
            block.bn3 = BatchNorm(encoder.width)
            nn.init.zeros_(block.bn3.weight)
        self.fill = nn.Sequential(*blocks)
        shared_statistics(self.fill)
        self.projector = RegionProjector(encoder.width, config.hidden, size, config.side, config.grid)

    def forward(self, encoded: Encoded, layout: Layout, mask: Mask) -> Float[Tensor, "R 1 size"]:
        """One answer for each row."""
        x = self.fill(encoded.tokens.transpose(1, 2).unflatten(2, layout.grid or ()))
        return self.projector(x.flatten(2).transpose(1, 2), layout, box_of(mask, layout))

    def for_teacher(self) -> nn.Module:
        """The projector."""
        return self.projector


class RegionContrastTarget(ContrastTarget):
    """InfoNCE of regions (MaskCo, arXiv 2108.07954, section 3.4): the hidden one against the same place in the target
    view, among the regions of all other images, those that were kept, and those of its own that do not overlap it.
    Where the target view does not show all of the place, the image counts in no loss."""

    needs_views = VIEWS

    @dataclass(frozen=True)
    class Config(ContrastTarget.Config):
        """Options of the region contrast."""

        head: str = "regions"
        """The head whose copy the teacher has, this target's own."""
        size: int = 128
        """Width of the answers."""
        temperature: float = 0.2
        """Similarities are divided by it."""
        doubled: bool = False
        """Multiply the loss by twice the temperature."""

    def __init__(self, config: Any, tokenizer: Tokenizer) -> None:
        super().__init__(config, tokenizer)
        if set(tokenizer.shapes) != {"image"}:
            raise ValueError(f"regions are of images; this run has {', '.join(tokenizer.shapes)}")

    def make(self, sample: Sample, patches: Patches, mask: Mask, lesson: Lesson | None = None) -> Keys:
        """The teacher's answers for all regions of all samples. In training mode those of all ranks are gathered.

        Raises:
            ValueError: There are several masks of each sample.
        """
        assert lesson is not None, "a contrast target needs a teacher"
        if mask.per_sample != 1:
            raise ValueError("a region is found again for one mask of each sample alone")
        mine = F.normalize(lesson.answers[self.config.head].float(), dim=-1)
        number = mine.shape[1]
        regions = Regions.of(sample, mask, patches.layout, round((number - 1) ** 0.5))
        every, start = gather(mine) if self.training else (mine, 0)
        inside = gather(regions.inside.float())[0].bool() if self.training else regions.inside
        rows = torch.arange(len(mine), device=mine.device)
        among = torch.ones(len(mine), *every.shape[:2], dtype=torch.bool, device=mine.device)
        among[:, :, 0] = inside
        among[rows, rows + start, 0] = True
        among[rows, rows + start, 1:] = regions.apart
        keys = Keys(every.flatten(0, 1), (rows + start) * number, among.flatten(1), regions.inside[:, None])
        return self.with_past(keys, every[:, 0])
